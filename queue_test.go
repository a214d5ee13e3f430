package scheduler_test

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

type queueConfigs = map[scheduler.JobQueue]scheduler.QueueConfig

func TestUnknownQueueIsRefusedWithTheKnownOnes(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) { c.Queues = queueConfigs{"outreach": {}} })
	_, err := s.CreateJob(t.Context(), "a", scheduler.JobData{Queue: "outreech"})
	requireInputError(t, err, "queue", `"outreech"`, "blocking, default, outreach")
	require.ErrorIs(t, err, scheduler.ErrUnknownQueue)
	_, err = s.Run(t.Context(), scheduler.RunFilter{Queue: "outreech"})
	requireInputError(t, err, "queue", `"outreech"`, "blocking, default, outreach")
	require.ErrorIs(t, err, scheduler.ErrUnknownQueue)
}

func TestFailedQueueIsAViewOfTheDefaultOne(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.Queues = queueConfigs{"own": {}}
		c.JobNames = scheduler.JobNames{"ok": succeed, "once": func(_ context.Context, job *scheduler.Job) (any, error) {
			if job.Attempt == 1 {
				return nil, errors.New("failed as asked")
			}
			return nil, nil
		}}
	})
	_, err := s.CreateJob(t.Context(), "ok", scheduler.JobData{Queue: scheduler.JobQueueFailed})
	requireInputError(t, err, "queue", "view")
	for _, status := range []scheduler.JobStatus{scheduler.JobStatusPending, scheduler.JobStatusAny} {
		_, err = s.Run(t.Context(), scheduler.RunFilter{Queue: scheduler.JobQueueFailed, Status: status})
		requireInputError(t, err, "status", `"`+string(status)+`"`, `"failed"`)
	}

	failed := mustCreate(t, s, "once", scheduler.JobData{})
	elsewhere := mustCreate(t, s, "once", scheduler.JobData{Queue: "own"})
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Failed)
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Queue: "own"}).Failed)
	pending := mustCreate(t, s, "ok", scheduler.JobData{})
	require.Zero(t, mustRun(t, s, scheduler.RunFilter{Queue: scheduler.JobQueueFailed}).Picked, "its backoff has not passed")

	passTime(t, pool, schema)
	for _, filter := range []scheduler.RunFilter{
		{Queue: scheduler.JobQueueFailed, Limit: 10},
		{Queue: scheduler.JobQueueFailed, Status: scheduler.JobStatusFailed, Limit: 10},
	} {
		report := mustRun(t, s, filter)
		require.Equal(t, scheduler.JobQueueFailed, report.Queue)
		require.Equal(t, scheduler.JobStatusFailed, report.Status)
		require.Equal(t, report.Picked, report.Succeeded)
		require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, s, failed.ID).Status)
	}
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, s, pending.ID).Status)
	require.Equal(t, scheduler.JobStatusFailed, mustGet(t, s, elsewhere.ID).Status)
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Queue: "own", Status: scheduler.JobStatusFailed}).Succeeded)
}

func TestQueuesHaveTheirOwnSettingsOrThoseOfTheirBase(t *testing.T) {
	t.Parallel()
	var schema string
	var lock sync.Mutex
	asked := map[string][]int{}
	backoff := func(name string) func(int) time.Duration {
		return func(attempt int) time.Duration {
			lock.Lock()
			defer lock.Unlock()
			asked[name] = append(asked[name], attempt)
			return 0
		}
	}
	s := newScheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": fail}
		c.Queues = queueConfigs{
			"default": {MaxAttempts: 2, Backoff: backoff("default")},
			"heir":    {},
			"own":     {Extends: scheduler.JobQueueDefault, MaxAttempts: 3, Backoff: backoff("own")},
		}
	})
	for queue, attempts := range map[scheduler.JobQueue]int{"": 2, "heir": 2, "own": 3} {
		job := mustCreate(t, s, "a", scheduler.JobData{Queue: queue})
		for attempt := range attempts {
			report := mustRun(t, s, scheduler.RunFilter{Queue: queue, Status: scheduler.JobStatusAny})
			require.Equal(t, attempt+1 < attempts, report.Failed == 1, "due again at once")
			require.Equal(t, attempt+1 == attempts, report.Dead == 1)
		}
		job = mustGet(t, s, job.ID)
		require.Equal(t, scheduler.JobStatusDead, job.Status)
		require.Equal(t, attempts, job.Attempt)
		require.Len(t, job.Errors, attempts)
	}
	require.Equal(t, map[string][]int{"default": {1, 1}, "own": {1, 2}}, asked)

	job := mustCreate(t, s, "a", scheduler.JobData{MaxAttempts: 1})
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Dead)
	require.Equal(t, 1, mustGet(t, s, job.ID).Attempt)
	// The database knows them, for jobs that are created there.
	require.Equal(t, "blocking:10 default:2 heir:2 own:3", mustQuery[string](t, newPool(t),
		`SELECT string_agg(name || ':' || max_attempts, ' ' ORDER BY name) FROM `+schema+`.queues`))
}

