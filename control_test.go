package scheduler_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func mustCancel(t *testing.T, s *scheduler.Scheduler, id string) *scheduler.Job {
	t.Helper()
	job, err := s.CancelJob(t.Context(), id)
	require.NoError(t, err)
	return job
}

func mustRetry(t *testing.T, s *scheduler.Scheduler, id string) *scheduler.Job {
	t.Helper()
	job, err := s.RetryJob(t.Context(), id)
	require.NoError(t, err)
	return job
}

// controls are what can be done to a job by its id.
var controls = map[string]func(context.Context, *scheduler.Scheduler, string) (*scheduler.Job, error){
	"cancel job": func(ctx context.Context, s *scheduler.Scheduler, id string) (*scheduler.Job, error) {
		return s.CancelJob(ctx, id)
	},
	"retry job": func(ctx context.Context, s *scheduler.Scheduler, id string) (*scheduler.Job, error) {
		return s.RetryJob(ctx, id)
	},
	"reschedule job": func(ctx context.Context, s *scheduler.Scheduler, id string) (*scheduler.Job, error) {
		return s.RescheduleJob(ctx, id, time.Time{})
	},
	"delete job": func(ctx context.Context, s *scheduler.Scheduler, id string) (*scheduler.Job, error) {
		return nil, s.DeleteJob(ctx, id)
	},
}

// newInEachStatus makes a scheduler with one job in each status that is not
// running, all of which had one attempt, but for the pending one, which is due
// tomorrow.
func newInEachStatus(t *testing.T) (s *scheduler.Scheduler, ids map[scheduler.JobStatus]string) {
	s = newScheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"a": func(_ context.Context, job *scheduler.Job) (any, error) {
			if string(job.Payload) == `"succeeded"` {
				return "done", nil
			}
			return nil, errors.New("failed as asked")
		}}
	})
	ids = map[scheduler.JobStatus]string{}
	for status, attempts := range map[scheduler.JobStatus]int{
		scheduler.JobStatusSucceeded: 1, scheduler.JobStatusDead: 1, scheduler.JobStatusFailed: 5, scheduler.JobStatusCancelled: 5,
	} {
		ids[status] = mustCreate(t, s, "a", scheduler.JobData{Payload: string(status), MaxAttempts: attempts}).ID
	}
	require.Equal(t, 4, mustRun(t, s, scheduler.RunFilter{Limit: 9}).Picked)
	ids[scheduler.JobStatusPending] = mustCreate(t, s, "a", tomorrowIn("")).ID
	mustCancel(t, s, ids[scheduler.JobStatusCancelled])
	for status, id := range ids {
		require.Equal(t, status, mustGet(t, s, id).Status)
	}
	return s, ids
}

func tomorrowIn(queue scheduler.JobQueue) scheduler.JobData {
	return scheduler.JobData{Queue: queue, RunAt: time.Now().Add(24 * time.Hour)}
}

func TestControlKnowsNoOtherJobs(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, nil)
	for name, do := range controls {
		for _, id := range []string{"0190a5b2-0000-7000-8000-000000000000", "", "1", "nope\x00", "0190a5b2000070008000000000000000"} {
			_, err := do(t.Context(), s, id)
			require.ErrorIs(t, err, scheduler.ErrJobNotFound, "%s %q", name, id)
			require.ErrorContains(t, err, name+": ")
			require.NotErrorIs(t, err, scheduler.ErrJobState)
		}
	}
}

// Where prepared statements can't be used, everything works all the same.
func TestControlInEveryExecMode(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeCacheDescribe} {
		config := newPool(t).Config()
		config.ConnConfig.DefaultQueryExecMode = mode
		s := newSchedulerOn(t, newPoolWith(t, config), nil)
		id := mustCreate(t, s, "a", tomorrowIn("")).ID
		require.Equal(t, scheduler.JobStatusCancelled, mustCancel(t, s, id).Status)
		require.Equal(t, scheduler.JobStatusPending, mustRetry(t, s, id).Status)
		at := time.Date(2050, 1, 31, 9, 0, 0, 0, time.UTC)
		job, err := s.RescheduleJob(t.Context(), id, at)
		require.NoError(t, err)
		require.Equal(t, at, job.RunAt)
		require.NoError(t, s.DeleteJob(t.Context(), id))
		require.ErrorIs(t, s.DeleteJob(t.Context(), id), scheduler.ErrJobNotFound)
	}
}

