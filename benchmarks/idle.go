package main

import (
	"context"
	"errors"
	"time"
)

// settled is how long a resident service gets for its first looks.
const settled = 5 * time.Second

// measureIdle: what a resident service without jobs asks of the database.
func (b *bench) measureIdle(ctx context.Context, _ system) (values, error) {
	db, err := b.server.newDatabase(ctx, true)
	if err != nil {
		return nil, err
	}
	defer db.drop()
	e, err := openOurs(ctx, db.pool, func(int) {})
	if err != nil {
		return nil, err
	}
	stop, err := e.work(ctx)
	if err != nil {
		return nil, err
	}
	queries, open, err := db.watchIdle(ctx, b.idleFor)
	if err := errors.Join(err, stop()); err != nil {
		return nil, err
	}
	return values{rowIdle: float64(queries) / b.idleFor.Seconds(), rowIdleOpen: float64(open)}, nil
}

const (
	callsSQL = `
SELECT coalesce(sum(s.calls), 0)::bigint FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = $1`
	// A query has a transaction for as long as it takes, which is not long.
	openSQL = `
SELECT count(*) FROM pg_stat_activity
WHERE datname = $1 AND backend_type = 'client backend' AND application_name <> $2 AND xact_start < clock_timestamp() - interval '100 ms'`
)

// watchIdle counts statements and, at its worst moment, open transactions.
func (d *database) watchIdle(ctx context.Context, during time.Duration) (queries int64, open int, err error) {
	time.Sleep(settled)
	before, err := scalar[int64](ctx, d.server.admin, callsSQL, d.name)
	if err != nil {
		return 0, 0, err
	}
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		now, err := scalar[int](ctx, d.server.admin, openSQL, d.name, watcher)
		if err != nil {
			return 0, 0, err
		}
		open = max(open, now)
	}
	after, err := scalar[int64](ctx, d.server.admin, callsSQL, d.name)
	return after - before, open, err
}
