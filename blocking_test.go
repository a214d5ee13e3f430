package scheduler_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// diary notes the order in which handlers ran, and whether they overlapped.
type diary struct {
	mu         sync.Mutex
	ids        []string
	running    int
	overlapped bool
}

// handler succeeds after a moment in which another could overlap.
func (d *diary) handler(ctx context.Context, job *scheduler.Job) (any, error) {
	d.mu.Lock()
	d.ids = append(d.ids, job.ID)
	d.running++
	d.overlapped = d.overlapped || d.running > 1
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.running--
	}()
	select {
	case <-time.After(2 * time.Millisecond): // work
	case <-ctx.Done():
	}
	return nil, ctx.Err()
}

func TestBlockingQueuesRunOneAtATimeInOrder(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueBlocking, "own"} {
		t.Run(string(queue), func(t *testing.T) {
			t.Parallel()
			var d diary
			configure := func(c *scheduler.Config) {
				c.JobNames = scheduler.JobNames{"a": d.handler}
				c.Queues = queueConfigs{"own": {Extends: scheduler.JobQueueBlocking}}
			}
			var schema string
			one := newScheduler(t, func(c *scheduler.Config) { configure(c); schema = c.Schema })
			two := newScheduler(t, func(c *scheduler.Config) { configure(c); c.Schema = schema })

			// In order of run_at; where that is equal, of creation.
			at := mustQuery[time.Time](t, newPool(t), "SELECT now() - interval '1 hour'")
			second := mustCreateMany(t, one, 10, "a", scheduler.JobData{Queue: queue, RunAt: at})
			third := mustCreateMany(t, two, 10, "a", scheduler.JobData{Queue: queue, RunAt: at.Add(time.Second)})
			first := mustCreateMany(t, one, 10, "a", scheduler.JobData{Queue: queue, RunAt: at.Add(-time.Second)})

			picked := 0
			for picked < 30 {
				var runs []<-chan ran
				for range 3 {
					for _, s := range []*scheduler.Scheduler{one, two} {
						runs = append(runs, goRun(t.Context(), s, scheduler.RunFilter{Queue: queue, Limit: 7}))
					}
				}
				for _, run := range runs {
					ran := await(t, run)
					require.NoError(t, ran.err)
					require.LessOrEqual(t, ran.report.Picked, 7)
					require.Equal(t, ran.report.Picked, ran.report.Succeeded)
					picked += ran.report.Picked
				}
			}
			require.Equal(t, 30, picked)
			require.Equal(t, slices.Concat(first, second, third), d.ids)
			require.False(t, d.overlapped)
		})
	}
}

// stepper is a handler whose job does what it is told next.
type stepper struct {
	steps map[string][]error // what is left, by payload
	mu    sync.Mutex
	ran   []string
}

func (s *stepper) handler(_ context.Context, job *scheduler.Job) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := string(job.Payload)
	s.ran = append(s.ran, key)
	if len(s.steps[key]) == 0 {
		return nil, nil
	}
	err := s.steps[key][0]
	s.steps[key] = s.steps[key][1:]
	return nil, err
}

func TestBlockingHeadHoldsTheQueueUntilItIsFinished(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	errFailed := errors.New("failed")
	for name, test := range map[string]struct {
		steps []error
		holds bool // after the first attempt
	}{
		"failed":   {[]error{errFailed}, true},
		"snoozed":  {[]error{scheduler.Snooze(time.Hour)}, true},
		"retry":    {[]error{scheduler.RetryAfter(time.Hour, errFailed)}, true},
		"twice":    {[]error{errFailed, errFailed}, true},
		"dead":     {[]error{scheduler.Cancel(errFailed)}, false},
		"finished": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			steps := stepper{steps: map[string][]error{"1": test.steps}}
			var schema string
			s := newScheduler(t, func(c *scheduler.Config) {
				schema, c.JobNames = c.Schema, scheduler.JobNames{"a": steps.handler}
			})
			blocking := scheduler.JobQueueBlocking
			head := mustCreate(t, s, "a", scheduler.JobData{Queue: blocking, Payload: 1})
			mustCreate(t, s, "a", scheduler.JobData{Queue: blocking, Payload: 2})
			expected := []string{"1"}
			mustRun(t, s, scheduler.RunFilter{Queue: blocking})
			// Created later, but due earlier than the head: it holds all the same.
			mustCreate(t, s, "a", scheduler.JobData{Queue: blocking, Payload: 3, RunAt: head.RunAt.Add(-time.Hour)})
			if test.holds {
				for range test.steps {
					for _, status := range []scheduler.JobStatus{"", scheduler.JobStatusFailed, scheduler.JobStatusAny} {
						report := mustRun(t, s, scheduler.RunFilter{Queue: blocking, Status: status, Limit: 10})
						require.Zero(t, report.Picked)
						require.Equal(t, mustGet(t, s, head.ID).RunAt, *report.NextDueAt)
					}
					// Once its time has come, any run takes it, whatever its filter.
					mustExec(t, pool, `UPDATE `+schema+`.jobs SET run_at = now() WHERE id = $1::text::uuid`, head.ID)
					status := []scheduler.JobStatus{"", scheduler.JobStatusFailed}[len(expected)%2]
					require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Queue: blocking, Status: status}).Picked)
					expected = append(expected, "1")
				}
			}
			require.Equal(t, 2, mustRun(t, s, scheduler.RunFilter{Queue: blocking, Status: scheduler.JobStatusFailed, Limit: 10}).Picked)
			require.Equal(t, append(expected, "3", "2"), steps.ran)
		})
	}
}

