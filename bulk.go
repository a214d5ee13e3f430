package scheduler

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// bulk is something that can be done to all jobs of a filter.
type bulk struct {
	action   string      // as in sql/008_control_many.sql
	statuses []JobStatus // of jobs that it can be done to
	unnamed  []JobStatus // of those it is done to if the filter has no statuses
}

const (
	defaultBulk = 1000
	mostBulk    = 10_000
)

var (
	cancelBulk = bulk{action: "cancel", statuses: []JobStatus{JobStatusPending, JobStatusRunning, JobStatusFailed}}
	// What is planned for later, and what somebody has called off, is run now if
	// that is what somebody asks for, and not by leaving something out.
	retryBulk = bulk{"retry", []JobStatus{JobStatusPending, JobStatusFailed, JobStatusDead, JobStatusCancelled},
		[]JobStatus{JobStatusFailed, JobStatusDead}}
	rescheduleBulk = bulk{action: "reschedule", statuses: []JobStatus{JobStatusPending, JobStatusFailed}}
	deleteBulk     = bulk{action: "delete", statuses: []JobStatus{
		JobStatusPending, JobStatusSucceeded, JobStatusFailed, JobStatusDead, JobStatusCancelled}}
)

// CancelJobs does to the jobs of a filter, newest first, what CancelJob does to
// one, and returns how many those were: cancelled at once or, if they are
// running, called off. Without JobFilter.Statuses it finds pending, failed and
// running ones.
//
// One call takes JobFilter.Limit jobs at most, all or none of them. Call it until
// it returns 0. It passes over jobs that somebody else is just changing, and
// those that are called off already.
//
// A filter without any condition is refused. So are a Cursor, and statuses of
// which no job can be cancelled. The error is that of ListJobs.
func (s *Scheduler) CancelJobs(ctx context.Context, filter JobFilter) (int, error) {
	return s.controlAll(ctx, cancelBulk, filter, nil)
}

// RetryJobs does to the jobs of a filter, newest first, what RetryJob does to
// one, and returns how many those were. With Statuses of JobStatusDead alone it
// redrives dead jobs. Without Statuses it finds dead and failed ones; pending
// ones that are not due yet, and cancelled ones, have to be named.
//
// What becomes dead again is found again. Limit, what is passed over, and the
// errors are as for CancelJobs; jobs that have used up 1,000 attempts are passed
// over too. In a blocking queue, those of one call keep the order in which they
// were created. The error is ErrJobLocked if another transaction holds the
// UniqueKey of one of them.
func (s *Scheduler) RetryJobs(ctx context.Context, filter JobFilter) (int, error) {
	return s.controlAll(ctx, retryBulk, filter, nil)
}

// RescheduleJobs does to the jobs of a filter, newest first, what RescheduleJob
// does to one, and returns how many those were: pending and failed ones that
// were due at another time or, for the zero time, that are not due yet. Limit,
// what is passed over, and the errors are as for CancelJobs and RescheduleJob.
func (s *Scheduler) RescheduleJobs(ctx context.Context, filter JobFilter, runAt time.Time) (int, error) {
	at, err := storableTime(runAt)
	if err != nil {
		return 0, fmt.Errorf("reschedule jobs: %w", err)
	}
	return s.controlAll(ctx, rescheduleBulk, filter, at)
}

// DeleteJobs does to the jobs of a filter, newest first, what DeleteJob does to
// one, and returns how many those were. Without JobFilter.Statuses it finds all
// that are not running. Jobs that a foreign key of another table protects are
// passed over. Limit, what else is passed over, and the errors are as for
// CancelJobs.
func (s *Scheduler) DeleteJobs(ctx context.Context, filter JobFilter) (int, error) {
	return s.controlAll(ctx, deleteBulk, filter, nil)
}

func (s *Scheduler) controlAll(ctx context.Context, b bulk, filter JobFilter, runAt *time.Time) (int, error) {
	list, err := filter.checkBulk(b)
	if err == nil {
		err = s.checkQueues(ctx, list.queues)
	}
	if err != nil {
		return 0, fmt.Errorf("%s jobs: %w", b.action, err)
	}
	n, cancelled, err := s.controlListed(ctx, b, list, runAt)
	if err != nil {
		return 0, fmt.Errorf("%s jobs: %w", b.action, lockedOrExplained(err))
	}
	if len(cancelled) > 0 && s.config.Observer != nil {
		s.tellAllCancelled(ctx, cancelled)
	}
	if n > 0 {
		s.resident.alarm.in(0) // as control does
	}
	return n, nil
}

// checkBulk is check for what changes jobs: it does so only to those that the
// caller has named in some way.
func (f JobFilter) checkBulk(b bulk) (*listing, error) {
	list, err := f.check(defaultBulk, mostBulk)
	if err != nil {
		return nil, err
	}
	if f.Cursor != "" {
		return nil, badInput("cursor", "%s: expected none: a call goes on where the one before ended", shown(f.Cursor))
	}
	if len(list.statuses)+len(list.queues)+len(list.names) == 0 && list.attributes == nil && list.createdAfter == nil && list.createdBefore == nil {
		return nil, badInput("filter", "it has no condition, so it finds all jobs: expected at least one, such as a status or a queue")
	}
	for _, status := range list.statuses {
		if !slices.Contains(b.statuses, JobStatus(status)) {
			return nil, badInput("status", "%q: expected %s, of which jobs can be changed so", status, joined(b.statuses))
		}
	}
	if len(list.statuses) == 0 {
		found := b.unnamed
		if found == nil {
			found = b.statuses
		}
		for _, status := range found {
			list.statuses = append(list.statuses, string(status))
		}
	}
	return list, nil
}

const controlJobsSQL = `
SELECT id, cancelled
FROM {{schema}}.control_jobs($1::text, $2::timestamptz, $3::text[], $4::text[], $5::text[], $6::text::jsonb, $7::timestamptz, $8::timestamptz, $9::int)`

// controlListed returns how many jobs it has changed, and the ids of those that
// are cancelled by that.
func (s *Scheduler) controlListed(ctx context.Context, b bulk, list *listing, runAt *time.Time) (n int, cancelled []string, err error) {
	rows, err := s.pool.Query(ctx, s.sql(controlJobsSQL), b.action, runAt, list.statuses, list.queues, list.names, list.attributes,
		list.createdAfter, list.createdBefore, list.limit)
	if err != nil {
		return 0, nil, err
	}
	var id string
	var isCancelled bool
	_, err = pgx.ForEachRow(rows, []any{&id, &isCancelled}, func() error {
		n++
		if isCancelled {
			cancelled = append(cancelled, id)
		}
		return nil
	})
	return n, cancelled, err
}

const cancelledJobsSQL = `
SELECT ` + jobColumns + `
FROM {{schema}}.jobs WHERE id = ANY ($1::text[]::uuid[]) ORDER BY id DESC`

// tellAllCancelled tells of jobs that were called off before they ran. Each is
// read for that, one at a time: together they may be large.
func (s *Scheduler) tellAllCancelled(ctx context.Context, ids []string) {
	rows, err := s.pool.Query(ctx, s.sql(cancelledJobsSQL), ids)
	if err == nil {
		defer rows.Close()
		for rows.Next() {
			job := &Job{}
			if err := job.scan(rows); err != nil && rows.Err() != nil {
				break // else something in it was written by hand
			}
			s.tellCancelled(job)
		}
		err = rows.Err()
	}
	if err != nil {
		s.config.Logger.Warn("scheduler: can't tell Config.Observer of all cancelled jobs", "error", err)
	}
}
