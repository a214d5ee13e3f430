package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/relay-club/scheduler/internal/postgres"
)

// settings are the server's, beside the defaults, which are the durable ones
// (fsync and synchronous_commit are on). Checkpoints are kept away from the
// short measurements; pg_stat_statements counts only where it is asked to.
var settings = map[string]string{
	"shared_buffers":           "1GB",
	"max_wal_size":             "8GB",
	"checkpoint_timeout":       "30min",
	"shared_preload_libraries": "pg_stat_statements",
	"pg_stat_statements.track": "none",
}

// server is the cluster that all systems use one after another.
type server struct {
	cluster *postgres.Cluster
	admin   *pgxpool.Pool // in a database of its own, so that it disturbs no count
	made    int
}

// startServer starts it with its files in a directory; "": the usual one for
// temporary files.
func startServer(ctx context.Context, directory string) (*server, error) {
	cluster, err := postgres.Start(ctx, postgres.Options{Settings: settings, Parent: directory})
	if err != nil {
		return nil, err
	}
	admin, err := pgxpool.New(ctx, cluster.URL("postgres"))
	if err == nil {
		_, err = admin.Exec(ctx, `CREATE EXTENSION pg_stat_statements`)
	}
	if err != nil {
		_ = cluster.Stop()
		return nil, err
	}
	return &server{cluster: cluster, admin: admin}, nil
}

func (s *server) stop() error {
	s.admin.Close()
	return s.cluster.Stop()
}

// database is a fresh one for one measurement.
type database struct {
	server *server
	name   string
	pool   *pgxpool.Pool // the system's
	watch  *pgxpool.Pool // the benchmark's own

	countStatements bool
}

// watcher is the application_name of the benchmark's own connections.
const watcher = "watch"

// newDatabase begins with a checkpoint, so that none of what was measured
// before is still to be written. countStatements switches pg_stat_statements on.
func (s *server) newDatabase(ctx context.Context, countStatements bool) (_ *database, err error) {
	s.made++
	d := &database{server: s, name: fmt.Sprintf("bench_%d", s.made)}
	if _, err := s.admin.Exec(ctx, "CREATE DATABASE "+d.name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.drop()
		}
	}()
	if d.watch, err = pgxpool.New(ctx, s.cluster.URL(d.name)+"&application_name="+watcher); err != nil {
		return nil, err
	}
	d.countStatements = countStatements
	if d.pool, err = d.newPool(ctx); err != nil {
		return nil, err
	}
	_, err = s.admin.Exec(ctx, "CHECKPOINT")
	return d, err
}

func (d *database) newPool(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(d.server.cluster.URL(d.name))
	if err != nil {
		return nil, err
	}
	config.MaxConns = poolSize
	if d.countStatements {
		config.ConnConfig.RuntimeParams["pg_stat_statements.track"] = "top"
	}
	return pgxpool.NewWithConfig(ctx, config)
}

// drop is the end of a measurement. That it fails is no reason to fail.
func (d *database) drop() {
	for _, pool := range []*pgxpool.Pool{d.pool, d.watch} {
		if pool != nil {
			pool.Close()
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := d.server.admin.Exec(ctx, "DROP DATABASE "+d.name+" WITH (FORCE)"); err != nil {
		logger.Warn("can't drop a database", "error", err)
	}
}

func execAll(ctx context.Context, pool *pgxpool.Pool, text string) error {
	_, err := pool.Exec(ctx, text, pgx.QueryExecModeSimpleProtocol)
	return err
}

func scalar[T any](ctx context.Context, pool *pgxpool.Pool, query string, args ...any) (value T, err error) {
	err = pool.QueryRow(ctx, query, args...).Scan(&value)
	return value, err
}
