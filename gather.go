package scheduler

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// gatherer lets creations that come together share a statement and its commit,
// which is most of what one costs. One that comes alone is sent at once. Those
// that come while mostFlights are on their way wait until one has landed, but no
// longer than gatherFor: a statement that hangs holds up those in it only.
type gatherer struct {
	mu      sync.Mutex
	flights int       // statements on their way
	newest  time.Time // when the last of them was sent
	waiting []*creation
	timer   *time.Timer // sends those waiting when gatherFor has passed
}

const (
	gatherFor         = 2 * time.Millisecond
	mostFlights       = 2 // while the database works at one, the next is made
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
	left   bool          // its caller does not wait any longer
}

func (c *creation) answer(job *Job, err error) {
	c.job, c.err = job, err
	close(c.done)
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
	if g.flights >= mostFlights && time.Since(g.newest) < gatherFor || len(g.waiting) > 0 {
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
		defer answerAll(batch)
		s.store(f.ctx, batch)
		runtime.Gosched() // callers that create again right away come along
	}()
}

// answerAll is for what a hook of the pool, which is the service's code, does in
// place of an answer: a panic or a call of runtime.Goexit.
func answerAll(batch []*creation) {
	reason := recover()
	for _, c := range batch {
		select {
		case <-c.done:
		default:
			c.answer(nil, fmt.Errorf("a hook or tracer of the pool panicked or called runtime.Goexit: %v", reason))
		}
	}
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
	case g.flights < mostFlights: // one has landed since
		g.send(s)
	case len(g.waiting) == 1:
		g.sendLater(s)
	}
	g.mu.Unlock()
	defer g.leave(c)
	select {
	case <-c.done:
		return c.job, c.err
	case <-ctx.Done():
	}
	select {
	case <-c.done: // both at once: then we know
		return c.job, c.err
	default:
		return nil, ctx.Err()
	}
}

// leave is for a caller who waits no longer: a creation that was not sent yet is
// not sent at all. Whether one that was sent happens, nobody knows, as with
// every statement that is broken off.
func (g *gatherer) leave(c *creation) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.left = true
	if c.flight == nil {
		g.waiting = slices.DeleteFunc(g.waiting, func(other *creation) bool { return other == c })
		return
	}
	if c.flight.callers--; c.flight.callers == 0 {
		c.flight.cancel()
	}
}

// store stores creations in one statement. If that fails because of one of
// them, each half is tried by itself.
func (s *Scheduler) store(ctx context.Context, batch []*creation) {
	rows := make([]newRow, 0, len(batch))
	batch = s.gatherer.awaited(batch)
	for _, c := range batch {
		rows = append(rows, *c.row)
	}
	if len(rows) == 0 {
		return
	}
	at, err := s.insertJobs(ctx, rows)
	if half := len(batch) / 2; half > 0 && isOfOneRow(err) {
		s.store(ctx, batch[:half])
		s.store(ctx, batch[half:])
		return
	}
	for _, c := range batch {
		if err != nil {
			c.answer(nil, err)
			continue
		}
		c.answer(c.row.jobCreated(at), nil)
	}
}

// awaited are the creations whose callers still wait.
func (g *gatherer) awaited(batch []*creation) []*creation {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(batch), func(c *creation) bool { return c.left })
}

// isOfOneRow: the others may be stored all the same. Beside values that are
// refused these are what a trigger of the service raises (P0), and conflicts
// with other transactions (40).
func isOfOneRow(err error) bool {
	var pg *pgconn.PgError
	return isRefused(err) ||
		errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "P0") || strings.HasPrefix(pg.Code, "40"))
}
