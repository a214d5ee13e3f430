package scheduler_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/postgres"
)

// goWork works until the test ends or the returned function is called, which
// waits for the end.
func goWork(t *testing.T, ctx context.Context, s *scheduler.Scheduler) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	worked := make(chan error, 1)
	go func() { worked <- s.Work(ctx) }()
	stop = func() {
		cancel()
		select {
		case err := <-worked:
			require.NoError(t, err)
			worked <- nil
		case <-time.After(patience):
			require.FailNow(t, "Work does not return")
		}
	}
	t.Cleanup(stop)
	return stop
}

// listening says whether a process listens, for which it needs a session.
func listening(t *testing.T, db database, schema string) bool {
	needsSession(t)
	return mustQuery[bool](t, db, "SELECT EXISTS (SELECT FROM "+schema+".leases WHERE listening)")
}

// telling is a handler that says which jobs it was given.
func telling(c chan<- *scheduler.Job) scheduler.HandlerFunc {
	return func(_ context.Context, job *scheduler.Job) (any, error) {
		c <- job
		return nil, nil
	}
}

// With the next poll in an hour, what starts a job at once is a notification.
func TestWorkIsNotifiedOfCreatedJobs(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	jobs := make(chan *scheduler.Job)
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.PollInterval = c.Schema, time.Hour
		c.JobNames = scheduler.JobNames{"a": telling(jobs)}
		c.Queues = queueConfigs{"own": {}, "serial": {Extends: scheduler.JobQueueBlocking}}
	})
	early := mustCreate(t, s, "a", scheduler.JobData{})
	goWork(t, t.Context(), s)
	require.Equal(t, early.ID, await(t, jobs).ID, "what was created before")
	waitFor(t, func() bool { return listening(t, pool, schema) })

	for _, queue := range []scheduler.JobQueue{"", "own", scheduler.JobQueueBlocking, "serial"} {
		id := mustCreate(t, s, "a", scheduler.JobData{Queue: queue}).ID
		require.Equal(t, id, await(t, jobs).ID)
		ids := mustCreateMany(t, s, 1, "a", scheduler.JobData{Queue: queue})
		require.Equal(t, ids[0], await(t, jobs).ID)
		id = mustQuery[string](t, pool, "SELECT "+schema+".create_job('a', queue => $1)::text", string(queue))
		require.Equal(t, id, await(t, jobs).ID)
	}
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	inTx, err := s.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{})
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, inTx.ID, await(t, jobs).ID)
}

// Jobs that are due later start at their time and not at the next poll; the
// same goes for those that ask to be rerun.
func TestWorkStartsJobsWhenTheyAreDue(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	jobs := make(chan *scheduler.Job, 10)
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.PollInterval = c.Schema, time.Hour
		c.Queues = queueConfigs{"serial": {Extends: scheduler.JobQueueBlocking, Backoff: func(int) time.Duration { return 250 * time.Millisecond }}}
		c.JobNames = scheduler.JobNames{"a": telling(jobs), "again": func(_ context.Context, job *scheduler.Job) (any, error) {
			jobs <- job
			switch {
			case len(job.Errors) == 1:
				return nil, nil
			case job.RunAt.Equal(job.CreatedAt): // the first time
				return nil, scheduler.Snooze(300 * time.Millisecond)
			case job.Queue == "serial":
				return nil, errors.New("failed as asked")
			}
			return nil, scheduler.RetryAfter(200*time.Millisecond, nil)
		}}
	})
	for _, queue := range []scheduler.JobQueue{"", "serial"} { // before Work begins
		mustCreate(t, s, "a", scheduler.JobData{Queue: queue, RunAt: time.Now().Add(500 * time.Millisecond)})
	}
	goWork(t, t.Context(), s)
	next := func() {
		job := await(t, jobs)
		late := job.StartedAt.Sub(job.RunAt)
		require.GreaterOrEqual(t, late, time.Duration(0))
		require.Less(t, late, 10*time.Second)
	}
	next()
	next()
	waitFor(t, func() bool { return listening(t, pool, schema) })
	for _, queue := range []scheduler.JobQueue{"", "serial"} {
		mustCreate(t, s, "a", scheduler.JobData{Queue: queue, RunAt: time.Now().Add(300 * time.Millisecond)})
		next()
		mustCreate(t, s, "again", scheduler.JobData{Queue: queue})
		for range 3 {
			next()
		}
	}
}

// Through a transaction-mode pooler there are no notifications, and polling
// alone is correct.
func TestWorkPollsWhereItCannotListen(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config := newPool(t).Config()
			config.ConnConfig.DefaultQueryExecMode = mode
			pool := newPoolWith(t, config)
			var schema string
			jobs := make(chan *scheduler.Job)
			s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
				schema, c.PollInterval = c.Schema, 20*time.Millisecond
				c.JobNames = scheduler.JobNames{"a": telling(jobs)}
			})
			goWork(t, t.Context(), s)
			for _, queue := range []scheduler.JobQueue{"", scheduler.JobQueueBlocking} {
				id := mustCreate(t, s, "a", scheduler.JobData{Queue: queue, RunAt: time.Now().Add(100 * time.Millisecond)}).ID
				require.Equal(t, id, await(t, jobs).ID)
			}
			require.False(t, listening(t, pool, schema))
		})
	}
}

