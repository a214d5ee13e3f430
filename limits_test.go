package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// gated has a handler "work" that says which job has begun, and returns what it
// is told to for the job's payload.
type gated struct {
	*scheduler.Scheduler
	schema string
	begun  chan *scheduler.Job

	mu    sync.Mutex
	gates map[string]chan error // by id
}

// newGated has one queue, "limited".
func newGated(t *testing.T, limits scheduler.QueueConfig, configure ...func(*scheduler.Config)) *gated {
	g := &gated{begun: make(chan *scheduler.Job, 1000), gates: map[string]chan error{}}
	g.Scheduler = newScheduler(t, func(c *scheduler.Config) {
		c.Queues = queueConfigs{"limited": limits}
		c.JobNames = scheduler.JobNames{"work": g.handle, "ok": succeed}
		for _, change := range configure {
			change(c)
		}
		g.schema = c.Schema
	})
	return g
}

func (g *gated) handle(ctx context.Context, job *scheduler.Job) (any, error) {
	g.begun <- job
	select {
	case err := <-g.gate(job.ID):
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (g *gated) gate(id string) chan error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gates[id] == nil {
		g.gates[id] = make(chan error, 1)
	}
	return g.gates[id]
}

func (g *gated) create(t *testing.T, key string) string {
	return mustCreate(t, g.Scheduler, "work", scheduler.JobData{Queue: "limited", Key: key}).ID
}

// claim starts a run of up to so many jobs and returns those that begin, of
// which there are to be n.
func (g *gated) start(t *testing.T, limit, n int) (ids []string, run <-chan ran) {
	t.Helper()
	run = goRun(t.Context(), g.Scheduler, scheduler.RunFilter{Queue: "limited", Limit: limit})
	return g.starts(t, n), run
}

// starts are the ids of the next n jobs that begin.
func (g *gated) starts(t *testing.T, n int) (ids []string) {
	t.Helper()
	for range n {
		ids = append(ids, await(t, g.begun).ID)
	}
	return ids
}

// nothingStarts runs what is due, which is nothing.
func (g *gated) nothingStarts(t *testing.T) *scheduler.RunReport {
	t.Helper()
	report := mustRun(t, g.Scheduler, scheduler.RunFilter{Queue: "limited", Status: scheduler.JobStatusAny, Limit: 100})
	require.Zero(t, report.Picked)
	return report
}

func TestMaxConcurrencyHoldsOverRuns(t *testing.T) {
	t.Parallel()
	g := newGated(t, scheduler.QueueConfig{MaxConcurrency: 3})
	var ids []string
	for range 5 {
		ids = append(ids, g.create(t, ""))
	}
	begun, run := g.start(t, 10, 3)
	require.ElementsMatch(t, ids[:3], begun, "the oldest go first")
	report := g.nothingStarts(t)
	require.NotNil(t, report.NextDueAt, "they may be lost")
	require.True(t, report.NextDueAt.After(time.Now()), "none is due as long as they run")

	// A run goes on as its jobs are finished, to its limit.
	g.gate(ids[0]) <- nil
	require.Equal(t, ids[3:4], g.starts(t, 1))
	g.gate(ids[3]) <- errors.New("failed as asked")
	require.Equal(t, ids[4:5], g.starts(t, 1))
	g.nothingStarts(t)
	for _, i := range []int{1, 2, 4} {
		g.gate(ids[i]) <- nil
	}
	report = await(t, run).report
	require.Equal(t, []int{5, 4, 1}, []int{report.Picked, report.Succeeded, report.Failed})
	requireNothingCounts(t, newPool(t), g.schema)
}

// Whatever ends an attempt frees its slot, once.
func TestASlotIsFreedByWhateverEndsAnAttempt(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{MaxConcurrency: 1, MaxAttempts: 2}, func(c *scheduler.Config) {
		c.JobNames["complete"] = func(ctx context.Context, job *scheduler.Job) (any, error) {
			return nil, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "SELECT FROM "+c.Schema+".complete($1::text::uuid, 1, 'null')", job.ID)
				return err
			})
		}
	})
	ends := map[string]error{
		"success": nil, "failure": errors.New("failed as asked"), "death": scheduler.Cancel(nil),
		"snooze": scheduler.Snooze(time.Hour), "retry later": scheduler.RetryAfter(time.Hour, nil),
	}
	for title, end := range ends {
		id := g.create(t, "")
		_, run := g.start(t, 1, 1)
		other := g.create(t, "")
		g.nothingStarts(t)
		g.gate(id) <- end
		await(t, run)
		begun, run := g.start(t, 1, 1)
		require.Equal(t, []string{other}, begun, title)
		g.gate(other) <- nil
		require.Equal(t, 1, await(t, run).report.Succeeded, title)
	}
	mustCreate(t, g.Scheduler, "complete", scheduler.JobData{Queue: "limited"})
	mustRun(t, g.Scheduler, scheduler.RunFilter{Queue: "limited"})

	// Called off while it runs.
	id := g.create(t, "")
	_, run := g.start(t, 1, 1)
	mustCancel(t, g.Scheduler, id)
	require.Equal(t, 1, await(t, run).report.Cancelled)
	mustCreate(t, g.Scheduler, "ok", scheduler.JobData{Queue: "limited"})
	require.Equal(t, 1, mustRun(t, g.Scheduler, scheduler.RunFilter{Queue: "limited"}).Succeeded)
	requireNothingCounts(t, pool, g.schema)
}

