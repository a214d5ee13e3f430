package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func init() {
	// Runs 20 jobs, none of which returns.
	childRoles["hang with 20"] = func() {
		s := childScheduler(scheduler.Config{Lease: time.Second, Queues: queueConfigs{"mortal": {}}, JobNames: scheduler.JobNames{
			"a": func(context.Context, *scheduler.Job) (any, error) {
				fmt.Println("begun")
				select {}
			},
		}})
		_, err := s.Run(context.Background(), scheduler.RunFilter{Queue: "mortal", Limit: 20})
		exitOn(err)
	}
}

// mortal is a scheduler with the queue mortal, whose dead jobs are told to the
// job mourn.
type mortal struct {
	*scheduler.Scheduler
	pool   *pgxpool.Pool
	schema string
	told   chan scheduler.Job // by mourn
}

func newMortal(t *testing.T, configure func(*scheduler.Config)) *mortal {
	m := &mortal{pool: newPool(t), told: make(chan scheduler.Job, 100)}
	m.Scheduler = newSchedulerOn(t, m.pool, func(c *scheduler.Config) {
		m.configure(c)
		m.schema = c.Schema
		if configure != nil {
			configure(c)
		}
	})
	return m
}

func (m *mortal) configure(c *scheduler.Config) {
	c.Queues = queueConfigs{"mortal": {OnDead: "mourn"}}
	c.JobNames = scheduler.JobNames{
		"a": fail,
		"mourn": scheduler.Handle(func(_ context.Context, dead scheduler.Job) (any, error) {
			m.told <- dead
			return nil, nil
		}),
	}
}

// beside is another process.
func (m *mortal) beside(t *testing.T, configure func(*scheduler.Config)) *scheduler.Scheduler {
	return newSchedulerOn(t, newPool(t), func(c *scheduler.Config) {
		m.configure(c)
		c.Schema = m.schema
		if configure != nil {
			configure(c)
		}
	})
}

// mourning is how many jobs there are that were created for dead ones.
func (m *mortal) mourning(t *testing.T) int {
	t.Helper()
	return mustQuery[int](t, m.pool, "SELECT count(*) FROM "+m.schema+".jobs WHERE name = 'mourn'")
}

