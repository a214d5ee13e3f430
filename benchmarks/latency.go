package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	perSecond     = 100
	latencyWarmUp = 2 * time.Second
)

// measureLatency: the time from the call that creates a job to the start of its
// handler in a resident worker, at a steady pace. First the jobs are created by
// another client than the one that works, on a pool of its own, as by another
// process; then by the one that works.
func (b *bench) measureLatency(ctx context.Context, sys system) (values, error) {
	apart, err := b.latencyOf(ctx, sys, false)
	if err != nil {
		return nil, err
	}
	alone, err := b.latencyOf(ctx, sys, true)
	if err != nil {
		return nil, err
	}
	return values{
		rowP50:      milliseconds(percentile(apart.starting, 50)),
		rowP99:      milliseconds(percentile(apart.starting, 99)),
		rowCreating: milliseconds(percentile(apart.creating, 50)),
		rowP50Alone: milliseconds(percentile(alone.starting, 50)),
		rowP99Alone: milliseconds(percentile(alone.starting, 99)),
	}, nil
}

// latencies are sorted: how long the call took, and how long until the start.
type latencies struct{ creating, starting []time.Duration }

func (b *bench) latencyOf(ctx context.Context, sys system, alone bool) (got latencies, err error) {
	db, err := b.server.newDatabase(ctx, b.statements && sys.name == ours)
	if err != nil {
		return got, err
	}
	defer db.drop()
	warmUp := int(latencyWarmUp.Seconds() * perSecond)
	n := warmUp + int(b.latencyFor.Seconds()*perSecond)
	jobs := newTally(n)
	called, created, started := make([]time.Time, n), make([]time.Time, n), make([]time.Time, n)
	e, err := sys.open(ctx, db.pool, func(i int) {
		started[i] = time.Now()
		jobs.start(i)
	})
	if err != nil {
		return got, err
	}
	create := e.create
	if !alone {
		pool, err := db.newPool(ctx)
		if err != nil {
			return got, err
		}
		defer pool.Close()
		if create, err = e.creator(pool); err != nil {
			return got, err
		}
	}
	stop, err := e.work(ctx)
	if err != nil {
		return got, err
	}
	figure := "latency"
	if alone {
		figure = "latency alone"
	}
	seen, err := b.observe(ctx, sys, figure)
	if err != nil {
		return got, err
	}

	var group sync.WaitGroup
	failed := make(chan error, n)
	pace := time.NewTicker(time.Second / perSecond)
	defer pace.Stop()
	for i := range n {
		<-pace.C
		group.Go(func() {
			called[i] = time.Now()
			if err := create(ctx, i); err != nil {
				failed <- err
			}
			created[i] = time.Now()
		})
	}
	group.Wait()
	close(failed)
	if err := <-failed; err != nil {
		return got, err
	}
	select {
	case <-jobs.all:
	case <-time.After(time.Minute):
	}
	if err := seen(ctx, db); err != nil {
		return got, err
	}
	if err := stop(); err != nil {
		return got, err
	}
	if err := jobs.check(); err != nil {
		return got, fmt.Errorf("a minute after the last creation: %w", err)
	}
	for i := warmUp; i < n; i++ {
		got.creating = append(got.creating, created[i].Sub(called[i]))
		got.starting = append(got.starting, started[i].Sub(called[i]))
	}
	slices.Sort(got.creating)
	slices.Sort(got.starting)
	return got, nil
}

// percentile of sorted times.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
