package scheduler_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// Two processes work off queues of every kind, by runs and resident. Each time a
// pause has begun, nothing more is claimed until it ends.
func TestAPausedQueueStartsNothing(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{"", "own", "ranked", scheduler.JobQueueBlocking, scheduler.JobQueueAll} {
		t.Run("queue "+string(queue), func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			var schema string
			var ran atomic.Int64
			configure := func(c *scheduler.Config) {
				c.Concurrency, c.PollInterval = 2, 10*time.Millisecond
				c.Queues = queueConfigs{"own": {}, "ranked": {}}
				c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
					ran.Add(1)
					return nil, nil
				}}
			}
			one := newScheduler(t, func(c *scheduler.Config) { configure(c); schema = c.Schema })
			two := newScheduler(t, func(c *scheduler.Config) { configure(c); c.Schema = schema })
			place := queue
			if queue == scheduler.JobQueueAll {
				place = "own"
			}
			data := scheduler.JobData{Queue: place}
			if queue == "ranked" {
				data.Priority = -3
			}
			const n, more, pauses = 400, 5, 5
			mustCreateMany(t, one, n, "a", data)
			claims := func() int {
				return mustQuery[int](t, pool, "SELECT sum(claims) FROM "+schema+".jobs")
			}
			goWork(t, t.Context(), one)
			done := make(chan struct{})
			runs := make(chan error, 2)
			for range cap(runs) {
				go func() {
					for {
						select {
						case <-done:
							runs <- nil
							return
						default:
						}
						if _, err := two.Run(context.Background(), scheduler.RunFilter{Queue: place, Limit: 3}); err != nil {
							runs <- err
							return
						}
					}
				}()
			}
			for i := range pauses {
				waitFor(t, func() bool { return ran.Load() > int64(i*10) })
				require.NoError(t, []*scheduler.Scheduler{one, two}[i%2].PauseQueue(t.Context(), queue))
				before := claims()
				mustCreateMany(t, one, more, "a", data) // still taken
				for range 5 {
					report := mustRun(t, two, scheduler.RunFilter{Queue: place, Status: scheduler.JobStatusAny, Limit: 10})
					require.Zero(t, report.Picked)
					require.Nil(t, report.NextDueAt)
				}
				waitFor(t, func() bool { // what was running goes on
					return mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'running'") == 0
				})
				require.Equal(t, before, claims())
				require.NoError(t, two.ResumeQueue(t.Context(), queue))
			}
			const all = n + pauses*more
			waitFor(t, func() bool {
				return mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'succeeded'") == all
			})
			close(done)
			for range cap(runs) {
				require.NoError(t, await(t, runs))
			}
		})
	}
}

// A claim that has found the queue going before the pause is waited for.
func TestPauseWaitsForClaimsUnderWay(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{"", scheduler.JobQueueBlocking, scheduler.JobQueueAll} {
		t.Run("queue "+string(queue), func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			gate := newGate()
			var schema string
			s := newScheduler(t, func(c *scheduler.Config) {
				schema, c.JobNames = c.Schema, scheduler.JobNames{"a": gate.handler}
			})
			filter := scheduler.RunFilter{Queue: queue}
			if queue == scheduler.JobQueueAll {
				filter.Queue = ""
			}
			require.Zero(t, mustRun(t, s, filter).Picked) // has a lease from then on
			job := mustCreate(t, s, "a", scheduler.JobData{Queue: filter.Queue})
			tx, err := pool.Begin(t.Context())
			require.NoError(t, err)
			mustExec(t, tx, "SELECT FROM "+schema+".leases FOR UPDATE")
			waiting := func(n int) {
				waitFor(t, func() bool {
					return mustQuery[int](t, pool, `SELECT count(*) FROM pg_stat_activity
						WHERE wait_event_type = 'Lock' AND query LIKE '%"`+schema+`"%'`) == n
				})
			}
			run := goRun(t.Context(), s, filter)
			waiting(1)
			paused := make(chan error, 1)
			go func() { paused <- s.PauseQueue(context.Background(), queue) }()
			waiting(2)
			require.Empty(t, paused)
			require.NoError(t, tx.Rollback(t.Context()))
			require.NoError(t, await(t, paused))
			require.Equal(t, scheduler.JobStatusRunning, mustGet(t, s, job.ID).Status)
			await(t, gate.began)
			close(gate.let)
			require.Equal(t, 1, await(t, run).report.Succeeded)
		})
	}
}

