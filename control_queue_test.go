package scheduler_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// A job that holds a blocking queue and goes out of its way lets the next one
// start; with the next poll in an hour, a resident process learns of that by
// being told.
func TestControlLetsTheNextOfABlockingQueueStart(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(context.Context, *scheduler.Scheduler, string) (*scheduler.Job, error){
		"cancel": controls["cancel job"], "delete": controls["delete job"],
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			jobs := make(chan *scheduler.Job, 1)
			var schema string
			resident := newScheduler(t, func(c *scheduler.Config) {
				schema, c.PollInterval = c.Schema, time.Hour
				c.JobNames = scheduler.JobNames{"a": telling(jobs), "later": func(context.Context, *scheduler.Job) (any, error) {
					return nil, scheduler.RetryAfter(time.Hour, errors.New("not yet"))
				}}
			})
			other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
			head := mustCreate(t, other, "later", scheduler.JobData{Queue: scheduler.JobQueueBlocking}).ID
			next := mustCreate(t, other, "a", scheduler.JobData{Queue: scheduler.JobQueueBlocking}).ID
			goWork(t, t.Context(), resident)
			waitFor(t, func() bool {
				return listening(t, pool, schema) && mustGet(t, other, head).Status == scheduler.JobStatusFailed
			})
			require.Empty(t, jobs)
			_, err := do(t.Context(), other, head)
			require.NoError(t, err)
			require.Equal(t, next, await(t, jobs).ID)
		})
	}
}

// What becomes due now is started by resident processes, whoever asked for it.
func TestControlTellsResidentProcesses(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		t.Run(string(queue), func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			jobs := make(chan *scheduler.Job)
			var schema string
			resident := newScheduler(t, func(c *scheduler.Config) {
				schema, c.PollInterval = c.Schema, time.Hour
				c.JobNames = scheduler.JobNames{"a": telling(jobs)}
			})
			other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
			goWork(t, t.Context(), resident)
			waitFor(t, func() bool { return listening(t, pool, schema) })
			for _, s := range []*scheduler.Scheduler{resident, other} {
				id := mustCreate(t, other, "a", tomorrowIn(queue)).ID
				mustRetry(t, s, id)
				require.Equal(t, id, await(t, jobs).ID)

				id = mustCreate(t, other, "a", tomorrowIn(queue)).ID
				mustCancel(t, s, id)
				mustRetry(t, s, id)
				require.Equal(t, id, await(t, jobs).ID)

				for _, in := range []time.Duration{0, 300 * time.Millisecond} {
					id = mustCreate(t, other, "a", tomorrowIn(queue)).ID
					_, err := s.RescheduleJob(t.Context(), id, time.Now().Add(in))
					require.NoError(t, err)
					require.Equal(t, id, await(t, jobs).ID)
				}
			}
		})
	}
}

// And by workers with wake; where nothing is due, no request is made.
func TestControlWakesWorkers(t *testing.T) {
	t.Parallel()
	w := newWakeTest(t, func(c *scheduler.Config) { c.Queues = queueConfigs{"serial": {Extends: scheduler.JobQueueBlocking}} })
	w.workAwake(t, w.name, w.url())
	w.workAwake(t, w.name+"-serial", w.url()+"?queue=serial")
	for _, queue := range []scheduler.JobQueue{"", "serial"} {
		first := mustCreate(t, w.Scheduler, "work", tomorrowIn(queue)).ID
		second := mustCreate(t, w.Scheduler, "work", tomorrowIn(queue)).ID
		for _, step := range []struct {
			title    string
			requests int
			do       func() error
		}{
			{"reschedule, later", 0, func() error {
				_, err := w.RescheduleJob(t.Context(), first, time.Now().Add(time.Hour))
				return err
			}},
			{"reschedule, now", 1, func() error {
				_, err := w.RescheduleJob(t.Context(), first, time.Time{})
				return err
			}},
			{"cancel, with nothing due", 0, func() error {
				_, err := w.CancelJob(t.Context(), first)
				return err
			}},
			{"retry", 1, func() error {
				_, err := w.RetryJob(t.Context(), first)
				return err
			}},
			{"delete, with nothing due", 0, func() error { return w.DeleteJob(t.Context(), first) }},
			{"delete, with nothing left", 0, func() error { return w.DeleteJob(t.Context(), second) }},
		} {
			w.forget(t)
			require.NoError(t, step.do())
			require.Equal(t, step.requests, queued(t, w.pool, w.url()), "%s: %s", queue, step.title)
		}
	}
}

