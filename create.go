package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
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
	// Priority is -100 to 100: of the due jobs of a queue those of lower ones
	// are started first, and of one priority the oldest; what is overdue for
	// longer than QueueConfig.PriorityAge goes before them. It is kept over
	// retries. Blocking queues are strictly in order and take 0 only. Defaults
	// to 0.
	Priority int
	// Key is whose job it is to the limits of its queue (see
	// QueueConfig.MaxConcurrencyPerKey, RatePerKey and KeyRound), such as a tenant
	// or an account, at most 256 bytes. In other queues it means nothing. Defaults
	// to nobody's.
	Key string
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
	// After are the ids of jobs that have to succeed before this one is started,
	// at most 10,000; in CreateJobs also the Labels of others of the same call.
	// Until then it is pending, and Job.WaitsFor says for how many of them. It is
	// due when the last one has succeeded, if RunAt is not later, and has its place
	// in the order of its queue from then on; a blocking queue goes on without it.
	//
	// If one of them becomes dead, or is cancelled or deleted, this job is
	// cancelled, and so are those that wait for it; Job.Errors says because of
	// which one. That is also so if it has happened before. Retrying the other one
	// does not bring this one back: RetryJob does after that, and lets it wait again.
	//
	// A job that there is already because of its UniqueKey waits for what it did
	// before. The results are read by Parents. Defaults to none.
	After []string
	// AfterAny starts the job when those in After are finished, whatever came of
	// them. Defaults to false.
	AfterAny bool
}

