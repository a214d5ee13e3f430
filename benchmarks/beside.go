package main

import (
	"context"
	"fmt"
	"os"
)

// measureBeside: the drain in a table that has many finished rows and, in the
// same queue, many jobs that are not due yet.
func (b *bench) measureBeside(ctx context.Context, sys system) (values, error) {
	db, err := b.largeDatabase(ctx)
	if err != nil {
		return nil, err
	}
	jobs := newTally(b.jobs)
	e, err := openOurs(ctx, db.pool, jobs.start)
	if err != nil {
		return nil, err
	}
	perSecond, err := b.drain(ctx, sys, "beside", db, e, jobs, func() (func() error, error) { return e.work(ctx) })
	return values{rowBeside: perSecond}, err
}

// largeDatabase makes the large table once for all figures of a run.
func (b *bench) largeDatabase(ctx context.Context) (*database, error) {
	if b.large != nil {
		return b.large, nil
	}
	fmt.Fprintf(os.Stderr, "filling a table with %s finished and %s pending jobs\n",
		number(float64(b.finishedBeside), 0), number(float64(b.pendingBeside), 0))
	db, err := b.server.newDatabase(ctx, b.statements)
	if err != nil {
		return nil, err
	}
	if err := b.fillLarge(ctx, db); err != nil {
		db.drop()
		return nil, err
	}
	b.large = db
	return db, nil
}

func (b *bench) fillLarge(ctx context.Context, db *database) error {
	e, err := openOurs(ctx, db.pool, func(int) {})
	if err != nil {
		return err
	}
	l := e.(*library)
	if err := l.fillFinished(ctx, b.finishedBeside); err != nil {
		return err
	}
	if err := l.fillPending(ctx, b.pendingBeside); err != nil {
		return err
	}
	if err := l.shutdown(); err != nil {
		return err
	}
	return b.vacuum(ctx, db)
}

// vacuum does at once what autovacuum does in time, so that it disturbs nothing
// that is measured.
func (b *bench) vacuum(ctx context.Context, db *database) error {
	if _, err := db.watch.Exec(ctx, "VACUUM (ANALYZE)"); err != nil {
		return err
	}
	_, err := b.server.admin.Exec(ctx, "CHECKPOINT")
	return err
}

func (b *bench) dropLarge() {
	if b.large != nil {
		b.large.drop()
		b.large = nil
	}
}
