package scheduler

import (
	"context"
	"fmt"
)

// takenBackColumns: what is said of these jobs does not need their progress.
const takenBackColumns = rowColumns + `, NULL::jsonb`

const rescueSQL = `
SELECT ` + takenBackColumns + `
FROM {{schema}}.rescue()`

// rescue takes back what processes that are gone were running, and returns how
// many jobs those were.
func (s *Scheduler) rescue(ctx context.Context) (int, error) {
	return s.rescueBy(ctx, rescueSQL)
}

const beginRunSQL = `
SELECT ` + takenBackColumns + `
FROM {{schema}}.begin_run($1::text)`

// beginRun is rescue at the begin of a run, from which on a created job asks
// for another one.
func (s *Scheduler) beginRun(ctx context.Context, q *queue) error {
	_, err := s.rescueBy(ctx, beginRunSQL, string(q.name))
	return err
}

// rescueBy tells of the jobs that a query returns because they were rescued.
func (s *Scheduler) rescueBy(ctx context.Context, sql string, args ...any) (int, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTimeout)
	defer cancel()
	n, err := s.takeBack(ctx, func(job *Job) {
		s.config.Logger.Warn("scheduler: rescued a job whose process was lost",
			"job", job.ID, "name", job.Name, "attempt", job.Attempt, "status", job.Status)
		s.tellRescued(job)
	}, sql, args...)
	if err != nil {
		return n, fmt.Errorf("rescue jobs: %w", explained(err))
	}
	return n, nil
}

// takeBack tells of the jobs that a query has taken back, once that is committed:
// their rows come before.
func (s *Scheduler) takeBack(ctx context.Context, tell func(*Job), sql string, args ...any) (n int, err error) {
	rows, err := s.pool.Query(ctx, s.sql(sql), args...)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var jobs []*Job
	for rows.Next() {
		job := &Job{}
		if err := job.scan(rows); err != nil && rows.Err() != nil {
			break // else something in it was written by hand
		}
		jobs = append(jobs, job)
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	for _, job := range jobs {
		tell(job)
	}
	return len(jobs), nil
}