// NewJob is one job of a batch.
type NewJob struct {
	Name string
	// Label is by what JobData.After of others of the same call names this job,
	// at most 128 bytes, and no UUID. It is not stored. A job with a UniqueKey
	// takes none, as it may be there already. Defaults to none.
	Label string
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
// ErrUnknownQueue), and ErrQueueFull if there is no room, see
// QueueConfig.MaxPending; then nothing is stored. That of a ctx which ended, or of
// a lost connection, does not tell whether the job was stored.
func (s *Scheduler) CreateJob(ctx context.Context, name string, data JobData) (*Job, error) {
	row, err := s.newRow(ctx, name, data)
	if err != nil {
		return nil, fmt.Errorf("create job: %w", err)
	}
	var job *Job
	switch {
	case row.isCounted():
		var f found
		f, err = s.createUnique(ctx, &row, nil)
		job = f.job
	case row.priority != 0 && !s.queues[JobQueue(row.queue)].ranked.Load():
		job, err = s.createFirstRanked(ctx, &row)
	case s.gatherer.alone():
		job, err = s.createAlone(ctx, &row)
	default:
		job, err = s.createTogether(ctx, &row)
	}
	if err != nil {
		return nil, fmt.Errorf("create job: %w", refusedCreation(err))
	}
	s.tellCreated(job)
	return job, nil
}

// createFirstRanked is for a queue that may not have had jobs with priorities
// yet: the creation of the first one waits for another one of it, in whatever
// transaction that is (see prioritize in sql/007_priority.sql). Until one has
// happened, they share no statement with others, which need not wait.
func (s *Scheduler) createFirstRanked(ctx context.Context, row *newRow) (*Job, error) {
	job, err := s.createApart(ctx, row)
	if err == nil {
		s.queues[job.Queue].ranked.Store(true)
	}
	return job, err
}

func (s *Scheduler) createAlone(ctx context.Context, row *newRow) (*Job, error) {
	defer s.gatherer.landed(s)
	return s.createApart(ctx, row)
}

// createApart stores a job in a statement of its own, and tells of it.
func (s *Scheduler) createApart(ctx context.Context, row *newRow) (*Job, error) {
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
//
// The jobs in After are locked until then: they are neither started nor recorded
// as finished, and others that create a job after the same one wait.
//
// The first one of its queue with a Priority holds up, until then, others with
// one in that queue, PauseQueue and Migrate.
func (s *Scheduler) CreateJobTx(ctx context.Context, tx pgx.Tx, name string, data JobData) (*Job, error) {
	if isNil(tx) {
		return nil, fmt.Errorf("create job: %w", errNoTx())
	}
	return s.createIn(ctx, tx, name, data)
}

// createIn is for transactions of any driver.
func (s *Scheduler) createIn(ctx context.Context, tx querier, name string, data JobData) (*Job, error) {
	row, err := s.newRow(ctx, name, data)
	if err != nil {
		return nil, fmt.Errorf("create job: %w", err)
	}
	f := found{changed: true}
	if row.isCounted() {
		f, err = s.insertUnique(ctx, tx, &row, nil)
	} else {
		f.job, _, f.heard, err = s.insertJob(ctx, tx, &row, false)
	}
	if err == nil && f.changed && (f.heard || s.lease.own() != nil) {
		// Sent when tx commits, also to this process.
		err = tx.QueryRow(ctx, s.sql(notifyCreatedSQL), string(f.job.Queue), f.job.RunAt).Scan(nil)
	}
	if err != nil {
		return nil, fmt.Errorf("create job: %w", refusedCreation(err))
	}
	s.tellCreated(f.job)
	return f.job, nil
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// othersListen begins the question whether another process than the one with
// this lease, which follows, waits to be notified. It is no function in SQL: that
// would not be inlined, and every creation asks.
const othersListen = `EXISTS (SELECT FROM {{schema}}.leases l WHERE l.listening AND l.expires_at > now() AND l.id IS DISTINCT FROM `

// insertJobSQL asks for a wake of the queue's workers in the same statement, as
// insertJobsSQL does, and notifies resident processes if it is told to.
const insertJobSQL = `
INSERT INTO {{schema}}.jobs (id, name, queue, payload, run_at, max_attempts, timeout_ms, attributes, priority, lane, key)
VALUES ($1::uuid, $2::text, $3::text, $4::text::jsonb, coalesce($5::timestamptz, now()), $6::int, $7::bigint, $10::text::jsonb,
    $11::int, 3 * $11::int, $12::text)
RETURNING run_at, created_at, (extract(epoch FROM run_at - now()) * 1000000::numeric)::bigint,
    CASE WHEN NOT ` + othersListen + `$8::text::uuid) THEN false
        WHEN $9::bool AND run_at <= now() + interval '1 minute'
        THEN pg_notify('{{schema_name}}_jobs', CASE WHEN run_at <= now() THEN $3::text ELSE '' END) IS NOT NULL
        ELSE true END,
    CASE WHEN run_at <= now() AND EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = $3::text)
        THEN {{schema}}.wake_workers($3::text) END`

const insertRankedJobSQL = insertJobSQL + `, {{schema}}.prioritize(ARRAY[$3::text])`

// insertJob stores a job. dueIn is how long until it is due, heard whether
// another process waits to be notified.
func (s *Scheduler) insertJob(ctx context.Context, db querier, row *newRow, notifies bool) (job *Job, dueIn time.Duration, heard bool, err error) {
	job = row.job()
	var dueInUS int64
	sql, into := insertJobSQL, []any{&job.RunAt, &job.CreatedAt, &dueInUS, &heard, nil}
	if row.priority != 0 {
		sql, into = insertRankedJobSQL, append(into, nil)
	}
	err = db.QueryRow(ctx, s.sql(sql), row.key(), row.name, row.queue, row.payload, row.runAt, row.maxAttempts, row.timeoutMS,
		s.lease.own(), notifies, row.attributes, row.priority, row.jobKey).Scan(into...)
	if err != nil {
		return nil, 0, false, err
	}
	job.RunAt, job.CreatedAt = job.RunAt.UTC(), job.CreatedAt.UTC()
	return job, time.Duration(dueInUS) * time.Microsecond, heard, nil
}

// CreateJobs stores all jobs or, if one of them is refused, none, and returns
// their ids in the same order. In the place of one whose UniqueKey is taken, also
// by another one of the batch, is the id of the job that there is. By Label and
// After it takes whole graphs of jobs, in any order. The error is that of CreateJob;
// the field says which job it was, as in "jobs[3].queue".
func (s *Scheduler) CreateJobs(ctx context.Context, jobs []NewJob) (ids []string, err error) {
	if len(jobs) == 0 {
		return []string{}, nil
	}
	rows, err := s.newRows(ctx, jobs)
	if err != nil {
		return nil, fmt.Errorf("create jobs: %w", err)
	}
	ids = make([]string, len(jobs))
	counted := false
	for i := range rows {
		ids[i] = rows[i].id.String()
		counted = counted || rows[i].isCounted()
	}
	var at time.Time
	if counted {
		ids, at, err = s.insertUniqueJobs(ctx, rows)
	} else {
		at, err = s.insertJobs(ctx, rows)
	}
	if err != nil {
		return nil, fmt.Errorf("create jobs: %w", refusedBatch(rows, err))
	}
	s.tellAllCreated(rows, ids, at)
	return ids, nil
}

// newRows checks all jobs; the error tells which one can't be used.
func (s *Scheduler) newRows(ctx context.Context, jobs []NewJob) ([]newRow, error) {
	labelled, err := labelsOf(jobs)
	if err != nil {
		return nil, err
	}
	rows := make([]newRow, len(jobs))
	for i, job := range jobs {
		job.After = labelled.others(i)
		if rows[i], err = s.newRow(ctx, job.Name, job.JobData); err != nil {
			return nil, ofJob(i, err)
		}
	}
	labelled.link(jobs, rows)
	return rows, checkMostParents(rows)
}

// ofJob says in an error which job of a batch it is about.
func ofJob(i int, err error) error {
	var input *InputError
	if errors.As(err, &input) {
		return &InputError{fmt.Sprintf("jobs[%d].%s", i, input.Field), input.Err}
	}
	return err
}

// insertJobsSQL hides from the planner how many jobs there are: a plan for so few
// would look cheaper to it than one for any number, and it would make that for each
// statement anew, for longer than the rest takes.
const insertJobsSQL = `
WITH created AS (
    INSERT INTO {{schema}}.jobs (id, name, queue, payload, run_at, max_attempts, timeout_ms, attributes, priority, lane, key)
    SELECT n.id, n.name, n.queue, n.payload::jsonb, coalesce(n.run_at, now()), n.max_attempts, n.timeout_ms, n.attributes::jsonb,
        coalesce(n.priority, 0), 3 * coalesce(n.priority, 0), n.key
    FROM unnest((SELECT $1::uuid[]), $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::int[], $7::bigint[], $8::text[], $9::int[], $10::text[])
        AS n (id, name, queue, payload, run_at, max_attempts, timeout_ms, attributes, priority, key)
    RETURNING queue, run_at
)
SELECT queue, (extract(epoch FROM min(run_at) - now()) * 1000000::numeric)::bigint, now(),
    ` + othersListen + `$11::text::uuid),
    CASE WHEN min(run_at) <= now() AND EXISTS (SELECT FROM {{schema}}.queue_workers w WHERE w.wake AND w.queue = created.queue)
        THEN {{schema}}.wake_workers(queue) END,
    CASE WHEN $12::text[] IS NOT NULL THEN {{schema}}.prioritize($12::text[]) END
FROM created GROUP BY queue`

// insertJobs stores all jobs or none, and tells of them. at is when they were
// created.
func (s *Scheduler) insertJobs(ctx context.Context, jobs []newRow) (at time.Time, err error) {
	rows, err := s.pool.Query(ctx, s.sql(insertJobsSQL), append(columnsOf(jobs), s.lease.own(), prioritizedOf(jobs))...)
	if err == nil {
		var queue JobQueue
		var dueInUS int64
		var heard bool
		_, err = pgx.ForEachRow(rows, []any{&queue, &dueInUS, &at, &heard, nil, nil}, func() error {
			s.created(queue, time.Duration(dueInUS)*time.Microsecond, heard, false)
			return nil
		})
	}
	return at.UTC(), err
}
