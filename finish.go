package scheduler

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// outcome is the verdict over one attempt, on its way into the database.
type outcome struct {
	job      *Job
	status   JobStatus
	result   *string        // JSON, of a success
	failure  *string        // the error of a failed attempt
	delay    *time.Duration // until it is due again; nil: run_at stays
	refund   int32          // 1 if the attempt does not count
	handed   bool           // back, before it began or because of a shutdown: no verdict at all
	dropped  bool           // not recorded: the lease was lost, the job is another's now
	recorded func(*outcome)

	claim     *claimed  // what it was claimed with; nil: it waits for none of that
	completes bool      // the handler has called CompleteTx: its transaction may have the verdict
	written   bool      // the verdict is in the database already
	replaced  bool      // another job may have been claimed in its place when it was recorded
	seen      *sighting // for the events of it; nil without an observer
}

const finishSQL = `
SELECT place, cancelled FROM {{schema}}.finish($1::uuid[], $2::int[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::int[])`

// mostFinished and mostFinishedBytes bound what is recorded in one statement,
// and mostWriters how many of those are on their way when they are full.
const (
	mostFinished      = 1000
	mostFinishedBytes = 16 << 20
	mostWriters       = 2
)

// finisher records outcomes, as many at once as have come together while the
// ones before were being written. So a single one is written at once, and many
// share a commit. A second writer helps when there are enough for a full batch,
// when the first one takes along a claim, or when it hangs.
type finisher struct {
	mu       sync.Mutex
	waiting  []*outcome
	began    [mostWriters]time.Time // when each writer's batch was sent; zero: that one rests
	looks    bool                   // a look at whether a writer hangs is to come
	claiming [mostWriters]bool      // it takes along a claim, which may wait for others: then it is no help
	soon     bool                   // a writer is to begin in a moment
}

// hangsAfter is how long a batch may take before others do not wait for it.
const hangsAfter = 200 * time.Millisecond

func (f *finisher) add(s *Scheduler, o *outcome) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting = append(f.waiting, o)
	if o.claim != nil {
		o.claim.left.Add(-1)
	}
	if o.claim.hasMore() {
		f.startSoon(s, o.claim)
	} else {
		f.start(s)
	}
}

// startSoon is start when the outcomes of a claim have waited for each other. f.mu
// is held.
func (f *finisher) startSoon(s *Scheduler, c *claimed) {
	if f.soon {
		return
	}
	f.soon = true
	time.AfterFunc(togetherFor-time.Since(c.at), func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.soon = false
		f.start(s)
	})
}

// claimed is the jobs of one claim: where their handlers are short, the first
// outcomes wait for the last one, to be recorded in one statement.
type claimed struct {
	at   time.Time
	left atomic.Int32 // those without an outcome
	loop *queueLoop   // whose claim it was; nil: of none
}

// togetherFor is how long after their claim outcomes wait for each other.
const togetherFor = time.Millisecond

// hasMore says whether other outcomes are likely to follow at once.
func (c *claimed) hasMore() bool {
	return c != nil && c.left.Load() > 0 && time.Since(c.at) < togetherFor
}

// start begins a writer if what is waiting needs one. f.mu is held.
func (f *finisher) start(s *Scheduler) {
	if len(f.waiting) == 0 {
		return
	}
	if i := slices.IndexFunc(f.began[:], time.Time.IsZero); i >= 0 && (len(f.waiting) >= mostFinished || !f.covered(i)) {
		f.began[i] = time.Now()
		// Its outcomes keep Shutdown waiting, and so does it.
		go f.write(s, i)
	} else if !f.looks {
		f.looks = true
		time.AfterFunc(hangsAfter, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.looks = false
			f.start(s)
		})
	}
}

// covered says whether another writer than this one will soon take what waits.
func (f *finisher) covered(writer int) bool {
	for i, began := range f.began {
		if i != writer && !began.IsZero() && !f.claiming[i] && time.Since(began) < hangsAfter {
			return true
		}
	}
	return false
}

func (f *finisher) write(s *Scheduler, writer int) {
	for {
		runtime.Gosched() // handlers that are as short as the first one's come along
		batch := f.next(s, writer)
		if batch == nil {
			return
		}
		next := s.replace(batch, func(along bool) { f.claims(s, writer, along) })
		var held []*outcome
		if next == nil {
			held = s.finish(unwritten(batch), true)
		}
		batch = slices.DeleteFunc(batch, func(o *outcome) bool { return slices.Contains(held, o) })
		for _, o := range held {
			// The outcome keeps Shutdown waiting, and so does this.
			go f.writeAside(s, o, nil)
		}
		s.lease.forget(batch)
		worked := 0
		for _, o := range batch {
			if !o.handed {
				worked++
			}
			s.tellOutcome(o)
		}
		s.capacity.put(len(batch), worked) // before a run that ends by it is followed by another one
		for _, o := range batch {
			o.recorded(o)
		}
		next.start()
	}
}

// next takes what a writer is to write; nil ends it.
func (f *finisher) next(s *Scheduler, writer int) []*outcome {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := batchOf(f.waiting)
	full := n == mostFinished || n < len(f.waiting)
	rests := n == 0 || !full && f.covered(writer)
	if !rests && !full && f.claiming[writer] && f.waiting[n-1].claim.hasMore() { // to take along the next claim too
		f.startSoon(s, f.waiting[n-1].claim)
		rests = true
	}
	f.claiming[writer] = false
	if rests {
		f.began[writer] = time.Time{}
		return nil
	}
	f.began[writer] = time.Now()
	batch := slices.Clone(f.waiting[:n])
	f.waiting = slices.Delete(f.waiting, 0, n)
	return batch
}

