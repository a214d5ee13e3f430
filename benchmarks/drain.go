package main

import (
	"context"
	"errors"
	"time"
)

// measureDrain: how fast jobs that wait are worked off, until the last one is
// recorded, and what that costs the database.
func (b *bench) measureDrain(ctx context.Context, sys system) (values, error) {
	db, err := b.server.newDatabase(ctx, b.statements && sys.name == ours)
	if err != nil {
		return nil, err
	}
	defer db.drop()
	jobs := newTally(b.jobs)
	e, err := sys.open(ctx, db.pool, jobs.start)
	if err != nil {
		return nil, err
	}
	costs, err := db.beginCosts(ctx)
	if err != nil {
		return nil, err
	}
	perSecond, err := b.drain(ctx, sys, "drain", db, e, jobs, func() (func() error, error) { return e.work(ctx) })
	if err != nil {
		return nil, err
	}
	spent, err := costs.end(ctx, b.jobs)
	if err != nil {
		return nil, err
	}
	spent[rowDrain] = perSecond
	return spent, nil
}

// drain fills the database with jobs that are due, and times how they are
// worked off between a call of begin and the last record.
func (b *bench) drain(
	ctx context.Context, sys system, figure string, db *database, e engine, jobs *tally, begin func() (stop func() error, err error),
) (perSecond float64, err error) {
	n := len(jobs.starts)
	for from := 0; from < n; from += batchSize {
		if err := e.createBatch(ctx, from, min(batchSize, n-from)); err != nil {
			return 0, err
		}
	}
	if _, err := db.watch.Exec(ctx, "ANALYZE"); err != nil {
		return 0, err
	}
	seen, err := b.observe(ctx, sys, figure)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	stop, err := begin()
	if err != nil {
		return 0, err
	}
	ended, err := jobs.wait(ctx, db, e)
	if err := errors.Join(err, seen(ctx, db), stop(), jobs.check()); err != nil {
		return 0, err
	}
	return float64(n) / ended.Sub(began).Seconds(), nil
}
