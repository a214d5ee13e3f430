package scheduler_test

import (
	"cmp"
	"slices"
	"time"

	"github.com/relay-club/scheduler"
)

// model is what this library promises, without a database and without a second
// process: TestModel holds the library against it. Whatever is done to the jobs
// is done by one call after another.
type model struct {
	now    time.Time // the database's clock
	queues map[scheduler.JobQueue]*modelQueue
	jobs   []*modelJob // those that are there, in the order they were created
	keys   map[modelKey]*modelHolders
}

type modelKey struct{ name, key string }

// modelHolders have a key: the job that was created last, which may be finished,
// or gone (nil), and one that was retried since, which may be finished.
type modelHolders struct{ newest, retried *modelJob }

// unfinished is the one that has the key because it is not finished.
func (h *modelHolders) unfinished() *modelJob {
	for _, j := range []*modelJob{h.newest, h.retried} {
		if j != nil && !j.finished() {
			return j
		}
	}
	return nil
}

type modelQueue struct {
	name                 scheduler.JobQueue
	blocking, skipFailed bool
	maxAttempts          int
	backoff              func(attempt int) time.Duration
	priorityAge          time.Duration
	paused               bool
	head                 *modelJob // of a blocking queue: what was started last, until it is finished
}

type modelJob struct {
	id                   string
	name                 string
	queue                *modelQueue
	priority             int
	status               scheduler.JobStatus
	runAt, createdAt     time.Time
	finishedAt           time.Time // zero: it is not
	started              bool
	attempt, maxAttempts int
	script               []verdict // what its handler does, call by call; the last one over and over
	calls                int       // of its handler
	errors               int
	result               string
	checkpoint           int // number of the call that made it; 0: none
	owner, key           string
	running              *modelCall // nil: it is not
	cancelling           bool
}

// modelCall is one attempt: a call of a handler.
type modelCall struct {
	job     *modelJob
	process *modelProcess
	number  int // of the job's calls
	seen    seen
	verdict verdict
}

// checkpoints: the handlers of jobs that somebody owns do so before they return;
// but for those that call CompleteTx, after which it is written too late to wait
// for it.
func (c *modelCall) checkpoints() bool { return c.seen.Owner != "" }

// modelProcess is who runs jobs.
type modelProcess struct {
	names []string // that it has handlers for
	lost  bool     // crashed, and its lease has run out
}

// seen is what a handler sees of its job.
type seen struct {
	ID                           string
	Attempt, MaxAttempts, Errors int
	Checkpoint                   int
	Last                         bool
	Owner                        string
	Script                       []verdict
}

// verdict is what a handler does.
type verdict string

const (
	succeeds    verdict = "succeed"
	completes   verdict = "complete" // by CompleteTx
	fails       verdict = "fail"
	panics      verdict = "panic"
	uncompletes verdict = "uncomplete" // rolls CompleteTx back
	givesUp     verdict = "give up"    // Cancel
	retries     verdict = "retry"      // RetryAfter
	snoozes     verdict = "snooze"
)

const (
	retryDelay  = 2 * time.Hour
	snoozeDelay = time.Hour
	// mostErrors are kept of a job.
	mostErrors = 20
)

func (j *modelJob) finished() bool { return !j.finishedAt.IsZero() }

// waits: it is neither running nor finished.
func (j *modelJob) waits() bool { return !j.finished() && j.running == nil }

func (j *modelJob) uniqueKey() modelKey { return modelKey{j.name, j.key} }

func (j *modelJob) verdict() verdict { return j.script[min(j.calls, len(j.script))-1] }

// end finishes a job.
func (m *model) end(j *modelJob, status scheduler.JobStatus) {
	j.status, j.finishedAt = status, m.now
	if j.queue.head == j {
		j.queue.head = nil
	}
}

