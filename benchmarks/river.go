package main

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	riverqueue "github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

// riverEngine is River with the settings of its own bench command.
type riverEngine struct{ client *riverqueue.Client[pgx.Tx] }

func (numbered) Kind() string { return jobName }

type riverWorker struct {
	riverqueue.WorkerDefaults[numbered]
	handle func(n int)
}

func (w *riverWorker) Work(_ context.Context, job *riverqueue.Job[numbered]) error {
	w.handle(job.Args.N)
	return nil
}

func openRiver(ctx context.Context, pool *pgxpool.Pool, handle func(n int)) (engine, error) {
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: logger})
	if err != nil {
		return nil, err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return nil, err
	}
	workers := riverqueue.NewWorkers()
	riverqueue.AddWorker(workers, &riverWorker{handle: handle})
	client, err := riverqueue.NewClient(driver, &riverqueue.Config{
		FetchCooldown:     2 * time.Millisecond,
		FetchPollInterval: 20 * time.Millisecond,
		Queues:            map[string]riverqueue.QueueConfig{riverqueue.QueueDefault: {MaxWorkers: 2_000}},
		Workers:           workers,
		Logger:            logger,
	})
	return &riverEngine{client}, err
}

func (r *riverEngine) create(ctx context.Context, n int) error {
	_, err := r.client.Insert(ctx, numbered{n}, nil)
	return err
}

// creator is an insert-only client as people make it, with River's defaults: the
// settings of the bench command are those of a client that works.
func (*riverEngine) creator(pool *pgxpool.Pool) (func(ctx context.Context, n int) error, error) {
	client, err := riverqueue.NewClient(riverpgxv5.New(pool), &riverqueue.Config{Logger: logger})
	return (&riverEngine{client}).create, err
}

// createBatch uses the faster of River's two ways, by COPY.
func (r *riverEngine) createBatch(ctx context.Context, from, count int) error {
	jobs := make([]riverqueue.InsertManyParams, count)
	for i := range jobs {
		jobs[i].Args = numbered{from + i}
	}
	_, err := r.client.InsertManyFast(ctx, jobs)
	return err
}

func (r *riverEngine) work(ctx context.Context) (stop func() error, err error) {
	if err := r.client.Start(ctx); err != nil {
		return nil, err
	}
	return func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		return errors.Join(r.client.Stop(ctx), ctx.Err())
	}, nil
}

func (*riverEngine) finished(ctx context.Context, watch *pgxpool.Pool) (n int, err error) {
	err = watch.QueryRow(ctx, `SELECT count(*) FROM river_job WHERE state = 'completed'`).Scan(&n)
	return n, err
}
