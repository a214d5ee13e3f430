package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/relay-club/scheduler/internal/postgres"
)

// databaseName is the jobs' database, whose owner the services log in as. That
// is no superuser.
const (
	databaseName = "jobs"
	role         = "service"
)

// database is a real Postgres. All but its write-ahead log is kept on a file
// system of its own, where the machine lets us make one: that can get full.
type database struct {
	cluster *postgres.Cluster
	admin   *pgxpool.Pool // as the superuser, past the proxy
	disk    string        // where that file system is; "": there is none
}

// startDatabase starts it. What is killed is never the machine, so nothing has
// to be flushed to a disk; a crashed server recovers from its files all the same.
// Autovacuum comes more often than by default, as it is restarted more often than
// that would have it come at all.
func startDatabase(ctx context.Context) (_ *database, err error) {
	d := &database{}
	d.cluster, err = postgres.Start(ctx, postgres.Options{
		Parent: postgres.InMemory(),
		Settings: map[string]string{
			"fsync": "off", "full_page_writes": "off", "shared_buffers": "256MB", "max_wal_size": "512MB", "autovacuum_naptime": "5s",
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = d.stop()
		}
	}()
	url := d.cluster.URL("postgres")
	statements := []string{"CREATE ROLE " + role + " LOGIN", "CREATE DATABASE " + databaseName + " OWNER " + role}
	if err := d.mount(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "the database's disk will not get full:", err)
	} else {
		statements = []string{statements[0], fmt.Sprintf("CREATE TABLESPACE small LOCATION '%s'", d.disk), statements[1] + " TABLESPACE small"}
	}
	first, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, err
	}
	defer first.Close()
	for _, statement := range statements {
		if _, err := first.Exec(ctx, statement); err != nil {
			return nil, fmt.Errorf("%s: %w", statement, err)
		}
	}
	if d.admin, err = newPool(d.cluster.URL(databaseName), "chaos"); err != nil {
		return nil, err
	}
	_, err = d.admin.Exec(ctx, effectsSQL)
	return d, err
}

// effectsSQL makes the table in which handlers that complete their jobs
// themselves leave what they did.
const effectsSQL = `CREATE TABLE effects (job uuid NOT NULL); GRANT INSERT ON effects TO ` + role

// serviceURL is the connection string of services, by way of a proxy.
func (d *database) serviceURL(address string) string {
	return fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", role, address, databaseName)
}

// address is where the server listens.
func (d *database) address() string {
	_, rest, _ := strings.Cut(d.cluster.URL(databaseName), "@")
	address, _, _ := strings.Cut(rest, "/")
	return address
}

// mount makes the file system, which belongs to the server.
func (d *database) mount(ctx context.Context) error {
	owner, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	directory, err := os.MkdirTemp("", "chaos-disk-")
	if err != nil {
		return err
	}
	options := fmt.Sprintf("size=%s,mode=0700,uid=%s,gid=%s", diskSize, owner.Uid, owner.Gid)
	if out, err := exec.CommandContext(ctx, "mount", "-t", "tmpfs", "-o", options, "chaos", directory).CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("mount: %w: %s", err, out), os.Remove(directory))
	}
	d.disk = directory
	return nil
}

const diskSize = "4g"

// resize gives the disk as much space as it needs, or none beyond what is used.
func (d *database) resize(ctx context.Context, full bool) error {
	size := diskSize
	if full {
		var used int64
		err := filepath.WalkDir(d.disk, func(_ string, entry os.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // a file that is gone meanwhile
			}
			if info, err := entry.Info(); err == nil {
				used += (info.Size() + 4095) / 4096 * 4096
			}
			return nil
		})
		if err != nil {
			return err
		}
		size = strconv.FormatInt(used, 10)
	}
	out, err := exec.CommandContext(ctx, "mount", "-o", "remount,size="+size, d.disk).CombinedOutput()
	if err != nil {
		return fmt.Errorf("remount: %w: %s", err, out)
	}
	return nil
}

func (d *database) stop() error {
	if d.admin != nil {
		d.admin.Close()
	}
	err := d.cluster.Stop()
	if d.disk != "" {
		if out, unmountErr := exec.Command("umount", d.disk).CombinedOutput(); unmountErr != nil {
			return errors.Join(err, fmt.Errorf("umount: %w: %s", unmountErr, out))
		}
		err = errors.Join(err, os.Remove(d.disk))
	}
	return err
}

// exec tries a statement until it works or ctx ends: the server may be away.
func (d *database) exec(ctx context.Context, statement string, args ...any) error {
	for {
		_, err := d.admin.Exec(ctx, statement, args...)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
}

// query is likewise for one value.
func query[T any](ctx context.Context, d *database, statement string, args ...any) (value T, err error) {
	for {
		err = d.admin.QueryRow(ctx, statement, args...).Scan(&value)
		if err == nil {
			return value, nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return value, fmt.Errorf("%s: %w", statement, err)
		}
	}
}

// deletedSQL has each job that is deleted leave what it was, in the transaction
// that deletes it: finished ones are not kept for long.
const deletedSQL = `
CREATE TABLE deleted (id uuid NOT NULL, status text NOT NULL, kind text);
CREATE FUNCTION note_deleted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO public.deleted SELECT id, status, payload ->> 'kind' FROM gone;
    RETURN NULL;
END
$$;
CREATE TRIGGER note_deleted AFTER DELETE ON scheduler.jobs REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION note_deleted();`
