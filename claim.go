package scheduler

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// claimedColumns are what scanClaimed reads.
const claimedColumns = `id, name, payload, run_at, created_at, started_at, attempt, max_attempts, errors, coalesce(timeout_ms, 0), claims,
    attributes, priority, coalesce(key, '')`

const (
	claimSQL     = claimUpToSQL + `$6::int` + claimSinceSQL
	claimUpToSQL = `
SELECT ` + claimedColumns + `
FROM {{schema}}.claim($2::text, $4::bool, $5::bool, $3::text[], $1::text::uuid, `
	claimSinceSQL = `, $7::timestamptz, $8::uuid, $9::bigint::float8 * interval '1 microsecond')`
)

const claimBlockingSQL = `
SELECT ` + claimedColumns + `
FROM {{schema}}.claim_blocking($2::text, $4::bool, $3::text[], $1::text::uuid)`

// claimTimeout bounds a claim. It has no other deadline: a claim that is cut
// off may have happened all the same.
const claimTimeout = 30 * time.Second

// claim starts an attempt of up to n due jobs; in a blocking queue, of one. The
// functions in sql/ say how claims are kept apart.
func (s *Scheduler) claim(ctx context.Context, q *queue, status JobStatus, n int) ([]*Job, error) {
	if len(s.names) == 0 {
		return nil, nil
	}
	return s.claimBy(ctx, q, func(ctx context.Context, lease string) ([]*Job, error) {
		return s.askForJobs(ctx, q, status, lease, n)
	})
}

// claimBy is a claim with a question to the database that takes jobs under a lease.
func (s *Scheduler) claimBy(ctx context.Context, q *queue, ask func(ctx context.Context, lease string) ([]*Job, error)) ([]*Job, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTimeout)
	defer cancel()
	defer q.turn.take(ctx)()
	// Between the claim in the database and the note that we have it, nobody may
	// conclude that we don't.
	s.claims.RLock()
	defer s.claims.RUnlock()

	id, life, err := s.lease.hold(ctx, s)
	if err != nil {
		return nil, fmt.Errorf("claim jobs: take a lease: %w", err)
	}
	jobs, err := ask(ctx, id)
	if err != nil {
		s.suspect()
		return nil, fmt.Errorf("claim jobs: %w", err)
	}
	s.keepClaimed(jobs, id, life)
	return jobs, nil
}

// keepClaimed notes what was claimed under a lease. s.claims is still held.
func (s *Scheduler) keepClaimed(jobs []*Job, lease string, life *term) {
	if len(jobs) == 0 {
		return
	}
	lives := make([]jobContext, len(jobs))
	for i, job := range jobs {
		job.life = &lives[i]
		job.life.under(life, lease)
	}
	s.lease.keep(s, jobs)
}

// turn lets the runs of a process claim from a queue one after another: what
// two claims take at once, each of them has to pass over.
type turn chan struct{}

// turnWait is how long a claim waits for its turn, lest one that hangs holds up
// the others. A turn without end is no harm: claims are kept apart in SQL.
const turnWait = 100 * time.Millisecond

// take waits for the turn and returns what ends it.
func (t turn) take(ctx context.Context) (end func()) {
	select {
	case t <- struct{}{}:
		return func() { <-t }
	default:
	}
	timer := time.NewTimer(turnWait)
	defer timer.Stop()
	select {
	case t <- struct{}{}:
		return func() { <-t }
	case <-timer.C:
	case <-ctx.Done():
	}
	return func() {}
}

func (s *Scheduler) askForJobs(ctx context.Context, q *queue, status JobStatus, lease string, n int) ([]*Job, error) {
	if q.blocking() {
		rows, err := s.pool.Query(ctx, s.sql(claimBlockingSQL), lease, string(q.name), s.names, q.SkipFailed)
		if err != nil {
			return nil, err
		}
		return scanClaimed(rows, q)
	}
	since, after := q.since(status)
	jobs, err := s.askFor(ctx, q, status, lease, n, since, after)
	if err != nil {
		q.progress[lanesOf(status)].forget()
		return nil, err
	}
	q.found(status, since, jobs, n)
	if len(jobs) < n && since != nil {
		// There may be more, due earlier.
		var more []*Job
		more, err = s.askForJobs(ctx, q, status, lease, n-len(jobs))
		jobs = append(jobs, more...)
	}
	return jobs, err
}

