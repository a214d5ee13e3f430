package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func init() {
	// Runs one job, resident or by one run, whose handler tells why its context
	// ended.
	for _, mode := range []string{"Run", "Work"} {
		childRoles["cancelled in "+mode] = func() {
			s := childScheduler(scheduler.Config{JobNames: scheduler.JobNames{
				"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
					fmt.Println("begun")
					<-ctx.Done()
					fmt.Println(context.Cause(ctx))
					return nil, ctx.Err()
				},
			}})
			if mode == "Work" {
				exitOn(s.Work(context.Background()))
			}
			report, err := s.Run(context.Background(), scheduler.RunFilter{Queue: scheduler.JobQueue(os.Getenv("QUEUE"))})
			exitOn(err)
			fmt.Println("cancelled", report.Cancelled)
			select {}
		}
	}
	// Runs one job, which hangs, under a short lease.
	childRoles["hang"] = func() {
		s := childScheduler(scheduler.Config{Lease: time.Second, JobNames: scheduler.JobNames{
			"a": func(context.Context, *scheduler.Job) (any, error) {
				fmt.Println("begun")
				select {}
			},
		}})
		_, err := s.Run(context.Background(), scheduler.RunFilter{Queue: scheduler.JobQueue(os.Getenv("QUEUE"))})
		exitOn(err)
	}
}

// soon is what "within about a second" may be on a machine that is busy.
const soon = 5 * time.Second

func requireCancelled(t *testing.T, job *scheduler.Job, message string) {
	t.Helper()
	require.Equal(t, scheduler.JobStatusCancelled, job.Status)
	require.NotNil(t, job.FinishedAt)
	require.Nil(t, job.Result)
	require.Len(t, job.Errors, 1)
	require.Equal(t, 1, job.Errors[0].Attempt)
	require.Equal(t, 1, job.Attempt)
	require.Contains(t, job.Errors[0].Error, "job cancelled")
	require.Contains(t, job.Errors[0].Error, message)
}

func TestCancelJobEndsItsHandlerInAnotherProcess(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"Run", "Work"} {
		for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
			t.Run(mode+" "+string(queue), func(t *testing.T) {
				t.Parallel()
				var schema string
				s := newScheduler(t, func(c *scheduler.Config) {
					schema, c.JobNames = c.Schema, scheduler.JobNames{"a": succeed}
				})
				id := mustCreate(t, s, "a", scheduler.JobData{Queue: queue}).ID
				c := startChild(t, "cancelled in "+mode, "SCHEMA="+schema, "QUEUE="+string(queue))
				require.Equal(t, "begun", c.Line(t))
				began := time.Now()
				require.Equal(t, scheduler.JobStatusRunning, mustCancel(t, s, id).Status)
				mustCancel(t, s, id)
				require.Equal(t, scheduler.ErrJobCancelled.Error(), c.Line(t))
				require.Less(t, time.Since(began), soon)
				if mode == "Run" {
					require.Equal(t, "cancelled 1", c.Line(t))
				}
				waitFor(t, func() bool { return mustGet(t, s, id).Status != scheduler.JobStatusRunning })
				requireCancelled(t, mustGet(t, s, id), "context canceled")
				require.Zero(t, mustRun(t, s, scheduler.RunFilter{Queue: queue, Status: scheduler.JobStatusAny}).Picked)
			})
		}
	}
}

// Whatever the handler returns, and whether it has noticed or not.
func TestWhatBecomesOfACancelledJobThatRan(t *testing.T) {
	t.Parallel()
	reason := errors.New("some reason")
	for verdict, test := range map[string]struct {
		do      func() (any, error)
		message string
	}{
		"succeeded":  {func() (any, error) { return "done", nil }, ""},
		"failed":     {func() (any, error) { return nil, reason }, "some reason"},
		"RetryAfter": {func() (any, error) { return nil, scheduler.RetryAfter(0, reason) }, "some reason"},
		"Snooze":     {func() (any, error) { return nil, scheduler.Snooze(0) }, ""},
		"Cancel":     {func() (any, error) { return nil, scheduler.Cancel(reason) }, "some reason"},
		"panic":      {func() (any, error) { panic("panicked as asked") }, "panicked as asked"},
		"no JSON":    {func() (any, error) { return func() {}, nil }, "result"},
		"refused":    {func() (any, error) { return "a\x00", nil }, "result"},
		"long":       {func() (any, error) { return nil, errors.New(strings.Repeat("ä", 1<<20)) }, "äää"},
	} {
		for _, notices := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, notices %t", verdict, notices), func(t *testing.T) {
				t.Parallel()
				started, release := make(chan struct{}), make(chan struct{})
				s := withHandler(t, func(ctx context.Context, _ *scheduler.Job) (any, error) {
					close(started)
					<-release
					if notices {
						<-ctx.Done()
					}
					return test.do()
				})
				id := mustCreate(t, s, "a", scheduler.JobData{MaxAttempts: 3}).ID
				run := goRun(t.Context(), s, scheduler.RunFilter{})
				await(t, started)
				mustCancel(t, s, id)
				close(release)
				report := await(t, run).report
				job := mustGet(t, s, id)
				if verdict == "succeeded" {
					require.Equal(t, scheduler.JobStatusSucceeded, job.Status)
					require.JSONEq(t, `"done"`, string(job.Result))
					require.Empty(t, job.Errors)
					require.Equal(t, 1, report.Succeeded)
				} else {
					requireCancelled(t, job, test.message)
					require.LessOrEqual(t, len(job.Errors[0].Error), 8<<10)
					require.Equal(t, 1, report.Cancelled)
				}
				require.Equal(t, 1, report.Picked)
				require.Zero(t, report.Failed+report.Dead+report.Snoozed+report.HandedBack+report.Lost+report.Running)
				require.Zero(t, mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusAny}).Picked, "never rerun")
			})
		}
	}
}

