package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func TestRunPicksUpToItsLimitOldestFirst(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) { c.JobNames = scheduler.JobNames{"a": succeed} })
	now := mustQuery[time.Time](t, newPool(t), "SELECT now()")
	var jobs []*scheduler.Job
	for i := range 6 { // created in the opposite order
		jobs = append(jobs, mustCreate(t, s, "a", scheduler.JobData{RunAt: now.Add(-time.Duration(i) * time.Minute)}))
	}
	later := mustCreate(t, s, "a", scheduler.JobData{RunAt: now.Add(time.Hour)})
	done := func() (done []bool) {
		for _, job := range jobs {
			done = append(done, mustGet(t, s, job.ID).Status == scheduler.JobStatusSucceeded)
		}
		return done
	}
	for _, test := range []struct{ limit, picked, done int }{{0, 1, 1}, {2, 2, 3}, {10_000, 3, 6}, {1, 0, 6}} {
		report := mustRun(t, s, scheduler.RunFilter{Limit: test.limit})
		require.Equal(t, test.picked, report.Picked)
		require.Equal(t, test.picked, report.Succeeded)
		expected := make([]bool, 6)
		for i := range test.done {
			expected[5-i] = true
		}
		require.Equal(t, expected, done())
	}
	require.Equal(t, later, mustGet(t, s, later.ID), "not due, not touched")
}

func TestRunRefusesBadFilters(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, nil)
	for _, test := range []struct {
		filter scheduler.RunFilter
		field  string
		names  []string
	}{
		{scheduler.RunFilter{Limit: -1}, "limit", []string{"-1", "1 to 10000"}},
		{scheduler.RunFilter{Limit: 10_001}, "limit", []string{"10001", "1 to 10000"}},
		{scheduler.RunFilter{Status: "Pending"}, "status", []string{`"Pending"`, `"pending"`, `"failed"`, `"any"`}},
		{scheduler.RunFilter{Status: scheduler.JobStatusRunning}, "status", []string{`"running"`}},
		{scheduler.RunFilter{Status: scheduler.JobStatusDead}, "status", []string{`"dead"`}},
		{scheduler.RunFilter{Status: "a\x00"}, "status", []string{`"a\x00"`}},
		{scheduler.RunFilter{Queue: "a\x00"}, "queue", []string{`"a\x00"`}},
	} {
		report, err := s.Run(t.Context(), test.filter)
		requireInputError(t, err, test.field, test.names...)
		require.Nil(t, report)
	}
}

func TestRunFiltersByStatus(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	var mu sync.Mutex
	var ran []string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": func(_ context.Context, job *scheduler.Job) (any, error) {
			mu.Lock()
			defer mu.Unlock()
			ran = append(ran, string(job.Status)+string(job.Payload))
			if job.Attempt == 1 {
				return nil, errors.New("the first time")
			}
			return nil, nil
		}}
	})
	run := func(status scheduler.JobStatus, picked int) {
		report := mustRun(t, s, scheduler.RunFilter{Status: status, Limit: 10})
		require.Equal(t, picked, report.Picked)
	}
	mustCreateMany(t, s, 2, "a", scheduler.JobData{Payload: 1})
	run(scheduler.JobStatusFailed, 0)
	run("", 2)
	passTime(t, pool, schema)
	mustCreate(t, s, "a", scheduler.JobData{Payload: 2})
	run(scheduler.JobStatusPending, 1)
	run(scheduler.JobStatusFailed, 2)
	mustCreate(t, s, "a", scheduler.JobData{Payload: 3})
	passTime(t, pool, schema)
	run(scheduler.JobStatusAny, 2)
	passTime(t, pool, schema)
	run(scheduler.JobStatusAny, 1)
	require.Len(t, ran, 8)
	for _, status := range ran {
		require.Contains(t, status, "running", "a handler sees its job running")
	}
}

func TestReportSums(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{
			"ok": succeed, "fail": fail,
			"cancel": func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Cancel(nil) },
			"snooze": func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Snooze(time.Hour) },
		}
	})
	report := mustRun(t, s, scheduler.RunFilter{})
	require.Equal(t, &scheduler.RunReport{RunID: report.RunID, Queue: "default", Status: "pending", Done: true}, report)

	for name, n := range map[string]int{"ok": 4, "fail": 3, "cancel": 2, "snooze": 1} {
		mustCreateMany(t, s, n, name, scheduler.JobData{})
	}
	first := mustRun(t, s, scheduler.RunFilter{Limit: 9, Status: scheduler.JobStatusPending})
	require.NotEqual(t, report.RunID, first.RunID)
	second := mustRun(t, s, scheduler.RunFilter{Limit: 9, Status: scheduler.JobStatusPending})
	require.Equal(t, []int{9, 1}, []int{first.Picked, second.Picked})
	require.Equal(t, []int{4, 3, 2, 1}, []int{
		first.Succeeded + second.Succeeded, first.Failed + second.Failed, first.Dead + second.Dead, first.Snoozed + second.Snoozed,
	})
	require.True(t, first.Done)
	require.NotNil(t, first.NextDueAt)
	require.False(t, first.NextDueAt.After(time.Now()), "one is due now")
	require.InDelta(t, 3600, time.Until(*second.NextDueAt).Seconds(), 60, "the snoozed one")
	require.Equal(t, time.UTC, second.NextDueAt.Location())
	failed := mustRun(t, s, scheduler.RunFilter{Queue: scheduler.JobQueueFailed})
	require.Zero(t, failed.Picked)
	require.InDelta(t, 0, time.Until(*failed.NextDueAt).Seconds(), 60, "a failed one")

	text, err := json.Marshal(first)
	require.NoError(t, err)
	var fields map[string]any
	require.NoError(t, json.Unmarshal(text, &fields))
	for _, field := range []string{"run_id", "queue", "status", "picked", "succeeded", "failed", "dead", "cancelled", "snoozed", "handed_back", "lost", "running", "done", "next_due_at", "rate_limited_until"} {
		require.Contains(t, fields, field)
		delete(fields, field)
	}
	require.Empty(t, fields)
}

