package schedulertest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/schedulertest"
)

func TestRunJob(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{JobNames: scheduler.JobNames{"a": succeed, "fail": fail}})
	first := mustCreate(t, s, "a", scheduler.JobData{})
	second := mustCreate(t, s, "a", scheduler.JobData{})
	job := schedulertest.RunJob(t, s, second.ID)
	require.Equal(t, scheduler.JobStatusSucceeded, job.Status)
	require.JSONEq(t, `"done"`, string(job.Result))
	got, err := s.GetJob(t.Context(), first.ID)
	require.NoError(t, err)
	require.Equal(t, scheduler.JobStatusPending, got.Status)
	require.Zero(t, got.Attempt)

	failing := mustCreate(t, s, "fail", scheduler.JobData{MaxAttempts: 2})
	failing = schedulertest.RunJob(t, s, failing.ID)
	require.Equal(t, scheduler.JobStatusFailed, failing.Status)
	require.Equal(t, "failed as asked", failing.Errors[0].Error)
	requireFails(t, func(tb testing.TB) { schedulertest.RunJob(tb, s, failing.ID) }, failing.ID, "it is failed and due in", "expected one that is due")
	schedulertest.Advance(t, s, time.Minute)
	require.Equal(t, scheduler.JobStatusDead, schedulertest.RunJob(t, s, failing.ID).Status)

	requireFails(t, func(tb testing.TB) { schedulertest.RunJob(tb, s, failing.ID) }, "it is dead: expected pending or failed")
	requireFails(t, func(tb testing.TB) { schedulertest.RunJob(tb, s, "0190a5b2-0000-7000-8000-000000000000") }, scheduler.ErrJobNotFound.Error())
	later := mustCreate(t, s, "a", scheduler.JobData{RunAt: time.Now().Add(time.Hour)})
	requireFails(t, func(tb testing.TB) { schedulertest.RunJob(tb, s, later.ID) }, "it is pending and due in 59m59.")
	schedulertest.Advance(t, s, time.Hour)
	require.Equal(t, scheduler.JobStatusSucceeded, schedulertest.RunJob(t, s, later.ID).Status)
}

func TestRunJobNeedsAHandler(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{})
	job := mustCreate(t, s, "a", scheduler.JobData{})
	requireFails(t, func(tb testing.TB) { schedulertest.RunJob(tb, s, job.ID) }, `unknown job name "a"`)
	requireFails(t, func(tb testing.TB) { _, _ = schedulertest.CallHandler(tb, s, job) }, `unknown job name "a"`)
	require.Empty(t, schedulertest.Drain(t, s))
}

// A blocking queue stays in its order: its head is run, a job behind it is not.
func TestRunJobInABlockingQueue(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{JobNames: scheduler.JobNames{"a": succeed, "fail": fail}})
	blocking := scheduler.JobData{Queue: scheduler.JobQueueBlocking}
	first, second := mustCreate(t, s, "fail", blocking), mustCreate(t, s, "a", blocking)
	requireFails(t, func(tb testing.TB) { schedulertest.RunJob(tb, s, second.ID) }, second.ID, `"blocking"`, "job "+first.ID+" comes before it")
	require.Equal(t, scheduler.JobStatusFailed, schedulertest.RunJob(t, s, first.ID).Status)
	requireFails(t, func(tb testing.TB) { schedulertest.RunJob(tb, s, second.ID) }, first.ID)
	require.Empty(t, schedulertest.Drain(t, s), "the failed one holds the queue")
	schedulertest.Advance(t, s, 365*24*time.Hour)
	drained := schedulertest.Drain(t, s)
	require.Equal(t, []string{"fail failed 2"}, statuses(drained))
	for range 8 {
		schedulertest.Advance(t, s, 24*time.Hour)
		drained = schedulertest.Drain(t, s)
	}
	require.Equal(t, []string{"fail dead 10", "a succeeded 1"}, statuses(drained))
}

