package scheduler_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime/pprof"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// goShutdown begins a Shutdown and returns once it has begun.
func goShutdown(t *testing.T, ctx context.Context, s *scheduler.Scheduler) <-chan error {
	c := make(chan error, 1)
	go func() { c <- s.Shutdown(ctx) }()
	waitFor(t, func() bool {
		_, err := s.Run(t.Context(), scheduler.RunFilter{Queue: "empty"})
		return errors.Is(err, scheduler.ErrShuttingDown)
	})
	return c
}

// idle declares the queue that goShutdown asks.
var idle = queueConfigs{"empty": {}}

func TestShutdownWaitsForWhatRunsAndPicksNothingMore(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	started, release := make(chan context.Context), make(chan struct{})
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Queues, c.Concurrency = c.Schema, idle, 1
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			started <- ctx
			<-release
			return "done", ctx.Err()
		}}
	})
	ids := mustCreateMany(t, s, 2, "a", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: 2})
	ctx := await(t, started)
	shutdown := goShutdown(t, t.Context(), s)
	require.Error(t, s.Work(t.Context()))
	require.ErrorIs(t, s.Work(t.Context()), scheduler.ErrShuttingDown)
	require.NoError(t, ctx.Err())
	require.Empty(t, shutdown)
	close(release)

	require.NoError(t, await(t, shutdown))
	r := await(t, run)
	require.ErrorIs(t, r.err, scheduler.ErrShuttingDown)
	require.Equal(t, 1, r.report.Picked)
	require.Equal(t, 1, r.report.Succeeded)
	require.True(t, r.report.Done)
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, s, ids[0]).Status)
	second := mustGet(t, s, ids[1])
	require.Equal(t, scheduler.JobStatusPending, second.Status)
	require.Zero(t, second.Attempt)
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".leases"))

	report, err := s.Run(t.Context(), scheduler.RunFilter{})
	require.ErrorIs(t, err, scheduler.ErrShuttingDown)
	require.Nil(t, report)
	require.NoError(t, s.Shutdown(t.Context()), "once more")
}

func TestShutdownThatDoesNotWaitHandsTheJobsBack(t *testing.T) {
	t.Parallel()
	errEnded := errors.New("ended")
	for name, test := range map[string]struct {
		do      func(ctx context.Context) (any, error)
		status  scheduler.JobStatus
		attempt int
		errors  int
	}{
		"context error": {func(ctx context.Context) (any, error) { return nil, ctx.Err() }, scheduler.JobStatusPending, 0, 0},
		"cause":         {func(ctx context.Context) (any, error) { return nil, context.Cause(ctx) }, scheduler.JobStatusPending, 0, 0},
		"other error":   {func(context.Context) (any, error) { return nil, errEnded }, scheduler.JobStatusPending, 0, 0},
		"RetryAfter":    {func(context.Context) (any, error) { return nil, scheduler.RetryAfter(time.Hour, errEnded) }, scheduler.JobStatusPending, 0, 0},
		"success":       {func(context.Context) (any, error) { return nil, nil }, scheduler.JobStatusSucceeded, 1, 0},
		"Cancel":        {func(context.Context) (any, error) { return nil, scheduler.Cancel(errEnded) }, scheduler.JobStatusDead, 1, 1},
		"panic":         {func(context.Context) (any, error) { panic("as asked") }, scheduler.JobStatusFailed, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			started, cause := make(chan struct{}), make(chan error, 1)
			s := newScheduler(t, func(c *scheduler.Config) {
				c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
					close(started)
					<-ctx.Done()
					cause <- context.Cause(ctx)
					return test.do(ctx)
				}}
			})
			job := mustCreate(t, s, "a", scheduler.JobData{})
			run := goRun(t.Context(), s, scheduler.RunFilter{})
			await(t, started)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			require.NoError(t, s.Shutdown(ctx), "the handlers heeded it")
			require.ErrorIs(t, await(t, cause), scheduler.ErrShuttingDown)

			got := mustGet(t, s, job.ID)
			require.Equal(t, test.status, got.Status)
			require.Equal(t, test.attempt, got.Attempt)
			require.Len(t, got.Errors, test.errors)
			report := await(t, run).report
			require.Equal(t, 1, report.Picked)
			require.Equal(t, report.Picked, report.HandedBack+report.Succeeded+report.Dead+report.Failed)
			if test.status == scheduler.JobStatusPending {
				require.Equal(t, 1, report.HandedBack)
				require.Equal(t, job.RunAt, got.RunAt, "due as before")
			}
		})
	}
}