func TestOnDeadTellsWhy(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{}, 1)
	deaths := map[string]struct {
		handler scheduler.HandlerFunc
		why     string
	}{
		"error":  {fail, "failed as asked"},
		"cancel": {func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Cancel(errors.New("never")) }, "never"},
		"panic":  {func(context.Context, *scheduler.Job) (any, error) { panic("oops") }, "oops"},
		"timeout": {func(ctx context.Context, _ *scheduler.Job) (any, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, "job timeout"},
	}
	m := newMortal(t, func(c *scheduler.Config) {
		for name, death := range deaths {
			c.JobNames[name] = death.handler
		}
		c.JobNames["alive"] = func(_ context.Context, job *scheduler.Job) (any, error) {
			return nil, map[string]error{`"failed"`: errors.New("failed"), `"snoozed"`: scheduler.Snooze(time.Hour)}[string(job.Payload)]
		}
		c.JobNames["cancelled"] = func(ctx context.Context, _ *scheduler.Job) (any, error) {
			begun <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	other := m.beside(t, nil)
	mortal := scheduler.RunFilter{Queue: "mortal", Limit: 9}
	for name, death := range deaths {
		job := mustCreate(t, m.Scheduler, name, scheduler.JobData{Queue: "mortal", MaxAttempts: 1, Timeout: 20 * time.Millisecond, Payload: "large",
			Priority: 7, Owner: "ada", Tags: []string{"x", "y"}, Metadata: map[string]any{"a": 1}, UniqueKey: name})
		require.Equal(t, 1, mustRun(t, m.Scheduler, mortal).Dead)
		require.Equal(t, 1, mustRun(t, other, scheduler.RunFilter{Limit: 9}).Succeeded, name)
		told, dead := await(t, m.told), mustGet(t, m.Scheduler, job.ID)
		require.Contains(t, told.Errors[0].Error, death.why)
		require.Nil(t, told.Payload)
		require.Nil(t, told.Metadata)
		// But for that, it is what GetJob shows.
		told.Payload, told.Metadata, told.Timeout = dead.Payload, dead.Metadata, dead.Timeout
		require.Equal(t, dead, &told)
	}

	for _, verdict := range []string{"succeeded", "failed", "snoozed"} {
		mustCreate(t, m.Scheduler, "alive", scheduler.JobData{Queue: "mortal", Payload: verdict})
	}
	require.Equal(t, 3, mustRun(t, m.Scheduler, mortal).Picked)
	id := mustCreate(t, m.Scheduler, "cancelled", scheduler.JobData{Queue: "mortal"}).ID
	run := goRun(t.Context(), m.Scheduler, mortal)
	await(t, begun)
	mustCancel(t, other, id)
	require.Equal(t, 1, await(t, run).report.Cancelled)
	mustCreate(t, m.Scheduler, "error", scheduler.JobData{MaxAttempts: 1})
	require.Equal(t, 1, mustRun(t, m.Scheduler, scheduler.RunFilter{Limit: 9}).Dead, "in another queue")
	require.Equal(t, len(deaths), m.mourning(t), "no other job has died in this one")
}

// Whatever is in a job, what is told of it can be stored as any payload can.
func TestOnDeadTellsOfTheLargestJob(t *testing.T) {
	t.Parallel()
	m := newMortal(t, func(c *scheduler.Config) {
		c.JobNames["large"] = func(context.Context, *scheduler.Job) (any, error) {
			return nil, errors.New(strings.Repeat("\x01", 100_000))
		}
	})
	full := make([]string, 32)
	for i := range full {
		full[i] = strings.Repeat("\x02", 255) + string(rune('A'+i))
	}
	payload := `"` + strings.Repeat("p", 1<<20-2) + `"`
	job := mustCreate(t, m.Scheduler, "large", scheduler.JobData{Queue: "mortal", MaxAttempts: 25, Payload: json.RawMessage(payload),
		Owner: strings.Repeat("\x03", 256), Tags: full, Metadata: json.RawMessage(`{"m": "` + strings.Repeat("m", 16_000) + `"}`), UniqueKey: strings.Repeat("\x04", 256)})
	for range 25 {
		require.Equal(t, 1, mustRun(t, m.Scheduler, scheduler.RunFilter{Queue: "mortal", Status: scheduler.JobStatusAny}).Picked)
		passTime(t, m.pool, m.schema)
	}
	require.Less(t, mustQuery[int](t, m.pool, "SELECT octet_length(payload::text) FROM "+m.schema+".jobs WHERE name = 'mourn'"), 200<<10)
	require.Equal(t, 1, mustRun(t, m.Scheduler, scheduler.RunFilter{}).Succeeded)
	told := await(t, m.told)
	require.Len(t, told.Errors, 1)
	require.Equal(t, 25, told.Errors[0].Attempt)
	require.Equal(t, payload, string(mustGet(t, m.Scheduler, told.ID).Payload))
	require.Equal(t, job.ID, told.ID)
}

// The record of a death and the job for it are there together: one transaction
// has written both.
func TestOnDeadIsOfTheSameTransaction(t *testing.T) {
	t.Parallel()
	m := newMortal(t, nil)
	versions := "SELECT array_agg(DISTINCT xmin::text) FROM " + m.schema + ".jobs"
	mustCreateMany(t, m.Scheduler, 3, "a", scheduler.JobData{Queue: "mortal", MaxAttempts: 1})
	require.Equal(t, 3, mustRun(t, m.Scheduler, scheduler.RunFilter{Queue: "mortal", Limit: 9}).Dead)
	require.Equal(t, 3, m.mourning(t))
	deaths := mustQuery[[]string](t, m.pool, versions+" WHERE name = 'a'")
	require.Equal(t, deaths, mustQuery[[]string](t, m.pool, versions+" WHERE name = 'mourn'"))
}

// What tells of a dead job tells of no other one when it dies, so that there is
// an end; a dead job that is retried and dies again is told of again.
func TestOnDeadComesToAnEnd(t *testing.T) {
	t.Parallel()
	m := newMortal(t, func(c *scheduler.Config) {
		c.Queues["default"] = scheduler.QueueConfig{OnDead: "mourn"}
		c.JobNames["mourn"] = func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Cancel(nil) }
	})
	id := mustCreate(t, m.Scheduler, "a", scheduler.JobData{Queue: "mortal", MaxAttempts: 1}).ID
	for deaths := 1; deaths < 4; deaths++ {
		require.Equal(t, 1, mustRun(t, m.Scheduler, scheduler.RunFilter{Queue: "mortal", Limit: 9}).Dead)
		require.Equal(t, 1, mustRun(t, m.Scheduler, scheduler.RunFilter{Limit: 9}).Dead)
		require.Equal(t, deaths, m.mourning(t))
		mustRetry(t, m.Scheduler, id)
	}
	// One of the same name that somebody has created is a job as any other.
	mustCreate(t, m.Scheduler, "mourn", scheduler.JobData{})
	require.Equal(t, 1, mustRun(t, m.Scheduler, scheduler.RunFilter{Limit: 9}).Dead)
	require.Equal(t, 5, m.mourning(t))
}

// A record that is sent again, because the answer was lost, is no second death.
func TestOnDeadOfAFinishWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	wired, w, name := newWires(t)
	m := &mortal{pool: pool, told: make(chan scheduler.Job, 9)}
	started, release := make(chan struct{}), make(chan struct{})
	s := newSchedulerOn(t, wired, func(c *scheduler.Config) {
		m.configure(c)
		m.schema = c.Schema
		c.JobNames["a"] = func(context.Context, *scheduler.Job) (any, error) {
			close(started)
			<-release
			return nil, scheduler.Cancel(errors.New("failed"))
		}
	})
	mustCreate(t, s, "a", scheduler.JobData{Queue: "mortal"})
	run := goRun(t.Context(), s, scheduler.RunFilter{Queue: "mortal"})
	await(t, started)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	mustExec(t, tx, "SELECT FROM "+m.schema+".jobs FOR UPDATE") // which a finish needs
	close(release)
	waitBlocked(t, pool, name)
	w.cut()
	require.NoError(t, tx.Rollback(t.Context()))
	waitFor(t, func() bool { return m.mourning(t) == 1 })
	w.mend()
	r := await(t, run)
	require.NoError(t, r.err)
	require.Equal(t, 1, r.report.Dead)
	require.Equal(t, 1, m.mourning(t))
}