// A Shutdown hands back what it does not wait for, but not what was cancelled.
func TestShutdownDoesNotHandBackACancelledJob(t *testing.T) {
	t.Parallel()
	started := make(chan struct{})
	s := withHandler(t, func(ctx context.Context, _ *scheduler.Job) (any, error) {
		close(started)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, started)
	mustCancel(t, s, id)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.Shutdown(ctx))
	require.Equal(t, 1, await(t, run).report.Cancelled)
	requireCancelled(t, mustGet(t, s, id), "job cancelled")
}

func TestACancelledJobOfAKilledProcessEndsCancelled(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		t.Run(string(queue), func(t *testing.T) {
			t.Parallel()
			var schema string
			s := newScheduler(t, func(c *scheduler.Config) {
				schema, c.JobNames = c.Schema, scheduler.JobNames{"a": succeed}
			})
			id := mustCreate(t, s, "a", scheduler.JobData{Queue: queue}).ID
			next := mustCreate(t, s, "a", tomorrowIn(queue)).ID
			c := startChild(t, "hang", "SCHEMA="+schema, "QUEUE="+string(queue))
			require.Equal(t, "begun", c.Line(t))
			require.Equal(t, scheduler.JobStatusRunning, mustCancel(t, s, id).Status)
			c.Kill()
			waitFor(t, func() bool {
				require.Zero(t, mustRun(t, s, scheduler.RunFilter{Queue: queue, Status: scheduler.JobStatusAny}).Picked)
				return mustGet(t, s, id).Status != scheduler.JobStatusRunning
			})
			requireCancelled(t, mustGet(t, s, id), "lease lost")
			mustRetry(t, s, next)
			require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Queue: queue, Limit: 9}).Succeeded, "the queue is free")
			require.Equal(t, scheduler.JobStatusCancelled, mustGet(t, s, id).Status)
		})
	}
}

// So does one that a claim took whose answer was lost.
func TestACancelledJobOfALostClaimEndsCancelled(t *testing.T) {
	t.Parallel()
	wired, w, name := newWires(t)
	var schema string
	started, release := make(chan struct{}), make(chan struct{})
	s := newSchedulerOn(t, wired, func(c *scheduler.Config) {
		schema, c.Lease = c.Schema, 10*time.Second
		c.JobNames = scheduler.JobNames{"a": succeed, "long": func(context.Context, *scheduler.Job) (any, error) {
			close(started)
			<-release
			return nil, nil
		}}
	})
	other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	mustCreate(t, s, "long", scheduler.JobData{})
	long := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, started)
	job := mustCreate(t, s, "a", scheduler.JobData{})
	loseClaim(t, s, w, name, schema, job)
	mustCancel(t, other, job.ID)
	waitFor(t, func() bool { return mustGet(t, other, job.ID).Status != scheduler.JobStatusRunning })
	requireCancelled(t, mustGet(t, other, job.ID), "job cancelled")
	close(release)
	require.Equal(t, 1, await(t, long).report.Succeeded)
}

