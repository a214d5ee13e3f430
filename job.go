package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// JobStatus is where a job is in its life.
type JobStatus string

// The statuses of a job. JobStatusAny is no status but a filter of runs.
const (
	JobStatusPending   JobStatus = "pending"   // waiting for its run_at, then for a run
	JobStatusRunning   JobStatus = "running"   // a run holds its lease
	JobStatusSucceeded JobStatus = "succeeded" // done
	JobStatusFailed    JobStatus = "failed"    // last attempt failed; will be rerun when its backoff has passed
	JobStatusDead      JobStatus = "dead"      // no attempts left, or the handler said never again
	JobStatusCancelled JobStatus = "cancelled" // called off
	JobStatusAny       JobStatus = "any"       // in a RunFilter: due pending and due failed jobs together
)

// Job is one row: what is to be done, and what came of it so far. Times are in
// UTC and of the database's clock. In JSON its fields are in snake_case.
type Job struct {
	ID          string          `json:"id"` // a UUIDv7 in its text form
	Name        string          `json:"name"`
	Queue       JobQueue        `json:"queue"`
	Status      JobStatus       `json:"status"`
	Payload     json.RawMessage `json:"payload"`
	Result      json.RawMessage `json:"result"` // what the handler returned; nil until the job has succeeded
	RunAt       time.Time       `json:"run_at"` // when it is due, or due again
	CreatedAt   time.Time       `json:"created_at"`
	StartedAt   *time.Time      `json:"started_at"`  // of the last attempt
	FinishedAt  *time.Time      `json:"finished_at"` // when it became succeeded, dead or cancelled
	Attempt     int             `json:"attempt"`     // how many were begun
	MaxAttempts int             `json:"max_attempts"`
	Errors      []JobError      `json:"errors"` // newest last; the newest 20 are kept
	Timeout     time.Duration   `json:"-"`      // of one attempt; 0: what the queue says

	key       pgtype.UUID // the id as the database takes it
	claims    int32       // which claim of the row this is: the fence of every write
	claimedAt time.Time   // by this process's clock
	settled   bool        // out of the way of claims; guarded by the lease
}

// JobError is one failed attempt.
type JobError struct {
	Attempt int       `json:"attempt"`
	At      time.Time `json:"at"`
	Error   string    `json:"error"` // at most 8 KiB; with the stack if the handler panicked
}

// JobData is what CreateJob takes beside the job's name. The zero value is a
// job without payload in the default queue, due at once.
type JobData struct {
	// RunAt is when the job is due, in any zone, from year 1 to 9999; kept in
	// microseconds. Defaults to now, by the database's clock.
	RunAt time.Time
	// Queue is a base queue or one declared in Config.Queues. Defaults to
	// JobQueueDefault.
	Queue JobQueue
	// Payload is marshalled with encoding/json; a json.RawMessage or []byte is
	// JSON already and goes in as it is. At most 1 MiB. Defaults to null.
	Payload any
	// MaxAttempts is how often the job is tried before it is dead, 1 to 1,000.
	// Defaults to what the queue says.
	MaxAttempts int
	// Timeout ends the handler's context when one attempt takes longer, in
	// whole milliseconds. Defaults to what the queue says.
	Timeout time.Duration
}

// NewJob is one job of a batch.
type NewJob struct {
	Name string
	JobData
}

// mostPayload bounds a payload and a result, in bytes of JSON.
const mostPayload = 1 << 20

// CreateJob stores a job and returns it: it will be run from its RunAt on. If
// it is due at once, resident processes and workers with wake learn of it. The
// error is an *InputError if name or data can't be used (also ErrUnknownJobName
// or ErrUnknownQueue), and then nothing is stored.
func (s *Scheduler) CreateJob(ctx context.Context, name string, data JobData) (*Job, error) {
	job, dueIn, heard, err := s.insertJob(ctx, s.pool, name, data)
	if err != nil {
		return nil, fmt.Errorf("create job: %w", err)
	}
	s.created(job.Queue, dueIn, heard)
	return job, nil
}

const notifyCreatedSQL = `SELECT {{schema}}.notify_created($1::text, $2::timestamptz)`

