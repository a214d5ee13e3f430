package scheduler_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// burst makes a scheduler of two slots and 300 jobs, of which the first 200 are
// so short that others are claimed ahead of them, and the rest get stuck.
func burst(t *testing.T, configure func(*scheduler.Config)) (s *scheduler.Scheduler, ids []string, stuck <-chan struct{}, done *atomic.Int32) {
	done = &atomic.Int32{}
	both := make(chan struct{}, 300)
	s = newScheduler(t, func(c *scheduler.Config) {
		configure(c)
		c.Concurrency = 2
		c.JobNames = scheduler.JobNames{"a": scheduler.Handle(func(ctx context.Context, i int) (any, error) {
			if i < 200 {
				done.Add(1)
				return nil, nil
			}
			both <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		})}
	})
	jobs := make([]scheduler.NewJob, 300)
	for i := range jobs {
		jobs[i] = scheduler.NewJob{Name: "a", JobData: scheduler.JobData{Payload: i}}
	}
	ids, err := s.CreateJobs(t.Context(), jobs)
	require.NoError(t, err)
	return s, ids, both, done
}

// What was picked and not started goes back at a Shutdown, and what was started
// and did not end does too: no attempt is lost.
func TestShutdownHandsBackWhatWasPicked(t *testing.T) {
	t.Parallel()
	s, ids, stuck, done := burst(t, func(*scheduler.Config) {})
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: 300})
	await(t, stuck)
	await(t, stuck)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.Shutdown(ctx))
	report := await(t, run).report
	require.GreaterOrEqual(t, report.HandedBack, 2)
	require.Equal(t, report.Picked, report.Succeeded+report.HandedBack)
	require.EqualValues(t, done.Load(), report.Succeeded)
	succeeded := 0
	for _, id := range ids {
		job := mustGet(t, s, id)
		if job.Status == scheduler.JobStatusSucceeded {
			succeeded++
			require.Equal(t, 1, job.Attempt)
			continue
		}
		require.Equal(t, scheduler.JobStatusPending, job.Status)
		require.Zero(t, job.Attempt)
		require.Empty(t, job.Errors)
	}
	require.Equal(t, report.Succeeded, succeeded)
}

// Jobs do not wait for long behind others in a process that has no slot for
// them, while another process has.
func TestJobsDoNotWaitInABusyProcess(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s, _, stuck, _ := burst(t, func(c *scheduler.Config) { schema = c.Schema })
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: 300})
	await(t, stuck)
	await(t, stuck)
	idle := newScheduler(t, func(c *scheduler.Config) {
		c.Schema, c.JobNames = schema, scheduler.JobNames{"a": succeed}
	})
	waitFor(t, func() bool {
		mustRun(t, idle, scheduler.RunFilter{Limit: 300})
		return mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'succeeded'") == 298
	})
	require.Equal(t, 2, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'running'"))
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE attempt <> 1"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.Shutdown(ctx))
	report := await(t, run).report
	require.Equal(t, report.Picked, report.Succeeded+report.HandedBack)
}

// Where jobs are claimed ahead, a claim is of half of them, so that the next one is
// made while these are worked off; and one that has waited for as much for a while
// takes less, lest others take everything.
func TestClaimsAreNotOfAllThereIsRoomFor(t *testing.T) {
	t.Parallel()
	sizes, tired := scheduler.ClaimSizes(100, 16_000)
	require.Equal(t, []int{481, 481}, sizes)
	require.Equal(t, 98, tired)
	sizes, tired = scheduler.ClaimSizes(100, 60_000)
	require.Equal(t, []int{1000, 1000, 1000}, sizes)
	require.Equal(t, 700, tired)
	sizes, _ = scheduler.ClaimSizes(10, 167)
	require.Equal(t, []int{10, 10}, sizes)
}
