package main

import (
	"context"
	"errors"
	"runtime"
	"runtime/debug"

	"github.com/relay-club/scheduler"
)

// measureMemory: what a job takes while its handler runs, when thousands do.
func (b *bench) measureMemory(ctx context.Context, _ system) (values, error) {
	db, err := b.server.newDatabase(ctx, false)
	if err != nil {
		return nil, err
	}
	defer db.drop()
	jobs := newTally(b.running)
	release := make(chan struct{})
	config := scheduler.Config{Concurrency: b.running}
	l, err := openLibrary(ctx, db.pool, config, func(_ context.Context, in numbered) (any, error) {
		jobs.start(in.N)
		<-release
		return nil, nil
	})
	if err != nil {
		return nil, err
	}
	for from := 0; from < b.running; from += batchSize {
		if err := l.createBatch(ctx, from, min(batchSize, b.running-from)); err != nil {
			return nil, err
		}
	}
	liveBefore, systemBefore := memory()
	stop, err := l.work(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case <-jobs.all:
	case <-ctx.Done():
		close(release)
		return nil, errors.Join(ctx.Err(), jobs.check(), stop())
	}
	live, system := memory()
	close(release)
	_, err = jobs.wait(ctx, db, l)
	if err := errors.Join(err, stop()); err != nil {
		return nil, err
	}
	kib := func(before, after uint64) float64 {
		return (float64(after) - float64(before)) / 1024 / float64(b.running)
	}
	return values{rowMemoryLive: kib(liveBefore, live), rowMemorySys: kib(systemBefore, system)}, nil
}

// memory in bytes: what is in use, after a collection, and what the process
// holds from the system, after all that is free has been given back.
func memory() (live, system uint64) {
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse, m.Sys - m.HeapReleased
}
