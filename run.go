package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
)

// RunFilter says which jobs a run picks. The zero value picks one due pending
// job of the default queue.
type RunFilter struct {
	// Queue is a declared queue, or JobQueueFailed for the failed jobs of the
	// default queue. Defaults to JobQueueDefault.
	Queue JobQueue
	// Status is JobStatusPending, JobStatusFailed or JobStatusAny (both). A
	// blocking queue takes no notice of it: what comes next is its head.
	// Defaults to JobStatusPending, in JobQueueFailed to JobStatusFailed.
	Status JobStatus
	// Limit is how many jobs the run picks at most, 1 to 10,000. Defaults to 1.
	Limit int
}

const mostLimit = 10_000

// RunReport tells what came of a run. Picked is the sum of the eight counts
// after it.
type RunReport struct {
	RunID      string     `json:"run_id"` // a UUIDv7, for logs
	Queue      JobQueue   `json:"queue"`
	Status     JobStatus  `json:"status"` // what was asked for
	Picked     int        `json:"picked"`
	Succeeded  int        `json:"succeeded"`
	Failed     int        `json:"failed"`      // will be rerun after their backoff
	Dead       int        `json:"dead"`        // will not be rerun
	Cancelled  int        `json:"cancelled"`   // called off while they ran
	Snoozed    int        `json:"snoozed"`     // asked to be run later
	HandedBack int        `json:"handed_back"` // not done, because of a shutdown or for want of a slot; due again
	Lost       int        `json:"lost"`        // the lease was lost: others have the jobs now
	Running    int        `json:"running"`     // not finished yet; 0 once Done
	Done       bool       `json:"done"`        // the run is over and all it picked is recorded
	NextDueAt  *time.Time `json:"next_due_at"` // when the next job that this filter picks is due, past if one is due now; that of a lease if it has to wait until others are finished; nil if none waits or the run is not done
	// RateLimitedUntil is until when QueueConfig.Rate lets no job of the queue
	// start, or RatePerKey none of the keys that have due jobs and may not go on
	// yet, of which it is the first to go on; nil: no rate is in the way, or the
	// run is not done.
	RateLimitedUntil *time.Time `json:"rate_limited_until"`
}

// run is one call of the Run endpoint, or of Run.
type run struct {
	s      *Scheduler
	queue  *queue
	filter RunFilter
	values context.Context // for the handlers: its values, not its end

	mu     sync.Mutex
	report RunReport
	free   sync.WaitGroup // jobs that are picked and not yet recorded
	refill refill         // of a limited queue: as they are recorded
	done   chan struct{}
	err    error // read after done
}

// Run picks up to filter.Limit due jobs and works them, as many at a time as
// Config.Concurrency allows. It returns when every job it picked is recorded.
// Ending ctx stops the picking, not the jobs: their contexts end with the
// scheduler. Handlers see the values of ctx.
//
// The error is an *InputError if the filter can't be used; ErrShuttingDown, the
// error of ctx or one of the database if picking was cut short by that. In
// these cases the report of what was done until then comes with it, unless
// nothing was begun. Jobs that fail are no error. A run that can't start a
// handler within Config.RunWait, because other runs take all of
// Config.Concurrency, ends early.
func (s *Scheduler) Run(ctx context.Context, filter RunFilter) (*RunReport, error) {
	r, err := s.startRun(ctx, ctx, filter)
	if err != nil {
		return nil, fmt.Errorf("run: %w", err)
	}
	<-r.done
	report := r.snapshot()
	if r.err != nil {
		return &report, fmt.Errorf("run: %w", r.err)
	}
	return &report, nil
}

// startRun begins a run that stops picking when ctx ends.
func (s *Scheduler) startRun(ctx, values context.Context, filter RunFilter) (*run, error) {
	r, err := s.newRun(values, filter)
	if err != nil {
		return nil, err
	}
	done, err := s.begin()
	if err != nil {
		return nil, err
	}
	go func() {
		defer done()
		defer close(r.done)
		r.err = r.work(ctx)
	}()
	return r, nil
}

func (s *Scheduler) newRun(values context.Context, filter RunFilter) (*run, error) {
	name := filter.Queue
	if name == "" {
		filter.Queue, name = JobQueueDefault, JobQueueDefault
	}
	if filter.Queue == JobQueueFailed {
		name = JobQueueDefault
		if filter.Status == "" {
			filter.Status = JobStatusFailed
		}
		if filter.Status != JobStatusFailed {
			return nil, badInput("status", "%s: queue %q has failed jobs only: expected %q or none", shown(string(filter.Status)), JobQueueFailed, JobStatusFailed)
		}
	}
	q, inputErr := s.queue(name)
	if inputErr != nil {
		return nil, inputErr
	}
	setDefault(&filter.Status, JobStatusPending)
	if filter.Status != JobStatusPending && filter.Status != JobStatusFailed && filter.Status != JobStatusAny {
		return nil, badInput("status", "%s: expected %q, %q or %q", shown(string(filter.Status)), JobStatusPending, JobStatusFailed, JobStatusAny)
	}
	setDefault(&filter.Limit, 1)
	if filter.Limit < 1 || filter.Limit > mostLimit {
		return nil, badInput("limit", "%d: expected 1 to %d", filter.Limit, mostLimit)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("make a run id: %w", err)
	}
	r := &run{s: s, queue: q, filter: filter, values: values, done: make(chan struct{}), refill: refill{queue: q, freed: make(chan struct{}, 1)}}
	r.report = RunReport{RunID: id.String(), Queue: filter.Queue, Status: filter.Status}
	return r, nil
}

