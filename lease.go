package scheduler

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
)

// lease is the one lease of this process: a row in the database that says
// until when the jobs it runs are its own. One write renews it for all of
// them.
//
// The rules that keep an attempt from living twice: a lease that has run out
// is never renewed, a new one is taken instead; and this process considers
// its lease lost, and ends the contexts of the handlers under it, a little
// before others may, measured by its own clock from before the last renewal
// was sent.
type lease struct {
	mu    sync.Mutex // held while the database is asked, so that one asks at a time
	id    string     // "": none yet
	until time.Time  // when this process considers it lost
	term  *term
	lose  context.CancelCauseFunc
	timer *time.Timer // loses it at until, whatever else hangs

	listens bool                   // whether the resident loop wants to be notified
	told    atomic.Pointer[string] // the lease, while the database knows that it listens

	heldMu  sync.Mutex
	held    map[*Job]struct{} // jobs claimed and not yet recorded as finished
	users   int               // jobs, and the resident loop
	beating sync.WaitGroup
	beats   bool
}

// term is the context of what runs under one lease, which ends when that is lost.
type term struct {
	context.Context
	until atomic.Pointer[time.Time] // that of the lease
}

// isOver says whether the lease is lost, also where the timer that ends the context
// is late: a process that was stopped runs handlers and timers in any order.
func (t *term) isOver() bool { return t.Err() != nil || t.hasRunOut() }

func (t *term) hasRunOut() bool { return !time.Now().Before(*t.until.Load()) }

// marginOf is how much earlier than the database we consider a lease lost.
func marginOf(ttl time.Duration) time.Duration { return ttl / 10 }

const takeLeaseSQL = `
INSERT INTO {{schema}}.leases (id, holder, expires_at, listening)
VALUES ($1::text::uuid, $2::text, now() + $3::bigint::float8 * interval '1 microsecond', $4::bool)`

const renewLeaseSQL = `
UPDATE {{schema}}.leases
SET expires_at = now() + $2::bigint::float8 * interval '1 microsecond', listening = $3::bool
WHERE id = $1::text::uuid AND expires_at > now()`

// leaveLeaseSQL is for a lease that can't be renewed: one that has run out, for
// the rescue of what was running under it. Without jobs it does no harm.
const leaveLeaseSQL = `
INSERT INTO {{schema}}.leases (id, holder, expires_at) VALUES ($1::text::uuid, $2::text, now()) ON CONFLICT DO NOTHING`

// hold returns a lease that is good for at least half of its time, and its term.
func (l *lease) hold(ctx context.Context, s *Scheduler) (id string, life *term, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.id == "" || time.Until(l.until) < s.config.Lease/2 {
		if err := l.renew(ctx, s); err != nil {
			return "", nil, err
		}
	}
	return l.id, l.term, nil
}

// holdNow is hold without asking the database or waiting for somebody who does. The
// id is "" where that needs to be done.
func (l *lease) holdNow(s *Scheduler) (id string, life *term) {
	if !l.mu.TryLock() {
		return "", nil
	}
	defer l.mu.Unlock()
	if l.id == "" || time.Until(l.until) < s.config.Lease/2 {
		return "", nil
	}
	return l.id, l.term
}

// listen notes whether this process wants to be notified of created jobs. The
// database learns of it with the next renewal, or by tell.
func (l *lease) listen(listens bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.listens = listens
	l.told.Store(nil)
}

func (l *lease) tell(ctx context.Context, s *Scheduler) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renew(ctx, s)
}

// noteTold is called with l.mu held when the row of the lease is written.
func (l *lease) noteTold() {
	if id := l.id; l.listens {
		l.told.Store(&id)
	}
}

// renew extends the lease, or takes a new one if there is none or it is lost.
// l.mu is held.
func (l *lease) renew(ctx context.Context, s *Scheduler) error {
	ttl := s.config.Lease
	now := time.Now()
	until := now.Add(ttl - marginOf(ttl))
	held := l.id != "" && now.Before(l.until) && !errors.Is(context.Cause(l.term), ErrLeaseLost)
	patience := ttl / 3
	if held {
		patience = min(patience, l.until.Sub(now)) // an answer after that is of no use
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if held {
		tag, err := s.execUrgently(ctx, s.sql(renewLeaseSQL), l.id, ttl.Microseconds(), l.listens)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 1 {
			l.until = until
			l.term.until.Store(&until)
			l.timer.Reset(time.Until(until))
			l.noteTold()
			return nil
		}
		// Rescued, or deleted by hand: then its jobs would be nobody's.
		if _, err := s.execUrgently(ctx, s.sql(leaveLeaseSQL), l.id, holder()); err != nil {
			return err
		}
	}
	l.drop(s)

	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	if _, err := s.execUrgently(ctx, s.sql(takeLeaseSQL), id.String(), holder(), ttl.Microseconds(), l.listens); err != nil {
		return err
	}
	l.id, l.until = id.String(), until
	ctx, lose := context.WithCancelCause(s.life)
	l.term, l.lose = &term{Context: ctx}, lose
	l.term.until.Store(&until)
	l.timer = time.AfterFunc(time.Until(until), func() { lose(ErrLeaseLost) })
	l.noteTold()
	return nil
}

// drop gives up a lost lease. l.mu is held.
func (l *lease) drop(s *Scheduler) {
	if l.id == "" {
		return
	}
	l.heldMu.Lock()
	lost := len(l.held)
	l.heldMu.Unlock()
	if lost > 0 {
		s.config.Logger.Error("scheduler: lease lost, its jobs will be rescued", "lease", l.id, "jobs", lost)
	}
	l.timer.Stop()
	l.lose(ErrLeaseLost)
	l.id = ""
}

func holder() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return host + ":" + strconv.Itoa(os.Getpid())
}