// CreateJobTx is CreateJob inside the caller's transaction: the job exists
// when, and only when, that commits.
func (s *Scheduler) CreateJobTx(ctx context.Context, tx pgx.Tx, name string, data JobData) (*Job, error) {
	job, _, heard, err := s.insertJob(ctx, tx, name, data)
	if err == nil && (heard || s.lease.own() != nil) {
		// Sent when tx commits, also to this process.
		_, err = tx.Exec(ctx, s.sql(notifyCreatedSQL), string(job.Queue), job.RunAt)
	}
	if err != nil {
		return nil, fmt.Errorf("create job: %w", err)
	}
	return job, nil
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// insertJobSQL asks for a wake of the queue's workers in the same statement. So
// does insertJobsSQL.
const insertJobSQL = `
INSERT INTO {{schema}}.jobs (id, name, queue, payload, run_at, max_attempts, timeout_ms)
VALUES ($1::uuid, $2::text, $3::text, $4::text::jsonb, coalesce($5::timestamptz, now()), $6::int, $7::bigint)
RETURNING run_at, created_at, (extract(epoch FROM run_at - now()) * 1000000)::bigint,
    EXISTS (SELECT FROM {{schema}}.leases l WHERE l.listening AND l.expires_at > now() AND l.id IS DISTINCT FROM $8::text::uuid),
    CASE WHEN run_at <= now() AND EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = $3::text)
        THEN {{schema}}.wake_workers($3::text) END`

// insertJob stores a job. dueIn is how long until it is due, heard whether
// another process waits to be notified.
func (s *Scheduler) insertJob(ctx context.Context, db querier, name string, data JobData) (job *Job, dueIn time.Duration, heard bool, err error) {
	row, err := s.newRow(name, data)
	if err != nil {
		return nil, 0, false, err
	}
	job = &Job{
		ID: row.id.String(), Name: name, Queue: JobQueue(row.queue), Status: JobStatusPending, Payload: json.RawMessage(row.payload),
		MaxAttempts: int(row.maxAttempts), Timeout: data.Timeout, Errors: []JobError{},
	}
	var dueInUS int64
	err = db.QueryRow(ctx, s.sql(insertJobSQL), pgtype.UUID{Bytes: row.id, Valid: true}, name, row.queue, row.payload, row.runAt, row.maxAttempts, row.timeoutMS, s.lease.own()).
		Scan(&job.RunAt, &job.CreatedAt, &dueInUS, &heard, nil)
	if err != nil {
		return nil, 0, false, refusedByPostgres("payload", err)
	}
	job.RunAt, job.CreatedAt = job.RunAt.UTC(), job.CreatedAt.UTC()
	return job, time.Duration(dueInUS) * time.Microsecond, heard, nil
}

const insertJobsSQL = `
WITH created AS (
    INSERT INTO {{schema}}.jobs (id, name, queue, payload, run_at, max_attempts, timeout_ms)
    SELECT n.id, n.name, n.queue, n.payload::jsonb, coalesce(n.run_at, now()), n.max_attempts, n.timeout_ms
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::int[], $7::bigint[])
        AS n (id, name, queue, payload, run_at, max_attempts, timeout_ms)
    RETURNING queue, run_at
)
SELECT queue, (extract(epoch FROM min(run_at) - now()) * 1000000)::bigint,
    EXISTS (SELECT FROM {{schema}}.leases l WHERE l.listening AND l.expires_at > now() AND l.id IS DISTINCT FROM $8::text::uuid),
    CASE WHEN min(run_at) <= now() AND EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = created.queue)
        THEN {{schema}}.wake_workers(queue) END
FROM created GROUP BY queue`

// CreateJobs stores all jobs or, if one of them is refused, none, and returns
// their ids in the same order. The error is that of CreateJob; the field says
// which job it was, as in "jobs[3].queue".
func (s *Scheduler) CreateJobs(ctx context.Context, jobs []NewJob) (ids []string, err error) {
	if len(jobs) == 0 {
		return []string{}, nil
	}
	n := len(jobs)
	ids = make([]string, n)
	keys := make([]pgtype.UUID, n)
	names, queues, payloads := make([]string, n), make([]string, n), make([]string, n)
	runAts, maxAttempts, timeouts := make([]*time.Time, n), make([]int32, n), make([]*int64, n)
	for i, job := range jobs {
		row, err := s.newRow(job.Name, job.JobData)
		if err != nil {
			var input *InputError
			if errors.As(err, &input) {
				err = &InputError{fmt.Sprintf("jobs[%d].%s", i, input.Field), input.Err}
			}
			return nil, fmt.Errorf("create jobs: %w", err)
		}
		ids[i], keys[i] = row.id.String(), pgtype.UUID{Bytes: row.id, Valid: true}
		names[i], queues[i], payloads[i] = job.Name, row.queue, row.payload
		runAts[i], maxAttempts[i], timeouts[i] = row.runAt, row.maxAttempts, row.timeoutMS
	}
	rows, err := s.pool.Query(ctx, s.sql(insertJobsSQL), keys, names, queues, payloads, runAts, maxAttempts, timeouts, s.lease.own())
	if err == nil {
		var queue JobQueue
		var dueInUS int64
		var heard bool
		_, err = pgx.ForEachRow(rows, []any{&queue, &dueInUS, &heard, nil}, func() error {
			s.created(queue, time.Duration(dueInUS)*time.Microsecond, heard)
			return nil
		})
	}
	if err != nil {
		return nil, fmt.Errorf("create jobs: %w", refusedByPostgres("payload", err))
	}
	return ids, nil
}

// newRow is a job as it is stored, checked.
type newRow struct {
	id             uuid.UUID
	queue, payload string
	runAt          *time.Time // nil: now
	maxAttempts    int32
	timeoutMS      *int64 // nil: what the queue says
}

func (s *Scheduler) newRow(name string, data JobData) (row newRow, err error) {
	if err := checkJobName(name); err != nil {
		return row, err
	}
	if s.config.JobNames != nil && s.config.JobNames[name] == nil {
		return row, &InputError{"name", fmt.Errorf("%w %s: it has no handler in Config.JobNames", ErrUnknownJobName, shown(name))}
	}
	if data.Queue == JobQueueFailed {
		return row, &InputError{"queue", fmt.Errorf("%w %q as a place: it is a view of the failed jobs of %q, create the job there", ErrUnknownQueue, JobQueueFailed, JobQueueDefault)}
	}
	q, inputErr := s.queue(data.Queue)
	if inputErr != nil {
		return row, inputErr
	}
	if !data.RunAt.IsZero() {
		utc := data.RunAt.UTC()
		if utc.Year() < 1 || utc.Year() > 9999 {
			return row, badInput("run_at", "%s: expected a time from year 1 to 9999", utc)
		}
		row.runAt = &utc
	}
	if data.MaxAttempts < 0 || data.MaxAttempts > mostAttempts {
		return row, badInput("max_attempts", "%d: expected 1 to %d, or 0 for what the queue says", data.MaxAttempts, mostAttempts)
	}
	if data.Timeout < 0 || data.Timeout%time.Millisecond != 0 {
		return row, badInput("timeout", "%s: expected whole milliseconds, or 0 for what the queue says", data.Timeout)
	}
	if data.Timeout > 0 {
		ms := data.Timeout.Milliseconds()
		row.timeoutMS = &ms
	}
	if row.payload, err = encodeJSON(data.Payload); err != nil {
		return row, &InputError{"payload", err}
	}
	if row.id, err = uuid.NewV7(); err != nil {
		return row, fmt.Errorf("make a job id: %w", err)
	}
	row.queue, row.maxAttempts = string(q.name), int32(data.MaxAttempts)
	if row.maxAttempts == 0 {
		row.maxAttempts = int32(q.MaxAttempts)
	}
	return row, nil
}

// refusedByPostgres turns what only Postgres can find wrong with a value (a
// number outside of its range, JSON nested too deep) into an InputError.
func refusedByPostgres(field string, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && isBadData(pg.Code) {
		return badInput(field, "refused by Postgres: %s (SQLSTATE %s)", pg.Message, pg.Code)
	}
	return explained(err)
}

// explained says what to do about an error where that is known: a table, schema
// or function that is missing.
func explained(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == "42P01" || pg.Code == "3F000" || pg.Code == "42883") {
		return fmt.Errorf("%w: call Migrate first", err)
	}
	return err
}