func TestPauseThatCannotWaitSaysSo(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema, c.JobNames = c.Schema, scheduler.JobNames{"a": succeed} })
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	mustExec(t, tx, "SELECT pg_advisory_xact_lock_shared(hashtextextended($1, 7041974))", schema+".default") // as a claim has it
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err = s.PauseQueue(ctx, "")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, `"default" is paused, but`)
	require.NoError(t, tx.Rollback(t.Context()))
	mustCreate(t, s, "a", scheduler.JobData{})
	require.Zero(t, mustRun(t, s, scheduler.RunFilter{}).Picked)
}

// With the next poll in an hour, what starts a job at once is the resumption, of
// another process and of one's own, whether this listens or not.
func TestResumeWakesResidents(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec} {
		jobs := make(chan *scheduler.Job, 1)
		config := pool.Config()
		config.ConnConfig.DefaultQueryExecMode = mode
		var schema string
		configure := func(c *scheduler.Config) {
			c.PollInterval, c.JobNames = time.Hour, scheduler.JobNames{"a": telling(jobs)}
			c.Queues = queueConfigs{"own": {}}
		}
		resident := newSchedulerOn(t, newPoolWith(t, config), func(c *scheduler.Config) { configure(c); schema = c.Schema })
		other := newScheduler(t, func(c *scheduler.Config) { configure(c); c.Schema = schema })
		goWork(t, t.Context(), resident)
		listens := mode == pgx.QueryExecModeCacheStatement
		if listens {
			waitFor(t, func() bool { return listening(t, pool, schema) })
		}
		for _, queue := range []scheduler.JobQueue{"", "own", scheduler.JobQueueBlocking, scheduler.JobQueueAll} {
			place := queue
			if queue == scheduler.JobQueueAll {
				place = "own"
			}
			for _, resumes := range []*scheduler.Scheduler{other, resident} {
				if resumes == other && !listens {
					continue
				}
				require.NoError(t, other.PauseQueue(t.Context(), queue))
				id := mustCreate(t, resident, "a", scheduler.JobData{Queue: place}).ID
				require.NoError(t, resumes.ResumeQueue(t.Context(), queue))
				require.Equal(t, id, await(t, jobs).ID)
				// And what becomes due a little later.
				require.NoError(t, other.PauseQueue(t.Context(), queue))
				soon := mustQuery[time.Time](t, pool, "SELECT now() + interval '300 milliseconds'")
				id = mustQuery[string](t, pool, `INSERT INTO `+schema+`.jobs (id, name, queue, run_at)
					VALUES (gen_random_uuid(), 'a', coalesce(nullif($1, ''), 'default'), $2) RETURNING id::text`, string(place), soon)
				require.NoError(t, resumes.ResumeQueue(t.Context(), queue))
				require.Equal(t, id, await(t, jobs).ID)
			}
		}
	}
}