func TestDrain(t *testing.T) {
	t.Parallel()
	var s *scheduler.Scheduler
	create := func(ctx context.Context, name string, data scheduler.JobData) error {
		_, err := s.CreateJob(ctx, name, data)
		return err
	}
	s = schedulertest.New(t, newPool(t), scheduler.Config{
		Queues: map[scheduler.JobQueue]scheduler.QueueConfig{"mail": {}},
		JobNames: scheduler.JobNames{
			"a": succeed,
			"retry": func(_ context.Context, job *scheduler.Job) (any, error) {
				if !job.LastAttempt() {
					return nil, scheduler.RetryAfter(0, errors.New("again"))
				}
				return nil, nil
			},
			"parent": func(ctx context.Context, _ *scheduler.Job) (any, error) {
				return nil, errors.Join(create(ctx, "a", scheduler.JobData{Queue: "mail"}), create(ctx, "a", scheduler.JobData{RunAt: time.Now().Add(time.Hour)}))
			},
			"fail": fail,
			"snooze": func(_ context.Context, job *scheduler.Job) (any, error) {
				if time.Since(job.CreatedAt) < time.Hour {
					return nil, scheduler.Snooze(time.Hour)
				}
				return nil, nil
			},
		},
	})
	require.Equal(t, []*scheduler.Job{}, schedulertest.Drain(t, s))

	ago := func(minutes int) scheduler.JobData {
		return scheduler.JobData{RunAt: time.Now().Add(-time.Duration(minutes) * time.Minute), MaxAttempts: 2}
	}
	in := func(queue scheduler.JobQueue, data scheduler.JobData) scheduler.JobData {
		data.Queue = queue
		return data
	}
	mustCreate(t, s, "fail", ago(1))
	mustCreate(t, s, "retry", ago(5))
	mustCreate(t, s, "parent", in("mail", ago(3)))
	mustCreate(t, s, "snooze", in(scheduler.JobQueueBlocking, ago(4)))
	mustCreate(t, s, "a", in(scheduler.JobQueueBlocking, ago(2)))
	require.Equal(t, []string{
		"retry failed 1", "snooze pending 0", "parent succeeded 1", "fail failed 1", "retry succeeded 2", "a succeeded 1", // by the parent
	}, statuses(schedulertest.Drain(t, s)))
	require.Empty(t, schedulertest.Drain(t, s))

	schedulertest.Advance(t, s, time.Hour+time.Second)
	require.ElementsMatch(t, []string{
		"fail dead 2", "a succeeded 1", // by the parent
		"snooze succeeded 1", "a succeeded 1", // which it has kept waiting, as blocking queues do
	}, statuses(schedulertest.Drain(t, s)))
}

// The order is that of the times, also after a move of the clock, over queues.
func TestDrainIsInOrder(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{
		Queues:   map[scheduler.JobQueue]scheduler.QueueConfig{"x": {}, "y": {}},
		JobNames: scheduler.JobNames{"a": func(_ context.Context, job *scheduler.Job) (any, error) { return job.Payload, nil }},
	})
	now := time.Now()
	for i, queue := range []scheduler.JobQueue{"x", "default", "y", "blocking", "y", "x", "default", "blocking"} {
		for _, hours := range []int{-1, 2} {
			mustCreate(t, s, "a", scheduler.JobData{
				Queue: queue, Payload: i, RunAt: now.Add(time.Duration(hours)*time.Hour - time.Duration(i)*time.Minute),
			})
		}
	}
	for range 2 {
		order := ""
		for _, job := range schedulertest.Drain(t, s) {
			order += string(job.Result)
		}
		require.Equal(t, "76543210", order)
		mustCreate(t, s, "a", scheduler.JobData{Payload: 8, RunAt: time.Now().Add(-time.Minute)}) // ahead of what will have been due for longer
		require.Len(t, schedulertest.Drain(t, s), 1)
		schedulertest.Advance(t, s, 3*time.Hour)
	}
}

func TestDrainEnds(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{JobNames: scheduler.JobNames{
		"for_ever": func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Snooze(0) },
	}})
	mustCreate(t, s, "for_ever", scheduler.JobData{})
	requireFails(t, func(tb testing.TB) { schedulertest.DrainMost(tb, s, 20) }, "after 20 attempts", `"for_ever"`)
	require.NoError(t, s.Shutdown(t.Context()))
	requireFails(t, func(tb testing.TB) { schedulertest.Drain(tb, s) }, scheduler.ErrShuttingDown.Error())
}

