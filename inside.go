package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/relay-club/scheduler/internal/seam"
)

// inside is the side of a Scheduler that only schedulertest sees.
type inside struct{ s *Scheduler }

func init() {
	seam.Of = func(s any) seam.Scheduler { return inside{s.(*Scheduler)} }
	seam.NewMaker = func(config any) (seam.Maker, error) {
		s, err := newScheduler(nil, config.(Config))
		return inside{s}, err
	}
}

func (in inside) Pool() *pgxpool.Pool { return in.s.pool }
func (in inside) Schema() string      { return in.s.config.Schema }

func (in inside) Make(ctx context.Context, name string, data any) (any, error) {
	row, err := in.s.newRow(ctx, name, data.(JobData))
	if err != nil {
		return nil, fmt.Errorf("create job: %w", err)
	}
	return row.jobCreated(time.Now().UTC().Truncate(time.Microsecond)), nil
}

func (in inside) MakeAll(ctx context.Context, batch any) (any, error) {
	rows, err := in.s.newRows(ctx, batch.([]NewJob))
	if err != nil {
		return nil, fmt.Errorf("create jobs: %w", err)
	}
	at := time.Now().UTC().Truncate(time.Microsecond)
	jobs := make([]*Job, len(rows))
	for i := range rows {
		jobs[i] = rows[i].jobCreated(at)
	}
	return jobs, nil
}

