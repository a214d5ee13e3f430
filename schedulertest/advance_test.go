package schedulertest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/schedulertest"
)

// A backoff, a snooze and a time to run at, of hours each.
func TestAdvance(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{JobNames: scheduler.JobNames{
		"a": succeed,
		"retry": func(_ context.Context, job *scheduler.Job) (any, error) {
			if job.Attempt < 3 {
				return nil, scheduler.RetryAfter(time.Duration(job.Attempt)*time.Hour, errors.New("not yet"))
			}
			return nil, nil
		},
		"snooze": func(_ context.Context, job *scheduler.Job) (any, error) {
			if time.Since(job.CreatedAt) < 5*time.Hour {
				return nil, scheduler.Snooze(5 * time.Hour)
			}
			return nil, nil
		},
	}})
	began := time.Now()
	mustCreate(t, s, "retry", scheduler.JobData{})
	mustCreate(t, s, "snooze", scheduler.JobData{})
	mustCreate(t, s, "a", scheduler.JobData{RunAt: time.Now().Add(2 * time.Hour)})
	for _, want := range [][]string{
		{"retry failed 1", "snooze pending 0"}, // now
		{"retry failed 2"},                     // an hour later
		{"a succeeded 1"},                      // two
		{"retry succeeded 3"},                  // three
		{},
		{"snooze succeeded 1"}, // five
	} {
		require.Equal(t, want, statuses(schedulertest.Drain(t, s)))
		schedulertest.Advance(t, s, time.Hour)
	}
	require.Less(t, time.Since(began), time.Minute)
	schedulertest.Advance(t, s, 0)
	requireFails(t, func(tb testing.TB) { schedulertest.Advance(tb, s, -time.Second) }, "advance by -1s")
}

// All that is stored of a job is put back by the same time, and nothing else is
// changed.
func TestAdvanceMovesEveryTime(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{JobNames: scheduler.JobNames{"fail": fail, "a": succeed}})
	failed := mustCreate(t, s, "fail", scheduler.JobData{MaxAttempts: 2, Owner: "o"})
	schedulertest.RunJob(t, s, failed.ID)
	schedulertest.Advance(t, s, time.Hour)
	dead := schedulertest.RunJob(t, s, failed.ID)
	require.Len(t, dead.Errors, 2)

	const d = 100*24*time.Hour + 123456*time.Microsecond
	schedulertest.Advance(t, s, d+999*time.Nanosecond)
	moved, err := s.GetJob(t.Context(), dead.ID)
	require.NoError(t, err)
	dead.RunAt, dead.CreatedAt = dead.RunAt.Add(-d), dead.CreatedAt.Add(-d)
	for _, at := range []*time.Time{dead.StartedAt, dead.FinishedAt, &dead.Errors[0].At, &dead.Errors[1].At} {
		*at = at.Add(-d)
	}
	require.Equal(t, dead, moved)
}

// The tables have no time that Advance does not know, but for those it leaves.
func TestAdvanceKnowsEveryTime(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	s := schedulertest.New(t, pool, scheduler.Config{JobNames: scheduler.JobNames{"fail": fail}})
	job := mustCreate(t, s, "fail", scheduler.JobData{MaxAttempts: 1, UniqueKey: "k"})
	schedulertest.RunJob(t, s, job.ID)
	schema := schemaOf(s)
	_, err := pool.Exec(t.Context(), "UPDATE "+schema+".unique_keys SET asked_at = now()")
	require.NoError(t, err)
	const inRows = `SELECT format('%s.%s', c.table_name, c.column_name) FROM information_schema.columns c
		WHERE c.table_schema = $1 AND c.data_type LIKE 'timestamp%' ORDER BY 1`
	rows, err := pool.Query(t.Context(), inRows, schema)
	require.NoError(t, err)
	columns := []string{}
	for rows.Next() {
		var column string
		require.NoError(t, rows.Scan(&column))
		columns = append(columns, column)
	}
	require.NoError(t, rows.Err())
	for _, column := range []string{"jobs.run_at", "jobs.finished_at", "unique_keys.asked_at", "queue_workers.called_at", "leases.expires_at"} {
		require.Contains(t, columns, column)
	}

	times := func() string {
		return mustQuery[string](t, pool, `SELECT concat_ws(' ',
			(SELECT bool_and(run_at < now() - interval '1 hour' AND created_at < now() - interval '1 hour' AND started_at < now() - interval '1 hour'
				AND finished_at < now() - interval '1 hour') FROM `+schema+`.jobs),
			(SELECT bool_and(asked_at < now() - interval '1 hour') FROM `+schema+`.unique_keys),
			(SELECT bool_and(expires_at > now()) FROM `+schema+`.leases),
			(SELECT bool_and(applied_at > now() - interval '1 hour') FROM `+schema+`.schema_migrations))`)
	}
	require.Equal(t, "f f t t", times())
	schedulertest.Advance(t, s, time.Hour)
	require.Equal(t, "t t t t", times())
}

