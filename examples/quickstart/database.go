package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/relay-club/scheduler/internal/postgres"
)

// demoSchema keeps the demo apart from what else is in a database that is not
// its own.
const demoSchema = "scheduler_demo"

// cleanUpTime is for leaving a database as it was, also after an interrupt.
const cleanUpTime = 10 * time.Second

// database is where the demo's jobs are.
type database struct {
	pool   *pgxpool.Pool
	schema string
	about  string // for people
	double bool   // whether the extension http is only stood in for
	close  func() error
}

func openDatabase(ctx context.Context) (*database, error) {
	if url := os.Getenv("DATABASE_URL"); url != "" {
		return borrowDatabase(ctx, url)
	}
	return startDatabase(ctx)
}

// borrowDatabase uses a database that belongs to somebody else.
func borrowDatabase(ctx context.Context, url string) (*database, error) {
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	var version string
	var taken bool
	err = pool.QueryRow(ctx, "SELECT split_part(version(), ' ', 2), to_regnamespace($1::text) IS NOT NULL", demoSchema).Scan(&version, &taken)
	if err == nil && taken {
		err = fmt.Errorf("the schema %[1]s exists: if no other quickstart is running, remove it with DROP SCHEMA %[1]s CASCADE", demoSchema)
	}
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	return &database{
		pool:   pool,
		schema: demoSchema,
		about:  fmt.Sprintf("PostgreSQL %s of DATABASE_URL, in a schema %s that is dropped at the end", version, demoSchema),
		close: func() error {
			ctx, cancel := context.WithTimeout(context.Background(), cleanUpTime)
			defer cancel()
			defer pool.Close()
			_, err := pool.Exec(ctx, "DROP SCHEMA IF EXISTS "+demoSchema+" CASCADE")
			return err
		},
	}, nil
}

// startDatabase starts a Postgres of the demo's own, with what workers need as
// far as the machine has it.
func startDatabase(ctx context.Context) (_ *database, err error) {
	say("  Starting a throw-away PostgreSQL …")
	cron := postgres.HasCron()
	cluster, err := postgres.Start(ctx, postgres.Options{Cron: cron, Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, cluster.Stop())
		}
	}()
	pool, err := pgxpool.New(ctx, cluster.URL("postgres"))
	if err != nil {
		return nil, err
	}
	d := &database{pool: pool, schema: "scheduler", close: func() error {
		pool.Close()
		return cluster.Stop()
	}}
	var version string
	if err := pool.QueryRow(ctx, "SELECT split_part(version(), ' ', 2)").Scan(&version); err != nil {
		return nil, err
	}
	d.about = fmt.Sprintf("a throw-away PostgreSQL %s, gone at the end", version)
	if cron {
		if _, err := pool.Exec(ctx, "CREATE EXTENSION pg_cron"); err != nil {
			return nil, err
		}
		d.installHTTP(ctx)
	}
	return d, nil
}

// installHTTP does without where there is neither the extension nor what its
// stand-in needs: createWorkers says so then.
func (d *database) installHTTP(ctx context.Context) {
	_ = d.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		isReal, err := postgres.InstallHTTP(ctx, conn.Conn(), "extensions")
		d.double = err == nil && !isReal
		return err
	})
}

// sql fills the schema into a query.
func (d *database) sql(query string) string { return strings.ReplaceAll(query, "{{schema}}", d.schema) }