// Handlers that take every connection of the pool are ended all the same.
func TestCancelJobNeedsNoConnectionThatHandlersMayTake(t *testing.T) {
	t.Parallel()
	config := newPool(t).Config()
	config.MaxConns = 2
	pool := newPoolWith(t, config)
	started := make(chan struct{}, 2)
	var schema string
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			conn, err := pool.Acquire(ctx)
			if err != nil {
				return nil, err
			}
			defer conn.Release()
			started <- struct{}{}
			_, err = conn.Exec(ctx, "SELECT pg_sleep(600)")
			return nil, err
		}}
	})
	other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	ids := mustCreateMany(t, s, 2, "a", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: 2})
	for _, id := range ids {
		await(t, started)
		defer func() { requireCancelled(t, mustGet(t, other, id), "job cancelled") }()
	}
	for _, id := range ids {
		mustCancel(t, other, id)
	}
	require.Equal(t, 2, await(t, run).report.Cancelled)
}

// The context of a job's handler, and one that is derived from it, end for one
// job alone, and have what they had before.
func TestContextOfACancelledJob(t *testing.T) {
	t.Parallel()
	started := make(chan context.Context, 2)
	s := withHandler(t, func(ctx context.Context, _ *scheduler.Job) (any, error) {
		derived, cancel := context.WithTimeout(ctx, time.Hour)
		defer cancel()
		started <- derived
		<-derived.Done()
		return nil, errors.Join(ctx.Err(), context.Cause(derived))
	})
	ids := mustCreateMany(t, s, 2, "a", scheduler.JobData{})
	run := goRun(context.WithValue(t.Context(), contextKey{}, "a value"), s, scheduler.RunFilter{Limit: 2})
	contexts := []context.Context{await(t, started), await(t, started)}
	for _, ctx := range contexts {
		require.NoError(t, ctx.Err())
		require.NoError(t, context.Cause(ctx))
		require.Equal(t, "a value", ctx.Value(contextKey{}))
	}
	mustCancel(t, s, ids[0])
	waitFor(t, func() bool { return mustGet(t, s, ids[0]).Status == scheduler.JobStatusCancelled })
	require.Equal(t, scheduler.JobStatusRunning, mustGet(t, s, ids[1]).Status, "only the one that was meant")
	mustCancel(t, s, ids[1])
	require.Equal(t, 2, await(t, run).report.Cancelled)
	for _, ctx := range contexts {
		require.ErrorIs(t, ctx.Err(), context.Canceled)
		require.ErrorIs(t, context.Cause(ctx), scheduler.ErrJobCancelled)
	}
	requireCancelled(t, mustGet(t, s, ids[0]), "context canceled")
}

// A handler that never asks its context for anything can do so when it is late.
func TestContextOfAHandlerThatHasReturnedIsOver(t *testing.T) {
	t.Parallel()
	for name, use := range map[string]func(context.Context){"asked": func(ctx context.Context) { ctx.Done() }, "not asked": func(context.Context) {}} {
		kept := make(chan context.Context, 1)
		s := withHandler(t, func(ctx context.Context, _ *scheduler.Job) (any, error) {
			use(ctx)
			kept <- ctx
			return nil, nil
		})
		require.Equal(t, scheduler.JobStatusSucceeded, runs(t, s, scheduler.JobData{}).Status)
		ctx := await(t, kept)
		await(t, ctx.Done())
		require.ErrorIs(t, ctx.Err(), context.Canceled, name)
	}
}

// Who calls a job off that waits tells of it once; of one that runs, the process
// that records what came of it.
func TestEventsOfCancelledJobs(t *testing.T) {
	t.Parallel()
	told, others := newEvents(), newEvents()
	pool := newPool(t)
	var schema string
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		schema, c.Observer = c.Schema, told.tell
		c.JobNames = scheduler.JobNames{"wait": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
	})
	other := newSchedulerOn(t, pool, func(c *scheduler.Config) { c.Schema, c.Observer = schema, others.tell })

	id := mustCreate(t, s, "wait", scheduler.JobData{}).ID
	told.next(t, scheduler.EventCreated)
	for range 2 { // it is cancelled already
		mustCancel(t, other, id)
	}
	e := others.next(t, scheduler.EventCancelled)
	require.Equal(t, id, e.Job.ID)
	require.Equal(t, scheduler.JobStatusCancelled, e.Job.Status)
	require.Zero(t, e.Ran)

	running := mustCreate(t, s, "wait", scheduler.JobData{}).ID
	told.next(t, scheduler.EventCreated)
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	told.next(t, scheduler.EventStarted)
	mustCancel(t, other, running)
	e = told.next(t, scheduler.EventCancelled)
	require.Equal(t, running, e.Job.ID)
	require.Positive(t, e.Ran)
	require.ErrorIs(t, e.Err, scheduler.ErrJobCancelled)
	require.Equal(t, 1, await(t, run).report.Cancelled)
	require.Empty(t, told)
	require.Empty(t, others)
}