// While its queue is paused a worker makes no request, at its ticks or awake.
func TestWorkersOfAPausedQueueRest(t *testing.T) {
	t.Parallel()
	w := newWakeTest(t, func(c *scheduler.Config) {
		c.Queues = queueConfigs{"own": {}, "serial": {Extends: scheduler.JobQueueBlocking}}
	})
	calls := newEndpoint(t, answer(http.StatusOK, ""))
	tick := func() string {
		outcome, err := w.tick(t)
		require.NoError(t, err)
		return outcome
	}
	for _, queue := range []scheduler.JobQueue{"default", "own", "serial", scheduler.JobQueueAll} {
		place := queue
		if queue == scheduler.JobQueueAll {
			place = "own"
		}
		url := calls.URL + "/api/jobs/run?status=any&queue=" + string(place)
		mustExec(t, w.pool, "SELECT "+w.schema+".create_queue_worker($1, $2, $3, $4, http_extension => 'http', wake => true)", w.name, url, w.token, never)
		asked := len(calls.asked())

		require.NoError(t, w.PauseQueue(t.Context(), queue))
		require.NoError(t, w.ResumeQueue(t.Context(), queue))
		require.Zero(t, queued(t, w.pool, url), "nothing is due")
		require.NoError(t, w.PauseQueue(t.Context(), queue))
		mustCreate(t, w.Scheduler, "work", scheduler.JobData{Queue: place})
		mustCreateMany(t, w.Scheduler, 2, "work", scheduler.JobData{Queue: place})
		require.Equal(t, "nothing due", tick())
		require.Zero(t, queued(t, w.pool, url))
		require.Len(t, calls.asked(), asked)

		require.NoError(t, w.ResumeQueue(t.Context(), queue))
		require.Equal(t, 1, queued(t, w.pool, url))
		require.Equal(t, "answered 200", tick())
		require.Equal(t, 3, mustRun(t, w.Scheduler, scheduler.RunFilter{Queue: place, Limit: 10}).Succeeded)
		mustExec(t, w.pool, "DELETE FROM net.http_request_queue WHERE url = $1", url)
	}
}

// A pause of all queues is one of those that are declared later, too.
func TestPauseOfAllQueues(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	names := scheduler.JobNames{"a": succeed}
	s := newScheduler(t, func(c *scheduler.Config) { schema, c.JobNames = c.Schema, names })
	require.NoError(t, s.PauseQueue(t.Context(), scheduler.JobQueueAll))
	queues := queueConfigs{"late": {}, "ranked": {}, "serial": {Extends: scheduler.JobQueueBlocking}}
	undeclared, err := scheduler.New(pool, scheduler.Config{Schema: schema, JobNames: names, Queues: queues})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, undeclared.Shutdown(context.WithoutCancel(t.Context()))) })
	require.Zero(t, claimedIn(t, undeclared, "late", "serial", "default"))
	mustCreate(t, undeclared, "a", scheduler.JobData{Queue: "ranked", Priority: 1})
	require.Zero(t, claimedIn(t, undeclared, "ranked"))

	declared := newScheduler(t, func(c *scheduler.Config) { c.Schema, c.JobNames, c.Queues = schema, names, queues })
	require.Zero(t, claimedIn(t, declared, "late", "ranked", "serial", "default"))
	require.NoError(t, declared.ResumeQueue(t.Context(), "late"))
	require.Zero(t, claimedIn(t, s, "default"))
	require.Equal(t, 3, claimedIn(t, declared, "late"))
	require.NoError(t, declared.PauseQueue(t.Context(), "late"))
	require.NoError(t, s.ResumeQueue(t.Context(), scheduler.JobQueueAll))
	require.Equal(t, 12, claimedIn(t, declared, "late", "ranked", "serial", "default"))
	require.NoError(t, declared.Migrate(t.Context()))
	require.Equal(t, 4, claimedIn(t, declared, "late", "ranked", "serial", "default"))
}

// A claim under REPEATABLE READ may have got its snapshot before a pause.
func TestPauseBeforeAClaimUnderRepeatableRead(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	mustCreate(t, s, "a", scheduler.JobData{})
	addLease(t, pool, schema, time.Hour)
	err := pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
		mustExec(t, tx, "SELECT")
		require.NoError(t, s.PauseQueue(t.Context(), ""))
		_, err := tx.Exec(t.Context(), claimSQL(schema, "default", 1))
		return err
	})
	require.ErrorContains(t, err, "could not serialize access")
}

// claimedIn creates a job in each queue, and returns how many were run.
func claimedIn(t *testing.T, s *scheduler.Scheduler, queues ...scheduler.JobQueue) (picked int) {
	for _, queue := range queues {
		mustCreate(t, s, "a", scheduler.JobData{Queue: queue})
		picked += mustRun(t, s, scheduler.RunFilter{Queue: queue, Limit: 100, Status: scheduler.JobStatusAny}).Succeeded
	}
	return picked
}