// What runs and is deleted or changed by hand frees its slot with the next clean-up.
func TestASlotIsFreedByChangesByHand(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	for _, statement := range []string{"DELETE FROM %s.jobs", "TRUNCATE %s.jobs CASCADE", "UPDATE %s.jobs SET status = 'pending', lease_id = NULL"} {
		g := newGated(t, scheduler.QueueConfig{MaxConcurrency: 1, MaxConcurrencyPerKey: 1})
		id := g.create(t, "a")
		_, run := g.start(t, 1, 1)
		mustExec(t, pool, fmt.Sprintf(statement, g.schema))
		next := id
		if !strings.HasPrefix(statement, "UPDATE") {
			next = g.create(t, "a")
		}
		g.nothingStarts(t)
		mustExec(t, pool, "SELECT FROM "+g.schema+".clean_up_counts()")
		begun, other := g.start(t, 1, 1)
		require.Equal(t, []string{next}, begun, statement)
		g.gate(id) <- nil
		g.gate(next) <- nil
		require.Equal(t, 1, await(t, run).report.Lost)
		require.Equal(t, 1, await(t, other).report.Succeeded)
		requireNothingCounts(t, pool, g.schema)
	}
}

// requireNothingCounts: no job takes up a limit, and none is taken to run.
func requireNothingCounts(t *testing.T, pool *pgxpool.Pool, schema string) {
	t.Helper()
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE slot < 0 OR counted"))
	require.Zero(t, mustQuery[int](t, pool, fmt.Sprintf(`SELECT coalesce(sum(l.running), 0)::int - coalesce((SELECT sum(e.n) FROM %[1]s.ends e), 0)::int
		FROM %[1]s.queue_limits l`, schema)))
}