func TestWorkEndsWithItsContextAndLeavesTheJobsRunning(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		t.Run(string(queue), func(t *testing.T) {
			t.Parallel()
			started, release := make(chan context.Context, 1), make(chan struct{})
			s := newScheduler(t, func(c *scheduler.Config) {
				c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
					started <- ctx
					<-release
					return ctx.Value(contextKey{}), ctx.Err()
				}}
			})
			id := mustCreate(t, s, "a", scheduler.JobData{Queue: queue}).ID
			ctx := context.WithValue(t.Context(), contextKey{}, "a value")
			stop := goWork(t, ctx, s)
			jobCtx := await(t, started)
			require.ErrorContains(t, s.Work(t.Context()), "already working")
			defer close(release)
			stop()
			require.NoError(t, jobCtx.Err())
			next := mustCreate(t, s, "a", scheduler.JobData{Queue: queue}).ID
			stop = goWork(t, ctx, s) // it may be begun anew
			release <- struct{}{}
			await(t, started)
			release <- struct{}{}
			waitFor(t, func() bool { return mustGet(t, s, next).Status == scheduler.JobStatusSucceeded })
			stop()
			require.JSONEq(t, `"a value"`, string(mustGet(t, s, id).Result))
			require.NoError(t, s.Shutdown(t.Context()))
			require.ErrorIs(t, s.Work(t.Context()), scheduler.ErrShuttingDown)
		})
	}
}

// Many jobs, few slots, no poll to help: none is left lying.
func TestWorkDrainsItsQueues(t *testing.T) {
	t.Parallel()
	var running, most atomic.Int32
	done := make(chan struct{}, 1000)
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Concurrency, c.PollInterval = 3, time.Hour
		c.Queues = queueConfigs{"own": {}, "default": {Backoff: func(int) time.Duration { return 0 }}}
		c.JobNames = scheduler.JobNames{"a": func(_ context.Context, job *scheduler.Job) (any, error) {
			defer running.Add(-1)
			for now := running.Add(1); now > most.Load(); {
				most.Store(now)
			}
			if job.Attempt == 1 && job.Queue != scheduler.JobQueueBlocking {
				return nil, scheduler.RetryAfter(0, errors.New("once more"))
			}
			done <- struct{}{}
			return nil, nil
		}}
	})
	for _, queue := range []scheduler.JobQueue{"", "own", scheduler.JobQueueBlocking} {
		mustCreateMany(t, s, 50, "a", scheduler.JobData{Queue: queue})
	}
	goWork(t, t.Context(), s)
	for range 150 {
		select {
		case <-done:
		case <-time.After(patience):
			require.FailNow(t, "jobs are left")
		}
	}
	require.LessOrEqual(t, most.Load(), int32(3))
}

func TestWorkRescuesWhatOthersLost(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	jobs := make(chan *scheduler.Job)
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.PollInterval = c.Schema, 20*time.Millisecond
		c.JobNames = scheduler.JobNames{"a": telling(jobs)}
	})
	goWork(t, t.Context(), s)
	for _, queue := range []scheduler.JobQueue{"", scheduler.JobQueueBlocking} {
		id := mustQuery[string](t, pool, `
			WITH lease AS (
				INSERT INTO `+schema+`.leases (id, holder, expires_at) VALUES (gen_random_uuid(), 'gone', now()) RETURNING id
			)
			INSERT INTO `+schema+`.jobs (id, name, queue, status, lease_id, started_at, attempt, claims)
			SELECT gen_random_uuid(), 'a', coalesce(nullif($1, ''), 'default'), 'running', id, now(), 1, 1 FROM lease RETURNING id::text`, string(queue))
		job := await(t, jobs)
		require.Equal(t, id, job.ID)
		require.Equal(t, 2, job.Attempt)
	}
}

// A database that comes back finds Work at it: what ran meanwhile is recorded,
// and what is created then is run.
func TestWorkSurvivesARestartOfTheDatabase(t *testing.T) {
	t.Parallel()
	cluster, err := postgres.Start(t.Context(), postgres.Options{Settings: map[string]string{"fsync": "off", "shared_buffers": "16MB"}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cluster.Stop()) })
	config, err := pgxpool.ParseConfig(cluster.URL("postgres"))
	require.NoError(t, err)
	pool := newPoolWith(t, config)
	started, release := make(chan *scheduler.Job), make(chan struct{})
	var schema string
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		// In the shared cluster there is nothing to clean up of this one.
		schema, c.PollInterval = c.Schema, 20*time.Millisecond
		c.JobNames = scheduler.JobNames{"a": telling(started), "long": func(_ context.Context, job *scheduler.Job) (any, error) {
			started <- job
			<-release
			return "done", nil
		}}
	})
	goWork(t, t.Context(), s)
	waitFor(t, func() bool { return listening(t, pool, schema) })
	ids := mustCreateMany(t, s, 3, "long", scheduler.JobData{})
	for range ids {
		await(t, started)
	}
	require.NoError(t, cluster.Crash(t.Context()))
	close(release) // while the database is away
	require.NoError(t, cluster.Restart(t.Context()))
	for _, id := range ids {
		waitFor(t, func() bool {
			job, err := s.GetJob(t.Context(), id)
			return err == nil && job.Status == scheduler.JobStatusSucceeded && job.Attempt == 1
		})
	}
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	require.Equal(t, id, await(t, started).ID)
	waitFor(t, func() bool { return listening(t, pool, schema) })
}

// A look at a queue without due jobs comes to nothing, also while jobs of
// another queue wait for a slot.
func TestAnEmptyClaimBesideWaitingJobs(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	var left atomic.Int32
	left.Store(5000)
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Concurrency = c.Schema, 1
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			left.Add(-1)
			return nil, nil
		}}
	})
	stop := goWork(t, t.Context(), s)
	waitFor(t, func() bool { return listening(t, pool, schema) })
	mustCreateMany(t, s, int(left.Load()), "a", scheduler.JobData{})
	for left.Load() > 0 {
		mustExec(t, pool, `SELECT pg_notify($1, 'blocking')`, schema+"_jobs")
	}
	stop()
}
