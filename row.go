package scheduler

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
)

// newRow is a job as it is stored, checked.
type newRow struct {
	id          uuid.UUID
	name        string
	queue       string
	payload     string
	runAt       *time.Time // nil: now
	maxAttempts int32
	priority    int32
	jobKey      *string     // nil: none
	timeoutMS   *int64      // nil: what the queue says
	attributes  *string     // JSON; nil: none
	unique      *uniqueness // nil: it is not
	dependence  *dependence // nil: it waits for no other job
	bounded     bool        // its queue may be full
}

func (r *newRow) key() pgtype.UUID { return pgtype.UUID{Bytes: r.id, Valid: true} }

// job is the row as it is returned, but for its times.
func (r *newRow) job() *Job {
	job := &Job{
		ID: r.id.String(), Name: r.name, Queue: JobQueue(r.queue), Status: JobStatusPending, Payload: json.RawMessage(r.payload),
		MaxAttempts: int(r.maxAttempts), Priority: int(r.priority), Errors: []JobError{},
	}
	if r.jobKey != nil {
		job.Key = *r.jobKey
	}
	if r.dependence != nil {
		job.WaitsFor = len(r.dependence.parents)
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

// mostPriority bounds priorities, below zero as above.
const mostPriority = 100

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
	if row.runAt, err = storableTime(data.RunAt); err != nil {
		return row, err
	}
	if data.MaxAttempts < 0 || data.MaxAttempts > mostAttempts {
		return row, badInput("max_attempts", "%d: expected 1 to %d, or 0 for what the queue says", data.MaxAttempts, mostAttempts)
	}
	if data.Timeout < 0 || data.Timeout%time.Millisecond != 0 {
		return row, badInput("timeout", "%s: expected whole milliseconds, or 0 for what the queue says", data.Timeout)
	}
	if data.Priority < -mostPriority || data.Priority > mostPriority {
		return row, badInput("priority", "%d: expected -%d to %d", data.Priority, mostPriority, mostPriority)
	}
	if data.Priority != 0 && q.blocking() {
		return row, badInput("priority", "%d: queue %q runs strictly in order: expected 0", data.Priority, q.name)
	}
	if data.Timeout > 0 {
		ms := data.Timeout.Milliseconds()
		row.timeoutMS = &ms
	}
	if row.unique, inputErr = uniquenessOf(data); inputErr != nil {
		return row, inputErr
	}
	if row.jobKey, inputErr = keyIn(q, data); inputErr != nil {
		return row, inputErr
	}
	if row.dependence, inputErr = dependenceOf(data); inputErr != nil {
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
	row.bounded = q.MaxPending > 0
	row.name, row.queue, row.maxAttempts, row.priority = name, string(q.name), int32(data.MaxAttempts), int32(data.Priority)
	if row.maxAttempts == 0 {
		row.maxAttempts = int32(q.MaxAttempts)
	}
	return row, nil
}

// storableTime checks when a job is to be run; nil for the zero time, now.
func storableTime(runAt time.Time) (*time.Time, error) {
	if runAt.IsZero() {
		return nil, nil
	}
	utc := runAt.UTC()
	if utc.Year() < 1 || utc.Year() > 9999 {
		return nil, badInput("run_at", "%s: expected a time from year 1 to 9999", utc)
	}
	utc = utc.Truncate(time.Microsecond)
	return &utc, nil
}

// isCounted: its creation depends on what else there is.
func (r *newRow) isCounted() bool { return r.unique != nil || r.bounded || r.dependence != nil }

// columnsOf are the jobs column by column, as unnest takes them.
func columnsOf(jobs []newRow) []any {
	n := len(jobs)
	keys, maxAttempts := make([]pgtype.UUID, n), make([]int32, n)
	names, queues, payloads := make([]string, n), make([]string, n), make([]string, n)
	for i := range jobs {
		row := &jobs[i]
		keys[i], names[i], queues[i], payloads[i], maxAttempts[i] = row.key(), row.name, row.queue, row.payload, row.maxAttempts
	}
	return []any{keys, names, queues, payloads,
		columnOf(n, func(i int) *time.Time { return jobs[i].runAt }), maxAttempts,
		columnOf(n, func(i int) *int64 { return jobs[i].timeoutMS }),
		columnOf(n, func(i int) *string { return jobs[i].attributes }),
		columnOf(n, func(i int) *int32 { return unlessZero(&jobs[i].priority) }),
		columnOf(n, func(i int) *string { return jobs[i].jobKey })}
}

// columnOf is a column of n values that may be NULL; nil, which is shorter, if all
// of them are.
func columnOf[T any](n int, value func(i int) *T) (column []*T) {
	for i := range n {
		v := value(i)
		if v == nil {
			continue
		}
		if column == nil {
			column = make([]*T, n)
		}
		column[i] = v
	}
	return column
}

func unlessZero(n *int32) *int32 {
	if *n == 0 {
		return nil
	}
	return n
}

// prioritizedOf are the queues of those jobs that have a priority other than 0.
func prioritizedOf(jobs []newRow) (queues []string) {
	for i := range jobs {
		if isPrioritized(jobs[i]) && !slices.Contains(queues, jobs[i].queue) {
			queues = append(queues, jobs[i].queue)
		}
	}
	return queues
}

func isPrioritized(row newRow) bool { return row.priority != 0 }
