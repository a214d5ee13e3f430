package scheduler_test

import (
	"context"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/relay-club/scheduler"
)

// childScheduler is the scheduler of a child process: on DATABASE_URL, in the
// schema SCHEMA, which the parent has migrated.
func childScheduler(config scheduler.Config) *scheduler.Scheduler {
	pool, err := pgxpool.New(context.Background(), os.Getenv("DATABASE_URL"))
	exitOn(err)
	config.Schema = os.Getenv("SCHEMA")
	s, err := scheduler.New(pool, config)
	exitOn(err)
	return s
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// childPool is a pool of the child's own; childSchema the schema of the jobs.
func childPool() *pgxpool.Pool {
	pool, err := pgxpool.New(context.Background(), os.Getenv("DATABASE_URL"))
	exitOn(err)
	return pool
}

func childSchema() string { return os.Getenv("SCHEMA") }