func TestShutdownGivesUpOnHandlersThatGoOn(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	started, release := make(chan struct{}), make(chan struct{})
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Lease = c.Schema, time.Second
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			close(started)
			<-release
			return "late", nil
		}}
	})
	other := newScheduler(t, func(c *scheduler.Config) {
		c.Schema = schema
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) { return "in time", nil }}
	})
	job := mustCreate(t, s, "a", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, started)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	began := time.Now()
	require.ErrorIs(t, s.Shutdown(ctx), context.Canceled)
	require.GreaterOrEqual(t, time.Since(began), 2*time.Second, "the grace after the end of the contexts")
	require.Equal(t, scheduler.JobStatusRunning, mustGet(t, s, job.ID).Status)
	require.Equal(t, 1, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".leases"))

	// The lease is not renewed any more, so the job is rescued.
	waitFor(t, func() bool { return mustRun(t, other, scheduler.RunFilter{}).Succeeded == 1 })
	close(release)
	require.Equal(t, 1, await(t, run).report.Lost)
	require.JSONEq(t, `"in time"`, string(mustGet(t, s, job.ID).Result))
}

// What was done is recorded, however long the database is away, also when the
// caller has gone and during a Shutdown that waits.
func TestFinishedWorkIsRecordedWithRetries(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	started, release, warned := make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Queues = c.Schema, idle
		c.Logger = slog.New(warnings{c.Logger.Handler(), warned})
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			close(started)
			<-release
			return "done", nil
		}}
	})
	job := mustCreate(t, s, "a", scheduler.JobData{})
	ctx, hangUp := context.WithCancel(t.Context())
	run := goRun(ctx, s, scheduler.RunFilter{})
	await(t, started)
	hangUp()
	mustExec(t, pool, "ALTER TABLE "+schema+".jobs RENAME TO hidden")
	close(release)
	for range 3 { // tries
		await(t, warned)
	}
	shutdown := goShutdown(t, t.Context(), s)
	await(t, warned)
	require.Empty(t, shutdown)
	require.Empty(t, run)
	mustExec(t, pool, "ALTER TABLE "+schema+".hidden RENAME TO jobs")
	require.NoError(t, await(t, shutdown))
	require.Equal(t, 1, await(t, run).report.Succeeded)
	require.JSONEq(t, `"done"`, string(mustGet(t, s, job.ID).Result))
}

// warnings is a log that tells when something went wrong in the background.
type warnings struct {
	slog.Handler
	warned chan<- struct{}
}

func (w warnings) Handle(ctx context.Context, record slog.Record) error {
	if record.Level >= slog.LevelWarn {
		select {
		case w.warned <- struct{}{}:
		default:
		}
	}
	return w.Handler.Handle(ctx, record)
}

// Everything that a scheduler started is gone when Shutdown returns.
func TestShutdownLeavesNoGoroutine(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	mine := unique()
	// Goroutines inherit the label of the one that started them.
	pprof.Do(t.Context(), pprof.Labels("test", mine), func(ctx context.Context) {
		s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
			c.JobNames = scheduler.JobNames{"ok": succeed, "fail": fail}
			c.Queues = queueConfigs{"own": {Extends: scheduler.JobQueueBlocking}}
		})
		worked := make(chan error, 1)
		go func() { worked <- s.Work(ctx) }()
		var ids []string
		for _, queue := range []scheduler.JobQueue{"", "own"} {
			ids = append(ids, mustCreateMany(t, s, 20, "ok", scheduler.JobData{Queue: queue, Timeout: time.Minute})...)
		}
		mustCreate(t, s, "fail", scheduler.JobData{})
		mustRun(t, s, scheduler.RunFilter{Limit: 5})
		for _, id := range ids {
			waitFor(t, func() bool { return mustGet(t, s, id).Status == scheduler.JobStatusSucceeded })
		}
		require.Contains(t, goroutines(t, mine), "scheduler.(*Scheduler).Work")
		require.NoError(t, s.Shutdown(ctx))
		require.NoError(t, await(t, worked))
		// Some may be about to return.
		waitFor(t, func() bool { return !strings.Contains(goroutines(t, mine), "scheduler.(*") })
	})
}

// goroutines are the stacks of those with this label.
func goroutines(t *testing.T, label string) string {
	var all bytes.Buffer
	require.NoError(t, pprof.Lookup("goroutine").WriteTo(&all, 1))
	var found strings.Builder
	for stack := range strings.SplitSeq(all.String(), "\n\n") {
		if strings.Contains(stack, label) {
			found.WriteString(stack + "\n\n")
		}
	}
	return found.String()
}
