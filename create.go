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
	// Owner is whose job it is, such as a user or a tenant, at most 256 bytes.
	// Defaults to nobody.
	Owner string
	// Tags are what the job is found by beside its owner, at most 32 of at most
	// 256 bytes each. Defaults to none.
	Tags []string
	// Metadata is what else is to be known about the job and no matter of its
	// handler, marshalled as Payload is, to a JSON object of at most 16 KiB.
	// Defaults to none.
	Metadata any
	// UniqueKey makes the job unique, with its name, over all queues: while a
	// job of this name and key is not finished, creating it again returns that
	// job, with Job.Duplicate, in place of a new one. At most 256 bytes. A
	// creation waits for a transaction that has created the same and is still
	// open. Defaults to "", not unique.
	UniqueKey string
	// UniqueFor is how long after its creation a job with this UniqueKey is
	// returned also when it is finished, as far as it is still there (see
	// Config.KeepFinished). In microseconds, at most 366 days. Defaults to 0:
	// only while it is not finished.
	UniqueFor time.Duration
	// OnDuplicate says what becomes of the job with this UniqueKey that is
	// there. Defaults to DuplicateKeep.
	OnDuplicate DuplicatePolicy
}

// NewJob is one job of a batch.
type NewJob struct {
	Name string
	JobData
}

// mostPayload bounds a payload and a result, in bytes of JSON.
const mostPayload = 1 << 20

// CreateJob stores a job and returns it: it will be run from its RunAt on. If
// it is due at once, resident processes and workers with wake learn of it.
//
// Calls that come together may share a statement and its commit; hooks and
// tracers of the pool see that with a context of its own. The error is an
// *InputError if name or data can't be used (also ErrUnknownJobName or
// ErrUnknownQueue), and then nothing is stored. That of a ctx which ended, or of
// a lost connection, does not tell whether the job was stored.
func (s *Scheduler) CreateJob(ctx context.Context, name string, data JobData) (*Job, error) {
	row, err := s.newRow(ctx, name, data)
	if err != nil {
		return nil, fmt.Errorf("create job: %w", err)
	}
	var job *Job
	switch {
	case row.unique != nil:
		var f found
		f, err = s.createUnique(ctx, &row, nil)
		job = f.job
	case s.gatherer.alone():
		job, err = s.createAlone(ctx, &row)
	default:
		job, err = s.createTogether(ctx, &row)
	}
	if err != nil {
		return nil, fmt.Errorf("create job: %w", refusedByPostgres("payload", err))
	}
	s.tellCreated(job)
	return job, nil
}

func (s *Scheduler) createAlone(ctx context.Context, row *newRow) (*Job, error) {
	defer s.gatherer.landed(s)
	began, notifies := time.Now(), s.notifier.carry()
	job, dueIn, heard, err := s.insertJob(ctx, s.pool, row, notifies)
	if notifies {
		s.notifier.carried(time.Since(began))
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "54000" { // too many notifications: that is not the job's fault
			notifies = false
			job, dueIn, heard, err = s.insertJob(ctx, s.pool, row, notifies)
		}
	}
	if err == nil {
		s.created(job.Queue, dueIn, heard, notifies)
	}
	return job, err
}

const notifyCreatedSQL = `SELECT {{schema}}.notify_created($1::text, $2::timestamptz)`

// CreateJobTx is CreateJob inside the caller's transaction: the job exists
// when, and only when, that commits.
//
// One with a UniqueKey holds the key until then: others who create it wait.
// Transactions that create several of them in different orders may deadlock,
// which Postgres ends with an error (SQLSTATE 40P01). In a transaction of
// REPEATABLE READ or SERIALIZABLE, a key that was taken by somebody else since
// the transaction began is a serialization error (40001), as any row would be.
// Both are a *pgconn.PgError, and the transaction is to be tried again.
func (s *Scheduler) CreateJobTx(ctx context.Context, tx pgx.Tx, name string, data JobData) (*Job, error) {
	return s.createIn(ctx, tx, name, data)
}

