package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// runOutLeases lets all leases of a schema run out, of which their holders learn
// with the next renewal.
func runOutLeases(t *testing.T, db database, schema string) {
	mustExec(t, db, "UPDATE "+schema+".leases SET expires_at = now() - interval '1 second'")
}

// A handler may run for several times the lease. One write renews everything
// that the process holds.
func TestHeartbeatKeepsJobsForAsLongAsTheyRun(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	const n = 20
	started, release := make(chan struct{}, n), make(chan struct{})
	configure := func(c *scheduler.Config) {
		c.Lease = time.Second
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			started <- struct{}{}
			select {
			case <-release:
			case <-ctx.Done():
			}
			return nil, context.Cause(ctx)
		}}
	}
	s := newScheduler(t, func(c *scheduler.Config) { configure(c); schema = c.Schema })
	other := newScheduler(t, func(c *scheduler.Config) { configure(c); c.Schema = schema })
	mustCreateMany(t, s, n, "a", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: n})
	for range n {
		await(t, started)
	}
	// Fails if there is more than one.
	expiryOfAll := `SELECT expires_at FROM ` + schema + `.leases WHERE id = (SELECT DISTINCT lease_id FROM ` + schema + `.jobs)`
	const versions = "SELECT string_agg(xmin::text, ' ' ORDER BY id) FROM "
	before := mustQuery[string](t, pool, versions+schema+".jobs")
	began := mustQuery[time.Time](t, pool, "SELECT clock_timestamp()")
	renewals := map[time.Time]bool{}
	waitFor(t, func() bool {
		require.Zero(t, mustRun(t, other, scheduler.RunFilter{Status: scheduler.JobStatusAny, Limit: n}).Picked)
		expiry := mustQuery[time.Time](t, pool, expiryOfAll)
		renewals[expiry] = true
		return expiry.After(began.Add(3500 * time.Millisecond))
	})
	require.Greater(t, len(renewals), 2)
	require.Equal(t, before, mustQuery[string](t, pool, versions+schema+".jobs"), "a renewal writes no job")
	require.Contains(t, mustQuery[string](t, pool, "SELECT DISTINCT holder FROM "+schema+".leases"), strconv.Itoa(os.Getpid()))
	close(release)
	r := await(t, run)
	require.NoError(t, r.err)
	require.Equal(t, n, r.report.Succeeded)
	require.NoError(t, s.Shutdown(t.Context()))
	require.NoError(t, other.Shutdown(t.Context()))
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".leases"))
}

// Handlers that take every connection of the pool for longer than the lease
// must not make the process lose it.
func TestHeartbeatNeedsNoConnectionThatHandlersMayTake(t *testing.T) {
	t.Parallel()
	config := newPool(t).Config()
	config.MaxConns = 2
	pool := newPoolWith(t, config)
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		c.Lease = 3 * time.Second // a machine that is busy has to make a connection in a third of it
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			_, err := pool.Exec(ctx, "SELECT pg_sleep(4)")
			return nil, err
		}}
	})
	mustCreateMany(t, s, 2, "a", scheduler.JobData{})
	report := mustRun(t, s, scheduler.RunFilter{Limit: 2})
	require.Equal(t, 2, report.Succeeded)
	require.Zero(t, report.Lost)
}

// A process that has lost its lease is told so by the end of its handlers'
// contexts, the job is run by another one, and what the first one comes to
// changes nothing.
func TestLateWritesChangeNothing(t *testing.T) {
	t.Parallel()
	const runOut = `UPDATE %s.leases SET expires_at = now() - interval '1 second'`
	for verdict, late := range map[string]error{
		"succeeded": nil, "failed": errors.New("late"), "dead": scheduler.Cancel(nil), "snoozed": scheduler.Snooze(time.Hour),
	} {
		t.Run(verdict, func(t *testing.T) {
			t.Parallel()
			testLateWrite(t, runOut, late)
		})
	}
	// A row that somebody has deleted protects no job, and strands none.
	t.Run("deleted", func(t *testing.T) {
		t.Parallel()
		testLateWrite(t, `DELETE FROM %s.leases`, nil)
	})
}

