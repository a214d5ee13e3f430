package scheduler_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func TestRateLimitsStarts(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{Rate: scheduler.Rate{Limit: 3, Per: time.Hour}})
	mustCreateMany(t, g.Scheduler, 5, "ok", scheduler.JobData{Queue: "limited"})
	filter := scheduler.RunFilter{Queue: "limited", Limit: 10}
	first := mustRun(t, g.Scheduler, scheduler.RunFilter{Queue: "limited", Limit: 2})
	require.Equal(t, 2, first.Succeeded)
	require.Nil(t, first.RateLimitedUntil)
	require.True(t, first.NextDueAt.Before(time.Now()))

	report := mustRun(t, g.Scheduler, filter)
	require.Equal(t, 1, report.Succeeded)
	began := mustQuery[time.Time](t, pool, "SELECT min(started_at) FROM "+g.schema+".jobs").UTC()
	until := began.Add(time.Hour)
	require.Equal(t, until, *report.RateLimitedUntil)
	require.Equal(t, until, *report.NextDueAt)
	require.Equal(t, until, *g.nothingStarts(t).RateLimitedUntil)
	stats, err := g.QueueStats(t.Context())
	require.NoError(t, err)
	require.Equal(t, scheduler.QueueStat{
		Queue: "limited", Pending: 2, OldestDueAt: stats[2].OldestDueAt, RateLimitedUntil: &until,
	}, stats[2])

	// What has started counts as long as it is in the window, whatever became of it.
	pass := func(d string) {
		mustExec(t, pool, "UPDATE "+g.schema+".starts SET started_at = started_at - $1::text::interval", d)
	}
	pass("59 minutes")
	g.nothingStarts(t)
	pass("1 minute")
	report = mustRun(t, g.Scheduler, filter)
	require.Equal(t, 2, report.Succeeded)
	require.Nil(t, report.NextDueAt)
	mustCreateMany(t, g.Scheduler, 5, "ok", scheduler.JobData{Queue: "limited"})
	require.Equal(t, 1, mustRun(t, g.Scheduler, filter).Succeeded)
	require.Equal(t, 2, mustQuery[int](t, pool, "SELECT count(*) FROM "+g.schema+".starts"), "what has left the window is gone")
}

func TestRatePerKey(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{RatePerKey: scheduler.Rate{Limit: 2, Per: time.Hour}, Rate: scheduler.Rate{Limit: 8, Per: time.Hour}})
	for key, n := range map[string]int{"a": 500, "b": 3, "": 2} {
		mustCreateMany(t, g.Scheduler, n, "ok", scheduler.JobData{Queue: "limited", Key: key})
	}
	filter := scheduler.RunFilter{Queue: "limited", Limit: 100}
	report := mustRun(t, g.Scheduler, filter)
	require.Equal(t, 6, report.Succeeded, "those without a key are not limited by it")
	began := mustQuery[time.Time](t, pool, "SELECT min(started_at) FROM "+g.schema+".jobs").UTC()
	require.Equal(t, began.Add(time.Hour), *report.RateLimitedUntil)
	require.Equal(t, began.Add(time.Hour), *report.NextDueAt)
	g.nothingStarts(t)
	mustCreateMany(t, g.Scheduler, 5, "ok", scheduler.JobData{Queue: "limited"})
	require.Equal(t, 2, mustRun(t, g.Scheduler, filter).Succeeded, "as many as the queue may")
	mustExec(t, pool, "UPDATE "+g.schema+".starts SET started_at = started_at - interval '1 hour'")
	require.Equal(t, 6, mustRun(t, g.Scheduler, filter).Succeeded)
	mustExec(t, pool, "UPDATE "+g.schema+".starts SET started_at = started_at - interval '1 hour'")
	mustExec(t, pool, "SELECT "+g.schema+".clean_up()")
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+g.schema+".starts"))
}

// In any window of any place there are no more starts than the rate allows, over
// several processes, and Work goes on as soon as it may.
func TestRateHoldsInEveryWindow(t *testing.T) {
	t.Parallel()
	const jobs, limit, per = 60, 7, 100 * time.Millisecond
	var mu sync.Mutex
	var starts []time.Time
	done := make(chan struct{})
	handler := func(_ context.Context, job *scheduler.Job) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		if starts = append(starts, *job.StartedAt); len(starts) == jobs {
			close(done)
		}
		return nil, nil
	}
	var schema string
	var all []*scheduler.Scheduler
	for range 3 {
		all = append(all, newScheduler(t, func(c *scheduler.Config) {
			if schema != "" {
				c.Schema = schema
			}
			schema = c.Schema
			c.PollInterval = time.Hour // only what is known ends the wait
			c.Queues = queueConfigs{"limited": {Rate: scheduler.Rate{Limit: limit, Per: per}}}
			c.JobNames = scheduler.JobNames{"work": handler}
		}))
	}
	mustCreateMany(t, all[0], jobs, "work", scheduler.JobData{Queue: "limited"})
	for _, s := range all {
		goWork(t, t.Context(), s)
	}
	select {
	case <-done:
	case <-time.After(patience):
		require.FailNow(t, "Work does not go on")
	}
	slices.SortFunc(starts, time.Time.Compare)
	for i, at := range starts[:jobs-limit] {
		require.GreaterOrEqual(t, starts[i+limit].Sub(at), per, "%d starts within one window", limit+1)
	}
	require.Less(t, starts[jobs-1].Sub(starts[0]), 10*per*jobs/limit, "it does not wait for much longer than it has to")
}

// A clock that is set back lets no more jobs start.
func TestRateWithAClockThatWasSetBack(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{Rate: scheduler.Rate{Limit: 3, Per: time.Minute}})
	mustCreateMany(t, g.Scheduler, 5, "ok", scheduler.JobData{Queue: "limited"})
	require.Equal(t, 2, mustRun(t, g.Scheduler, scheduler.RunFilter{Queue: "limited", Limit: 2}).Succeeded)
	mustExec(t, pool, "UPDATE "+g.schema+".starts SET started_at = now() + interval '10 seconds'")
	require.Equal(t, 1, mustRun(t, g.Scheduler, scheduler.RunFilter{Queue: "limited", Limit: 10}).Succeeded)
	g.nothingStarts(t)
}