// By its time, which is now: behind what is due already, before what is not.
func TestRetriedJobStandsInABlockingQueueByItsTime(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	var d diary
	s := newScheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": d.handler, "die": func(_ context.Context, job *scheduler.Job) (any, error) {
			if job.Attempt == 1 {
				return nil, scheduler.Cancel(errors.New("as asked"))
			}
			return d.handler(t.Context(), job)
		}}
	})
	data := scheduler.JobData{Queue: scheduler.JobQueueBlocking}
	dead := mustCreate(t, s, "die", data).ID
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Queue: data.Queue}).Dead)
	early := mustCreate(t, s, "a", data).ID
	late := mustCreate(t, s, "a", tomorrowIn(data.Queue)).ID
	mustRetry(t, s, dead)
	require.Equal(t, 2, mustRun(t, s, scheduler.RunFilter{Queue: data.Queue, Limit: 9}).Succeeded)
	require.Equal(t, []string{early, dead}, d.ids)
	passTime(t, pool, schema)
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Queue: data.Queue, Limit: 9}).Succeeded)
	require.Equal(t, []string{early, dead, late}, d.ids)
}

// A failed head keeps the queue when it is retried or rescheduled: it was
// started, and the others come after it.
func TestAFailedHeadHoldsItsQueueWhateverItsTime(t *testing.T) {
	t.Parallel()
	steps := stepper{steps: map[string][]error{"1": {errors.New("failed"), errors.New("failed")}}}
	s := newScheduler(t, func(c *scheduler.Config) { c.JobNames = scheduler.JobNames{"a": steps.handler} })
	filter := scheduler.RunFilter{Queue: scheduler.JobQueueBlocking, Limit: 9}
	head := mustCreate(t, s, "a", scheduler.JobData{Queue: filter.Queue, Payload: 1}).ID
	mustCreate(t, s, "a", scheduler.JobData{Queue: filter.Queue, Payload: 2})
	require.Equal(t, 1, mustRun(t, s, filter).Failed)
	job, err := s.RescheduleJob(t.Context(), head, time.Now().Add(time.Hour))
	require.NoError(t, err)
	report := mustRun(t, s, filter)
	require.Zero(t, report.Picked)
	require.Equal(t, job.RunAt, *report.NextDueAt)
	mustRetry(t, s, head)
	require.Equal(t, 1, mustRun(t, s, filter).Failed)
	mustRetry(t, s, head)
	require.Equal(t, 2, mustRun(t, s, filter).Succeeded)
	require.Equal(t, []string{"1", "1", "1", "2"}, steps.ran)
}

// The queue stays held until the handler of the cancelled head has really ended.
func TestACancelledHeadHoldsItsQueueUntilItsHandlerHasEnded(t *testing.T) {
	t.Parallel()
	started, causes, release := make(chan string, 2), make(chan error, 1), make(chan struct{})
	var schema string
	configure := func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, job *scheduler.Job) (any, error) {
			started <- job.ID
			if string(job.Payload) == "1" {
				<-ctx.Done()
				causes <- context.Cause(ctx)
				<-release
			}
			return nil, ctx.Err()
		}}
	}
	one := newScheduler(t, func(c *scheduler.Config) { configure(c); schema = c.Schema })
	two := newScheduler(t, func(c *scheduler.Config) { configure(c); c.Schema = schema })
	filter := scheduler.RunFilter{Queue: scheduler.JobQueueBlocking, Limit: 9}
	head := mustCreate(t, one, "a", scheduler.JobData{Queue: filter.Queue, Payload: 1}).ID
	next := mustCreate(t, one, "a", scheduler.JobData{Queue: filter.Queue, Payload: 2}).ID
	run := goRun(t.Context(), one, filter)
	require.Equal(t, head, await(t, started))
	require.Equal(t, scheduler.JobStatusRunning, mustCancel(t, two, head).Status)
	require.ErrorIs(t, await(t, causes), scheduler.ErrJobCancelled)
	require.Zero(t, mustRun(t, two, filter).Picked)
	require.Equal(t, scheduler.JobStatusRunning, mustGet(t, two, head).Status)
	close(release)
	report := await(t, run).report
	require.Equal(t, 1, report.Cancelled)
	require.Equal(t, 1, report.Succeeded, "it goes on with the next one")
	require.Equal(t, next, await(t, started))
	require.Equal(t, scheduler.JobStatusCancelled, mustGet(t, two, head).Status)
}
