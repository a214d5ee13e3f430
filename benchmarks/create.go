package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	creators  = 8
	batchSize = 1000
)

// measureCreate: single creations, from eight goroutines, nobody working.
func (b *bench) measureCreate(ctx context.Context, sys system) (values, error) {
	perSecond, err := b.creations(ctx, sys, "create", creators, 1, func(ctx context.Context, e engine, n int) error {
		return e.create(ctx, n)
	})
	return values{rowCreate: perSecond}, err
}

// measureBatch: batches of 1,000, one after another, nobody working.
func (b *bench) measureBatch(ctx context.Context, sys system) (values, error) {
	perSecond, err := b.creations(ctx, sys, "batch", 1, batchSize, func(ctx context.Context, e engine, n int) error {
		return e.createBatch(ctx, n, batchSize)
	})
	return values{rowBatch: perSecond}, err
}

// creations calls create from some goroutines for a while. The first fifth is
// for caches and connections and does not count.
func (b *bench) creations(
	ctx context.Context, sys system, figure string, goroutines, size int, create func(context.Context, engine, int) error,
) (perSecond float64, err error) {
	db, err := b.server.newDatabase(ctx, b.statements && sys.name == ours)
	if err != nil {
		return 0, err
	}
	defer db.drop()
	e, err := sys.open(ctx, db.pool, func(int) {})
	if err != nil {
		return 0, err
	}
	var next atomic.Int64
	during := func(d time.Duration) (calls int64, took time.Duration, err error) {
		var group sync.WaitGroup
		var done atomic.Int64
		failed := make(chan error, goroutines)
		began := time.Now()
		for range goroutines {
			group.Go(func() {
				for time.Since(began) < d {
					if err := create(ctx, e, int(next.Add(int64(size)))-size); err != nil {
						failed <- err
						return
					}
					done.Add(1)
				}
			})
		}
		group.Wait()
		took = time.Since(began)
		close(failed)
		return done.Load(), took, <-failed
	}
	if _, _, err := during(b.createFor / 5); err != nil {
		return 0, err
	}
	stop, err := b.observe(ctx, sys, figure)
	if err != nil {
		return 0, err
	}
	calls, took, err := during(b.createFor)
	if err := stop(ctx, db); err != nil {
		return 0, err
	}
	return float64(calls) * float64(size) / took.Seconds(), err
}
