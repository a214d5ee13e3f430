package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// controlSQL begins what control asks: the job, and whether this has cancelled it.
const controlSQL = `
SELECT ` + jobColumns + `, status = 'cancelled' AND finished_at = now()
FROM {{schema}}.`

const cancelJobSQL = controlSQL + `cancel_job($1::text::uuid)`

// CancelJob calls a job off, and returns it as it is then. A pending or failed
// one is cancelled at once; in a blocking queue, the next one may go.
//
// A running one is still running when CancelJob returns, and Job.Cancelling says
// so. In whatever process that is, the context of its handler ends within about a
// second, with the cause ErrJobCancelled. When the handler returns an error, or asks for a later
// run, or the process is lost, the job is cancelled and never rerun; if it
// succeeds in spite of that, its work is done and the job succeeded. Until then
// it goes on holding a blocking queue.
//
// A job that is finished stays as it is, which is no error, and so does one that
// was cancelled before. The error is ErrJobNotFound if there is no job with this
// id, and ErrJobLocked if another transaction holds it, as those of the other
// functions for one job may be too.
func (s *Scheduler) CancelJob(ctx context.Context, id string) (*Job, error) {
	job, err := s.control(ctx, cancelJobSQL, id)
	if err != nil {
		return nil, fmt.Errorf("cancel job: %w", err)
	}
	return job, nil
}

const retryJobSQL = controlSQL + `retry_job($1::text::uuid)`

// RetryJob makes a job that is pending, failed, dead or cancelled pending and
// due now, and returns it. Its errors are kept. If its attempts are used up, its
// MaxAttempts grows by one.
//
// In a blocking queue, where order is by RunAt, a dead or cancelled job now
// stands behind those that are due already and before those that are due later.
// A failed one that holds the queue keeps its place, which is the first.
//
// The error is ErrJobNotFound if there is no job with this id, and ErrJobState
// if it is running, has succeeded, has used up 1,000 attempts, is dead or
// cancelled while another job, not finished, has its UniqueKey, or was cancelled
// because of a job in JobData.After that has still not succeeded: retry that
// first.
func (s *Scheduler) RetryJob(ctx context.Context, id string) (*Job, error) {
	job, err := s.control(ctx, retryJobSQL, id)
	if err != nil {
		return nil, fmt.Errorf("retry job: %w", err)
	}
	return job, nil
}

const rescheduleJobSQL = controlSQL + `reschedule_job($1::text::uuid, $2::timestamptz)`

// RescheduleJob sets when a pending or failed job is due, from year 1 to 9999,
// or now for the zero time, and returns it. A failed one stays failed, and is
// rerun then in place of after its backoff. In a blocking queue, where order is
// by RunAt, that moves the job, but not one that was started and so holds the
// queue: it holds it until then.
//
// The error is ErrJobNotFound if there is no job with this id, ErrJobState if it
// is neither pending nor failed, and an *InputError if runAt can't be used.
func (s *Scheduler) RescheduleJob(ctx context.Context, id string, runAt time.Time) (*Job, error) {
	at, err := storableTime(runAt)
	if err != nil {
		return nil, fmt.Errorf("reschedule job: %w", err)
	}
	job, err := s.control(ctx, rescheduleJobSQL, id, at)
	if err != nil {
		return nil, fmt.Errorf("reschedule job: %w", err)
	}
	return job, nil
}

const deleteJobSQL = controlSQL + `delete_job($1::text::uuid)`

// DeleteJob deletes a job that is not running, whatever came of it.
//
// The error is ErrJobNotFound if there is no job with this id, and ErrJobState
// if it is running: cancel it before. A foreign key of another table that
// refers to the job is an error of the database.
func (s *Scheduler) DeleteJob(ctx context.Context, id string) error {
	if _, err := s.control(ctx, deleteJobSQL, id); err != nil {
		return fmt.Errorf("delete job: %w", err)
	}
	return nil
}

// control asks one of the functions in sql/006_control.sql, which lock the job
// before they decide, and returns what that returns.
func (s *Scheduler) control(ctx context.Context, sql, id string, more ...any) (*Job, error) {
	if err := checkJobID(id); err != nil {
		return nil, err
	}
	job := &Job{}
	var cancelled bool
	err := job.scan(s.pool.QueryRow(ctx, s.sql(sql), append([]any{id}, more...)...), &cancelled)
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg) && pg.Code == "P0002": // no_data_found
		return nil, fmt.Errorf("%w: %s", ErrJobNotFound, id)
	case errors.As(err, &pg) && pg.Code == "55000": // object_not_in_prerequisite_state
		return nil, fmt.Errorf("%w: %s", ErrJobState, pg.Message)
	case err != nil:
		return nil, lockedOrExplained(err)
	}
	if cancelled {
		s.tellCancelled(job)
	}
	// Others are notified by the database, and by that this process too if it
	// listens. The poll knows what is due.
	s.resident.alarm.in(0)
	return job, nil
}

const lockNotAvailable = "55P03"

// lockedOrExplained is explained for what waits for locks.
func lockedOrExplained(err error) error {
	if sqlState(err) == lockNotAvailable {
		return fmt.Errorf("%w: %w", ErrJobLocked, err)
	}
	return explained(err)
}

const (
	// cancelledEvery is how often a process looks whether its jobs were called
	// off, and cancelledAfter how long one runs before it is worth a look, so that
	// short jobs cost none.
	cancelledEvery = 500 * time.Millisecond
	cancelledAfter = cancelledEvery / 2
)

// watchCancelled ends the contexts of jobs that were called off, by whomever,
// for as long as the lease is in use.
func (s *Scheduler) watchCancelled(ctx context.Context) {
	for pause := cancelledEvery; ; {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = cancelledEvery
		if err := s.lookForCancelled(ctx); err != nil && ctx.Err() == nil {
			s.config.Logger.Warn("scheduler: can't look for cancelled jobs", "error", explained(err))
			pause = 10 * cancelledEvery
		}
	}
}

const cancelledUnderSQL = `SELECT id, claims FROM {{schema}}.cancelled_under($1::text[]::uuid[])`

func (s *Scheduler) lookForCancelled(ctx context.Context) error {
	leases := s.lease.watched(time.Now().Add(-cancelledAfter))
	if len(leases) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*cancelledEvery)
	defer cancel()
	marked := map[pgtype.UUID]int32{}
	err := s.urgently(ctx, cancelledAfter, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, s.sql(cancelledUnderSQL), leases)
		if err != nil {
			return err
		}
		var id pgtype.UUID
		var claims int32
		_, err = pgx.ForEachRow(rows, []any{&id, &claims}, func() error {
			marked[id] = claims
			return nil
		})
		return err
	})
	s.lease.callOff(marked)
	return err
}