// A job whose process is gone takes up its slot until it is rescued.
func TestALostJobCountsUntilItIsRescued(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	for title, limits := range map[string]scheduler.QueueConfig{"queue": {MaxConcurrency: 1}, "key": {MaxConcurrencyPerKey: 1}} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			g := newGated(t, limits)
			lost := g.create(t, "a")
			next := mustCreate(t, g.Scheduler, "ok", scheduler.JobData{Queue: "limited", Key: "a"}).ID
			_, run := g.start(t, 1, 1)
			mustExec(t, pool, "UPDATE "+g.schema+".jobs SET lease_id = gen_random_uuid(), run_at = now() WHERE id = $1::text::uuid", lost)
			mustExec(t, pool, "INSERT INTO "+g.schema+".leases SELECT lease_id, 'lost', now() + interval '1 hour' FROM "+g.schema+".jobs WHERE id = $1::text::uuid", lost)
			g.nothingStarts(t)
			mustExec(t, pool, "UPDATE "+g.schema+".leases SET expires_at = now() WHERE holder = 'lost'")
			require.True(t, mustQuery[bool](t, pool, "SELECT "+g.schema+".next_due('limited') <= now()"))
			mustExec(t, pool, "SELECT FROM "+g.schema+".rescue()")
			require.Equal(t, scheduler.JobStatusPending, mustGet(t, g.Scheduler, lost).Status)
			if title == "queue" { // else it keeps its key
				mustExec(t, pool, "UPDATE "+g.schema+".jobs SET run_at = run_at - interval '1 hour' WHERE id = $1::text::uuid", lost)
			}
			// Of any status: such a run has not come behind that job yet.
			again := goRun(t.Context(), g.Scheduler, scheduler.RunFilter{Queue: "limited", Status: scheduler.JobStatusAny})
			require.Equal(t, []string{lost}, g.starts(t, 1))
			g.nothingStarts(t)
			require.Equal(t, scheduler.JobStatusPending, mustGet(t, g.Scheduler, next).Status)
			for range 2 { // the attempt that was lost, too, first or last
				g.gate(lost) <- nil
				select {
				case r := <-run:
					require.Equal(t, 1, r.report.Lost)
				case r := <-again:
					require.Equal(t, 1, r.report.Succeeded)
				}
			}
			require.Equal(t, 1, mustRun(t, g.Scheduler, scheduler.RunFilter{Queue: "limited"}).Succeeded)
		})
	}
}

// Limits count from Migrate on, with what runs then.
func TestLimitsCountWhatRunsWhenTheyAreSet(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{})
	ids := []string{g.create(t, "a"), g.create(t, "a"), g.create(t, "b"), g.create(t, "b")}
	begun, run := g.start(t, 3, 3)
	require.ElementsMatch(t, ids[:3], begun)
	for _, limits := range []scheduler.QueueConfig{{MaxConcurrency: 3}, {MaxConcurrencyPerKey: 1}, {MaxConcurrency: 2, MaxConcurrencyPerKey: 9}} {
		limit(t, g, limits)
		g.nothingStarts(t)
	}
	limit(t, g, scheduler.QueueConfig{MaxConcurrency: 4})
	last, again := g.start(t, 3, 1)
	require.Equal(t, ids[3:], last)
	limit(t, g, scheduler.QueueConfig{})
	requireNothingCounts(t, pool, g.schema)
	for _, id := range ids {
		g.gate(id) <- nil
	}
	require.Equal(t, 3, await(t, run).report.Succeeded)
	require.Equal(t, 1, await(t, again).report.Succeeded)
}

// limit sets other limits, as another process.
func limit(t *testing.T, g *gated, limits scheduler.QueueConfig) {
	s, err := scheduler.New(newPool(t), scheduler.Config{
		Schema: g.schema, Queues: queueConfigs{"limited": limits}, JobNames: scheduler.JobNames{"work": g.handle},
	})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
}

// What is locked is passed over, and nobody waits for it; in a key that is in
// order, nothing comes before it.
func TestClaimsPassOverLockedJobsOfLimitedQueues(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{MaxConcurrency: 2, MaxConcurrencyPerKey: 1})
	locked, same, other := g.create(t, "a"), g.create(t, "a"), g.create(t, "b")
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	mustExec(t, tx, "SELECT FROM "+g.schema+".jobs WHERE id = $1::text::uuid FOR UPDATE", locked)
	begun, run := g.start(t, 10, 1)
	require.Equal(t, []string{other}, begun)
	require.NoError(t, tx.Rollback(t.Context()))
	begun, again := g.start(t, 10, 1)
	require.Equal(t, []string{locked}, begun)
	for _, id := range []string{locked, other, same} {
		g.gate(id) <- nil
	}
	await(t, run)
	await(t, again)
}

