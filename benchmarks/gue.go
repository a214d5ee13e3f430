package main

import (
	"context"
	"encoding/json"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	guequeue "github.com/vgarvardt/gue/v5"
	"github.com/vgarvardt/gue/v5/adapter/pgxv5"
)

// gueEngine is gue with a worker for most of the pool's connections, because
// each holds one while its job runs, and with River's poll interval in place of
// five seconds.
type gueEngine struct {
	client  *guequeue.Client
	handle  func(n int)
	created atomic.Int64
}

const gueWorkers = poolSize - 4

// gueSchemaSQL is the table and index of migrations/schema.sql in gue's module.
const gueSchemaSQL = `
CREATE TABLE gue_jobs (
    job_id      text        NOT NULL PRIMARY KEY,
    priority    smallint    NOT NULL,
    run_at      timestamptz NOT NULL,
    job_type    text        NOT NULL,
    args        bytea       NOT NULL,
    error_count integer     NOT NULL DEFAULT 0,
    last_error  text,
    queue       text        NOT NULL,
    created_at  timestamptz NOT NULL,
    updated_at  timestamptz NOT NULL
);
CREATE INDEX idx_gue_jobs_selector ON gue_jobs (queue, run_at, priority)`

func openGue(ctx context.Context, pool *pgxpool.Pool, handle func(n int)) (engine, error) {
	if err := execAll(ctx, pool, gueSchemaSQL); err != nil {
		return nil, err
	}
	client, err := guequeue.NewClient(pgxv5.NewConnPool(pool))
	return &gueEngine{client: client, handle: handle}, err
}

func (g *gueEngine) create(ctx context.Context, n int) error {
	job, err := gueJob(n)
	if err != nil {
		return err
	}
	g.created.Add(1)
	return g.client.Enqueue(ctx, job)
}

func (g *gueEngine) creator(pool *pgxpool.Pool) (func(ctx context.Context, n int) error, error) {
	client, err := guequeue.NewClient(pgxv5.NewConnPool(pool))
	return (&gueEngine{client: client}).create, err
}

func (g *gueEngine) createBatch(ctx context.Context, from, count int) error {
	jobs := make([]*guequeue.Job, count)
	for i := range jobs {
		var err error
		if jobs[i], err = gueJob(from + i); err != nil {
			return err
		}
	}
	g.created.Add(int64(count))
	return g.client.EnqueueBatch(ctx, jobs)
}

func gueJob(n int) (*guequeue.Job, error) {
	args, err := json.Marshal(numbered{n})
	return &guequeue.Job{Type: jobName, Args: args}, err
}

func (g *gueEngine) work(ctx context.Context) (stop func() error, err error) {
	handlers := guequeue.WorkMap{jobName: func(_ context.Context, job *guequeue.Job) error {
		var in numbered
		if err := json.Unmarshal(job.Args, &in); err != nil {
			return err
		}
		g.handle(in.N)
		return nil
	}}
	workers, err := guequeue.NewWorkerPool(g.client, handlers, gueWorkers,
		guequeue.WithPoolPollInterval(20*time.Millisecond), guequeue.WithPoolPollStrategy(guequeue.RunAtPollStrategy))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- workers.Run(ctx) }()
	return func() error {
		cancel()
		return <-ended
	}, nil
}

// finished: gue deletes what is done.
func (g *gueEngine) finished(ctx context.Context, watch *pgxpool.Pool) (n int, err error) {
	var left int
	err = watch.QueryRow(ctx, `SELECT count(*) FROM gue_jobs`).Scan(&left)
	return int(g.created.Load()) - left, err
}