// own returns the lease under which this process is notified of created jobs;
// nil if it is not.
func (l *lease) own() *string { return l.told.Load() }

// use counts a user of the lease; while there is one, the lease is renewed.
func (l *lease) use(s *Scheduler) {
	l.heldMu.Lock()
	defer l.heldMu.Unlock()
	l.users++
	if !l.beats {
		l.beats = true
		ctx, cancel := context.WithCancel(s.gone)
		l.beating.Go(func() {
			defer cancel()
			l.beat(s)
			s.spare.close(ctx, 0)
		})
		l.beating.Go(func() { l.tend(ctx, s) })
		l.beating.Go(func() { s.watchCancelled(ctx) })
	}
}

func (l *lease) unuse() {
	l.heldMu.Lock()
	defer l.heldMu.Unlock()
	l.users--
}

// keep notes claimed jobs; forget is its counterpart.
func (l *lease) keep(s *Scheduler, jobs []*Job) {
	l.use(s)
	l.heldMu.Lock()
	defer l.heldMu.Unlock()
	l.users += len(jobs) - 1
	if l.held == nil {
		l.held = map[*Job]struct{}{}
	}
	for _, job := range jobs {
		l.held[job] = struct{}{}
	}
}

func (l *lease) forget(batch []*outcome) {
	l.heldMu.Lock()
	defer l.heldMu.Unlock()
	l.users -= len(batch)
	for _, o := range batch {
		delete(l.held, o.job)
	}
}

// beat renews the lease three times in its life until nobody uses it. It does
// nothing else: whatever waits here, the lease does not wait for.
func (l *lease) beat(s *Scheduler) {
	pause := s.config.Lease / 3
	for {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-s.gone.Done():
			timer.Stop()
		}
		l.heldMu.Lock()
		if l.users == 0 || s.gone.Err() != nil {
			l.beats = false
			l.heldMu.Unlock()
			return
		}
		l.heldMu.Unlock()

		l.mu.Lock()
		err := l.renew(s.gone, s)
		if err != nil && time.Now().After(l.until) {
			l.drop(s)
		}
		l.mu.Unlock()
		pause = s.config.Lease / 3
		if err != nil {
			s.config.Logger.Warn("scheduler: can't renew the lease", "error", err)
			pause = s.config.Lease / 20
		}
	}
}

// tend looks after the jobs held under the lease, for as long as beat runs.
func (l *lease) tend(ctx context.Context, s *Scheduler) {
	tick := time.NewTicker(settleAfter)
	defer tick.Stop()
	reconcileAt := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		s.settle(ctx)
		if !time.Now().Before(reconcileAt) {
			s.reconcile(ctx)
			reconcileAt = time.Now().Add(s.config.Lease / 3)
		}
	}
}

// giveUp deletes the lease at the end of Shutdown, when nothing is held.
func (l *lease) giveUp(ctx context.Context, s *Scheduler) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.Lease/3)
	defer cancel()
	_, err := s.pool.Exec(ctx, s.sql(endLeaseSQL), l.id)
	if err != nil && !errors.Is(err, context.Canceled) {
		s.config.Logger.Warn("scheduler: can't delete the lease", "error", err)
	}
	l.timer.Stop()
	l.id = ""
}

const endLeaseSQL = `SELECT {{schema}}.end_lease($1::text::uuid)`

// holdings returns the lease and the ids of the jobs held under it.
func (l *lease) holdings() (id string, jobs []pgtype.UUID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heldMu.Lock()
	defer l.heldMu.Unlock()
	jobs = make([]pgtype.UUID, 0, len(l.held))
	for job := range l.held {
		jobs = append(jobs, job.key)
	}
	return l.id, jobs
}

// unsettled returns the lease and the jobs held under it that were claimed
// before a time and are still in the way of claims.
func (l *lease) unsettled(before time.Time) (id string, jobs []*Job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heldMu.Lock()
	defer l.heldMu.Unlock()
	for job := range l.held {
		if !job.life.settled && job.claimedAt.Before(before) {
			jobs = append(jobs, job)
		}
	}
	return l.id, jobs
}

func (l *lease) settled(jobs []*Job) {
	l.heldMu.Lock()
	defer l.heldMu.Unlock()
	for _, job := range jobs {
		job.life.settled = true
	}
}

// watched returns the leases of the jobs that were claimed before a time and
// were not called off, as far as is known here. That is one, unless one was lost.
func (l *lease) watched(before time.Time) (leases []string) {
	l.heldMu.Lock()
	defer l.heldMu.Unlock()
	for job := range l.held {
		if !job.life.calledOff && job.claimedAt.Before(before) && !slices.Contains(leases, job.life.leaseID) {
			leases = append(leases, job.life.leaseID)
		}
	}
	return leases
}

// callOff ends the contexts of jobs, if they still run by these claims.
func (l *lease) callOff(marked map[pgtype.UUID]int32) {
	if len(marked) == 0 {
		return
	}
	var lives []*jobContext
	l.heldMu.Lock()
	for job := range l.held {
		if claims, ok := marked[job.key]; ok && claims == job.claims {
			job.life.calledOff = true
			lives = append(lives, job.life)
		}
	}
	l.heldMu.Unlock()
	for _, life := range lives {
		life.callOff()
	}
}
