package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// batchTracer counts what is sent in one round trip with something else, and claims
// that are sent by themselves.
type batchTracer struct{ sent, alone atomic.Int32 }

func (b *batchTracer) TraceBatchStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceBatchStartData) context.Context {
	if data.Batch.Len() == 2 {
		b.sent.Add(1)
	}
	return ctx
}
func (*batchTracer) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (*batchTracer) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}
func (b *batchTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, ".claim(") {
		b.alone.Add(1)
	}
	return ctx
}
func (*batchTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// Where one job runs at once, its record and the claim of the next one are one
// transaction, so one runs after another without a claim by itself.
func TestARecordTakesAlongTheClaimOfTheNextJob(t *testing.T) {
	t.Parallel()
	const n = 100
	tracer := &batchTracer{}
	config := newPool(t).Config()
	config.ConnConfig.Tracer = tracer
	pool := newPoolWith(t, config)
	var schema string
	var running, most atomic.Int32
	ran := make(chan string, n)
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		schema, c.Queues = c.Schema, queueConfigs{"limited": {MaxConcurrency: 1}}
		c.JobNames = scheduler.JobNames{"a": func(_ context.Context, job *scheduler.Job) (any, error) {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			ran <- job.ID
			return nil, nil
		}}
	})
	ids := mustCreateMany(t, s, n, "a", scheduler.JobData{Queue: "limited"})
	goWork(t, t.Context(), s)
	for _, id := range ids {
		require.Equal(t, id, await(t, ran))
	}
	waitFor(t, func() bool { return mustGet(t, s, ids[n-1]).Status == scheduler.JobStatusSucceeded })
	require.EqualValues(t, 1, most.Load())
	require.Greater(t, tracer.sent.Load(), int32(n/2), "where something has to be waited for, a claim is made by itself")
	require.Less(t, tracer.alone.Load(), int32(n/2), "an end that made room in this way makes none again")
	requireNothingCounts(t, pool, schema)
}

// workingOn is a scheduler that works on one queue with a MaxConcurrency of 1, in which a
// job waits behind one that runs.
func workingOn(t *testing.T, configure ...func(*scheduler.Config)) (g *gated, first, second string) {
	g = newGated(t, scheduler.QueueConfig{MaxConcurrency: 1}, configure...)
	first, second = g.create(t, ""), g.create(t, "")
	goWork(t, t.Context(), g.Scheduler)
	require.Equal(t, []string{first}, g.starts(t, 1))
	return g, first, second
}

// A claim that has to wait for others keeps no record waiting.
func TestARecordDoesNotWaitForTheClaimOfTheNextJob(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g, first, second := workingOn(t)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	mustExec(t, tx, "SELECT FROM "+g.schema+".queue_limits FOR UPDATE") // as another claim does
	g.gate(first) <- scheduler.RetryAfter(time.Hour, errors.New("failed"))
	waitFor(t, func() bool { return mustGet(t, g.Scheduler, first).Status == scheduler.JobStatusFailed })
	job := mustGet(t, g.Scheduler, first)
	require.Equal(t, 1, job.Attempt)
	require.Len(t, job.Errors, 1)
	require.Empty(t, g.begun)
	require.NoError(t, tx.Rollback(t.Context()))
	require.Equal(t, []string{second}, g.starts(t, 1))
	g.gate(second) <- nil
	waitFor(t, func() bool { return mustGet(t, g.Scheduler, second).Status == scheduler.JobStatusSucceeded })
	requireNothingCounts(t, pool, g.schema)
}

// holdStarts lets claims wait, in the middle of them, from a call of hold to one of release.
func holdStarts(t *testing.T, pool *pgxpool.Pool, schema string) (hold func() (release func())) {
	mustExec(t, pool, fmt.Sprintf(`
		CREATE FUNCTION %[1]s.hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			WHILE NOT pg_try_advisory_xact_lock_shared(hashtext('%[1]s')) LOOP
				PERFORM pg_sleep(0.01); -- no lock_timeout has it give way
			END LOOP;
			RETURN NEW;
		END $$;
		CREATE TRIGGER hold BEFORE UPDATE ON %[1]s.jobs FOR EACH ROW WHEN (NEW.status = 'running' AND OLD.status = 'pending')
			EXECUTE FUNCTION %[1]s.hold()`, schema))
	return func() (release func()) {
		tx, err := pool.Begin(t.Context())
		require.NoError(t, err)
		t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
		mustExec(t, tx, "SELECT pg_advisory_xact_lock(hashtext($1))", schema)
		return func() { require.NoError(t, tx.Rollback(t.Context())) }
	}
}