// create creates a job, or finds the one that has its key.
func (m *model) create(job scheduler.NewJob) (j *modelJob, duplicate bool) {
	q := m.queues[cmp.Or(job.Queue, scheduler.JobQueueDefault)]
	runAt := job.RunAt
	if runAt.IsZero() {
		runAt = m.now
	}
	holders := m.holders(modelKey{job.Name, job.UniqueKey})
	other := holders.unfinished()
	if newest := holders.newest; other == nil && newest != nil && newest.createdAt.After(m.now.Add(-job.UniqueFor)) {
		other = newest
	}
	if other != nil {
		if job.OnDuplicate == scheduler.DuplicateReplace && other.status == scheduler.JobStatusPending && other.attempt == 0 {
			other.script, other.runAt, other.owner = job.Payload.([]verdict), runAt, job.Owner
			other.checkpoint = 0
		}
		return other, true
	}
	j = &modelJob{
		name: job.Name, queue: q, priority: job.Priority, status: scheduler.JobStatusPending, runAt: runAt, createdAt: m.now,
		maxAttempts: cmp.Or(job.MaxAttempts, q.maxAttempts), script: job.Payload.([]verdict), owner: job.Owner, key: job.UniqueKey,
	}
	m.jobs = append(m.jobs, j)
	*holders = modelHolders{newest: j}
	return j, false
}

// holders are those of a key, and of none if that is empty.
func (m *model) holders(key modelKey) *modelHolders {
	if key.key == "" {
		return &modelHolders{}
	}
	if m.keys[key] == nil {
		m.keys[key] = &modelHolders{}
	}
	return m.keys[key]
}

// run picks up to limit jobs, one after another, and has their handlers return
// at once. It returns their calls in order.
func (m *model) run(p *modelProcess, filter scheduler.RunFilter) (calls []*modelCall, outcomes []scheduler.JobStatus) {
	m.rescue()
	for range filter.Limit {
		j := m.next(p, filter)
		if j == nil {
			break
		}
		call := m.start(p, j)
		calls, outcomes = append(calls, call), append(outcomes, m.finish(call))
	}
	return calls, outcomes
}

// begin is run with handlers that do not return yet.
func (m *model) begin(p *modelProcess, filter scheduler.RunFilter) (calls []*modelCall) {
	m.rescue()
	for range filter.Limit {
		j := m.next(p, filter)
		if j == nil {
			break
		}
		calls = append(calls, m.start(p, j))
	}
	return calls
}

func (m *model) start(p *modelProcess, j *modelJob) *modelCall {
	j.status, j.started = scheduler.JobStatusRunning, true
	j.attempt++
	j.calls++
	call := &modelCall{job: j, process: p, number: j.calls, verdict: j.verdict(), seen: seen{
		ID: j.id, Attempt: j.attempt, MaxAttempts: j.maxAttempts, Errors: j.errors, Last: j.attempt == j.maxAttempts, Owner: j.owner, Script: j.script,
	}}
	if call.checkpoints() {
		call.seen.Checkpoint = j.checkpoint
	}
	j.running = call
	if j.queue.blocking {
		j.queue.head = j
	}
	return call
}

// finish records what a handler returned, and returns what the run counts: the
// job's status then, or running if the attempt is not the job's any more.
func (m *model) finish(call *modelCall) scheduler.JobStatus {
	j := call.job
	if j.running != call {
		return scheduler.JobStatusRunning
	}
	if call.checkpoints() && call.verdict != completes {
		j.checkpoint = call.number
	}
	cancelling := j.cancelling
	j.running, j.cancelling = nil, false
	if call.verdict == succeeds || call.verdict == completes {
		m.end(j, scheduler.JobStatusSucceeded)
		j.result = string(call.verdict)
		return j.status
	}
	if !cancelling && call.verdict == snoozes {
		j.status, j.runAt = scheduler.JobStatusPending, m.now.Add(snoozeDelay)
		j.attempt--
		return j.status
	}
	j.errors = min(j.errors+1, mostErrors)
	switch {
	case cancelling:
		m.end(j, scheduler.JobStatusCancelled)
	case call.verdict == givesUp || j.attempt == j.maxAttempts:
		m.end(j, scheduler.JobStatusDead)
	case call.verdict == retries:
		j.status, j.runAt = scheduler.JobStatusFailed, m.now.Add(retryDelay)
	default:
		j.status, j.runAt = scheduler.JobStatusFailed, m.now.Add(j.queue.backoff(j.attempt))
	}
	return j.status
}

