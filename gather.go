package scheduler

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"
)

// gatherer lets creations that come together share a statement and its commit,
// which is most of what one costs. One that comes alone is sent at once. Those
// that come while it is on its way wait until it has landed, but no longer than
// gatherFor, so that none is held up by what holds up another.
type gatherer struct {
	mu      sync.Mutex
	flights int       // statements on their way
	newest  time.Time // when the last of them was sent
	waiting []*creation
	timer   *time.Timer // sends those waiting when gatherFor has passed
}

const (
	gatherFor         = 2 * time.Millisecond
	mostGathered      = 1000
	mostGatheredBytes = 4 << 20
)

// creation is a call of CreateJob that waits for others to share a statement with.
type creation struct {
	row    *newRow
	job    *Job
	err    error
	done   chan struct{} // closed when job and err are there
	flight *flight       // the statement it is in; nil: none yet
}

// flight is a statement on its way for several creations. It ends early when
// none of their callers waits for it any more.
type flight struct {
	ctx     context.Context
	cancel  context.CancelFunc
	callers int
}

// alone says whether a creation is to be sent at once, by itself. If so,
// landed follows.
func (g *gatherer) alone() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.flights > 0 && time.Since(g.newest) < gatherFor || len(g.waiting) > 0 {
		return false
	}
	g.flights++
	g.newest = time.Now()
	return true
}

// landed ends what alone began, and sends those that have come meanwhile.
func (g *gatherer) landed(s *Scheduler) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.flights--
	g.send(s)
}

// send starts a flight for those waiting. g.mu is held.
func (g *gatherer) send(s *Scheduler) {
	n := gatheredOf(g.waiting)
	if n == 0 {
		return
	}
	f := &flight{callers: n}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	batch := slices.Clone(g.waiting[:n])
	g.waiting = slices.Delete(g.waiting, 0, n)
	for _, c := range batch {
		c.flight = f
	}
	g.flights++
	g.newest = time.Now()
	g.sendLater(s)
	go func() {
		defer g.landed(s)
		defer f.cancel()
		s.store(f.ctx, batch)
		runtime.Gosched() // callers that create again right away come along
	}()
}

// sendLater is for those that have to wait. g.mu is held.
func (g *gatherer) sendLater(s *Scheduler) {
	if g.timer != nil {
		g.timer.Stop()
		g.timer = nil
	}
	if len(g.waiting) > 0 {
		g.timer = time.AfterFunc(time.Until(g.newest.Add(gatherFor)), func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.send(s)
		})
	}
}

// gatheredOf is how many of the creations go into the next statement.
func gatheredOf(waiting []*creation) int {
	size := 0
	for i, c := range waiting {
		size += len(c.row.payload)
		if i == mostGathered || i > 0 && size > mostGatheredBytes {
			return i
		}
	}
	return len(waiting)
}

func (s *Scheduler) createTogether(ctx context.Context, row *newRow) (*Job, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c := &creation{row: row, done: make(chan struct{})}
	g := &s.gatherer
	g.mu.Lock()
	g.waiting = append(g.waiting, c)
	switch {
	case g.flights == 0: // the last one has landed since
		g.send(s)
	case len(g.waiting) == 1:
		g.sendLater(s)
	}
	g.mu.Unlock()
	select {
	case <-c.done:
		return c.job, c.err
	case <-ctx.Done():
		g.leave(c)
		return nil, ctx.Err()
	}
}

// leave is for a caller who does not wait any longer: a creation that was not
// sent yet is not sent at all. Whether one that was sent happens, nobody knows,
// as with every statement that is broken off.
func (g *gatherer) leave(c *creation) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c.flight == nil {
		g.waiting = slices.DeleteFunc(g.waiting, func(other *creation) bool { return other == c })
		return
	}
	if c.flight.callers--; c.flight.callers == 0 {
		c.flight.cancel()
	}
}

// store stores creations in one statement or, if Postgres refuses one of them,
// each by itself.
func (s *Scheduler) store(ctx context.Context, batch []*creation) {
	rows := make([]newRow, len(batch))
	for i, c := range batch {
		rows[i] = *c.row
	}
	at, err := s.insertJobs(ctx, rows)
	var input *InputError
	if len(batch) > 1 && (errors.As(err, &input) || isRefused(err)) {
		for i := range batch {
			s.store(ctx, batch[i:i+1])
		}
		return
	}
	for _, c := range batch {
		if c.err = err; err == nil {
			c.job = c.row.job()
			c.job.CreatedAt, c.job.RunAt = at, at
			if c.row.runAt != nil {
				c.job.RunAt = *c.row.runAt
			}
		}
		close(c.done)
	}
}
