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
	JobStatusCancelled JobStatus = "cancelled" // called off, by CancelJob or because of a job in JobData.After
	JobStatusAny       JobStatus = "any"       // in a RunFilter: due pending and due failed jobs together
)

// Job is one row: what is to be done, and what came of it so far. Times are in
// UTC and of the database's clock. In JSON its fields are in snake_case.
type Job struct {
	ID          string          `json:"id"` // a UUIDv7 in its text form
	Name        string          `json:"name"`
	Queue       JobQueue        `json:"queue"`
	Key         string          `json:"key"`      // to the limits of its queue; "": none
	Priority    int             `json:"priority"` // lower goes first
	Status      JobStatus       `json:"status"`
	Cancelling  bool            `json:"cancelling"` // true while the job runs and was called off
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
	Owner       string          `json:"owner"`  // "": nobody
	Tags        []string        `json:"tags"`
	Metadata    json.RawMessage `json:"metadata"`            // nil: none
	Progress    *JobProgress    `json:"progress"`            // nil: none was reported; a handler's own job never has it, see LoadCheckpoint
	UniqueKey   string          `json:"unique_key"`          // "": not unique
	WaitsFor    int             `json:"waits_for"`           // how many jobs have to finish before it is started, see JobData.After
	Duplicate   bool            `json:"duplicate,omitempty"` // it was there already when it was to be created; only said by creations

	key         pgtype.UUID // the id as the database takes it
	claims      int32       // which claim of the row this is: the fence of every write
	claimedAt   time.Time   // by this process's clock
	traceparent string      // with which it was created; "": none
	slot        time.Time   // see Slot
	life        *jobContext // of its handler
}

// LastAttempt says whether the attempt that was begun last is the last one the
// job has. To a handler that means: an error that it returns now, but for
// Snooze, leaves the job dead.
func (j *Job) LastAttempt() bool { return j.Attempt >= j.MaxAttempts }

// JobError is one failed attempt.
type JobError struct {
	Attempt int       `json:"attempt"`
	At      time.Time `json:"at"`
	Error   string    `json:"error"` // at most 8 KiB; with the stack if the handler panicked
}

// refusedByPostgres turns what only Postgres can find wrong with a creation into
// an error of ours: a queue that is full, or a value (a number outside of its
// range, JSON nested too deep).
func refusedByPostgres(field string, err error) error {
	code, message := sqlState(err), err.Error()
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		message = pg.Message
	}
	switch {
	case code == "JQ001":
		return fmt.Errorf("%w: %s", ErrQueueFull, message)
	case isBadData(code):
		return badInput(field, "refused by Postgres: %s (SQLSTATE %s)", message, code)
	}
	return explained(err)
}

// explained says what to do about an error where that is known: a table, schema
// or function that is missing.
func explained(err error) error {
	if code := sqlState(err); code == "42P01" || code == "3F000" || code == "42883" {
		return fmt.Errorf("%w: call Migrate first", err)
	}
	return err
}

// sqlState is the code of an error of Postgres, of whatever driver; "": it is
// none.
func sqlState(err error) string {
	var pg interface{ SQLState() string }
	if errors.As(err, &pg) {
		return pg.SQLState()
	}
	return ""
}

// isBadData: class 22 is "data exception"; 54xxx a value beyond a limit.
func isBadData(code string) bool { return len(code) == 5 && (code[:2] == "22" || code[:2] == "54") }

// jobColumns are what scan reads of a job, rowColumns those of them that are of
// its row.
const jobColumns = rowColumns + `, ` + progressColumn

const rowColumns = `id::text, name, queue, status, payload, result, run_at, created_at, started_at, finished_at,
    attempt, max_attempts, errors, coalesce(timeout_ms, 0), attributes, priority, coalesce(key, ''), cancelling IS TRUE,
    CASE WHEN lane = 303 THEN waits_for ELSE 0 END`

const getJobSQL = `
SELECT ` + jobColumns + `
FROM {{schema}}.jobs WHERE id = $1::text::uuid`

// GetJob returns the job with this id, in any letter case. The error is
// ErrJobNotFound if there is none, also when id is no UUID at all.
func (s *Scheduler) GetJob(ctx context.Context, id string) (*Job, error) {
	if err := checkJobID(id); err != nil {
		return nil, fmt.Errorf("get job: %w", err)
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

// checkJobID refuses what can be no job's id.
func checkJobID(id string) error {
	if len(id) != 36 || uuid.Validate(id) != nil {
		return fmt.Errorf("%w: %w", ErrJobNotFound, badInput("id", "%s: expected a UUID", shown(id)))
	}
	return nil
}

// scan reads jobColumns, and more that come after them.
func (j *Job) scan(row pgx.Row, more ...any) error {
	var failures, attributes, progress []byte
	var timeoutMS int64
	columns := []any{&j.ID, &j.Name, &j.Queue, &j.Status, (*[]byte)(&j.Payload), (*[]byte)(&j.Result), &j.RunAt, &j.CreatedAt,
		&j.StartedAt, &j.FinishedAt, &j.Attempt, &j.MaxAttempts, &failures, &timeoutMS, &attributes, &j.Priority, &j.Key, &j.Cancelling,
		&j.WaitsFor, &progress}
	err := row.Scan(append(columns, more...)...)
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
	if err := j.setAttributes(attributes); err != nil {
		return err
	}
	if err := j.setProgress(progress); err != nil {
		return err
	}
	return j.setErrors(failures)
}
