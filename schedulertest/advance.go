package schedulertest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/relay-club/scheduler"
)

// Advance makes it d later, to the microsecond, for all that is in the
// Scheduler's schema, so that what is to be done in an hour can be tested now:
// run_at and backoffs, snoozes, the windows of rates, of UniqueFor and of
// Idempotency-Keys. The clock stays; every time that is stored is put back by d
// in one transaction, that of finished jobs too, and their order is kept. So a
// job's CreatedAt is an hour ago afterwards, as it would be.
//
// Ids, which begin with the time they were made at, stay, and so do leases: a
// process is not lost because a test moves the clock. Job.Slot stays too. The
// handlers that run now
// and their timeouts take no notice. What is not committed is not moved. A d
// below zero fails the test.
func Advance(tb testing.TB, s *scheduler.Scheduler, d time.Duration) {
	tb.Helper()
	if d < 0 {
		tb.Fatalf("schedulertest: advance by %s: expected a time not below zero", d)
	}
	err := pgx.BeginFunc(tb.Context(), inside(s).Pool(), func(tx pgx.Tx) error {
		return putBack(tb.Context(), tx, inside(s).Schema(), d)
	})
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "55P03":
		tb.Fatalf("schedulertest: advance: %v: jobs are locked by a transaction that is still open: expected it to end first", err)
	case err != nil:
		tb.Fatalf("schedulertest: advance: %v", err)
	}
	inside(s).Moved()
}

// timesSQL finds every column that has a time, so that none is forgotten.
const timesSQL = `
SELECT c.relname::text, array_agg(a.attname::text ORDER BY a.attnum)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type y ON y.oid = a.atttypid
WHERE c.relnamespace = to_regnamespace($1::text) AND c.relkind = 'r' AND c.relname NOT IN ('leases', 'schema_migrations')
    AND 'timestamptz'::regtype IN (y.oid, y.typbasetype)
GROUP BY c.relname ORDER BY c.relname`

// locksSQL lock rows in the order in which all others lock them, lest two wait
// for each other.
var locksSQL = []string{
	"SELECT FROM %s.unique_keys ORDER BY name, key FOR NO KEY UPDATE",
	"SELECT FROM %s.jobs ORDER BY id FOR NO KEY UPDATE",
	"SELECT FROM %s.job_progress ORDER BY job_id FOR NO KEY UPDATE",
}

// errorsSQL is for the times in a job's errors.
const errorsSQL = `errors = (
    SELECT jsonb_agg(jsonb_set(e.value, '{at}', to_jsonb((e.value ->> 'at')::timestamptz - $1::bigint * interval '1 microsecond')) ORDER BY e.place)
    FROM jsonb_array_elements(errors) WITH ORDINALITY AS e (value, place))`

func putBack(ctx context.Context, tx pgx.Tx, schema string, d time.Duration) error {
	// Rather than to wait for ever for a transaction of the test itself.
	if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '5s'"); err != nil {
		return err
	}
	for _, lock := range locksSQL {
		if _, err := tx.Exec(ctx, fmt.Sprintf(lock, pgx.Identifier{schema}.Sanitize())); err != nil {
			return err
		}
	}
	rows, err := tx.Query(ctx, timesSQL, pgx.Identifier{schema}.Sanitize())
	if err != nil {
		return err
	}
	var updates []string
	var table string
	var columns []string
	_, err = pgx.ForEachRow(rows, []any{&table, &columns}, func() error {
		moved := make([]string, len(columns))
		for i, column := range columns {
			name := pgx.Identifier{column}.Sanitize()
			moved[i] = fmt.Sprintf("%s = %s - $1::bigint * interval '1 microsecond'", name, name)
		}
		if table == "jobs" {
			moved = append(moved, errorsSQL)
		}
		updates = append(updates, "UPDATE "+pgx.Identifier{schema, table}.Sanitize()+" SET "+strings.Join(moved, ", "))
		return nil
	})
	if err != nil {
		return err
	}
	for _, update := range updates {
		if _, err := tx.Exec(ctx, update, d.Microseconds()); err != nil {
			return err
		}
	}
	return nil
}
