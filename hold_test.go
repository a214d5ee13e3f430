package scheduler_test

import (
	"context"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// The same as with a long job beside it: runs so short that no heartbeat falls
// into one go on renewing the lease under which the job is stranded.
func TestShortRunsStrandNoLostClaim(t *testing.T) {
	t.Parallel()
	wired, w, name := newWires(t)
	var schema string
	s := newSchedulerOn(t, wired, func(c *scheduler.Config) {
		schema, c.Lease = c.Schema, 3*time.Second
		c.JobNames = scheduler.JobNames{"a": succeed}
	})
	job := mustCreate(t, s, "a", scheduler.JobData{Queue: scheduler.JobQueueBlocking})
	loseClaim(t, s, w, name, schema, job)

	waitFor(t, func() bool { // the other queue keeps the lease alive
		mustRun(t, s, scheduler.RunFilter{})
		return mustRun(t, s, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking}).Succeeded == 1
	})
	require.Equal(t, 1, mustGet(t, s, job.ID).Attempt, "it had never begun")
}

// A lease ends with its last user, so a look that is counted twice would end one under
// which others run.
func TestTwoLooksForALostClaimAreCountedOnce(t *testing.T) { // not beside others, which look too
	started, release := make(chan struct{}), make(chan struct{})
	s := newScheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			close(started)
			<-release
			return nil, nil
		}}
	})
	mustCreate(t, s, "a", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, started) // so there is a lease
	stacks := make([]byte, 8<<20)
	left := scheduler.LookForALostClaim(s, func() int {
		return strings.Count(string(stacks[:runtime.Stack(stacks, true)]), "lockClaims(")
	})
	require.Zero(t, left)
	close(release)
	require.Equal(t, 1, await(t, run).report.Succeeded)
}

// Enough jobs to be settled, and handlers that hold all connections of the pool
// for longer than the lease: what waits for one must not hold up the renewal.
func TestSettlingDoesNotHoldUpTheRenewal(t *testing.T) {
	t.Parallel()
	config := newPool(t).Config()
	config.MaxConns = 4
	pool := newPoolWith(t, config)
	release := make(chan struct{})
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		c.Lease = 2 * time.Second
		c.JobNames = scheduler.JobNames{
			"query": func(ctx context.Context, _ *scheduler.Job) (any, error) {
				_, err := pool.Exec(ctx, "SELECT pg_sleep(6)")
				return nil, err
			},
			"wait": func(ctx context.Context, _ *scheduler.Job) (any, error) {
				select {
				case <-release:
				case <-ctx.Done():
				}
				return nil, ctx.Err()
			},
		}
	})
	mustCreateMany(t, s, 40, "wait", scheduler.JobData{})
	ids := mustCreateMany(t, s, 4, "query", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: 44})
	waitFor(t, func() bool { return mustGet(t, s, ids[3]).Status == scheduler.JobStatusSucceeded })
	close(release)
	report := await(t, run).report
	require.Equal(t, 44, report.Succeeded)
	require.Zero(t, report.Lost)
}

// Jobs that were claimed ahead and could not start are due at once, whatever
// the poll interval.
func TestJobsHandedBackAreTakenAgain(t *testing.T) {
	t.Parallel()
	const short, long = 3000, 12
	release := make(chan struct{})
	done := make(chan string, short+long)
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Concurrency, c.PollInterval = 4, time.Hour
		c.JobNames = scheduler.JobNames{
			"short": func(context.Context, *scheduler.Job) (any, error) { done <- "short"; return nil, nil },
			"long":  func(context.Context, *scheduler.Job) (any, error) { <-release; done <- "long"; return nil, nil },
		}
	})
	mustCreateMany(t, s, short, "short", scheduler.JobData{})
	mustCreateMany(t, s, long, "long", scheduler.JobData{})
	goWork(t, t.Context(), s)
	for range short {
		require.Equal(t, "short", await(t, done))
	}
	// Longer than a claimed job waits for its start.
	time.AfterFunc(1500*time.Millisecond, func() { close(release) })
	for range long {
		require.Equal(t, "long", await(t, done))
	}
}

// A job that somebody has locked keeps its own record waiting, and no other's.
func TestRecordsAreNotHeldUpByAnother(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	started, release := make(chan struct{}), make(chan struct{})
	s := newScheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": succeed, "locked": func(context.Context, *scheduler.Job) (any, error) {
			close(started)
			<-release
			return nil, nil
		}}
	})
	locked := mustCreate(t, s, "locked", scheduler.JobData{}).ID
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, started)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), "SELECT FROM "+schema+".jobs WHERE id = $1 FOR UPDATE", locked)
	require.NoError(t, err)
	close(release)
	waitFor(t, func() bool {
		return mustQuery[int](t, pool, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1",
			"%"+schema+"%finish(%") == 1
	})

	ctx, cancel := context.WithTimeout(t.Context(), patience/2) // less than a try to record may take
	defer cancel()
	for range 3 {
		id := mustCreate(t, s, "a", scheduler.JobData{}).ID
		other := goRun(ctx, s, scheduler.RunFilter{})
		select {
		case result := <-other:
			require.Equal(t, 1, result.report.Succeeded)
		case <-ctx.Done():
			require.Fail(t, "a record waits for another one's lock")
		}
		require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, s, id).Status)
	}
	require.NoError(t, tx.Rollback(t.Context()))
	require.Equal(t, 1, await(t, run).report.Succeeded)
}

// No row may be such that a claim can't read it.
func TestTheTableRefusesTimesWithoutEnd(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": succeed}
	})
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	_, err := pool.Exec(t.Context(), "UPDATE "+schema+".jobs SET run_at = '-infinity'")
	require.ErrorContains(t, err, "job_time_is_finite")
	mustExec(t, pool, "UPDATE "+schema+`.jobs SET errors = '["by hand"]'`)
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded, "%s", id)

	_, err = scheduler.New(pool, scheduler.Config{BasePath: "/a/../b"})
	requireInputError(t, err, "base_path", "/a/../b")
}

// hangingTracer holds up the first claim until it is released.
type hangingTracer struct {
	hung    atomic.Bool
	hangs   chan struct{} // closed when it does
	release chan struct{}
}

func (h *hangingTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, ".claim(") && h.hung.CompareAndSwap(false, true) {
		close(h.hangs)
		<-h.release
	}
	return ctx
}

func (*hangingTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// The runs of a process claim one after another, but one that hangs does not
// hold up the others.
func TestAClaimThatHangsHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	tracer := &hangingTracer{hangs: make(chan struct{}), release: make(chan struct{})}
	config := newPool(t).Config()
	config.ConnConfig.Tracer = tracer
	s := newSchedulerOn(t, newPoolWith(t, config), func(c *scheduler.Config) { c.JobNames = scheduler.JobNames{"a": succeed} })
	mustCreateMany(t, s, 2, "a", scheduler.JobData{})
	hanging := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, tracer.hangs)
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)
	close(tracer.release)
	require.Equal(t, 1, await(t, hanging).report.Succeeded)
}
