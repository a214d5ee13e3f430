package main

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// tally sees every job start and knows whether each did so exactly once.
type tally struct {
	starts []atomic.Int32
	left   atomic.Int64
	all    chan struct{} // closed when every job has started
	extra  atomic.Int64
}

func newTally(n int) *tally {
	t := &tally{starts: make([]atomic.Int32, n), all: make(chan struct{})}
	t.left.Store(int64(n))
	return t
}

// start is what the jobs call.
func (t *tally) start(n int) {
	if n < 0 || n >= len(t.starts) || t.starts[n].Add(1) != 1 {
		t.extra.Add(1)
		return
	}
	if t.left.Add(-1) == 0 {
		close(t.all)
	}
}

func (t *tally) check() error {
	if left, extra := t.left.Load(), t.extra.Load(); left != 0 || extra != 0 {
		return fmt.Errorf("%d jobs did not start, %d starts were too many", left, extra)
	}
	return nil
}

// wait waits until all have started, then asks the database until all are
// recorded as finished, and returns the time at which the answer was asked for.
func (t *tally) wait(ctx context.Context, db *database, e engine) (time.Time, error) {
	select {
	case <-t.all:
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("%w: %d jobs of %d have not started", context.Cause(ctx), t.left.Load(), len(t.starts))
	}
	for {
		asked := time.Now()
		n, err := e.finished(ctx, db.watch)
		if err != nil {
			return asked, err
		}
		if n == len(t.starts) {
			return asked, t.check()
		}
		time.Sleep(time.Millisecond)
	}
}
