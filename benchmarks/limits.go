package main

import (
	"context"

	"github.com/relay-club/scheduler"
)

var limited = map[scheduler.JobQueue]scheduler.QueueConfig{
	"at-once": {MaxConcurrency: 100}, "per-key": {MaxConcurrencyPerKey: 1},
}

// limitedQueues are drained one after another, each in a database of its own. The
// first is what the others are compared with: the drain of its own figure was
// minutes before.
var limitedQueues = []struct {
	row    row
	queues map[scheduler.JobQueue]scheduler.QueueConfig // that the service has
	queue  scheduler.JobQueue
	keys   int
}{
	{rowPlain, nil, scheduler.JobQueueDefault, 0},
	{rowUnlimited, limited, scheduler.JobQueueDefault, 0},
	{rowAtOnce, limited, "at-once", 0},
	{rowPerKey, limited, "per-key", 10_000},
}

// measureLimits: what limits cost the queues that have them, and the others.
func (b *bench) measureLimits(ctx context.Context, sys system) (values, error) {
	measured := values{}
	for _, q := range limitedQueues {
		perSecond, err := b.drainLimited(ctx, sys, q.queues, q.queue, q.keys)
		if err != nil {
			return nil, err
		}
		measured[q.row] = perSecond
	}
	return measured, nil
}

func (b *bench) drainLimited(
	ctx context.Context, sys system, queues map[scheduler.JobQueue]scheduler.QueueConfig, queue scheduler.JobQueue, keys int,
) (perSecond float64, err error) {
	db, err := b.server.newDatabase(ctx, b.statements)
	if err != nil {
		return 0, err
	}
	defer db.drop()
	jobs := newTally(b.jobs)
	l, err := openLibrary(ctx, db.pool, scheduler.Config{Queues: queues}, func(_ context.Context, in numbered) (any, error) {
		jobs.start(in.N)
		return nil, nil
	})
	if err != nil {
		return 0, err
	}
	l.queue, l.keys = queue, keys
	return b.drain(ctx, sys, "limits of "+string(queue), db, l, jobs, func() (func() error, error) { return l.work(ctx) })
}