func TestCancelJobThatWaits(t *testing.T) {
	t.Parallel()
	s, ids := newInEachStatus(t)
	for _, status := range []scheduler.JobStatus{scheduler.JobStatusPending, scheduler.JobStatusFailed} {
		before := mustGet(t, s, ids[status])
		job := mustCancel(t, s, ids[status])
		require.Equal(t, scheduler.JobStatusCancelled, job.Status)
		require.NotNil(t, job.FinishedAt)
		require.Equal(t, before.Errors, job.Errors)
		require.Equal(t, job, mustGet(t, s, job.ID))
		require.Equal(t, job, mustCancel(t, s, job.ID), "once more")
		mustRetry(t, s, job.ID) // is undone
		mustCancel(t, s, job.ID)
	}
	require.Zero(t, mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusAny, Limit: 9}).Picked)
}

func TestCancelJobLeavesFinishedOnesAlone(t *testing.T) {
	t.Parallel()
	s, ids := newInEachStatus(t)
	for _, status := range []scheduler.JobStatus{scheduler.JobStatusSucceeded, scheduler.JobStatusDead, scheduler.JobStatusCancelled} {
		before := mustGet(t, s, ids[status])
		require.Equal(t, before, mustCancel(t, s, ids[status]))
		require.Equal(t, before, mustGet(t, s, ids[status]))
	}
}

func TestRetryJob(t *testing.T) {
	t.Parallel()
	s, ids := newInEachStatus(t)
	for status, maxAttempts := range map[scheduler.JobStatus]int{
		scheduler.JobStatusDead: 2, scheduler.JobStatusCancelled: 5, scheduler.JobStatusFailed: 5, scheduler.JobStatusPending: 10,
	} {
		before := mustGet(t, s, ids[status])
		job := mustRetry(t, s, ids[status])
		require.Equal(t, job, mustGet(t, s, job.ID))
		require.Equal(t, scheduler.JobStatusPending, job.Status, status)
		require.Equal(t, maxAttempts, job.MaxAttempts, status)
		require.Equal(t, before.Attempt, job.Attempt)
		require.Equal(t, before.Errors, job.Errors)
		require.Nil(t, job.FinishedAt)
		require.Equal(t, job, mustRetry(t, s, job.ID), "it is due already")
		require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Limit: 9}).Picked, "due now")
		require.Equal(t, before.Attempt+1, mustGet(t, s, job.ID).Attempt)
	}
	succeeded := mustGet(t, s, ids[scheduler.JobStatusSucceeded])
	_, err := s.RetryJob(t.Context(), succeeded.ID)
	require.ErrorIs(t, err, scheduler.ErrJobState)
	require.ErrorContains(t, err, succeeded.ID+" is succeeded: expected")
	require.Equal(t, succeeded, mustGet(t, s, succeeded.ID))
}

func TestRetryJobGivesAThousandAttemptsAtMost(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	job := mustCreate(t, s, "a", scheduler.JobData{})
	mustExec(t, pool, "UPDATE "+schema+".jobs SET status = 'dead', lane = NULL, finished_at = now(), attempt = 999, claims = 999, max_attempts = 999")
	require.Equal(t, 1000, mustRetry(t, s, job.ID).MaxAttempts)
	mustExec(t, pool, "UPDATE "+schema+".jobs SET status = 'dead', lane = NULL, finished_at = now(), attempt = 1000, claims = 1000")
	_, err := s.RetryJob(t.Context(), job.ID)
	require.ErrorIs(t, err, scheduler.ErrJobState)
	require.ErrorContains(t, err, "1000 attempts")
	require.Equal(t, scheduler.JobStatusDead, mustGet(t, s, job.ID).Status)
}