func TestSkipFailedLetsABlockingQueueGoOn(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	steps := stepper{steps: map[string][]error{"1": {errors.New("failed")}, "2": {scheduler.Snooze(time.Hour)}}}
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": steps.handler}
		c.Queues = queueConfigs{"skipping": {Extends: scheduler.JobQueueBlocking, SkipFailed: true}}
	})
	for i := range 3 {
		mustCreate(t, s, "a", scheduler.JobData{Queue: "skipping", Payload: i + 1})
	}
	all := scheduler.RunFilter{Queue: "skipping", Limit: 10}
	report := mustRun(t, s, all)
	require.Equal(t, 1, report.Failed)
	require.Equal(t, 1, report.Snoozed)
	require.Equal(t, 2, report.Picked, "a snoozed job holds the queue all the same")
	passTime(t, pool, schema)
	require.Equal(t, 3, mustRun(t, s, all).Succeeded)
	require.ElementsMatch(t, []string{"1", "2", "3"}, steps.ran[2:])
}

// A blocking queue whose head is of a name that this process has no handler for
// waits for one that has.
func TestBlockingHeadOfAnotherProcessHoldsTheQueue(t *testing.T) {
	t.Parallel()
	var d diary
	var schema string
	both := newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": d.handler, "b": d.handler}
	})
	onlyB := newScheduler(t, func(c *scheduler.Config) {
		c.Schema, c.JobNames = schema, scheduler.JobNames{"b": d.handler}
	})
	a := mustCreate(t, both, "a", scheduler.JobData{Queue: scheduler.JobQueueBlocking})
	b := mustCreate(t, both, "b", scheduler.JobData{Queue: scheduler.JobQueueBlocking})
	filter := scheduler.RunFilter{Queue: scheduler.JobQueueBlocking, Limit: 10}
	report := mustRun(t, onlyB, filter)
	require.Zero(t, report.Picked)
	require.Nil(t, report.NextDueAt)
	require.Equal(t, a, mustGet(t, both, a.ID), "untouched")
	require.Equal(t, 1, mustRun(t, both, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking}).Succeeded)
	require.Equal(t, 1, mustRun(t, onlyB, filter).Succeeded)
	require.Equal(t, []string{a.ID, b.ID}, d.ids)
}

// Two runs that look at the queue in the same moment are kept apart, also when
// they see different heads: here a job that is due earlier was created between
// the one's look and its claim.
func TestRunsThatSeeDifferentHeadsAreKeptApart(t *testing.T) {
	t.Parallel()
	pool, name := newPool(t), unique()
	config := pool.Config()
	config.ConnConfig.RuntimeParams["application_name"] = name
	own := newPoolWith(t, config)
	var schema string
	release := make(chan struct{})
	s := newSchedulerOn(t, own, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			<-release
			return nil, nil
		}}
	})
	filter := scheduler.RunFilter{Queue: scheduler.JobQueueBlocking}
	const waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'"
	const active = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND state <> 'idle'"
	running := func() int {
		return mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'running'")
	}

	mustRun(t, s, filter) // takes the lease
	job := mustCreate(t, s, "a", scheduler.JobData{Queue: scheduler.JobQueueBlocking})
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	mustExec(t, tx, "SELECT FROM "+schema+".leases FOR UPDATE") // the first run has looked, and waits
	one := goRun(t.Context(), s, filter)
	waitFor(t, func() bool { return mustQuery[int](t, pool, waiting, name) == 1 })
	mustCreate(t, s, "a", scheduler.JobData{Queue: scheduler.JobQueueBlocking, RunAt: job.RunAt.Add(-time.Hour)})
	two := goRun(t.Context(), s, filter)
	waitFor(t, func() bool { return mustQuery[int](t, pool, waiting, name) == 2 || running() == 1 })
	require.NoError(t, tx.Rollback(t.Context()))
	waitFor(t, func() bool { return running() > 0 && mustQuery[int](t, pool, active, name) == 0 })
	require.Equal(t, 1, running())
	close(release)
	require.Equal(t, 1, await(t, one).report.Succeeded+await(t, two).report.Succeeded)
}

// Somebody changes the head in a transaction that lasts: no claim waits for that,
// as none would in another queue, and what is then is what counts.
func TestBlockingClaimPassesOverALockedHead(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema, c.JobNames = c.Schema, scheduler.JobNames{"a": succeed} })
	blocking := scheduler.RunFilter{Queue: scheduler.JobQueueBlocking}
	id := mustCreate(t, s, "a", scheduler.JobData{Queue: scheduler.JobQueueBlocking}).ID
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	mustExec(t, tx, "SELECT "+schema+".reschedule_job($1::text::uuid, now() + interval '1 day')", id)
	select {
	case result := <-goRun(t.Context(), s, blocking):
		require.NoError(t, result.err)
		require.Zero(t, result.report.Picked)
	case <-time.After(patience / 2): // less than a claim may take
		require.Fail(t, "a claim waits for a transaction")
	}
	require.NoError(t, s.PauseQueue(t.Context(), scheduler.JobQueueBlocking))
	require.NoError(t, s.ResumeQueue(t.Context(), scheduler.JobQueueBlocking))
	require.NoError(t, tx.Commit(t.Context()))
	require.Zero(t, mustRun(t, s, blocking).Picked)
	mustRetry(t, s, id)
	require.Equal(t, 1, mustRun(t, s, blocking).Succeeded)
}
