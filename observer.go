package scheduler

import (
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// EventKind says what has happened to a job.
type EventKind string

// The kinds of events. Each is told by the process in which it happens.
const (
	EventCreated    EventKind = "created"     // by CreateJob or CreateJobs; or CreateJobTx or CreateJobSQL, whose transaction may still roll back
	EventStarted    EventKind = "started"     // its handler is called
	EventSucceeded  EventKind = "succeeded"   // recorded: the handler returned nil, or CompleteTx committed
	EventFailed     EventKind = "failed"      // recorded: will be rerun after its backoff
	EventDead       EventKind = "dead"        // recorded: will not be rerun. After rescued too, if that was the last attempt
	EventCancelled  EventKind = "cancelled"   // by CancelJob; of a job that was running, when that is recorded or it is rescued. Not of those that wait for it
	EventSnoozed    EventKind = "snoozed"     // recorded: asked to be run later
	EventHandedBack EventKind = "handed_back" // recorded: not done, because of a shutdown or for want of a slot
	EventRescued    EventKind = "rescued"     // taken back from a process that was lost, which may be another one
	EventLeaseLost  EventKind = "lease_lost"  // its handler returned, but the job was not its own any more: nothing is recorded
)

// Event is something that has happened to a job, for Config.Observer.
type Event struct {
	Kind EventKind
	// Job is a copy, which the observer may keep. It shows the job as this
	// process knows it: Status, Attempt and Result are those after the event,
	// what the database fills in (RunAt and Errors of a failed attempt,
	// FinishedAt) those before.
	Job *Job
	// At is when it happened, in UTC, by this process's clock.
	At time.Time
	// Wait is how long the job had been due when its handler was called. Zero
	// if there was no call.
	Wait time.Duration
	// Ran is how long the handler ran. Zero before it has returned.
	Ran time.Duration
	// Err is why an attempt failed: what the handler returned, or its panic
	// with the stack. Of rescued jobs and lost leases it is an ErrLeaseLost, of
	// what a shutdown hands back ErrShuttingDown; nil of all others.
	Err error
}

// observer hands events to Config.Observer, one at a time, in a goroutine of
// its own. Nobody waits for it: what does not fit is dropped and counted.
type observer struct {
	mu     sync.Mutex
	events chan Event // nil until the first one
	bytes  int        // of what is in the jobs of events
	ended  bool       // by Shutdown: no more are taken

	dropped int       // not yet told of in the log
	toldAt  time.Time // when the log was last told

	done   chan struct{} // closed when all were delivered
	giveUp atomic.Bool   // what is left is dropped
}

const (
	mostEvents     = 4096
	mostEventBytes = 16 << 20
	tellDropped    = time.Minute // not more often
	// eventsGrace is how long Shutdown waits for the observer.
	eventsGrace = 2 * time.Second
)

// tell takes an event for the observer.
func (s *Scheduler) tell(e Event) {
	e.At = time.Now().UTC()
	s.logDropped(s.observer.take(s, e))
}

// take returns how many dropped events the log is to be told of by now.
func (o *observer) take(s *Scheduler, e Event) (dropped int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return 0
	}
	if o.events == nil {
		o.events, o.done = make(chan Event, mostEvents), make(chan struct{})
		go o.deliver(s)
	}
	if size := e.size(); len(o.events) == 0 || o.bytes+size <= mostEventBytes { // a single one always fits
		select {
		case o.events <- e:
			o.bytes += size
			return 0
		default:
		}
	}
	o.dropped++
	if time.Since(o.toldAt) < tellDropped {
		return 0
	}
	dropped, o.dropped, o.toldAt = o.dropped, 0, time.Now()
	return dropped
}

func (s *Scheduler) logDropped(n int) {
	if n > 0 {
		s.config.Logger.Warn("scheduler: Config.Observer is too slow, events were dropped", "events", n)
	}
}

func (e *Event) size() int {
	size := len(e.Job.Payload) + len(e.Job.Result) + len(e.Job.Metadata)
	if p := e.Job.Progress; p != nil {
		size += len(p.Note) + len(p.Checkpoint)
	}
	for i := range e.Job.Errors {
		size += len(e.Job.Errors[i].Error)
	}
	return size
}

func (o *observer) deliver(s *Scheduler) {
	ended := false
	defer func() {
		if !ended { // the observer has ended this goroutine by runtime.Goexit
			go o.deliver(s)
		}
	}()
	for e := range o.events {
		o.mu.Lock()
		o.bytes -= e.size()
		o.mu.Unlock()
		if !o.giveUp.Load() {
			s.show(e)
		}
	}
	ended = true
	close(o.done)
}

// show calls the observer, which is the service's code.
func (s *Scheduler) show(e Event) {
	defer func() {
		if reason := recover(); reason != nil {
			s.config.Logger.Error("scheduler: Config.Observer panicked", "event", string(e.Kind), "job", e.Job.ID,
				"error", fmt.Sprintf("%v\n\n%s", reason, debug.Stack()))
		}
	}()
	s.config.Observer(e)
}

