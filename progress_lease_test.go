package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// An attempt whose job was taken away learns of it when it reports, and what it
// reports changes nothing.
func TestReportsOfALateAttemptChangeNothing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		take func(t *testing.T, other *scheduler.Scheduler) <-chan ran // what others do to the job
		note string                                                    // what they report
	}{
		"rescued": {func(t *testing.T, other *scheduler.Scheduler) <-chan ran {
			require.Zero(t, mustRun(t, other, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking}).Picked)
			return nil
		}, "first"},
		"running": {func(t *testing.T, other *scheduler.Scheduler) <-chan ran {
			return goRun(t.Context(), other, scheduler.RunFilter{})
		}, "second"},
		"succeeded": {func(t *testing.T, other *scheduler.Scheduler) <-chan ran {
			require.Equal(t, 1, mustRun(t, other, scheduler.RunFilter{}).Succeeded)
			return nil
		}, "second"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			release := make(chan struct{})
			report := func(ctx context.Context, note string) error {
				return errors.Join(scheduler.SetProgress(ctx, 50, note), scheduler.Checkpoint(ctx, note))
			}
			began := make(chan context.Context, 1)
			s, other, schema := reporting(t, func(ctx context.Context, _ *scheduler.Job) (any, error) {
				began <- ctx
				<-release
				return "late", nil
			})
			second := newScheduler(t, func(c *scheduler.Config) {
				c.Schema = schema
				c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
					err := report(ctx, "second")
					if name == "running" {
						<-release
					}
					return "second", err
				}}
			})
			id := mustCreate(t, s, "a", scheduler.JobData{}).ID
			late := goRun(t.Context(), s, scheduler.RunFilter{})
			ctx := await(t, began)
			require.NoError(t, report(ctx, "first"))
			waitFor(t, func() bool { return mustGet(t, other, id).Progress != nil })

			runOutLeases(t, pool, schema)
			run := test.take(t, second)
			waitFor(t, func() bool { return mustGet(t, other, id).Progress.Note == test.note })
			taken := mustGet(t, other, id)
			waitFor(t, func() bool { return errors.Is(scheduler.SetProgress(ctx, 99, "late"), scheduler.ErrLeaseLost) })
			require.ErrorIs(t, scheduler.Checkpoint(ctx, "late"), scheduler.ErrLeaseLost)
			require.Equal(t, taken, mustGet(t, other, id))

			close(release)
			require.Equal(t, 1, await(t, late).report.Lost)
			require.Equal(t, taken.Progress, mustGet(t, other, id).Progress)
			if run != nil {
				require.Equal(t, 1, await(t, run).report.Succeeded)
				require.Equal(t, taken.Progress, mustGet(t, other, id).Progress)
			}
		})
	}
}

// What is reported while one learns that the job was lost is dropped, and nobody
// waits for it.
func TestAReportBesideOneThatIsLost(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var p progressTracer
	var schema string
	began, beside := make(chan context.Context, 1), make(chan error, 1)
	p.during = func() { beside <- scheduler.SetProgress(await(t, began), 2, "beside") }
	s := p.scheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			if _, err := pool.Exec(ctx, "UPDATE "+schema+".jobs SET claims = claims + 1"); err != nil {
				return nil, err
			}
			began <- ctx
			if err := errors.Join(scheduler.SetProgress(ctx, 1, "lost"), <-beside); err != nil {
				return nil, err
			}
			waitFor(t, func() bool { return errors.Is(scheduler.Checkpoint(ctx, 1), scheduler.ErrLeaseLost) })
			return nil, nil
		}}
	})
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	require.Equal(t, 1, await(t, goRun(t.Context(), s, scheduler.RunFilter{})).report.Lost)
	require.Nil(t, mustGet(t, s, id).Progress)
}

// A report that has read the job before it was claimed again comes to the row
// after the later attempt.
func TestAnOlderClaimOverwritesNoProgress(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	s, other, schema := reporting(t, func(ctx context.Context, _ *scheduler.Job) (any, error) {
		return nil, scheduler.SetProgress(ctx, 1, "first")
	})
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)
	mustExec(t, pool, "UPDATE "+schema+".job_progress SET claims = 2, note = 'second'")
	const report = ".report_progress(ARRAY[$1::text::uuid], '{1}', '{99}', '{late}', '{NULL}', '{0}')"
	require.Equal(t, 1, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+report, id))
	requireProgress(t, mustGet(t, other, id), 1, "second", "")
	mustExec(t, pool, "UPDATE "+schema+".job_progress SET claims = 1")
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+report, id))
	requireProgress(t, mustGet(t, other, id), 99, "late", "")
}