// createIn is for transactions of any driver.
func (s *Scheduler) createIn(ctx context.Context, tx querier, name string, data JobData) (*Job, error) {
	row, err := s.newRow(ctx, name, data)
	if err != nil {
		return nil, fmt.Errorf("create job: %w", err)
	}
	f := found{changed: true}
	if row.unique != nil {
		f, err = s.insertUnique(ctx, tx, &row, nil)
	} else {
		f.job, _, f.heard, err = s.insertJob(ctx, tx, &row, false)
	}
	if err == nil && f.changed && (f.heard || s.lease.own() != nil) {
		// Sent when tx commits, also to this process.
		err = tx.QueryRow(ctx, s.sql(notifyCreatedSQL), string(f.job.Queue), f.job.RunAt).Scan(nil)
	}
	if err != nil {
		return nil, fmt.Errorf("create job: %w", refusedByPostgres("payload", err))
	}
	s.tellCreated(f.job)
	return f.job, nil
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// insertJobSQL asks for a wake of the queue's workers in the same statement, as
// insertJobsSQL does, and notifies resident processes if it is told to.
const insertJobSQL = `
INSERT INTO {{schema}}.jobs (id, name, queue, payload, run_at, max_attempts, timeout_ms, attributes)
VALUES ($1::uuid, $2::text, $3::text, $4::text::jsonb, coalesce($5::timestamptz, now()), $6::int, $7::bigint, $10::text::jsonb)
RETURNING run_at, created_at, (extract(epoch FROM run_at - now()) * 1000000)::bigint,
    EXISTS (SELECT FROM {{schema}}.leases l WHERE l.listening AND l.expires_at > now() AND l.id IS DISTINCT FROM $8::text::uuid),
    CASE WHEN run_at <= now() AND EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = $3::text)
        THEN {{schema}}.wake_workers($3::text) END,
    CASE WHEN $9::bool THEN {{schema}}.notify_created($3::text, run_at, $8::text::uuid) END`

// insertJob stores a job. dueIn is how long until it is due, heard whether
// another process waits to be notified.
func (s *Scheduler) insertJob(ctx context.Context, db querier, row *newRow, notifies bool) (job *Job, dueIn time.Duration, heard bool, err error) {
	job = row.job()
	var dueInUS int64
	err = db.QueryRow(ctx, s.sql(insertJobSQL), row.key(), row.name, row.queue, row.payload, row.runAt, row.maxAttempts, row.timeoutMS,
		s.lease.own(), notifies, row.attributes).
		Scan(&job.RunAt, &job.CreatedAt, &dueInUS, &heard, nil, nil)
	if err != nil {
		return nil, 0, false, err
	}
	job.RunAt, job.CreatedAt = job.RunAt.UTC(), job.CreatedAt.UTC()
	return job, time.Duration(dueInUS) * time.Microsecond, heard, nil
}

// CreateJobs stores all jobs or, if one of them is refused, none, and returns
// their ids in the same order. In the place of one whose UniqueKey is taken, also
// by another one of the batch, is the id of the job that there is. The error is
// that of CreateJob; the field says which job it was, as in "jobs[3].queue".
func (s *Scheduler) CreateJobs(ctx context.Context, jobs []NewJob) (ids []string, err error) {
	if len(jobs) == 0 {
		return []string{}, nil
	}
	rows, err := s.newRows(ctx, jobs)
	if err != nil {
		return nil, fmt.Errorf("create jobs: %w", err)
	}
	ids = make([]string, len(jobs))
	unique := false
	for i := range rows {
		ids[i] = rows[i].id.String()
		unique = unique || rows[i].unique != nil
	}
	var at time.Time
	if unique {
		ids, at, err = s.insertUniqueJobs(ctx, rows)
	} else {
		at, err = s.insertJobs(ctx, rows)
	}
	if err != nil {
		return nil, fmt.Errorf("create jobs: %w", refusedByPostgres("payload", err))
	}
	s.tellAllCreated(rows, ids, at)
	return ids, nil
}

// newRows checks all jobs; the error tells which one can't be used.
func (s *Scheduler) newRows(ctx context.Context, jobs []NewJob) ([]newRow, error) {
	rows := make([]newRow, len(jobs))
	for i, job := range jobs {
		var err error
		if rows[i], err = s.newRow(ctx, job.Name, job.JobData); err != nil {
			var input *InputError
			if errors.As(err, &input) {
				err = &InputError{fmt.Sprintf("jobs[%d].%s", i, input.Field), input.Err}
			}
			return nil, err
		}
	}
	return rows, nil
}

const insertJobsSQL = `
WITH created AS (
    INSERT INTO {{schema}}.jobs (id, name, queue, payload, run_at, max_attempts, timeout_ms, attributes)
    SELECT n.id, n.name, n.queue, n.payload::jsonb, coalesce(n.run_at, now()), n.max_attempts, n.timeout_ms, n.attributes::jsonb
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::int[], $7::bigint[], $8::text[])
        AS n (id, name, queue, payload, run_at, max_attempts, timeout_ms, attributes)
    RETURNING queue, run_at
)
SELECT queue, (extract(epoch FROM min(run_at) - now()) * 1000000)::bigint, now(),
    EXISTS (SELECT FROM {{schema}}.leases l WHERE l.listening AND l.expires_at > now() AND l.id IS DISTINCT FROM $9::text::uuid),
    CASE WHEN min(run_at) <= now() AND EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = created.queue)
        THEN {{schema}}.wake_workers(queue) END
FROM created GROUP BY queue`

// insertJobs stores all jobs or none, and tells of them. at is when they were
// created.
func (s *Scheduler) insertJobs(ctx context.Context, jobs []newRow) (at time.Time, err error) {
	rows, err := s.pool.Query(ctx, s.sql(insertJobsSQL), append(columnsOf(jobs), s.lease.own())...)
	if err == nil {
		var queue JobQueue
		var dueInUS int64
		var heard bool
		_, err = pgx.ForEachRow(rows, []any{&queue, &dueInUS, &at, &heard, nil}, func() error {
			s.created(queue, time.Duration(dueInUS)*time.Microsecond, heard, false)
			return nil
		})
	}
	return at.UTC(), err
}

// columnsOf are the jobs column by column, as unnest takes them.
func columnsOf(jobs []newRow) []any {
	n := len(jobs)
	keys := make([]pgtype.UUID, n)
	names, queues, payloads := make([]string, n), make([]string, n), make([]string, n)
	runAts, maxAttempts, timeouts := make([]*time.Time, n), make([]int32, n), make([]*int64, n)
	attributes := make([]*string, n)
	for i := range jobs {
		row := &jobs[i]
		keys[i], names[i], queues[i], payloads[i] = row.key(), row.name, row.queue, row.payload
		runAts[i], maxAttempts[i], timeouts[i] = row.runAt, row.maxAttempts, row.timeoutMS
		attributes[i] = row.attributes
	}
	return []any{keys, names, queues, payloads, runAts, maxAttempts, timeouts, attributes}
}

// newRow is a job as it is stored, checked.
type newRow struct {
	id          uuid.UUID
	name        string
	queue       string
	payload     string
	runAt       *time.Time // nil: now
	maxAttempts int32
	timeoutMS   *int64      // nil: what the queue says
	attributes  *string     // JSON; nil: none
	unique      *uniqueness // nil: it is not
}

func (r *newRow) key() pgtype.UUID { return pgtype.UUID{Bytes: r.id, Valid: true} }

// job is the row as it is returned, but for its times.
func (r *newRow) job() *Job {
	job := &Job{
		ID: r.id.String(), Name: r.name, Queue: JobQueue(r.queue), Status: JobStatusPending, Payload: json.RawMessage(r.payload),
		MaxAttempts: int(r.maxAttempts), Errors: []JobError{},
	}
	if r.timeoutMS != nil {
		job.Timeout = time.Duration(*r.timeoutMS) * time.Millisecond
	}
	if r.attributes == nil {
		job.Tags = []string{}
	} else {
		_ = job.setAttributes([]byte(*r.attributes)) // we have just written it
	}
	return job
}

// jobCreated is the row as it is returned, when it was stored with others.
func (r *newRow) jobCreated(at time.Time) *Job {
	job := r.job()
	job.CreatedAt, job.RunAt = at, at
	if r.runAt != nil {
		job.RunAt = *r.runAt
	}
	return job
}

func (s *Scheduler) newRow(ctx context.Context, name string, data JobData) (row newRow, err error) {
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
		utc = utc.Truncate(time.Microsecond)
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
	if row.unique, inputErr = uniquenessOf(data); inputErr != nil {
		return row, inputErr
	}
	if row.attributes, err = encodeAttributes(data, Traceparent(ctx)); err != nil {
		return row, err
	}
	if row.payload, err = encodeJSON(data.Payload); err != nil {
		return row, &InputError{"payload", err}
	}
	if row.id, err = uuid.NewV7(); err != nil {
		return row, fmt.Errorf("make a job id: %w", err)
	}
	row.name, row.queue, row.maxAttempts = name, string(q.name), int32(data.MaxAttempts)
	if row.maxAttempts == 0 {
		row.maxAttempts = int32(q.MaxAttempts)
	}
	return row, nil
}
