package scheduler_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func TestARunThatGetsNoSlotEndsEarly(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}, 1), make(chan struct{})
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Concurrency, c.RunWait = 1, 20*time.Millisecond
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			started <- struct{}{}
			<-release
			return nil, nil
		}}
	})
	mustCreateMany(t, s, 2, "a", scheduler.JobData{})
	busy := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, started)
	report := mustRun(t, s, scheduler.RunFilter{Limit: 5})
	require.Zero(t, report.Picked)
	require.True(t, report.Done)
	require.NotNil(t, report.NextDueAt, "the caller knows that there is more")
	close(release)
	require.Equal(t, 1, await(t, busy).report.Succeeded)
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Limit: 5}).Succeeded)
}

func TestSlotsComeBackWhateverHappens(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Concurrency, c.RunWait = c.Schema, 2, -1
		c.JobNames = scheduler.JobNames{
			"ok": succeed, "fail": fail,
			"panic": func(context.Context, *scheduler.Job) (any, error) { panic("as asked") },
		}
	})
	// The database refuses every claim.
	mustExec(t, pool, `ALTER TABLE `+schema+`.leases RENAME TO hidden`)
	for range 5 {
		report, err := s.Run(t.Context(), scheduler.RunFilter{Limit: 2})
		require.Error(t, err)
		require.Zero(t, report.Picked)
		require.True(t, report.Done)
	}
	mustExec(t, pool, `ALTER TABLE `+schema+`.hidden RENAME TO leases`)
	mustRun(t, s, scheduler.RunFilter{Limit: 2}) // nothing is due
	for _, name := range []string{"fail", "panic", "ok"} {
		mustCreateMany(t, s, 2, name, scheduler.JobData{})
		require.Equal(t, 2, mustRun(t, s, scheduler.RunFilter{Limit: 2}).Picked)
	}
}

// However many runs share a queue, each job runs once.
func TestRunsSideBySideShareTheJobs(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	attempts := map[string]int{}
	var schema string
	configure := func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"a": func(_ context.Context, job *scheduler.Job) (any, error) {
			mu.Lock()
			defer mu.Unlock()
			attempts[job.ID]++
			return nil, nil
		}}
	}
	one := newScheduler(t, func(c *scheduler.Config) { configure(c); schema = c.Schema })
	two := newScheduler(t, func(c *scheduler.Config) { configure(c); c.Schema = schema })
	ids := mustCreateMany(t, one, 400, "a", scheduler.JobData{})
	for len(attempts) < len(ids) {
		var runs []<-chan ran
		for range 4 {
			runs = append(runs, goRun(t.Context(), one, scheduler.RunFilter{Limit: 30}), goRun(t.Context(), two, scheduler.RunFilter{Limit: 30}))
		}
		for _, run := range runs {
			require.NoError(t, await(t, run).err)
		}
	}
	for _, id := range ids {
		require.Equal(t, 1, attempts[id])
	}
}

// While handlers run, no transaction is open and no connection taken.
func TestNoConnectionIsHeldWhileHandlersRun(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	name := unique()
	config := pool.Config()
	config.ConnConfig.RuntimeParams["application_name"] = name
	own := newPoolWith(t, config)
	started, release := make(chan struct{}, 20), make(chan struct{})
	s := newSchedulerOn(t, own, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			started <- struct{}{}
			<-release
			return nil, nil
		}}
	})
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		mustCreateMany(t, s, 5, "a", scheduler.JobData{Queue: queue})
	}
	many := goRun(t.Context(), s, scheduler.RunFilter{Limit: 5})
	blocking := goRun(t.Context(), s, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking})
	for range 6 {
		await(t, started)
	}
	waitFor(t, func() bool { return own.Stat().AcquiredConns() == 0 })
	require.Equal(t, "idle", mustQuery[string](t, pool,
		`SELECT string_agg(DISTINCT state, ', ') FROM pg_stat_activity WHERE application_name = $1`, name))
	close(release)
	require.Equal(t, 6, await(t, many).report.Succeeded+await(t, blocking).report.Succeeded)
}