func init() {
	// Says where it goes on, and makes a checkpoint of the place after that.
	childRoles["checkpoint"] = func() {
		s := childScheduler(scheduler.Config{Lease: time.Second, JobNames: scheduler.JobNames{
			"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
				place := 0
				_, err := scheduler.LoadCheckpoint(ctx, &place)
				exitOn(err)
				exitOn(errors.Join(scheduler.Checkpoint(ctx, place+1), scheduler.SetProgress(ctx, 10*(place+1), "")))
				fmt.Println("from", place)
				select {}
			},
		}})
		_, err := s.Run(context.Background(), scheduler.RunFilter{})
		exitOn(err)
	}
}

// What was written before a process was killed is there for the next one.
func TestAKilledProcessLeavesItsCheckpoint(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	s, _, schema := reporting(t, func(ctx context.Context, _ *scheduler.Job) (any, error) {
		place := 0
		_, err := scheduler.LoadCheckpoint(ctx, &place)
		return place, err
	})
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	for place := range 2 {
		c := startChild(t, "checkpoint", "SCHEMA="+schema)
		require.Equal(t, fmt.Sprint("from ", place), c.Line(t))
		waitFor(t, func() bool {
			job := mustGet(t, s, id)
			return job.Progress != nil && string(job.Progress.Checkpoint) == fmt.Sprint(place+1)
		})
		c.Kill()
		requireProgress(t, mustGet(t, s, id), 10*(place+1), "", fmt.Sprint(place+1))
		waitFor(t, func() bool {
			return mustQuery[bool](t, pool, "SELECT bool_and(expires_at < now()) FROM "+schema+".leases")
		})
	}
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)
	job := mustGet(t, s, id)
	require.Equal(t, 3, job.Attempt)
	require.JSONEq(t, "2", string(job.Result))
	requireProgress(t, job, 20, "", "2")
}

// While the handler's own transaction has the job locked, and after it has
// committed, reports are written all the same.
func TestReportsBesideCompleteTx(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		t.Run(string(queue), func(t *testing.T) {
			t.Parallel()
			seen := make(chan struct{})
			c := newCompleting(t, func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
				tx, err := c.complete(ctx, job)
				if err = errors.Join(err, scheduler.SetProgress(ctx, 75, "completed")); err == nil {
					<-seen
				}
				return nil, errors.Join(err, tx.Commit(ctx), scheduler.SetProgress(ctx, 100, "committed"))
			})
			other := c.besides(t)
			id := mustCreate(t, c.Scheduler, "a", scheduler.JobData{Queue: queue}).ID
			run := goRun(t.Context(), c.Scheduler, scheduler.RunFilter{Queue: queue})
			waitFor(t, func() bool { return mustGet(t, other, id).Progress != nil })
			job := mustGet(t, other, id)
			require.Equal(t, scheduler.JobStatusRunning, job.Status)
			requireProgress(t, job, 75, "completed", "")
			close(seen)
			require.Equal(t, 1, await(t, run).report.Succeeded)
			job = mustGet(t, other, id)
			require.Equal(t, scheduler.JobStatusSucceeded, job.Status)
			requireProgress(t, job, 100, "committed", "")
		})
	}
}

// A handler that is told of a shutdown leaves its last checkpoint behind.
func TestShutdownWritesTheLastCheckpoint(t *testing.T) {
	t.Parallel()
	began := make(chan struct{})
	s, other, _ := reporting(t, func(ctx context.Context, _ *scheduler.Job) (any, error) {
		close(began)
		<-ctx.Done()
		return nil, errors.Join(ctx.Err(), scheduler.Checkpoint(ctx, "interrupted"))
	})
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, began)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.Shutdown(ctx))
	require.Equal(t, 1, await(t, run).report.HandedBack)
	job := mustGet(t, other, id)
	require.Equal(t, scheduler.JobStatusPending, job.Status)
	requireProgress(t, job, 0, "", `"interrupted"`)
}

// One that takes no notice has its reports written for as long as it holds its
// job.
func TestShutdownGivesUpReports(t *testing.T) {
	t.Parallel()
	began, release := make(chan context.Context, 1), make(chan struct{})
	s, other, _ := reporting(t, func(ctx context.Context, _ *scheduler.Job) (any, error) {
		began <- ctx
		<-release
		return nil, nil
	})
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	handled := await(t, began)
	require.NoError(t, scheduler.SetProgress(handled, 10, "before"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorContains(t, s.Shutdown(ctx), "still running")
	requireProgress(t, mustGet(t, other, id), 10, "before", "")
	require.ErrorIs(t, scheduler.SetProgress(handled, 20, "after"), scheduler.ErrShuttingDown)
	require.ErrorIs(t, scheduler.Checkpoint(handled, 20), scheduler.ErrShuttingDown)
	close(release)
	require.Equal(t, 1, await(t, run).report.Lost)
}