func (s *Scheduler) askFor(ctx context.Context, q *queue, status JobStatus, lease string, n int, since *time.Time, after pgtype.UUID) ([]*Job, error) {
	rows, err := s.pool.Query(ctx, s.sql(claimSQL), s.claimArgs(q, status, lease, n, since, after)...)
	if err != nil {
		return nil, err
	}
	return scanClaimed(rows, q)
}

func (s *Scheduler) claimArgs(q *queue, status JobStatus, lease string, n int, since *time.Time, after pgtype.UUID) []any {
	return []any{
		lease, string(q.name), s.names, status != JobStatusFailed, status != JobStatusPending, n, since, after, keepTime(q.PriorityAge),
	}
}

// since is the job that claims have come to; nil: they look at everything.
func (q *queue) since(status JobStatus) (at *time.Time, after pgtype.UUID) {
	if q.keyed() {
		return nil, pgtype.UUID{}
	}
	return q.progress[lanesOf(status)].since()
}

// found notes how far a claim of n jobs has come.
func (q *queue) found(status JobStatus, since *time.Time, jobs []*Job, n int) {
	progress := &q.progress[lanesOf(status)]
	switch {
	case q.keyed():
	case len(jobs) == n, since == nil && len(jobs) > 0 && q.limited(): // limits may be why it is not n
		progress.reached(jobs[len(jobs)-1])
	default:
		progress.forget()
	}
}

// progress is how far claims have come in a queue that is being worked off.
// Looking only from there on is right for a moment; then everything is looked
// at again, for jobs that became due earlier. Where jobs have priorities, claims
// take no notice of it.
type progress struct {
	mu    sync.Mutex
	at    time.Time   // run_at of the last job claimed; zero: look at everything
	after pgtype.UUID // its id
	began time.Time
}

const progressFor = time.Second

// lanesOf tells filters apart that claim from different lanes.
func lanesOf(status JobStatus) int {
	switch status {
	case JobStatusPending:
		return 0
	case JobStatusFailed:
		return 1
	}
	return 2
}

func (p *progress) since() (at *time.Time, after pgtype.UUID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.IsZero() || time.Since(p.began) > progressFor {
		return nil, pgtype.UUID{}
	}
	reached := p.at
	return &reached, p.after
}

func (p *progress) reached(last *Job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.at.IsZero() || time.Since(p.began) > progressFor {
		p.began = time.Now()
	}
	p.at, p.after = last.RunAt, last.key
}

func (p *progress) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at = time.Time{}
}

// scanClaimed reads claimed jobs, in the order of their starts.
func scanClaimed(rows pgx.Rows, q *queue) ([]*Job, error) {
	defer rows.Close()
	var jobs []*Job
	now := time.Now()
	for rows.Next() {
		job := &Job{Queue: q.name, Status: JobStatusRunning, Errors: []JobError{}, claimedAt: now}
		var startedAt time.Time
		var failures, attributes []byte
		var timeoutMS int64
		err := rows.Scan(&job.key, &job.Name, (*[]byte)(&job.Payload), &job.RunAt, &job.CreatedAt, &startedAt,
			&job.Attempt, &job.MaxAttempts, &failures, &timeoutMS, &job.claims, &attributes, &job.Priority, &job.Key)
		if err != nil {
			return nil, err
		}
		job.ID = uuid.UUID(job.key.Bytes).String()
		startedAt = startedAt.UTC()
		job.RunAt, job.CreatedAt, job.StartedAt = job.RunAt.UTC(), job.CreatedAt.UTC(), &startedAt
		job.Timeout = time.Duration(timeoutMS) * time.Millisecond
		if job.setErrors(failures) != nil { // by hand; no reason not to run it
			job.Errors = []JobError{}
		}
		_ = job.setAttributes(attributes) // if not, then by hand: no reason not to run it
		jobs = append(jobs, job)
	}
	slices.SortFunc(jobs, q.compare)
	if q.KeyRound > 0 {
		jobs = q.rounds.order(jobs, q.KeyRound)
	}
	return jobs, rows.Err()
}

// compare says which of two jobs claimed at once is started first, as
// claim_by_priority does: what is overdue, then the lower priority, then the
// older job.
func (q *queue) compare(a, b *Job) int {
	if a.Priority != b.Priority {
		switch first, second := q.overdue(a), q.overdue(b); {
		case first && !second:
			return -1
		case second && !first:
			return 1
		case !first:
			return cmp.Compare(a.Priority, b.Priority)
		}
	}
	return cmp.Or(a.RunAt.Compare(b.RunAt), cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.ID, b.ID))
}

