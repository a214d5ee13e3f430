package scheduler

import (
	"context"
	"sync"
	"time"
)

// cleaner deletes finished jobs that were kept long enough, at most once an
// hour in each process, beside a run or the resident loop.
type cleaner struct {
	mu   sync.Mutex
	next time.Time
}

const (
	cleanUpEvery   = time.Hour
	cleanUpBatch   = 1000
	mostCleanUps   = 100 // batches in one go
	cleanUpTimeout = time.Minute
)

func (c *cleaner) due() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().Before(c.next) {
		return false
	}
	c.next = time.Now().Add(cleanUpEvery)
	return true
}

// cleanUpSometimes starts a clean-up in the background if it is time for one.
func (s *Scheduler) cleanUpSometimes() {
	if !s.cleaner.due() {
		return
	}
	done, err := s.begin()
	if err != nil {
		return // shutting down: another process or another time
	}
	go func() {
		defer done()
		if err := s.cleanUp(s.open); err != nil && s.open.Err() == nil {
			s.config.Logger.Warn("scheduler: can't clean up", "error", err)
		}
		s.suspectSometimes()
	}()
}

const cleanUpSQL = `
SELECT {{schema}}.clean_up($1::bigint::float8 * interval '1 microsecond', $2::bigint::float8 * interval '1 microsecond', $3::int)`

func (s *Scheduler) cleanUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanUpTimeout)
	defer cancel()
	for range mostCleanUps {
		var deleted int
		err := s.pool.QueryRow(ctx, s.sql(cleanUpSQL), keepTime(s.config.KeepFinished), keepTime(s.config.KeepDead), cleanUpBatch).Scan(&deleted)
		if err != nil {
			return err
		}
		if deleted < cleanUpBatch {
			return nil
		}
	}
	return nil
}

// keepTime is in microseconds; nil, for ever, for a time below zero.
func keepTime(d time.Duration) *int64 {
	if d < 0 {
		return nil
	}
	microseconds := d.Microseconds()
	return &microseconds
}
