package main

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// idleWorkerSQL is what create_queue_worker stores, without the entry in
// cron.job, for which pg_cron would have to be there.
const idleWorkerSQL = `
INSERT INTO scheduler.queue_workers (name, endpoint, queue, status, http_extension, timeout_seconds)
VALUES ('worker-default-1', 'http://127.0.0.1:9/api/jobs/run', 'default', 'pending', 'http', 10)
ON CONFLICT DO NOTHING`

// tickSQL is the command that pg_cron runs.
const tickSQL = `SELECT scheduler.run_worker('worker-default-1')`

// nothingDue is what run_worker returns when it has made no request.
const nothingDue = "nothing due"

// measureTick: what a worker costs the database when nothing is due, in the
// large table. pg_cron may run it in a new session every time, which has
// everything to look up, or in the same one. A worker that is idle finds a table
// that was vacuumed since it was drained; right after the drain, a tick passes
// the entries of what was finished.
func (b *bench) measureTick(ctx context.Context, _ system) (values, error) {
	db, err := b.largeDatabase(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := db.watch.Exec(ctx, idleWorkerSQL); err != nil {
		return nil, err
	}
	drained, err := b.ticksOfOneSession(ctx, db)
	if err != nil {
		return nil, err
	}
	if err := b.vacuum(ctx, db); err != nil {
		return nil, err
	}
	var fresh []time.Duration
	for range b.ticks {
		conn, err := pgx.Connect(ctx, b.server.cluster.URL(db.name))
		if err != nil {
			return nil, err
		}
		took, err := ticks(ctx, conn, 1)
		if err = closed(ctx, conn, err); err != nil {
			return nil, err
		}
		fresh = append(fresh, took...)
	}
	warm, err := b.ticksOfOneSession(ctx, db)
	if err != nil {
		return nil, err
	}
	scans, err := b.scansOfTick(ctx, db)
	if err != nil {
		return nil, err
	}
	slices.Sort(fresh)
	return values{
		rowTickNew:     milliseconds(percentile(fresh, 50)),
		rowTickWarm:    milliseconds(percentile(warm, 50)),
		rowTickDrained: milliseconds(percentile(drained, 50)),
		rowTickScans:   float64(len(scans)),
		rowTickCalls:   0, // any other answer than nothingDue was an error
	}, nil
}

// ticksOfOneSession are sorted.
func (b *bench) ticksOfOneSession(ctx context.Context, db *database) ([]time.Duration, error) {
	conn, err := pgx.Connect(ctx, b.server.cluster.URL(db.name))
	if err != nil {
		return nil, err
	}
	took, err := ticks(ctx, conn, b.ticks)
	slices.Sort(took)
	return took, closed(ctx, conn, err)
}

func closed(ctx context.Context, conn *pgx.Conn, err error) error {
	if closeErr := conn.Close(ctx); err == nil {
		err = closeErr
	}
	return err
}

// ticks uses the simple protocol, as pg_cron does: one round trip.
func ticks(ctx context.Context, conn *pgx.Conn, n int) (took []time.Duration, err error) {
	for range n {
		var outcome string
		began := time.Now()
		if err := conn.QueryRow(ctx, tickSQL, pgx.QueryExecModeSimpleProtocol).Scan(&outcome); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
		if outcome != nothingDue {
			return nil, fmt.Errorf("the worker did not find its queue idle: %s", outcome)
		}
	}
	return took, nil
}

// auto_explain sends the plans of a function's statements to the client.
const explainSQL = `
LOAD 'auto_explain';
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_nested_statements = on;
SET client_min_messages = log`

var jobsScanPattern = regexp.MustCompile(`(\w[\w ]* Scan)(?: using \w+)? on (?:\w+\.)?jobs\b`)

// scansOfTick returns the scans of the table of jobs that are not index-only.
func (b *bench) scansOfTick(ctx context.Context, db *database) ([]string, error) {
	config, err := pgx.ParseConfig(b.server.cluster.URL(db.name))
	if err != nil {
		return nil, err
	}
	var plans strings.Builder
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { plans.WriteString(n.Message + "\n") }
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	_, err = conn.Exec(ctx, explainSQL, pgx.QueryExecModeSimpleProtocol)
	if err == nil {
		// run_worker keeps messages of this level away, so its only query of the
		// jobs is asked here.
		_, err = conn.Exec(ctx, `SELECT scheduler.next_due('default', 'pending')`)
	}
	if err = closed(ctx, conn, err); err != nil {
		return nil, err
	}
	found := jobsScanPattern.FindAllStringSubmatch(plans.String(), -1)
	if len(found) == 0 {
		return nil, fmt.Errorf("no plan shows a scan of the jobs:\n%s", plans.String())
	}
	var others []string
	for _, scan := range found {
		if scan[1] != "Index Only Scan" {
			logger.Warn("a tick reads the jobs", "scan", scan[0])
			others = append(others, scan[0])
		}
	}
	return others, nil
}