func TestPauseInput(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema, c.Queues = c.Schema, queueConfigs{"own": {}} })
	only := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	paused := func() string {
		return mustQuery[string](t, pool, "SELECT coalesce(string_agg(name, ' ' ORDER BY name), '') FROM "+schema+".queues WHERE paused")
	}
	for _, change := range []func(context.Context, scheduler.JobQueue) error{s.PauseQueue, s.ResumeQueue} {
		for queue, names := range map[scheduler.JobQueue][]string{
			"outreach": {"outreach", "blocking, default, own"}, "Default": {"Default", "own"}, "failed": {"failed", "default"}, "a'b": {`unknown queue "a'b": known are`, "own"},
		} {
			err := change(t.Context(), queue)
			requireInputError(t, err, "queue", names...)
			require.ErrorIs(t, err, scheduler.ErrUnknownQueue)
		}
		requireInputError(t, change(t.Context(), "a\x00"), "queue")
		require.Empty(t, paused())
	}
	for _, function := range []string{"pause_queue", "resume_queue"} {
		_, err := pool.Exec(t.Context(), "SELECT "+schema+"."+function+"('outreach')")
		requirePgError(t, err, "42704", function, "outreach", "blocking, default, own", "Migrate")
		_, err = pool.Exec(t.Context(), "SELECT "+schema+"."+function+"('failed')")
		requirePgError(t, err, "22023", function, "failed", "default")
	}

	for range 2 {
		require.NoError(t, s.ResumeQueue(t.Context(), "own"))
		require.Empty(t, paused())
	}
	for range 2 {
		require.NoError(t, only.PauseQueue(t.Context(), ""))
		require.NoError(t, only.PauseQueue(t.Context(), "own"), "another service declared it")
		require.Equal(t, "default own", paused())
	}
	require.NoError(t, s.ResumeQueue(t.Context(), scheduler.JobQueueDefault))
	require.Equal(t, "own", paused())
	mustExec(t, pool, "SELECT "+schema+".pause_queue('*')")
	require.Equal(t, "blocking default own", paused())
	mustExec(t, pool, "SELECT "+schema+".resume_queue('own')")
	require.Equal(t, "blocking default", paused())
	mustExec(t, pool, "SELECT "+schema+".resume_queue('*')")
	require.Empty(t, paused())

	never, err := scheduler.New(pool, scheduler.Config{Schema: "never_migrated"})
	require.NoError(t, err)
	require.ErrorContains(t, never.PauseQueue(t.Context(), ""), "call Migrate first")
	closed := newClosedPool(t)
	gone, err := scheduler.New(closed, scheduler.Config{})
	require.NoError(t, err)
	require.NotErrorIs(t, gone.ResumeQueue(t.Context(), ""), scheduler.ErrInvalidInput)
}

func newClosedPool(t *testing.T) *pgxpool.Pool {
	pool := newPool(t)
	pool.Close()
	return pool
}

// Every process sees which queues are paused, also one that nobody declared.
func TestQueueStatsTellsOfPauses(t *testing.T) {
	t.Parallel()
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema, c.Queues = c.Schema, queueConfigs{"own": {}} })
	other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	undeclared, err := scheduler.New(newPool(t), scheduler.Config{Schema: schema, Queues: queueConfigs{"new": {}}})
	require.NoError(t, err)
	paused := func() map[scheduler.JobQueue]bool {
		stats, err := undeclared.QueueStats(t.Context())
		require.NoError(t, err)
		paused := map[scheduler.JobQueue]bool{}
		for _, q := range stats {
			paused[q.Queue] = q.Paused
		}
		return paused
	}
	all := func(is bool) map[scheduler.JobQueue]bool {
		return map[scheduler.JobQueue]bool{"default": is, "blocking": is, "own": is, "new": is}
	}
	require.Equal(t, all(false), paused())
	require.NoError(t, other.PauseQueue(t.Context(), "blocking"))
	want := all(false)
	want["blocking"] = true
	require.Equal(t, want, paused())
	require.NoError(t, other.PauseQueue(t.Context(), scheduler.JobQueueAll))
	require.Equal(t, all(true), paused())
	require.NoError(t, s.ResumeQueue(t.Context(), scheduler.JobQueueAll))
	require.Equal(t, all(false), paused())
}