// rescue takes back what lost processes were running.
func (m *model) rescue() {
	for _, j := range m.jobs {
		if j.running == nil || !j.running.process.lost {
			continue
		}
		cancelling := j.cancelling
		j.running, j.cancelling = nil, false
		j.errors = min(j.errors+1, mostErrors)
		switch {
		case cancelling:
			m.end(j, scheduler.JobStatusCancelled)
		case j.attempt == j.maxAttempts:
			m.end(j, scheduler.JobStatusDead)
		default:
			j.status = scheduler.JobStatusPending
		}
	}
}

func (m *model) cancel(j *modelJob) error {
	switch {
	case m.isGone(j):
		return scheduler.ErrJobNotFound
	case j.running != nil:
		j.cancelling = true
	case !j.finished():
		m.end(j, scheduler.JobStatusCancelled)
	}
	return nil
}

func (m *model) retry(j *modelJob) error {
	holders := m.holders(j.uniqueKey())
	other := holders.unfinished()
	switch {
	case m.isGone(j):
		return scheduler.ErrJobNotFound
	case j.running != nil || j.status == scheduler.JobStatusSucceeded:
		return scheduler.ErrJobState
	case j.finished() && other != nil:
		return scheduler.ErrJobState // there would be two with its key
	case j.finished():
		j.runAt, j.finishedAt, j.started = m.now, time.Time{}, false
		if holders.newest == nil {
			holders.newest = j
		}
		if holders.retried = j; holders.newest == j {
			holders.retried = nil
		}
	case j.runAt.After(m.now):
		j.runAt = m.now
	}
	j.status, j.maxAttempts = scheduler.JobStatusPending, max(j.maxAttempts, j.attempt+1)
	return nil
}

func (m *model) reschedule(j *modelJob, runAt time.Time) error {
	switch {
	case m.isGone(j):
		return scheduler.ErrJobNotFound
	case !j.waits():
		return scheduler.ErrJobState
	}
	if j.runAt = runAt; runAt.IsZero() {
		j.runAt = m.now
	}
	return nil
}

func (m *model) delete(j *modelJob) error {
	switch {
	case m.isGone(j):
		return scheduler.ErrJobNotFound
	case j.running != nil:
		return scheduler.ErrJobState
	}
	m.remove(j)
	return nil
}

func (m *model) isGone(j *modelJob) bool { return !slices.Contains(m.jobs, j) }

func (m *model) remove(j *modelJob) {
	m.jobs = slices.DeleteFunc(m.jobs, func(other *modelJob) bool { return other == j })
	holders := m.holders(j.uniqueKey())
	if holders.newest == j {
		holders.newest = nil
	}
	if holders.retried == j {
		holders.retried = nil
	}
	if j.queue.head == j {
		j.queue.head = nil
	}
}

// cleanUp deletes what was finished so long ago; below zero: none.
func (m *model) cleanUp(keep, keepDead time.Duration) {
	for _, j := range slices.Clone(m.jobs) {
		age := keep
		if j.status == scheduler.JobStatusDead {
			age = keepDead
		}
		if j.finished() && age >= 0 && !j.finishedAt.After(m.now.Add(-age)) {
			m.remove(j)
		}
	}
}

// move lets time pass: everything is longer ago.
func (m *model) move(d time.Duration) {
	for _, j := range m.jobs {
		j.runAt, j.createdAt = j.runAt.Add(-d), j.createdAt.Add(-d)
		if j.finished() {
			j.finishedAt = j.finishedAt.Add(-d)
		}
	}
}