func TestOnlyRegisteredNamesAreClaimed(t *testing.T) {
	t.Parallel()
	var schema string
	creator := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		t.Run(string(queue), func(t *testing.T) {
			a := mustCreate(t, creator, "a", scheduler.JobData{Queue: queue})
			b := mustCreate(t, creator, "b", scheduler.JobData{Queue: queue})
			filter := scheduler.RunFilter{Queue: queue, Status: scheduler.JobStatusAny, Limit: 10}
			for name, names := range map[string]scheduler.JobNames{"none": nil, "empty": {}, "another": {"c": succeed}} {
				s := newScheduler(t, func(c *scheduler.Config) { c.Schema, c.JobNames = schema, names })
				report := mustRun(t, s, filter)
				require.Equal(t, a, mustGet(t, creator, a.ID), name)
				require.Equal(t, b, mustGet(t, creator, b.ID), name)
				require.Zero(t, report.Picked, name)
				require.Nil(t, report.NextDueAt, name)
			}
			s := newScheduler(t, func(c *scheduler.Config) { c.Schema, c.JobNames = schema, scheduler.JobNames{"a": succeed} })
			report := mustRun(t, s, filter)
			require.Equal(t, 1, report.Succeeded)
			require.Nil(t, report.NextDueAt)
			require.Equal(t, b, mustGet(t, creator, b.ID))
		})
	}
}

func TestTheEndOfItsContextStopsThePickingNotTheJobs(t *testing.T) {
	t.Parallel()
	started, release := make(chan context.Context, 4), make(chan struct{})
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Concurrency = 2
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			started <- ctx
			<-release
			return nil, ctx.Err()
		}}
	})
	ids := mustCreateMany(t, s, 4, "a", scheduler.JobData{})
	errEnough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	run := goRun(ctx, s, scheduler.RunFilter{Limit: 4})
	first, second := await(t, started), await(t, started)
	cancel(errEnough)
	require.NoError(t, first.Err())
	require.NoError(t, second.Err())
	close(release)
	r := await(t, run)
	require.ErrorIs(t, r.err, errEnough)
	require.Equal(t, 2, r.report.Picked)
	require.Equal(t, 2, r.report.Succeeded)
	require.True(t, r.report.Done)
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, s, ids[1]).Status)
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, s, ids[2]).Status)

	r = await(t, goRun(ctx, s, scheduler.RunFilter{Limit: 4})) // ended before it began
	require.Error(t, r.err)
	require.True(t, r.report == nil || r.report.Picked == 0)
	require.Equal(t, 2, mustRun(t, s, scheduler.RunFilter{Limit: 4}).Succeeded, "all slots are free again")
}

type contextKey struct{}

func TestHandlersSeeTheValuesOfTheRunsContext(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			return ctx.Value(contextKey{}), nil
		}}
	})
	ctx, cancel := context.WithTimeout(context.WithValue(t.Context(), contextKey{}, "a value"), patience)
	defer cancel()
	for _, timeout := range []time.Duration{0, time.Minute} {
		job := mustCreate(t, s, "a", scheduler.JobData{Timeout: timeout})
		_, err := s.Run(ctx, scheduler.RunFilter{})
		require.NoError(t, err)
		require.JSONEq(t, `"a value"`, string(mustGet(t, s, job.ID).Result))
	}
}

// Jobs are claimed as handlers can start, so that a crash strands few.
func TestConcurrencyBoundsWhatIsClaimed(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	started, release := make(chan struct{}, 20), make(chan struct{})
	var running, most atomic.Int32
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Concurrency = c.Schema, 3
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			defer running.Add(-1)
			for now := running.Add(1); now > most.Load(); {
				most.Store(now)
			}
			started <- struct{}{}
			<-release
			return nil, nil
		}}
	})
	mustCreateMany(t, s, 20, "a", scheduler.JobData{})
	one, two := goRun(t.Context(), s, scheduler.RunFilter{Limit: 10}), goRun(t.Context(), s, scheduler.RunFilter{Limit: 10})
	for range 3 {
		await(t, started)
	}
	require.Equal(t, 3, mustQuery[int](t, pool, `SELECT count(*) FROM `+schema+`.jobs WHERE status = 'running'`))
	close(release)
	require.Equal(t, 20, await(t, one).report.Succeeded+await(t, two).report.Succeeded)
	require.LessOrEqual(t, most.Load(), int32(3))
}