// claims notes whether a writer takes along a claim.
func (f *finisher) claims(s *Scheduler, writer int, along bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.claiming[writer] = along
	if along {
		f.start(s)
	}
}

// writeAside records an outcome whose job somebody holds, lest it hold up others.
// If that may be the transaction of its handler, completes is the attempt.
func (f *finisher) writeAside(s *Scheduler, o *outcome, completes *attempt) {
	s.finish([]*outcome{o}, false)
	if o.dropped && completes != nil {
		s.isCompleted(completes, o) // the transaction has committed since
	}
	o.written = true
	f.add(s, o)
}

// batchOf is how many of the outcomes go into the next statement.
func batchOf(waiting []*outcome) int {
	size := 0
	for i, o := range waiting {
		if o.result != nil {
			size += len(*o.result)
		}
		if i == mostFinished || i > 0 && size > mostFinishedBytes {
			return i
		}
	}
	return len(waiting)
}

// unwritten are the outcomes that the database does not have yet.
func unwritten(batch []*outcome) []*outcome {
	isWritten := func(o *outcome) bool { return o.written }
	if !slices.ContainsFunc(batch, isWritten) {
		return batch
	}
	return slices.DeleteFunc(slices.Clone(batch), isWritten)
}

// finish records a batch, trying again for as long as it takes: what was done
// must not be forgotten because the database was away for a while. If the
// process ends before that, the jobs' leases run out. Those that another
// transaction holds are left and returned, if it may leave some.
func (s *Scheduler) finish(batch []*outcome, mayLeave bool) (held []*outcome) {
	sortOutcomes(batch)
	wait := 50 * time.Millisecond
	for len(batch) > 0 {
		err := s.tryFinish(batch)
		switch isHeld := sqlState(err) == lockNotAvailable && mayLeave; {
		case err == nil:
			return nil
		case (isHeld || isRefused(err)) && len(batch) > 1:
			for _, o := range batch { // to find out which one it is
				held = append(held, s.finish([]*outcome{o}, mayLeave)...)
			}
			return held
		case isHeld:
			return []*outcome{batch[0]}
		case isRefused(err):
			return s.finishRefused(batch[0], err, mayLeave)
		}
		s.config.Logger.Warn("scheduler: can't record finished jobs yet", "jobs", len(batch), "error", err)
		select {
		case <-time.After(wait):
		case <-s.gone.Done():
			for _, o := range batch {
				o.dropped = true
			}
			return nil
		}
		wait = min(2*wait, 2*time.Second)
	}
	return nil
}

// isRefused: the statement can never succeed with these values.
func isRefused(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (isBadData(pg.Code) || strings.HasPrefix(pg.Code, "23"))
}

// finishRefused records, of an outcome that Postgres refuses, that instead, as a
// failed attempt.
func (s *Scheduler) finishRefused(o *outcome, err error, mayLeave bool) (held []*outcome) {
	if o.result == nil {
		s.config.Logger.Error("scheduler: can't record a finished job, it will be run again", "job", o.job.ID, "error", err)
		o.dropped = true
		s.suspect() // so that it is handed back
		return nil
	}
	o.result = nil
	o.judge(s, s.queues[o.job.Queue], nil, fmt.Errorf("the handler's result was refused by Postgres: %w", err), false)
	return s.finish([]*outcome{o}, mayLeave)
}

func (s *Scheduler) tryFinish(batch []*outcome) error {
	ctx, cancel := context.WithTimeout(s.gone, finishTimeout)
	defer cancel()
	rows, err := s.pool.Query(ctx, s.sql(finishSQL), finishArgs(batch)...)
	if err != nil {
		return err
	}
	others, err := scanOthers(rows)
	if err != nil {
		return err
	}
	noteRecorded(batch, others)
	return nil
}

// finishTimeout bounds a record, which is tried again then.
const finishTimeout = 30 * time.Second

// sortOutcomes puts them in order of id, as rescue locks the jobs too, so that they
// can't deadlock.
func sortOutcomes(batch []*outcome) {
	slices.SortFunc(batch, func(a, b *outcome) int { return bytes.Compare(a.job.key.Bytes[:], b.job.key.Bytes[:]) })
}

func finishArgs(batch []*outcome) []any {
	n := len(batch)
	ids, claims, statuses := make([]pgtype.UUID, n), make([]int32, n), make([]string, n)
	for i, o := range batch {
		ids[i], claims[i], statuses[i] = o.job.key, o.job.claims, string(o.status)
	}
	results := columnOf(n, func(i int) *string { return batch[i].result })
	failures := columnOf(n, func(i int) *string { return batch[i].failure })
	refunds := columnOf(n, func(i int) *int32 { return unlessZero(&batch[i].refund) })
	delays := columnOf(n, func(i int) *int64 {
		if batch[i].delay == nil {
			return nil
		}
		microseconds := batch[i].delay.Microseconds()
		return &microseconds
	})
	return []any{ids, claims, statuses, results, failures, delays, refunds}
}

// scanOthers reads which outcomes, by their places from 1 on, were recorded otherwise:
// whether cancelled, or else left alone.
func scanOthers(rows pgx.Rows) (others map[int]bool, err error) {
	others = map[int]bool{}
	var place int
	var cancelled bool
	_, err = pgx.ForEachRow(rows, []any{&place, &cancelled}, func() error {
		others[place] = cancelled
		return nil
	})
	return others, err
}

// noteRecorded notes what came of outcomes when that is committed.
func noteRecorded(batch []*outcome, others map[int]bool) {
	for i, o := range batch {
		cancelled, other := others[i+1]
		if o.dropped = other && !cancelled; cancelled {
			o.status, o.handed, o.delay, o.refund = JobStatusCancelled, false, nil, 0
		}
	}
}
