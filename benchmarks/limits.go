package main

import (
	"context"

	"github.com/relay-club/scheduler"
)

// limitedQueues are drained one after another, each in a database of its own.
var limitedQueues = []struct {
	row   row
	queue scheduler.JobQueue
	keys  int
}{
	{rowUnlimited, scheduler.JobQueueDefault, 0},
	{rowAtOnce, "at-once", 0},
	{rowPerKey, "per-key", 10_000},
}

// measureLimits: what limits cost the queues that have them, and the others.
func (b *bench) measureLimits(ctx context.Context, sys system) (values, error) {
	measured := values{}
	for _, q := range limitedQueues {
		perSecond, err := b.drainLimited(ctx, sys, q.queue, q.keys)
		if err != nil {
			return nil, err
		}
		measured[q.row] = perSecond
	}
	return measured, nil
}

func (b *bench) drainLimited(ctx context.Context, sys system, queue scheduler.JobQueue, keys int) (perSecond float64, err error) {
	db, err := b.server.newDatabase(ctx, b.statements)
	if err != nil {
		return 0, err
	}
	defer db.drop()
	jobs := newTally(b.jobs)
	config := scheduler.Config{Queues: map[scheduler.JobQueue]scheduler.QueueConfig{
		"at-once": {MaxConcurrency: 100}, "per-key": {MaxConcurrencyPerKey: 1},
	}}
	l, err := openLibrary(ctx, db.pool, config, func(_ context.Context, in numbered) (any, error) {
		jobs.start(in.N)
		return nil, nil
	})
	if err != nil {
		return 0, err
	}
	l.queue, l.keys = queue, keys
	return b.drain(ctx, sys, "limits of "+string(queue), db, l, jobs, func() (func() error, error) { return l.work(ctx) })
}