// isBadData: class 22 is "data exception"; 54xxx a value beyond a limit.
func isBadData(code string) bool { return len(code) == 5 && (code[:2] == "22" || code[:2] == "54") }

const getJobSQL = `
SELECT id::text, name, queue, status, payload, result, run_at, created_at, started_at, finished_at,
    attempt, max_attempts, errors, coalesce(timeout_ms, 0)
FROM {{schema}}.jobs WHERE id = $1::text::uuid`

// GetJob returns the job with this id, in any letter case. The error is
// ErrJobNotFound if there is none, also when id is no UUID at all.
func (s *Scheduler) GetJob(ctx context.Context, id string) (*Job, error) {
	if len(id) != 36 || uuid.Validate(id) != nil {
		return nil, fmt.Errorf("get job: %w: %w", ErrJobNotFound, badInput("id", "%s: expected a UUID", shown(id)))
	}
	job := &Job{}
	err := job.scan(s.pool.QueryRow(ctx, s.sql(getJobSQL), id))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("get job: %w: %s", ErrJobNotFound, id)
	}
	if err != nil {
		return nil, fmt.Errorf("get job: %w", explained(err))
	}
	return job, nil
}

// scan reads the columns of getJobSQL.
func (j *Job) scan(row pgx.Row) error {
	var failures []byte
	var timeoutMS int64
	err := row.Scan(&j.ID, &j.Name, &j.Queue, &j.Status, (*[]byte)(&j.Payload), (*[]byte)(&j.Result), &j.RunAt, &j.CreatedAt,
		&j.StartedAt, &j.FinishedAt, &j.Attempt, &j.MaxAttempts, &failures, &timeoutMS)
	if err != nil {
		return err
	}
	j.Timeout = time.Duration(timeoutMS) * time.Millisecond
	j.RunAt, j.CreatedAt = j.RunAt.UTC(), j.CreatedAt.UTC()
	for _, at := range []*time.Time{j.StartedAt, j.FinishedAt} {
		if at != nil {
			*at = at.UTC()
		}
	}
	return j.setErrors(failures)
}