func testLateWrite(t *testing.T, cut string, late error) {
	pool := newPool(t)
	var schema string
	started, lost, release := make(chan struct{}), make(chan error, 1), make(chan struct{})
	defer close(release)
	first := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Lease = c.Schema, 2*time.Second
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			close(started)
			<-ctx.Done()
			lost <- context.Cause(ctx)
			<-release
			return "late", late
		}}
	})
	startedAgain, releaseAgain := make(chan struct{}), make(chan struct{})
	second := newScheduler(t, func(c *scheduler.Config) {
		c.Schema, c.PollInterval = schema, 20*time.Millisecond
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			close(startedAgain)
			<-releaseAgain
			return "in time", nil
		}}
	})
	id := mustCreate(t, first, "a", scheduler.JobData{}).ID
	run := goRun(t.Context(), first, scheduler.RunFilter{})
	await(t, started)
	mustExec(t, pool, fmt.Sprintf(cut, schema))
	require.ErrorIs(t, await(t, lost), scheduler.ErrLeaseLost)
	goWork(t, t.Context(), second)
	select {
	case <-startedAgain:
	case <-time.After(patience):
		require.FailNow(t, "nobody takes the job over")
	}
	job := mustGet(t, second, id)
	require.Equal(t, scheduler.JobStatusRunning, job.Status)
	require.Equal(t, 2, job.Attempt, "the lost attempt counts")
	require.Len(t, job.Errors, 1)
	require.Equal(t, 1, job.Errors[0].Attempt)
	require.Contains(t, job.Errors[0].Error, "lease lost")

	release <- struct{}{}
	r := await(t, run)
	require.NoError(t, r.err)
	require.Equal(t, 1, r.report.Lost)
	require.Equal(t, 1, r.report.Picked)
	require.Zero(t, r.report.Succeeded+r.report.Failed+r.report.Dead+r.report.Snoozed+r.report.HandedBack)
	require.Equal(t, job, mustGet(t, second, id))

	close(releaseAgain)
	waitFor(t, func() bool { return mustGet(t, second, id).Status == scheduler.JobStatusSucceeded })
	require.JSONEq(t, `"in time"`, string(mustGet(t, second, id).Result))
}

// What a rescue has made of a job is no end that the late attempt has recorded,
// even if it comes to the same.
func TestALateEndThatIsThatOfTheRescue(t *testing.T) {
	t.Parallel()
	for rescued, late := range map[scheduler.JobStatus]error{
		scheduler.JobStatusDead: errors.New("late"), scheduler.JobStatusPending: scheduler.Snooze(time.Hour),
	} {
		t.Run(string(rescued), func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			var schema string
			started, release := make(chan struct{}), make(chan struct{})
			first := newScheduler(t, func(c *scheduler.Config) {
				schema = c.Schema
				c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
					close(started)
					<-release
					return nil, late
				}}
			})
			second := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
			attempts := 2
			if rescued == scheduler.JobStatusDead {
				attempts = 1
			}
			id := mustCreate(t, first, "a", scheduler.JobData{MaxAttempts: attempts}).ID
			run := goRun(t.Context(), first, scheduler.RunFilter{})
			await(t, started)
			mustExec(t, pool, "UPDATE "+schema+".leases SET expires_at = now() - interval '1 second'")
			mustRun(t, second, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking})
			job := mustGet(t, second, id)
			require.Equal(t, rescued, job.Status)

			close(release)
			r := await(t, run)
			require.NoError(t, r.err)
			require.Equal(t, 1, r.report.Lost)
			require.Zero(t, r.report.Dead+r.report.Snoozed)
			require.Equal(t, job, mustGet(t, second, id))
		})
	}
}