// The jobs of a killed process are rescued by two others and by SQL at once.
func TestOnDeadOfARescue(t *testing.T) {
	t.Parallel()
	m := newMortal(t, nil)
	ids := mustCreateMany(t, m.Scheduler, 20, "a", scheduler.JobData{Queue: "mortal", MaxAttempts: 1})
	name := unique()
	c := startChild(t, "hang with 20", "SCHEMA="+m.schema, "PGAPPNAME="+name)
	for range ids {
		require.Equal(t, "begun", c.Line(t))
	}
	c.Kill()
	waitGone(t, m.pool, name)
	runOutLeases(t, m.pool, m.schema)
	var all sync.WaitGroup
	errs := make(chan error, 9)
	for _, s := range []*scheduler.Scheduler{m.Scheduler, m.beside(t, nil)} {
		all.Go(func() {
			_, err := s.Run(t.Context(), scheduler.RunFilter{Queue: "mortal"})
			errs <- err
		})
	}
	all.Go(func() {
		_, err := m.pool.Exec(t.Context(), "SELECT FROM "+m.schema+".rescue()")
		errs <- err
	})
	all.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	require.Equal(t, 20, m.mourning(t))
	require.Equal(t, 20, mustRun(t, m.Scheduler, scheduler.RunFilter{Limit: 99}).Succeeded)
	told := map[string]bool{}
	for range ids {
		job := await(t, m.told)
		require.Contains(t, job.Errors[0].Error, "lease lost")
		told[job.ID] = true
	}
	require.Len(t, told, 20)
}

// A late verdict over a job that was rescued and died by that is no second death.
func TestOnDeadOfALateVerdict(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	m := newMortal(t, func(c *scheduler.Config) {
		c.JobNames["a"] = func(context.Context, *scheduler.Job) (any, error) {
			close(started)
			<-release
			return nil, errors.New("late")
		}
	})
	mustCreate(t, m.Scheduler, "a", scheduler.JobData{Queue: "mortal", MaxAttempts: 1})
	run := goRun(t.Context(), m.Scheduler, scheduler.RunFilter{Queue: "mortal"})
	await(t, started)
	runOutLeases(t, m.pool, m.schema)
	mustExec(t, m.pool, "SELECT FROM "+m.schema+".rescue()")
	require.Equal(t, 1, m.mourning(t))
	close(release)
	await(t, run)
	require.Equal(t, 1, m.mourning(t))
}

// A dead job's payload is no matter of the job that is told of it, and may be
// large: it is not read.
func TestOnDeadReadsNoPayload(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"told": succeed}
		c.Queues = queueConfigs{"default": {OnDead: "told"}}
	})
	mustExec(t, pool, `INSERT INTO `+schema+`.jobs (id, name, status, lane, finished_at, payload)
		SELECT `+schema+`.new_job_id(), 'a', 'dead', NULL, now(), to_jsonb((SELECT string_agg(md5(i::text), '') FROM generate_series(1, 2000) AS i))`)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	read := func() (blocks int) {
		require.NoError(t, tx.QueryRow(t.Context(), `SELECT pg_stat_get_xact_blocks_fetched(c.reltoastrelid)
			FROM pg_class c WHERE c.oid = '`+schema+`.jobs'::regclass`).Scan(&blocks))
		return blocks
	}
	before := read()
	_, err = tx.Exec(t.Context(), `SELECT `+schema+`.tell_dead(ARRAY(SELECT id FROM `+schema+`.jobs))`)
	require.NoError(t, err)
	require.Equal(t, before, read())
	var told int
	require.NoError(t, tx.QueryRow(t.Context(), `SELECT count(*) FROM `+schema+`.jobs WHERE name = 'told'`).Scan(&told))
	require.Equal(t, 1, told)
	_, err = tx.Exec(t.Context(), `SELECT length(payload::text) FROM `+schema+`.jobs`)
	require.NoError(t, err)
	require.Greater(t, read(), before, "where a payload is read, that is seen")
}
