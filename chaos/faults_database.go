package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// databaseFaults are those of the server.
func (c *chaos) databaseFaults() []fault {
	faults := []fault{
		{"Postgres restarted (fast)", func(ctx context.Context, c *chaos) error { return c.db.cluster.Restart(ctx) }},
		{"Postgres crashed (immediate)", crash},
		{"all connections cut (pg_terminate_backend)", cutConnections},
		{"all statements cancelled (pg_cancel_backend)", cancelStatements},
	}
	if c.db.disk != "" {
		faults = append(faults, fault{"disk full", diskFull})
	}
	return faults
}

// sessionFaults are those of sessions and of others' transactions.
func sessionFaults() []fault {
	return []fault{
		{"statement_timeout of 10 ms", setting("statement_timeout", "10ms")},
		{"lock_timeout of 1 ms, beside a transaction that locks jobs", lockTimeout},
		{"idle_in_transaction_session_timeout of 1 ms", setting("idle_in_transaction_session_timeout", "1ms")},
		{"serialization errors", setting("default_transaction_isolation", "serializable")},
		{"deadlocks with another transaction", deadlocks},
		{"jobs locked by another transaction", lockJobs},
		{"table of jobs locked", lockTable},
	}
}

func crash(ctx context.Context, c *chaos) error {
	if err := c.db.cluster.Crash(ctx); err != nil {
		return err
	}
	sleep(ctx, rand.N(2*time.Second))
	return c.db.cluster.Restart(ctx)
}

func cutConnections(ctx context.Context, c *chaos) error {
	return c.db.exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role)
}

func cancelStatements(ctx context.Context, c *chaos) error {
	return c.db.exec(ctx, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE usename = $1 AND state = 'active'", role)
}

// diskFull leaves the database no room: what needs a new page gets a 53100.
func diskFull(ctx context.Context, c *chaos) error {
	if err := c.db.resize(ctx, true); err != nil {
		return err
	}
	sleep(ctx, lasts())
	return c.db.resize(ctx, false)
}

// setting sets something for all sessions of the services.
func setting(name, value string) func(context.Context, *chaos) error {
	return func(ctx context.Context, c *chaos) error {
		if err := c.db.exec(ctx, fmt.Sprintf("ALTER ROLE %s SET %s = '%s'", role, name, value)); err != nil {
			return err
		}
		err := cutConnections(ctx, c)
		sleep(ctx, lasts())
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoing)
		defer cancel()
		return errors.Join(err, c.db.exec(undo, fmt.Sprintf("ALTER ROLE %s RESET %s", role, name)), cutConnections(undo, c))
	}
}

func lockTimeout(ctx context.Context, c *chaos) error {
	locked := make(chan error, 1)
	go func() { locked <- lockJobs(ctx, c) }()
	return errors.Join(setting("lock_timeout", "1ms")(ctx, c), <-locked)
}

// lockJobs holds locks on jobs that wait, and on some that run.
func lockJobs(ctx context.Context, c *chaos) error {
	return holdLocks(ctx, c, "SELECT FROM scheduler.jobs WHERE lane IS NOT NULL ORDER BY random() LIMIT 50 FOR UPDATE")
}

func lockTable(ctx context.Context, c *chaos) error {
	return holdLocks(ctx, c, "LOCK TABLE scheduler.jobs IN ACCESS EXCLUSIVE MODE")
}

// holdLocks tries until a transaction has taken locks, and keeps it open for a
// while, unless another fault ends it.
func holdLocks(ctx context.Context, c *chaos, statement string) error {
	for ctx.Err() == nil {
		tx, err := c.db.admin.Begin(ctx)
		if err == nil {
			_, err = tx.Exec(ctx, statement)
			if err == nil {
				sleep(ctx, lasts())
			}
			_ = tx.Rollback(ctx)
		}
		if err == nil {
			return nil
		}
		sleep(ctx, 100*time.Millisecond)
	}
	return ctx.Err()
}

const lockedSQL = `SELECT FROM scheduler.jobs WHERE id = (SELECT id FROM scheduler.jobs WHERE lane IS NOT NULL ORDER BY lease_id IS NULL, random() LIMIT 1) FOR UPDATE`

// deadlocks locks one job after another, in no order, until a transaction is
// ended by that. Whose that is is the server's choice.
func deadlocks(ctx context.Context, c *chaos) error {
	const countSQL = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
	before, err := query[int](ctx, c.db, countSQL)
	if err != nil {
		return err
	}
	for range 50 {
		if tx, err := c.db.admin.Begin(ctx); err == nil {
			for range 10 {
				if _, err := tx.Exec(ctx, lockedSQL); err != nil {
					break
				}
				sleep(ctx, 5*time.Millisecond)
			}
			_ = tx.Rollback(ctx)
		}
		if after, err := query[int](ctx, c.db, countSQL); err != nil || after > before {
			return err
		}
	}
	return errors.New("no deadlock came of it")
}