// overdue: the job had waited for so long that its priority counted for nothing.
func (q *queue) overdue(job *Job) bool {
	return q.PriorityAge >= 0 && job.StartedAt.Sub(job.RunAt) > q.PriorityAge
}

// setErrors reads the column errors.
func (j *Job) setErrors(text []byte) error {
	j.Errors = []JobError{}
	if text == nil {
		return nil
	}
	if err := json.Unmarshal(text, &j.Errors); err != nil {
		return fmt.Errorf("errors of job %s: %w", j.ID, err)
	}
	for i := range j.Errors {
		j.Errors[i].At = j.Errors[i].At.UTC()
	}
	return nil
}

// suspectLooks is how often the traces of a failed claim are looked for, three
// times in the life of a lease: the database may finish a statement well after
// the connection was lost.
const suspectLooks = 6

// suspect begins to look for jobs that run under our lease without our knowing.
// Until that is done the lease is in use, so that somebody does it.
func (s *Scheduler) suspect() {
	if s.suspects.Swap(suspectLooks) == 0 {
		s.lease.use(s)
	}
}

// suspectSometimes is for a claim that was carried out only when suspect had ceased
// to look for it, under a lease that we still have.
func (s *Scheduler) suspectSometimes() {
	if id, _ := s.lease.holdings(); id != "" && s.open.Err() == nil && s.suspects.CompareAndSwap(0, 1) {
		s.lease.use(s)
	}
}

const handBackSQL = `
SELECT ` + takenBackColumns + `
FROM {{schema}}.hand_back($1::text::uuid, $2::uuid[], $3::timestamptz)`

// reconcile hands back jobs that a claim took without our getting to know,
// because the connection was lost before the answer. They are running under
// our lease, which we go on renewing, so nobody else would ever rescue them.
func (s *Scheduler) reconcile(ctx context.Context) {
	if s.suspects.Load() == 0 {
		return
	}
	if !s.lockClaims() {
		return // claims are in flight all the time; next time
	}
	defer s.claims.Unlock()
	if s.suspects.Load() == 0 {
		return // another one has looked meanwhile
	}
	id, held := s.lease.holdings()
	if id == "" {
		return // it was lost just now: its jobs are rescued
	}
	ctx, cancel := context.WithTimeout(ctx, s.config.Lease/3)
	defer cancel()
	// No claim of ours is under way: what begins after this moment, we will know of.
	var at time.Time
	n, err := 0, s.pool.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&at)
	if err == nil {
		n, err = s.takeBack(ctx, func(job *Job) {
			if job.Status == JobStatusCancelled {
				s.tellCancelled(job)
			}
		}, handBackSQL, id, held, at)
	}
	if err != nil {
		s.config.Logger.Warn("scheduler: can't look for lost claims", "error", err)
		return
	}
	if n > 0 {
		s.resident.alarm.in(0)
		s.config.Logger.Warn("scheduler: handed back jobs of a claim whose answer was lost", "jobs", n)
	}
	if s.suspects.Add(-1) == 0 {
		s.lease.unuse()
	}
}

// lockClaims waits a little for a moment in which no claim is in flight. It
// holds up no claim for that.
func (s *Scheduler) lockClaims() bool {
	for range 100 {
		if s.claims.TryLock() {
			return true
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-s.gone.Done():
			return false
		}
	}
	return false
}

const settleSQL = `SELECT {{schema}}.settle($1::text::uuid, $2::uuid[])`

// settleAfter is how long a job runs before it is moved out of the way of
// claims; settleAtLeast is how many such jobs are worth a write.
const (
	settleAfter   = time.Second
	settleAtLeast = 32
)

// settle moves jobs that have been running for a while out of the way of claims.
func (s *Scheduler) settle(ctx context.Context) {
	lease, jobs := s.lease.unsettled(time.Now().Add(-settleAfter))
	if len(jobs) < settleAtLeast || lease == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	ids := make([]pgtype.UUID, len(jobs))
	for i, job := range jobs {
		ids[i] = job.key
	}
	if _, err := s.pool.Exec(ctx, s.sql(settleSQL), lease, ids); err != nil {
		s.config.Logger.Warn("scheduler: can't settle running jobs", "error", err)
		return
	}
	s.lease.settled(jobs)
}
