package schedulertest_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/schedulertest"
)

const testSchemas = `SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'test\_%'`

// Not parallel: it counts the schemas of all tests.
func TestNew(t *testing.T) {
	pool := newPool(t)
	var first, second *scheduler.Scheduler
	r := inTest(t, func(tb testing.TB) {
		config := scheduler.Config{Schema: "scheduler", JobNames: scheduler.JobNames{"fail": fail}}
		first, second = schedulertest.New(tb, pool, config), schedulertest.New(tb, pool, config)
	})
	require.Empty(t, r.failures)
	require.Equal(t, 2, mustQuery[int](t, pool, testSchemas))
	require.False(t, mustQuery[bool](t, pool, "SELECT to_regnamespace('scheduler') IS NOT NULL"))

	job := mustCreate(t, first, "fail", scheduler.JobData{MaxAttempts: 1})
	_, err := second.GetJob(t.Context(), job.ID)
	require.ErrorIs(t, err, scheduler.ErrJobNotFound)
	require.Equal(t, scheduler.JobStatusDead, schedulertest.RunJob(t, first, job.ID).Status)
	require.Contains(t, r.logged(), "failed as asked")

	r.end()
	require.Empty(t, r.failures)
	require.Zero(t, mustQuery[int](t, pool, testSchemas))
	_, err = first.Run(t.Context(), scheduler.RunFilter{})
	require.ErrorIs(t, err, scheduler.ErrShuttingDown)
}

// Its end waits for what runs, and tells what keeps the schema from going.
func TestTheEndOfATest(t *testing.T) {
	pool := newPool(t)
	began, finish, ran := make(chan bool), make(chan bool), make(chan error, 1)
	r := inTest(t, func(tb testing.TB) {
		s := schedulertest.New(tb, pool, scheduler.Config{JobNames: scheduler.JobNames{
			"slow": func(context.Context, *scheduler.Job) (any, error) {
				close(began)
				<-finish
				return nil, nil
			},
		}})
		mustCreate(t, s, "slow", scheduler.JobData{})
		go func() {
			report, err := s.Run(context.WithoutCancel(t.Context()), scheduler.RunFilter{})
			if err == nil && report.Succeeded != 1 {
				err = scheduler.ErrLeaseLost
			}
			ran <- err
		}()
		<-began
	})
	go func() { close(finish) }()
	r.end()
	require.NoError(t, <-ran)
	require.Empty(t, r.failures)

	r = inTest(t, func(tb testing.TB) {
		pool := newPool(r.TB.(*testing.T))
		schedulertest.New(tb, pool, scheduler.Config{})
		pool.Close()
	})
	r.end()
	require.Len(t, r.failures, 1)
	require.Contains(t, r.failures[0], "the pool to be open")
	_, err := pool.Exec(t.Context(), "DO $$ DECLARE s text; BEGIN FOR s IN SELECT nspname FROM pg_namespace WHERE nspname LIKE 'test\\_%' LOOP EXECUTE 'DROP SCHEMA ' || s || ' CASCADE'; END LOOP; END $$")
	require.NoError(t, err)
}

func TestNewFailsTheTest(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	requireFails(t, func(tb testing.TB) { schedulertest.New(tb, nil, scheduler.Config{}) }, "pool: expected a pool")
	requireFails(t, func(tb testing.TB) { schedulertest.New(tb, pool, scheduler.Config{Concurrency: -1}) }, "concurrency")
	requireFails(t, func(tb testing.TB) { schedulertest.NewFake(tb, scheduler.Config{Concurrency: -1}) }, "concurrency")
	closed := newPool(t)
	closed.Close()
	requireFails(t, func(tb testing.TB) { schedulertest.New(tb, closed, scheduler.Config{}) }, "closed pool")
}