func TestLimitsThatCannotBe(t *testing.T) {
	t.Parallel()
	for expected, limits := range map[string]scheduler.QueueConfig{
		"max concurrency -1":                   {MaxConcurrency: -1},
		"max concurrency 1000001":              {MaxConcurrency: 1_000_001},
		"max concurrency per key -2":           {MaxConcurrencyPerKey: -2},
		"key round -3":                         {KeyRound: -3},
		"max pending -4":                       {MaxPending: -4},
		"rate of 0 per 1s":                     {Rate: scheduler.Rate{Per: time.Second}},
		"rate of 5 per 0s":                     {Rate: scheduler.Rate{Limit: 5}},
		"rate per key of -1 per 1s":            {RatePerKey: scheduler.Rate{Limit: -1, Per: time.Second}},
		"rate per key of 1 per 1ns":            {RatePerKey: scheduler.Rate{Limit: 1, Per: 1}},
		"runs one job at a time":               {Extends: scheduler.JobQueueBlocking, MaxConcurrency: 1},
		"expected no limits but MaxPending":    {Extends: scheduler.JobQueueBlocking, Rate: scheduler.Rate{Limit: 1, Per: time.Second}},
		"rate of 1 per 8784h0m0.000001s: expe": {Rate: scheduler.Rate{Limit: 1, Per: 366*24*time.Hour + time.Microsecond}},
	} {
		_, err := scheduler.New(newPool(t), scheduler.Config{Queues: queueConfigs{"mine": limits}})
		requireInputError(t, err, "queues", `"mine"`, expected)
	}
}

// Claims beside each other in one queue don't exceed its limits.
func TestManyClaimsAtOnceKeepTheLimits(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	running, most := map[string]int{}, map[string]int{}
	full := make(chan struct{}) // closed when the limit is reached for the first time
	handler := func(ctx context.Context, job *scheduler.Job) (any, error) {
		mu.Lock()
		for _, key := range []string{"", job.Key} {
			running[key]++
			most[key] = max(most[key], running[key])
		}
		if running[""] == 5 {
			select {
			case <-full:
			default:
				close(full)
			}
		}
		mu.Unlock()
		select {
		case <-full:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		time.Sleep(time.Millisecond) // work, during which others could overlap
		mu.Lock()
		defer mu.Unlock()
		running[""]--
		running[job.Key]--
		return nil, nil
	}
	var schema string
	configure := func(c *scheduler.Config) {
		if schema != "" {
			c.Schema = schema
		}
		schema = c.Schema
		c.Queues = queueConfigs{"limited": {MaxConcurrency: 5, MaxConcurrencyPerKey: 2}}
		c.JobNames = scheduler.JobNames{"work": handler}
	}
	var all []*scheduler.Scheduler
	for range 3 {
		all = append(all, newScheduler(t, configure))
	}
	var jobs []scheduler.NewJob
	for i := range 300 {
		jobs = append(jobs, scheduler.NewJob{Name: "work", JobData: scheduler.JobData{Queue: "limited", Key: fmt.Sprint(i / 2 % 7)}})
	}
	_, err := all[0].CreateJobs(t.Context(), jobs)
	require.NoError(t, err)
	for _, s := range all {
		goWork(t, t.Context(), s)
	}
	pool := newPool(t)
	waitFor(t, func() bool {
		return mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'succeeded'") == 300
	})
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, 5, most[""])
	delete(most, "")
	keys := []int{}
	for _, n := range most {
		keys = append(keys, n)
	}
	require.Equal(t, 2, slices.Max(keys))
}

// Saying the same again changes nothing and waits for nobody: Migrate is called
// whenever a service starts.
func TestMigrateLeavesTheSameLimits(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{MaxConcurrency: 3, Rate: scheduler.Rate{Limit: 5, Per: time.Second}})
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	mustExec(t, tx, "SELECT FROM "+g.schema+".queue_limits FOR UPDATE")
	mustExec(t, tx, "SELECT pg_advisory_xact_lock_shared(hashtextextended($1 || '.' || q, 7041974)) FROM unnest('{default,blocking,limited}'::text[]) AS q", g.schema)
	require.NoError(t, g.Migrate(t.Context()))
	// A service that only creates jobs has no say in limits.
	creator, err := scheduler.New(pool, scheduler.Config{Schema: g.schema, Queues: queueConfigs{"limited": {}}})
	require.NoError(t, err)
	require.NoError(t, creator.Migrate(t.Context()))
	require.NoError(t, tx.Rollback(t.Context()))
	require.Equal(t, "3 5 00:00:01", mustQuery[string](t, pool, "SELECT concat_ws(' ', max_running, rate, rate_per) FROM "+g.schema+".queue_limits"))
}
