package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// rawEngine is the practical limit: one connection claims and completes 1,000
// rows at a time in the narrowest table that keeps the same states. It has no
// payloads, leases, retries or fences.
type rawEngine struct {
	pool   *pgxpool.Pool
	handle func(n int)
}

// States: 0 pending, 1 running, 2 finished.
const rawSchemaSQL = `
CREATE TABLE raw_jobs (
    id    bigint   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state smallint NOT NULL DEFAULT 0
);
CREATE INDEX raw_jobs_pending ON raw_jobs (id) WHERE state = 0`

func openRaw(ctx context.Context, pool *pgxpool.Pool, handle func(n int)) (engine, error) {
	return &rawEngine{pool, handle}, execAll(ctx, pool, rawSchemaSQL)
}

func (r *rawEngine) create(ctx context.Context, _ int) error {
	_, err := r.pool.Exec(ctx, `INSERT INTO raw_jobs DEFAULT VALUES`)
	return err
}

func (r *rawEngine) creator(pool *pgxpool.Pool) (func(ctx context.Context, n int) error, error) {
	return (&rawEngine{pool: pool}).create, nil
}

func (r *rawEngine) createBatch(ctx context.Context, _, count int) error {
	_, err := r.pool.Exec(ctx, `INSERT INTO raw_jobs (state) SELECT 0 FROM generate_series(1, $1)`, count)
	return err
}

func (r *rawEngine) work(ctx context.Context) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.drain(ctx) }()
	return func() error {
		defer cancel()
		return <-ended
	}, nil
}

const (
	rawClaimSQL = `
UPDATE raw_jobs SET state = 1
WHERE id = ANY (ARRAY(SELECT id FROM raw_jobs WHERE state = 0 ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED))
RETURNING id`
	rawCompleteSQL = `UPDATE raw_jobs SET state = 2 WHERE id = ANY ($1) AND state = 1`
)

func (r *rawEngine) drain(ctx context.Context) error {
	for {
		rows, err := r.pool.Query(ctx, rawClaimSQL, batchSize)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
		if err != nil || len(ids) == 0 {
			return err
		}
		for _, id := range ids {
			r.handle(int(id - 1))
		}
		tag, err := r.pool.Exec(ctx, rawCompleteSQL, ids)
		if err != nil {
			return err
		}
		if int(tag.RowsAffected()) != len(ids) {
			return fmt.Errorf("completed %d rows of %d", tag.RowsAffected(), len(ids))
		}
	}
}

func (*rawEngine) finished(ctx context.Context, watch *pgxpool.Pool) (n int, err error) {
	err = watch.QueryRow(ctx, `SELECT count(*) FROM raw_jobs WHERE state = 2`).Scan(&n)
	return n, err
}