// What a lost process was running is taken back, as by a run.
func TestDrainRescues(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	s := schedulertest.New(t, pool, scheduler.Config{JobNames: scheduler.JobNames{"a": succeed}})
	mustCreate(t, s, "a", scheduler.JobData{})
	_, err := pool.Exec(t.Context(), fmt.Sprintf(`WITH lost AS (
			INSERT INTO %[1]s.leases (id, holder, expires_at) VALUES (gen_random_uuid(), 'lost', now() - interval '1 second') RETURNING id)
		UPDATE %[1]s.jobs SET status = 'running', lease_id = lost.id, started_at = now(), attempt = 1, claims = 1 FROM lost`, schemaOf(s)))
	require.NoError(t, err)
	drained := schedulertest.Drain(t, s)
	require.Equal(t, []string{"a succeeded 2"}, statuses(drained))
	require.Contains(t, drained[0].Errors[0].Error, "lease lost")
}

func TestCallHandler(t *testing.T) {
	t.Parallel()
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	type key struct{}
	config := scheduler.Config{
		JobNames: scheduler.JobNames{
			"double": scheduler.Handle(func(_ context.Context, n int) (int, error) { return 2 * n, nil }),
			"look": func(ctx context.Context, job *scheduler.Job) (any, error) {
				_, hasDeadline := ctx.Deadline()
				return fmt.Sprintln(job.Status, job.Attempt, job.StartedAt != nil, hasDeadline, ctx.Value(key{}), scheduler.Traceparent(ctx)), nil
			},
			"slow": func(ctx context.Context, _ *scheduler.Job) (any, error) {
				<-ctx.Done()
				return nil, context.Cause(ctx)
			},
			"later": func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Snooze(time.Hour) },
		},
		Middleware: []scheduler.Middleware{func(_ string, next scheduler.HandlerFunc) scheduler.HandlerFunc {
			return func(ctx context.Context, job *scheduler.Job) (any, error) {
				return next(context.WithValue(ctx, key{}, "wrapped"), job)
			}
		}},
	}
	s, fake := schedulertest.New(t, newPool(t), config), schedulertest.NewFake(t, config)
	config.JobNames["complete"] = func(ctx context.Context, job *scheduler.Job) (any, error) {
		return nil, s.CompleteTx(ctx, pgx.Tx(struct{ pgx.Tx }{}), job, nil)
	}
	_, err := schedulertest.CallHandler(t, schedulertest.NewFake(t, config), &scheduler.Job{Name: "complete"})
	require.ErrorIs(t, err, scheduler.ErrInvalidInput)

	ctx := scheduler.WithTraceparent(t.Context(), trace)
	for title, test := range map[string]struct {
		create func(ctx context.Context, name string, data scheduler.JobData) (*scheduler.Job, error)
		call   func(tb testing.TB, job *scheduler.Job) (any, error)
	}{
		"Scheduler": {s.CreateJob, func(tb testing.TB, job *scheduler.Job) (any, error) {
			tb.Helper()
			return schedulertest.CallHandler(tb, s, job)
		}},
		"Fake": {fake.CreateJob, func(tb testing.TB, job *scheduler.Job) (any, error) {
			tb.Helper()
			return schedulertest.CallHandler(tb, fake, job)
		}},
	} {
		call := func(name string, data scheduler.JobData) (any, error) {
			job, err := test.create(ctx, name, data)
			require.NoError(t, err, title)
			result, err := test.call(t, job)
			require.Zero(t, job.Attempt, "it is left as it is")
			require.Equal(t, scheduler.JobStatusPending, job.Status)
			return result, err
		}
		result, err := call("double", scheduler.JobData{Payload: 21})
		require.NoError(t, err)
		require.Equal(t, 42, result)
		_, err = call("double", scheduler.JobData{Payload: "x"})
		require.ErrorContains(t, err, "decode the payload")
		result, err = call("look", scheduler.JobData{})
		require.NoError(t, err)
		require.Equal(t, "running 1 true false wrapped "+trace+"\n", result)
		result, err = call("look", scheduler.JobData{Timeout: time.Hour})
		require.NoError(t, err)
		require.Contains(t, result, "true true wrapped")
		_, err = call("slow", scheduler.JobData{Timeout: time.Millisecond})
		require.ErrorIs(t, err, scheduler.ErrJobTimeout)
		_, err = call("later", scheduler.JobData{})
		require.EqualError(t, err, scheduler.Snooze(time.Hour).Error())
		requireFails(t, func(tb testing.TB) { _, _ = test.call(tb, &scheduler.Job{ID: "?", Name: "nobodys"}) }, `"nobodys"`, "no handler")
	}
}