// heldTogether is a scheduler at work on a queue with a MaxConcurrency of 1. A record of
// the first of its jobs that takes along the claim of the second one is on its way, and
// held until release.
type heldTogether struct {
	*gated
	pool    *pgxpool.Pool // not its own,
	wires   *wires        // which has these
	stop    func()        // ends Work
	ids     []string
	release func()
}

func newHeldTogether(t *testing.T) *heldTogether {
	wired, w, name := newWires(t)
	g := &gated{begun: make(chan *scheduler.Job, 1000), gates: map[string]chan error{}}
	h := &heldTogether{gated: g, pool: newPool(t), wires: w}
	g.Scheduler = newSchedulerOn(t, wired, func(c *scheduler.Config) {
		g.schema, c.Lease, c.Queues = c.Schema, 10*time.Second, queueConfigs{"limited": {MaxConcurrency: 1}}
		c.JobNames = scheduler.JobNames{"work": g.handle}
	})
	for range 20 {
		h.ids = append(h.ids, g.create(t, ""))
	}
	h.stop = goWork(t, t.Context(), g.Scheduler)
	require.Equal(t, h.ids[:1], g.starts(t, 1))
	for hold := holdStarts(t, h.pool, g.schema); ; h.ids = h.ids[1:] {
		h.release = hold()
		g.gate(h.ids[0]) <- scheduler.RetryAfter(time.Hour, errors.New("failed"))
		waitFor(t, func() bool {
			return mustQuery[bool](t, h.pool, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1 AND wait_event = 'PgSleep')`, name)
		})
		if h.status(t, h.ids[0]) == "running" {
			return h
		}
		h.release() // something had to be waited for: the record went alone
		require.Equal(t, h.ids[1:2], g.starts(t, 1))
	}
}

func (h *heldTogether) status(t *testing.T, id string) string {
	return mustQuery[string](t, h.pool, "SELECT status FROM "+h.schema+".jobs WHERE id = $1::text::uuid", id)
}

// end lets all jobs but the first one end.
func (h *heldTogether) end() {
	for _, id := range h.ids[1:] {
		h.gate(id) <- nil
	}
}

// Both are done although the answer is lost: the one counts once, and the other one
// is handed back and runs once.
func TestARecordWithAClaimWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	h := newHeldTogether(t)
	first, second := h.ids[0], h.ids[1]
	h.wires.cut()
	h.wires.mend() // nothing else fails
	h.release()
	waitFor(t, func() bool { return h.status(t, second) == "running" })
	require.Equal(t, "failed", h.status(t, first))

	require.Equal(t, []string{second}, h.starts(t, 1))
	h.end()
	waitFor(t, func() bool { return h.status(t, second) == "succeeded" })
	job := mustGet(t, h.Scheduler, first)
	require.Equal(t, scheduler.JobStatusFailed, job.Status)
	require.Equal(t, 1, job.Attempt)
	require.Len(t, job.Errors, 1)
	require.Equal(t, 1, mustGet(t, h.Scheduler, second).Attempt)
	require.Equal(t, h.ids[2:3], h.starts(t, 1), "once")
}

// Nothing is claimed any more when Work has returned.
func TestWorkWaitsForARecordThatTakesAlongAClaim(t *testing.T) { // not beside others, which wait too
	h := newHeldTogether(t)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		h.stop()
	}()
	stacks := make([]byte, 8<<20)
	waitFor(t, func() bool {
		all := string(stacks[:runtime.Stack(stacks, true)])
		return slices.ContainsFunc(strings.Split(all, "\n\n"), func(stack string) bool {
			// For that, or before it in a claim of its own, which waits for the other one in the database.
			return strings.Contains(stack, "queueLoop).work") && (strings.Contains(stack, "RWMutex).Lock") || strings.Contains(stack, ").claimBy("))
		})
	})
	h.release()
	await(t, stopped)
	require.Equal(t, h.ids[1:2], h.starts(t, 1), "it was claimed before that")
	h.end()
	waitFor(t, func() bool { return h.status(t, h.ids[1]) == "succeeded" })
	require.Equal(t, "pending", h.status(t, h.ids[2]))
}

// Where a rate lets none start in place of those that have ended, the next one starts
// when it does, not with the next poll.
func TestJobsInPlaceOfOthersGoOnWhenARateLetsThem(t *testing.T) {
	t.Parallel()
	for title, limits := range map[string]scheduler.QueueConfig{
		"queue": {MaxConcurrency: 1, Rate: scheduler.Rate{Limit: 2, Per: 100 * time.Millisecond}},
		"key":   {MaxConcurrency: 1, RatePerKey: scheduler.Rate{Limit: 2, Per: 100 * time.Millisecond}},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			ran := make(chan *scheduler.Job, 10)
			s := newScheduler(t, func(c *scheduler.Config) {
				c.PollInterval, c.Queues = time.Hour, queueConfigs{"limited": limits}
				c.JobNames = scheduler.JobNames{"a": telling(ran)}
			})
			ids := mustCreateMany(t, s, 10, "a", scheduler.JobData{Queue: "limited", Key: "key"})
			goWork(t, t.Context(), s)
			for _, id := range ids {
				require.Equal(t, id, await(t, ran).ID)
			}
		})
	}
}

// A job that becomes due while a record is under way that takes along a claim is not
// seen by that, and found all the same.
func TestAJobThatBecomesDueMeanwhileIsFound(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	ran := make(chan *scheduler.Job, 1)
	begun, release := make(chan struct{}), make(chan struct{})
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.PollInterval, c.Queues = c.Schema, time.Hour, queueConfigs{"limited": {MaxConcurrency: 1}}
		c.JobNames = scheduler.JobNames{"next": telling(ran), "first": func(context.Context, *scheduler.Job) (any, error) {
			close(begun)
			<-release
			return nil, nil
		}}
	})
	first := mustCreate(t, s, "first", scheduler.JobData{Queue: "limited"})
	goWork(t, t.Context(), s)
	await(t, begun)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	mustExec(t, tx, "SELECT FROM "+schema+".jobs WHERE id = $1::text::uuid FOR UPDATE", first.ID)
	close(release)
	waitFor(t, func() bool {
		return mustQuery[bool](t, pool, "SELECT EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND a.query LIKE '%'||$1||'%')", schema)
	})
	next := mustCreate(t, s, "next", scheduler.JobData{Queue: "limited"})
	require.NoError(t, tx.Rollback(t.Context()))
	require.Equal(t, next.ID, await(t, ran).ID)
}

// A queue that goes on in this way takes no room for which another one waits. (Its
// jobs are long, so none is claimed ahead.)
func TestJobsInPlaceOfOthersLeaveRoomForOtherQueues(t *testing.T) {
	t.Parallel()
	const n = 12
	var ran atomic.Int32
	other := make(chan int32, 1)
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Concurrency, c.Queues = 1, queueConfigs{"limited": {MaxConcurrency: 1}}
		c.JobNames = scheduler.JobNames{
			"long": func(context.Context, *scheduler.Job) (any, error) {
				ran.Add(1)
				time.Sleep(100 * time.Millisecond)
				return nil, nil
			},
			"other": func(context.Context, *scheduler.Job) (any, error) {
				other <- ran.Load()
				return nil, nil
			},
		}
	})
	mustCreateMany(t, s, n, "long", scheduler.JobData{Queue: "limited"})
	goWork(t, t.Context(), s)
	waitFor(t, func() bool { return ran.Load() > 0 })
	mustCreate(t, s, "other", scheduler.JobData{})
	require.Less(t, await(t, other), int32(n))
}

// What is claimed in place of others while Shutdown begins is worked or handed back.
func TestShutdownBesideJobsInPlaceOfOthers(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	const n = 300
	var schema string
	var ended atomic.Int32
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Queues = c.Schema, queueConfigs{"limited": {MaxConcurrency: 3}}
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			ended.Add(1)
			return nil, nil
		}}
	})
	mustCreateMany(t, s, n, "a", scheduler.JobData{Queue: "limited"})
	goWork(t, t.Context(), s)
	waitFor(t, func() bool { return ended.Load() >= n/10 })
	require.NoError(t, s.Shutdown(t.Context()))
	succeeded := mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'succeeded'")
	require.EqualValues(t, ended.Load(), succeeded)
	require.Equal(t, n-succeeded, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'pending' AND attempt = 0"))
	requireNothingCounts(t, pool, schema)
}