// end takes no more events, and waits a while for those there are.
func (o *observer) end(s *Scheduler) {
	o.mu.Lock()
	begun := o.events != nil && !o.ended
	o.ended = true
	o.mu.Unlock()
	if !begun {
		return
	}
	close(o.events) // nobody sends any more
	grace := time.NewTimer(eventsGrace)
	defer grace.Stop()
	left := 0
	select {
	case <-o.done:
	case <-grace.C:
		o.giveUp.Store(true)
		left = len(o.events)
	}
	s.logDropped(o.dropped + left) // nobody counts any more
}

// sighting is what is known of an attempt for the events of it: the job before
// its handler could change it, and how that fared.
type sighting struct {
	job   Job
	wait  time.Duration
	began time.Time
	ran   time.Duration
	err   error
}

// returned notes that the handler has returned. It may be called again.
func (o *sighting) returned() {
	if o != nil && o.ran == 0 {
		o.ran = time.Since(o.began)
	}
}

// failed notes why the attempt has failed.
func (o *sighting) failed(err error) {
	if o != nil {
		o.err = err
	}
}

// event is one of this attempt. Those of one attempt share what their jobs
// point to, which nobody here looks at any more.
func (o *sighting) event(kind EventKind) Event {
	job := o.job
	return Event{Kind: kind, Job: &job, Wait: o.wait, Ran: o.ran, Err: o.err}
}

// copied is a copy of the job that shares nothing with it.
func (j *Job) copied() Job {
	c := *j
	c.life = nil
	c.Payload, c.Result, c.Metadata = slices.Clone(j.Payload), slices.Clone(j.Result), slices.Clone(j.Metadata)
	c.Tags, c.Errors = slices.Clone(j.Tags), slices.Clone(j.Errors)
	for _, at := range []**time.Time{&c.StartedAt, &c.FinishedAt} {
		if *at != nil {
			own := **at
			*at = &own
		}
	}
	if c.Progress != nil {
		own := *c.Progress
		own.Checkpoint = slices.Clone(own.Checkpoint)
		c.Progress = &own
	}
	return c
}

func (s *Scheduler) tellCreated(job *Job) {
	if s.config.Observer != nil && !job.Duplicate {
		seen := job.copied()
		s.tell(Event{Kind: EventCreated, Job: &seen})
	}
}

// tellAllCreated is for jobs that nobody has asked to see but the observer. A
// row that has another id is a duplicate.
func (s *Scheduler) tellAllCreated(rows []newRow, ids []string, at time.Time) {
	if s.config.Observer == nil {
		return
	}
	for i := range rows {
		if ids[i] != rows[i].id.String() {
			continue
		}
		s.tell(Event{Kind: EventCreated, Job: rows[i].jobCreated(at)})
	}
}

// tellStarted tells that the handler of a job is about to be called. What it
// returns is nil without an observer.
func (s *Scheduler) tellStarted(job *Job) *sighting {
	if s.config.Observer == nil {
		return nil
	}
	began := time.Now()
	seen := &sighting{job: job.copied(), began: began}
	// Until the claim by the database's clock, and since then by ours.
	seen.wait = max(0, job.StartedAt.Sub(job.RunAt)) + began.Sub(job.claimedAt)
	s.tell(seen.event(EventStarted))
	return seen
}

// tellOutcome tells what came of an attempt, once that is recorded.
func (s *Scheduler) tellOutcome(o *outcome) {
	if s.config.Observer == nil {
		return
	}
	seen := o.seen
	if seen == nil { // it never began
		seen = &sighting{job: o.job.copied()}
	}
	if o.dropped {
		seen.err = fmt.Errorf("%w: what came of the attempt is not recorded", ErrLeaseLost)
		s.tell(seen.event(EventLeaseLost))
		return
	}
	seen.job.Status = o.status
	seen.job.Attempt -= int(o.refund)
	kind := EventSnoozed
	switch {
	case o.handed:
		kind = EventHandedBack
	case o.status == JobStatusSucceeded:
		kind, seen.job.Result, seen.err = EventSucceeded, []byte(*o.result), nil
	case o.status == JobStatusFailed:
		kind = EventFailed
	case o.status == JobStatusDead:
		kind = EventDead
	case o.status == JobStatusCancelled:
		kind = EventCancelled
	}
	s.tell(seen.event(kind))
}

// tellRescued tells of a job that was taken back from a lost process.
func (s *Scheduler) tellRescued(job *Job) {
	if s.config.Observer == nil {
		return
	}
	seen := sighting{job: *job, err: fmt.Errorf("%w: the process that ran this attempt ended or could not renew its lease", ErrLeaseLost)}
	s.tell(seen.event(EventRescued))
	switch job.Status {
	case JobStatusDead:
		s.tell(seen.event(EventDead))
	case JobStatusCancelled:
		s.tell(seen.event(EventCancelled))
	}
}

// tellCancelled tells of a job that was called off before it ran.
func (s *Scheduler) tellCancelled(job *Job) {
	if s.config.Observer == nil {
		return
	}
	s.tell((&sighting{job: job.copied()}).event(EventCancelled))
}