// work is the run from its begin to its end.
func (r *run) work(ctx context.Context) error {
	beginErr := r.s.beginRun(ctx, r.queue)
	err := errors.Join(beginErr, r.pick(ctx))
	r.free.Wait()
	next, limitedUntil, nextErr := r.s.nextDue(r.queue, r.filter.Status)
	r.mu.Lock()
	r.report.Done, r.report.NextDueAt, r.report.RateLimitedUntil = true, next, limitedUntil
	picked := r.report.Picked
	r.mu.Unlock()
	if picked == 0 {
		r.s.warnOfStrangers(ctx, string(r.queue.name))
	}
	r.s.cleanUpSometimes()
	return errors.Join(err, nextErr)
}

// pick claims jobs as handlers may start, until the limit is reached or
// nothing is due any more. Not all at once, so that a crash strands few.
func (r *run) pick(ctx context.Context) error {
	ctx, cancel := r.s.whileOpen(ctx)
	defer cancel()
	for left := r.filter.Limit; left > 0; {
		if r.queue.blocking() {
			r.free.Wait() // strictly one after another
		}
		most, worth := r.refill.room(left)
		if most == 0 || !worth {
			if most > 0 {
				r.refill.soon()
			}
			if r.awaitRecord(ctx); ctx.Err() != nil {
				return context.Cause(ctx)
			}
			continue
		}
		room := r.s.capacity.take(ctx, most, r.patience())
		if room == 0 {
			return context.Cause(ctx)
		}
		jobs, err := r.s.claim(ctx, r.queue, r.filter.Status, room)
		r.s.capacity.put(room-len(jobs), 0)
		if err != nil {
			return err
		}
		r.start(jobs, len(jobs) == room)
		left -= len(jobs)
		if len(jobs) < room && (!r.queue.limited() || !r.awaitRecord(ctx)) {
			return nil
		}
	}
	return nil
}

// awaitRecord waits until one of the run's jobs is recorded, in whose place
// another one may start: false if it has none.
func (r *run) awaitRecord(ctx context.Context) bool {
	if r.snapshot().Running == 0 {
		select {
		case <-r.refill.freed:
			return true
		default:
			return false
		}
	}
	select {
	case <-r.refill.freed:
	case <-ctx.Done():
	}
	return true
}

// patience is how long a run waits for room: while it has jobs of its own
// running, as long as it takes. Without, only so long, or the calls of a worker
// would pile up before a service that is busy for hours.
func (r *run) patience() <-chan time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.report.Running > 0 {
		return nil
	}
	return time.After(r.s.config.RunWait)
}

func (r *run) start(jobs []*Job, all bool) {
	r.mu.Lock()
	r.report.Picked += len(jobs)
	r.report.Running += len(jobs)
	if r.queue.limited() {
		r.refill.started(len(jobs), all)
	}
	r.mu.Unlock()
	r.free.Add(len(jobs))
	r.s.start(r.values, jobs, r.queue, r.recorded, nil)
}

// recorded counts a job whose verdict is in the database.
func (r *run) recorded(o *outcome) {
	r.mu.Lock()
	r.report.Running--
	switch {
	case o.dropped:
		r.report.Lost++
	case o.handed:
		r.report.HandedBack++
	case o.status == JobStatusSucceeded:
		r.report.Succeeded++
	case o.status == JobStatusFailed:
		r.report.Failed++
	case o.status == JobStatusDead:
		r.report.Dead++
	case o.status == JobStatusCancelled:
		r.report.Cancelled++
	default:
		r.report.Snoozed++
	}
	if r.queue.limited() {
		r.refill.ended() // before anybody sees that none is running
	}
	r.mu.Unlock()
	r.free.Done()
}

func (r *run) snapshot() RunReport {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.report
}

const nextDueSQL = `
SELECT {{schema}}.next_due($1::text, $2::text, $3::text[], $4::timestamptz),
    (SELECT {{schema}}.rate_limited_until(q.name) FROM {{schema}}.queues q WHERE q.name = $1::text AND q.limited)`

// nextDue tells when the next job that a run with this filter picks is due, and
// until when rates let none start.
func (s *Scheduler) nextDue(q *queue, status JobStatus) (at, limitedUntil *time.Time, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), claimTimeout)
	defer cancel()
	since, _ := q.progress[lanesOf(status)].since()
	if err := s.pool.QueryRow(ctx, s.sql(nextDueSQL), string(q.name), string(status), s.names, since).Scan(&at, &limitedUntil); err != nil {
		return nil, nil, fmt.Errorf("look for the next due job: %w", explained(err))
	}
	return inUTC(at), inUTC(limitedUntil), nil
}

// inUTC is a time of the database, or nil.
func inUTC(at *time.Time) *time.Time {
	if at == nil {
		return nil
	}
	utc := at.UTC()
	return &utc
}