func TestRescheduleJob(t *testing.T) {
	t.Parallel()
	s, ids := newInEachStatus(t)
	for _, at := range []time.Time{
		time.Date(1, 1, 1, 0, 0, 1, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC),
		time.Date(2050, 1, 31, 10, 30, 0, 0, time.FixedZone("", 3600)),
	} {
		for _, status := range []scheduler.JobStatus{scheduler.JobStatusPending, scheduler.JobStatusFailed} {
			job, err := s.RescheduleJob(t.Context(), ids[status], at)
			require.NoError(t, err)
			require.Equal(t, at.UTC().Truncate(time.Microsecond), job.RunAt)
			require.Equal(t, status, job.Status)
			require.Equal(t, job, mustGet(t, s, job.ID))
		}
	}
	require.Zero(t, mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusAny, Limit: 9}).Picked)
	for _, status := range []scheduler.JobStatus{scheduler.JobStatusPending, scheduler.JobStatusFailed} {
		_, err := s.RescheduleJob(t.Context(), ids[status], time.Time{})
		require.NoError(t, err)
		require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Status: status, Limit: 9}).Picked, "it is due now")
	}
	for _, status := range []scheduler.JobStatus{scheduler.JobStatusSucceeded, scheduler.JobStatusDead, scheduler.JobStatusCancelled} {
		before := mustGet(t, s, ids[status])
		_, err := s.RescheduleJob(t.Context(), ids[status], time.Now())
		require.ErrorIs(t, err, scheduler.ErrJobState)
		require.ErrorContains(t, err, string(status)+": expected it to be pending or failed")
		require.Equal(t, before, mustGet(t, s, ids[status]))
	}
	for _, at := range []time.Time{time.Date(0, 12, 31, 0, 0, 0, 0, time.UTC), time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)} {
		_, err := s.RescheduleJob(t.Context(), ids[scheduler.JobStatusFailed], at)
		requireInputError(t, err, "run_at", "year 1 to 9999")
	}
}

func TestDeleteJob(t *testing.T) {
	t.Parallel()
	s, ids := newInEachStatus(t)
	for _, id := range ids {
		require.NoError(t, s.DeleteJob(t.Context(), id))
		_, err := s.GetJob(t.Context(), id)
		require.ErrorIs(t, err, scheduler.ErrJobNotFound)
	}
	require.Zero(t, mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusAny, Limit: 9}).Picked)
}

func TestDeleteJobHeedsForeignKeys(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	job := mustCreate(t, s, "a", scheduler.JobData{})
	mustExec(t, pool, "CREATE TABLE "+schema+".orders (job uuid REFERENCES "+schema+".jobs)")
	mustExec(t, pool, "INSERT INTO "+schema+".orders VALUES ($1::text::uuid)", job.ID)
	require.ErrorContains(t, s.DeleteJob(t.Context(), job.ID), "foreign key")
	require.Equal(t, job, mustGet(t, s, job.ID))
	require.Equal(t, scheduler.JobStatusCancelled, mustCancel(t, s, job.ID).Status)
}

// Only what waits can be rescheduled, and only what does not run can be deleted
// or retried.
func TestControlRefusesWhatRuns(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	s := withHandler(t, func(context.Context, *scheduler.Job) (any, error) {
		close(started)
		<-release
		return nil, nil
	})
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, started)
	before := mustGet(t, s, id)
	for name, do := range controls {
		if name == "cancel job" {
			continue
		}
		_, err := do(t.Context(), s, id)
		require.ErrorIs(t, err, scheduler.ErrJobState, name)
		require.ErrorContains(t, err, name+": ")
		require.ErrorContains(t, err, id+" is running: expected it to be")
		require.Equal(t, before, mustGet(t, s, id))
	}
	close(release)
	require.Equal(t, 1, await(t, run).report.Succeeded)
}

// In SQL the same, with errors by whose code a program tells them apart.
func TestControlInSQL(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	ask := func(function string) (status string, err error) {
		err = pool.QueryRow(t.Context(), "SELECT status FROM "+schema+"."+function, id).Scan(&status)
		return status, err
	}
	for _, step := range [][2]string{
		{"cancel_job($1::text::uuid)", "cancelled"}, {"cancel_job($1::text::uuid)", "cancelled"}, {"retry_job($1::text::uuid)", "pending"},
		{"reschedule_job($1::text::uuid, NULL)", "pending"}, {"delete_job($1::text::uuid)", "pending"},
	} {
		status, err := ask(step[0])
		require.NoError(t, err)
		require.Equal(t, step[1], status)
	}
	for _, function := range []string{"cancel_job($1::text::uuid)", "retry_job($1::text::uuid)", "reschedule_job($1::text::uuid, now())", "delete_job($1::text::uuid)"} {
		_, err := ask(function)
		requirePgError(t, err, "P0002", id)
	}
	id = mustCreate(t, s, "a", scheduler.JobData{}).ID
	for _, at := range []string{"'infinity'", "'0001-01-01 00:00:00+00 BC'", "'10000-01-01 00:00:00+00'"} {
		_, err := ask("reschedule_job($1::text::uuid, " + at + ")")
		requirePgError(t, err, "22023", "year 1 to 9999")
	}
	_, err := ask("cancel_job($1::text::uuid)")
	require.NoError(t, err)
	_, err = ask("reschedule_job($1::text::uuid, now())")
	requirePgError(t, err, "55000", id, "is cancelled: expected it to be pending or failed")
}