// A run takes nothing from a queue that is paused, and neither does RunJob.
func TestRunJobInAPausedQueue(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{JobNames: scheduler.JobNames{"a": succeed}})
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		job := mustCreate(t, s, "a", scheduler.JobData{Queue: queue})
		for _, paused := range []scheduler.JobQueue{queue, scheduler.JobQueueAll} {
			require.NoError(t, s.PauseQueue(t.Context(), paused))
			requireFails(t, func(tb testing.TB) { schedulertest.RunJob(tb, s, job.ID) }, job.ID, `its queue "`+string(queue)+`" is paused`, "ResumeQueue")
			require.Empty(t, schedulertest.Drain(t, s))
			require.NoError(t, s.ResumeQueue(t.Context(), paused))
		}
		require.Equal(t, scheduler.JobStatusSucceeded, schedulertest.RunJob(t, s, job.ID).Status)
	}
}

// Without a database, a handler reports into the job and goes on from there.
func TestCallHandlerThatReports(t *testing.T) {
	t.Parallel()
	kept := make(chan context.Context, 2)
	fake := schedulertest.NewFake(t, scheduler.Config{JobNames: scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
		kept <- ctx
		next := 0
		found, err := scheduler.LoadCheckpoint(ctx, &next)
		if err != nil {
			return nil, err
		}
		for ; next < 4; next++ {
			if err := errors.Join(scheduler.SetProgress(ctx, 25*next, "row "+fmt.Sprint(next)), scheduler.Checkpoint(ctx, next)); err != nil {
				return nil, err
			}
			var last int
			if known, err := scheduler.LoadCheckpoint(ctx, &last); err != nil || !known || last != next {
				return nil, fmt.Errorf("checkpoint %d, %t: %w", last, known, err)
			}
			if next == 2 && !found {
				return nil, errors.New("again")
			}
		}
		return found, scheduler.Checkpoint(ctx, nil)
	}}})
	job, err := fake.CreateJob(t.Context(), "a", scheduler.JobData{})
	require.NoError(t, err)
	_, err = schedulertest.CallHandler(t, fake, job)
	require.EqualError(t, err, "again")
	require.Equal(t, 50, job.Progress.Percent)
	require.Equal(t, "row 2", job.Progress.Note)
	require.JSONEq(t, "2", string(job.Progress.Checkpoint))
	require.WithinDuration(t, time.Now(), job.Progress.At, time.Minute)
	var input *scheduler.InputError
	require.ErrorAs(t, scheduler.SetProgress(<-kept, 1, ""), &input, "its handler has returned")

	found, err := schedulertest.CallHandler(t, fake, job)
	require.NoError(t, err)
	require.Equal(t, true, found)
	require.Equal(t, 75, job.Progress.Percent)
	require.Nil(t, job.Progress.Checkpoint)
}

func TestDrainOfDependants(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{JobNames: scheduler.JobNames{"a": succeed}})
	ids, err := s.CreateJobs(t.Context(), []scheduler.NewJob{
		{Name: "a", JobData: scheduler.JobData{After: []string{"x", "y"}}},
		{Name: "a", Label: "x", JobData: scheduler.JobData{After: []string{"y"}}},
		{Name: "a", Label: "y"},
	})
	require.NoError(t, err)
	requireFails(t, func(tb testing.TB) { schedulertest.RunJob(tb, s, ids[0]) }, "it waits for 2 other jobs to succeed")
	var order []string
	for _, job := range schedulertest.Drain(t, s) {
		order = append(order, job.ID)
	}
	require.Equal(t, []string{ids[2], ids[1], ids[0]}, order)
}

// Slots that have come are fired as a run does that.
func TestDrainOfRecurringJobs(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{
		JobNames:  scheduler.JobNames{"a": succeed},
		Recurring: []scheduler.RecurringJob{{Name: "daily", Schedule: "@daily", Job: "a"}},
	})
	require.Empty(t, schedulertest.Drain(t, s))
	for range 2 {
		schedulertest.Advance(t, s, 24*time.Hour)
		jobs := schedulertest.Drain(t, s)
		require.Len(t, jobs, 1)
		require.Equal(t, scheduler.JobStatusSucceeded, jobs[0].Status)
		require.False(t, jobs[0].Slot().IsZero())
	}
}