// Call calls a handler as a run does, but for the lease and the record. What it
// reports goes into job.
func (in inside) Call(ctx context.Context, job any) (handled bool, result any, err error) {
	given := job.(*Job)
	own := given.copied()
	handler := in.s.handlers[own.Name]
	if handler == nil {
		return false, nil, fmt.Errorf("%w %s: it has no handler in Config.JobNames", ErrUnknownJobName, shown(own.Name))
	}
	q, inputErr := in.s.queue(own.Queue)
	if inputErr != nil {
		return false, nil, inputErr
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	own.Status, own.StartedAt = JobStatusRunning, &now
	own.Attempt++
	ctx = WithTraceparent(ctx, own.traceparent)
	timeout := own.Timeout
	if timeout == 0 {
		timeout = q.Timeout
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: %s has passed", ErrJobTimeout, timeout))
		defer cancel()
	}
	rehearsal := own.copied()
	rehearsal.life = &jobContext{lease: &term{Context: ctx}} // nobody asks when it is over
	if id, err := uuid.Parse(own.ID); err == nil {           // a test may have made it by hand
		rehearsal.key = pgtype.UUID{Bytes: id, Valid: true}
	}
	a := &attempt{s: in.s, job: &rehearsal, queue: q, rehearsed: true}
	defer a.showReports(given)
	result, err = handler(context.WithValue(ctx, attemptKey{}, a), &own)
	return true, result, err
}

// showReports shows in job, as a read of it would, what the handler of a
// rehearsed attempt has reported. It takes no more.
func (a *attempt) showReports(job *Job) {
	a.s.endReports(a)
	last := a.reports.Load().news
	if last.at.IsZero() {
		return
	}
	progress := JobProgress{}
	if job.Progress != nil {
		progress = *job.Progress
	}
	progress.At = last.at.UTC().Truncate(time.Microsecond)
	if last.percent != nil {
		progress.Percent, progress.Note = int(*last.percent), *last.note
	}
	if last.checkpoint != nil {
		if progress.Checkpoint = nil; *last.checkpoint != "null" {
			progress.Checkpoint = json.RawMessage(*last.checkpoint)
		}
	}
	job.Progress = &progress
}

const jobsSQL = `
SELECT ` + jobColumns + `
FROM {{schema}}.jobs WHERE $1::text IN ('', name) ORDER BY id LIMIT $2::int`

func (in inside) Jobs(ctx context.Context, db any, name string, most int) (any, error) {
	var rows interface {
		pgx.Row
		Next() bool
		Err() error
	}
	if isNil(db) {
		return nil, errNoTx()
	}
	switch db := db.(type) {
	case SQLTx:
		found, err := db.QueryContext(ctx, in.s.sql(jobsSQL), name, most) //nolint:rowserrcheck // as rows, below
		if err != nil {
			return nil, explained(err)
		}
		defer func() { _ = found.Close() }()
		rows = found
	case interface {
		Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	}:
		found, err := db.Query(ctx, in.s.sql(jobsSQL), name, most)
		if err != nil {
			return nil, explained(err)
		}
		defer found.Close()
		rows = found
	}
	jobs := []*Job{}
	for rows.Next() {
		job := &Job{}
		if err := job.scan(rows); err != nil {
			return nil, err
		}
		jobs = append(jobs, job)
	}
	if err := rows.Err(); err != nil {
		return nil, explained(err)
	}
	return jobs, nil
}

const dueQueuesSQL = `
SELECT name FROM (SELECT q.name, {{schema}}.next_due(q.name, 'any', $2::text[]) AS due_at FROM pg_catalog.unnest($1::text[]) AS q (name)) AS n
WHERE n.due_at <= now() ORDER BY n.due_at, n.name`

func (in inside) RunNext(ctx context.Context) (id string, err error) {
	s := in.s
	if len(s.names) == 0 {
		return "", nil
	}
	if _, err := s.rescue(ctx); err != nil {
		return "", err
	}
	if _, err := s.fireRecurring(ctx); err != nil {
		return "", err
	}
	declared := make([]string, 0, len(s.queues))
	for name := range s.queues {
		declared = append(declared, string(name))
	}
	rows, err := s.pool.Query(ctx, s.sql(dueQueuesSQL), declared, s.names)
	if err != nil {
		return "", explained(err)
	}
	due, err := pgx.CollectRows(rows, pgx.RowTo[JobQueue])
	for i := 0; i < len(due) && err == nil && id == ""; i++ {
		id, err = in.runOne(ctx, s.queues[due[i]], func(ctx context.Context) ([]*Job, error) {
			return s.claim(ctx, s.queues[due[i]], JobStatusAny, 1)
		})
	}
	return id, err
}

// claimJobSQL is a claim of one job, whatever comes before it.
const claimJobSQL = `
UPDATE {{schema}}.jobs
SET status = 'running', lease_id = $1::text::uuid, started_at = now(), attempt = attempt + 1, claims = claims + 1,
    slot = CASE slot WHEN -1 THEN -3 ELSE 0 END, counted = NULL
WHERE id = $2::text::uuid AND status IN ('pending', 'failed') AND lane < 303 AND run_at <= now()
RETURNING ` + claimedColumns

const isPausedSQL = `
SELECT now(), coalesce((SELECT q.paused FROM {{schema}}.queues q WHERE q.name = $1::text), a.paused) FROM {{schema}}.all_queues a`

const headSQL = `SELECT ({{schema}}.blocking_head(q)).id::text FROM {{schema}}.queues q WHERE q.name = $1::text`

func (in inside) RunJob(ctx context.Context, id string) error {
	s := in.s
	job, err := s.GetJob(ctx, id)
	if err != nil {
		return err
	}
	var now time.Time
	var paused bool
	if err := s.pool.QueryRow(ctx, s.sql(isPausedSQL), string(job.Queue)).Scan(&now, &paused); err != nil {
		return explained(err)
	}
	q, inputErr := s.queue(job.Queue)
	switch {
	case inputErr != nil:
		return inputErr
	case !slices.Contains(s.names, job.Name):
		return fmt.Errorf("%w %s: it has no handler in Config.JobNames", ErrUnknownJobName, shown(job.Name))
	case job.Status != JobStatusPending && job.Status != JobStatusFailed:
		return fmt.Errorf("it is %s: expected %s or %s", job.Status, JobStatusPending, JobStatusFailed)
	case job.WaitsFor > 0:
		return fmt.Errorf("it waits for %d other jobs to succeed: expected one that waits for none", job.WaitsFor)
	case job.RunAt.After(now):
		return fmt.Errorf("it is %s and due in %s, at %s: expected one that is due", job.Status, job.RunAt.Sub(now), job.RunAt)
	case paused:
		return fmt.Errorf("its queue %q is paused: expected one that is not, see ResumeQueue", job.Queue)
	}
	claim := func(ctx context.Context) ([]*Job, error) {
		return s.claimBy(ctx, q, func(ctx context.Context, lease string) ([]*Job, error) {
			rows, err := s.pool.Query(ctx, s.sql(claimJobSQL), lease, job.ID)
			if err != nil {
				return nil, err
			}
			return scanClaimed(rows, q)
		})
	}
	if q.blocking() {
		var head string
		if err := s.pool.QueryRow(ctx, s.sql(headSQL), string(q.name)).Scan(&head); err != nil {
			return err
		}
		if head != job.ID {
			return fmt.Errorf("its queue %q is a blocking one, in which job %s comes before it", q.name, head)
		}
		claim = func(ctx context.Context) ([]*Job, error) { return s.claim(ctx, q, JobStatusAny, 1) }
	}
	ran, err := in.runOne(ctx, q, claim)
	if err == nil && ran != job.ID {
		err = errors.New("somebody else has just taken it: expected no Work, and no other run, beside the test")
	}
	return err
}

// runOne is a run of one job, which is returned when it is recorded; "": nothing
// was claimed.
func (in inside) runOne(ctx context.Context, q *queue, claim func(context.Context) ([]*Job, error)) (id string, err error) {
	s := in.s
	done, err := s.begin()
	if err != nil {
		return "", err
	}
	defer done()
	in.forget()
	room := s.capacity.take(ctx, 1, nil)
	if room == 0 {
		return "", ctx.Err()
	}
	jobs, err := claim(ctx)
	s.capacity.put(room-len(jobs), 0)
	if err != nil || len(jobs) == 0 {
		return "", err
	}
	recorded := make(chan *outcome, 1)
	s.start(ctx, jobs, q, func(o *outcome) { recorded <- o }, nil)
	switch o := <-recorded; {
	case o.dropped:
		return "", fmt.Errorf("job %s: %w", jobs[0].ID, ErrLeaseLost)
	case o.handed:
		return "", fmt.Errorf("job %s was handed back: %w, or other runs take all of Config.Concurrency", jobs[0].ID, ErrShuttingDown)
	}
	return jobs[0].ID, nil
}

func (in inside) Moved() {
	in.forget()
	in.s.resident.alarm.in(0)
}

// forget makes that the next claims look at everything that is due.
func (in inside) forget() {
	for _, q := range in.s.queues {
		for i := range q.progress {
			q.progress[i].forget()
		}
	}
}