// failAt makes one job fail its attempt number so-and-so, and returns how long
// it has to wait then, and which share of attempt⁴ seconds that is.
func failAt(t *testing.T, s *scheduler.Scheduler, pool *pgxpool.Pool, schema string, queue scheduler.JobQueue, attempt int) (time.Duration, float64) {
	job := mustCreate(t, s, "a", scheduler.JobData{Queue: queue, MaxAttempts: 1000})
	mustExec(t, pool, `UPDATE `+schema+`.jobs SET attempt = $2::int, claims = $2::int WHERE id = $1::text::uuid`, job.ID, attempt-1)
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Queue: queue}).Failed)
	job = mustGet(t, s, job.ID)
	require.Equal(t, scheduler.JobStatusFailed, job.Status)
	require.Equal(t, attempt, job.Attempt)
	wait := job.RunAt.Sub(job.Errors[0].At)
	return wait, wait.Seconds() / float64(attempt*attempt*attempt*attempt)
}

func TestDefaultBackoff(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": fail}
	})
	var least, most float64 = 2, 0
	for _, attempt := range []int{1, 1, 1, 2, 2, 2, 3, 5, 8, 10, 16} {
		wait, share := failAt(t, s, pool, schema, "", attempt)
		require.InDelta(t, 1, share, 0.1001, "attempt %d: %s", attempt, wait)
		least, most = min(least, share), max(most, share)
	}
	require.Greater(t, most-least, 0.01, "jobs that fail together come back apart")
	for _, attempt := range []int{18, 30, 999} {
		wait, _ := failAt(t, s, pool, schema, "", attempt)
		require.Equal(t, 24*time.Hour, wait)
	}
}

func TestOwnBackoff(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": fail}
		c.Queues = queueConfigs{
			"linear": {Backoff: func(attempt int) time.Duration { return time.Duration(attempt) * time.Minute }},
			"past":   {Backoff: func(int) time.Duration { return -time.Hour }},
			"long":   {Backoff: func(int) time.Duration { return 1 << 62 }},
			"panics": {Backoff: func(int) time.Duration { panic("no backoff today") }},
			"exits":  {Backoff: func(int) time.Duration { runtime.Goexit(); return 0 }},
		}
	})
	wait, _ := failAt(t, s, pool, schema, "linear", 7)
	require.Equal(t, 7*time.Minute, wait)
	wait, _ = failAt(t, s, pool, schema, "past", 3)
	require.Zero(t, wait)
	wait, _ = failAt(t, s, pool, schema, "long", 3)
	require.Equal(t, 24*time.Hour, wait)
	wait, share := failAt(t, s, pool, schema, "panics", 3)
	require.InDelta(t, 1, share, 0.1001, "the default: %s", wait)

	id := mustCreate(t, s, "a", scheduler.JobData{Queue: "exits"}).ID
	select {
	case r := <-goRun(t.Context(), s, scheduler.RunFilter{Queue: "exits"}):
		require.Equal(t, 1, r.report.Failed)
		require.Len(t, mustGet(t, s, id).Errors, 1)
	case <-time.After(patience):
		require.FailNow(t, "the run does not end")
	}
}