// A process that can't reach its lease gives it up before anybody else may take
// its jobs, by the database's clock, which here is this machine's too.
func TestALeaseIsGivenUpBeforeOthersMayTakeTheJobs(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	started, ended := make(chan struct{}), make(chan time.Time, 1)
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Lease = c.Schema, 4*time.Second
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			context.AfterFunc(ctx, func() { ended <- time.Now() })
			close(started)
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}}
	})
	job := mustCreate(t, s, "a", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, started)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	expiry := mustQuery[time.Time](t, tx, "SELECT expires_at FROM "+schema+".leases FOR UPDATE")
	at := await(t, ended)
	require.True(t, at.Before(expiry), "%s after it", at.Sub(expiry))
	require.NoError(t, tx.Rollback(t.Context()))
	r := await(t, run)
	require.NoError(t, r.err)
	// Nobody had taken the job, so what its attempt came to may still count.
	require.Equal(t, 1, r.report.Failed)
	require.Contains(t, mustGet(t, s, job.ID).Errors[0].Error, "lease lost")
}

func init() {
	// Runs one job, whose handler ends the process.
	childRoles["suicide"] = func() {
		s := childScheduler(scheduler.Config{Lease: time.Second, JobNames: scheduler.JobNames{
			"a": func(context.Context, *scheduler.Job) (any, error) {
				fmt.Println("begun")
				self, _ := os.FindProcess(os.Getpid())
				return nil, self.Kill()
			},
		}})
		_, err := s.Run(context.Background(), scheduler.RunFilter{Queue: scheduler.JobQueue(os.Getenv("QUEUE"))})
		fmt.Println("survived", err)
	}
}

// A job that kills its process is tried as often as others, and then dead.
// A process that goes on after it was stopped may come to what it has claimed
// before it comes to the timer of its lease.
func TestNoHandlerBeginsWhenTheLeaseIsOver(t *testing.T) {
	t.Parallel()
	var s *scheduler.Scheduler
	var began atomic.Int32
	s = newScheduler(t, func(c *scheduler.Config) {
		c.Concurrency, c.Lease = 1, time.Hour // nothing renews it meanwhile
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			began.Add(1)
			scheduler.LoseLeaseUnnoticed(s)
			return nil, nil
		}}
	})
	mustCreateMany(t, s, 3, "a", scheduler.JobData{})
	report := mustRun(t, s, scheduler.RunFilter{Limit: 3})
	require.EqualValues(t, 1, began.Load())
	require.Equal(t, 1, report.Succeeded)
}

func TestAJobThatKillsItsProcessDies(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		t.Run(string(queue), func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			var schema string
			s := newScheduler(t, func(c *scheduler.Config) {
				schema, c.JobNames = c.Schema, scheduler.JobNames{"a": succeed}
			})
			id := mustCreate(t, s, "a", scheduler.JobData{MaxAttempts: 2, Queue: queue}).ID
			next := mustCreate(t, s, "a", scheduler.JobData{Queue: queue, RunAt: time.Now().Add(time.Hour)}).ID
			for attempt := range 2 {
				c := startChild(t, "suicide", "SCHEMA="+schema, "QUEUE="+string(queue))
				require.Equal(t, "begun", c.Line(t))
				require.Error(t, c.Wait(t))
				job := mustGet(t, s, id)
				require.Equal(t, scheduler.JobStatusRunning, job.Status)
				require.Equal(t, attempt+1, job.Attempt, "counted when it began")
				require.Zero(t, mustRun(t, s, scheduler.RunFilter{Queue: queue}).Picked, "its lease is good")
				waitFor(t, func() bool {
					return mustQuery[bool](t, pool, "SELECT bool_and(expires_at < now()) FROM "+schema+".leases WHERE holder LIKE '%:' || $1::text", strconv.Itoa(c.cmd.Process.Pid))
				})
			}
			passTime(t, pool, schema)
			require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Queue: queue, Limit: 10}).Succeeded, "the next one only")
			require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, s, next).Status)
			job := mustGet(t, s, id)
			require.Equal(t, scheduler.JobStatusDead, job.Status)
			require.Equal(t, 2, job.Attempt)
			require.NotNil(t, job.FinishedAt)
			require.Len(t, job.Errors, 2)
			require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".leases WHERE expires_at < now()"), "nothing is left of the processes")
		})
	}
}
