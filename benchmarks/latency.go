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
// handler in a resident worker, at a steady pace.
func (b *bench) measureLatency(ctx context.Context, sys system) (values, error) {
	db, err := b.server.newDatabase(ctx, b.statements && sys.name == ours)
	if err != nil {
		return nil, err
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
		return nil, err
	}
	stop, err := e.work(ctx)
	if err != nil {
		return nil, err
	}
	seen, err := b.observe(ctx, sys, "latency")
	if err != nil {
		return nil, err
	}

	var group sync.WaitGroup
	failed := make(chan error, n)
	pace := time.NewTicker(time.Second / perSecond)
	defer pace.Stop()
	for i := range n {
		<-pace.C
		group.Go(func() {
			called[i] = time.Now()
			if err := e.create(ctx, i); err != nil {
				failed <- err
			}
			created[i] = time.Now()
		})
	}
	group.Wait()
	close(failed)
	if err := <-failed; err != nil {
		return nil, err
	}
	select {
	case <-jobs.all:
	case <-time.After(time.Minute):
	}
	if err := seen(ctx, db); err != nil {
		return nil, err
	}
	if err := stop(); err != nil {
		return nil, err
	}
	if err := jobs.check(); err != nil {
		return nil, fmt.Errorf("a minute after the last creation: %w", err)
	}
	var creating, starting []time.Duration
	for i := warmUp; i < n; i++ {
		creating = append(creating, created[i].Sub(called[i]))
		starting = append(starting, started[i].Sub(called[i]))
	}
	slices.Sort(creating)
	slices.Sort(starting)
	return values{
		rowP50:      milliseconds(percentile(starting, 50)),
		rowP99:      milliseconds(percentile(starting, 99)),
		rowCreating: milliseconds(percentile(creating, 50)),
	}, nil
}

// percentile of sorted times.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