func TestAdvancePassesUniqueFor(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{JobNames: scheduler.JobNames{"a": succeed}})
	daily := scheduler.JobData{UniqueKey: "k", UniqueFor: 24 * time.Hour}
	first := mustCreate(t, s, "a", daily)
	require.Len(t, schedulertest.Drain(t, s), 1)
	schedulertest.Advance(t, s, 23*time.Hour)
	require.True(t, mustCreate(t, s, "a", daily).Duplicate)
	schedulertest.Advance(t, s, time.Hour)
	again := mustCreate(t, s, "a", daily)
	require.False(t, again.Duplicate)
	require.NotEqual(t, first.ID, again.ID)
}

// A move of the clock is not the end of a process: what one is running stays
// its own. Its resident loop, and that of another process, finds what is due.
func TestAdvanceLeavesLeases(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	began, finish := make(chan string), make(chan bool)
	config := scheduler.Config{
		PollInterval: 10 * time.Millisecond, Lease: time.Second,
		JobNames: scheduler.JobNames{"held": func(ctx context.Context, job *scheduler.Job) (any, error) {
			began <- job.ID
			select {
			case <-finish:
				return nil, nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}},
	}
	s := schedulertest.New(t, pool, config)
	held := mustCreate(t, s, "held", scheduler.JobData{})
	later := mustCreate(t, s, "held", scheduler.JobData{RunAt: time.Now().Add(time.Hour)})
	config.Schema, config.Logger = schemaOf(s), nil
	other, err := scheduler.New(pool, config)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, other.Shutdown(context.Background())) })
	for _, s := range []*scheduler.Scheduler{s, other} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Work(ctx) }()
		t.Cleanup(func() {
			cancel()
			require.NoError(t, <-ended)
		})
	}
	require.Equal(t, held.ID, <-began)
	schedulertest.Advance(t, s, time.Hour)
	require.Equal(t, later.ID, <-began, "and not the first one once more")
	close(finish)
	require.Eventually(t, func() bool {
		for _, id := range []string{held.ID, later.ID} {
			job, err := s.GetJob(t.Context(), id)
			if err != nil || job.Status != scheduler.JobStatusSucceeded || job.Attempt != 1 {
				return false
			}
		}
		return true
	}, 20*time.Second, 10*time.Millisecond)
}

// A transaction of the test itself would keep it waiting for ever.
func TestAdvanceDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	s := schedulertest.New(t, pool, scheduler.Config{})
	mustCreate(t, s, "a", scheduler.JobData{})
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	_, err = tx.Exec(t.Context(), "SELECT FROM "+schemaOf(s)+".jobs FOR UPDATE")
	require.NoError(t, err)
	requireFails(t, func(tb testing.TB) { schedulertest.Advance(tb, s, time.Hour) }, "lock timeout", "a transaction that is still open")
}

// Others lock jobs in the order of their ids, and a unique key before its job:
// so does Advance, lest one of the two be ended by Postgres.
func TestAdvanceLocksInTheOrderOfAllOthers(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	s := schedulertest.New(t, pool, scheduler.Config{})
	keyed := scheduler.JobData{UniqueKey: "k", OnDuplicate: scheduler.DuplicateReplace}
	mustCreate(t, s, "a", keyed)
	mustCreate(t, s, "a", scheduler.JobData{})
	mustCreate(t, s, "a", keyed) // now the first one's row is behind the second one's
	schema := schemaOf(s)

	for title, steps := range map[string][2]string{
		"ids":  {"SELECT FROM %s.jobs ORDER BY id LIMIT 1 FOR UPDATE", "SELECT FROM %s.jobs ORDER BY id DESC LIMIT 1 FOR UPDATE"},
		"keys": {"SELECT FROM %s.unique_keys FOR UPDATE", "SELECT FROM %s.jobs ORDER BY id FOR UPDATE"},
	} {
		tx, err := pool.Begin(t.Context())
		require.NoError(t, err)
		defer func() { _ = tx.Rollback(context.Background()) }()
		_, err = tx.Exec(t.Context(), fmt.Sprintf(steps[0], schema))
		require.NoError(t, err)
		advanced := make(chan *recorder, 1)
		go func() {
			advanced <- inTest(t, func(tb testing.TB) { schedulertest.Advance(tb, s, time.Hour) })
		}()
		require.Eventually(t, func() bool {
			return mustQuery[bool](t, pool, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%')`, schema)
		}, 20*time.Second, 10*time.Millisecond)
		_, err = tx.Exec(t.Context(), fmt.Sprintf(steps[1], schema))
		require.NoError(t, err, title)
		require.NoError(t, tx.Commit(t.Context()))
		require.Empty(t, (<-advanced).failures, title)
	}
}
