package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// What the engine's tests say most often: a step that must not fail.

func mustCreate(t *testing.T, s *scheduler.Scheduler, name string, data scheduler.JobData) *scheduler.Job {
	t.Helper()
	job, err := s.CreateJob(t.Context(), name, data)
	require.NoError(t, err)
	return job
}

// mustCreateMany creates n jobs of one kind, which come in that order.
func mustCreateMany(t *testing.T, s *scheduler.Scheduler, n int, name string, data scheduler.JobData) []string {
	t.Helper()
	jobs := make([]scheduler.NewJob, n)
	for i := range jobs {
		jobs[i] = scheduler.NewJob{Name: name, JobData: data}
	}
	ids, err := s.CreateJobs(t.Context(), jobs)
	require.NoError(t, err)
	return ids
}

func mustGet(t *testing.T, s *scheduler.Scheduler, id string) *scheduler.Job {
	t.Helper()
	job, err := s.GetJob(t.Context(), id)
	require.NoError(t, err)
	return job
}

func mustRun(t *testing.T, s *scheduler.Scheduler, filter scheduler.RunFilter) *scheduler.RunReport {
	t.Helper()
	report, err := s.Run(t.Context(), filter)
	require.NoError(t, err)
	return report
}

// await receives what should come at once.
func await[T any](t *testing.T, c <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-c:
	case <-time.After(patience):
		require.FailNow(t, "nothing comes")
	}
	return value
}

// ran is what a run in the background came to.
type ran struct {
	report *scheduler.RunReport
	err    error
}

func goRun(ctx context.Context, s *scheduler.Scheduler, filter scheduler.RunFilter) <-chan ran {
	c := make(chan ran, 1)
	go func() {
		report, err := s.Run(ctx, filter)
		c <- ran{report, err}
	}()
	return c
}

type database interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

func mustQuery[T any](t *testing.T, db database, sql string, args ...any) (value T) {
	t.Helper()
	require.NoError(t, db.QueryRow(t.Context(), sql, args...).Scan(&value))
	return value
}

func mustExec(t *testing.T, db database, sql string, args ...any) {
	t.Helper()
	_, err := db.Exec(t.Context(), sql, args...)
	require.NoError(t, err)
}

func succeed(context.Context, *scheduler.Job) (any, error) { return nil, nil }

func fail(context.Context, *scheduler.Job) (any, error) { return nil, errors.New("failed as asked") }

// passTime makes what waits for its time due now.
func passTime(t *testing.T, db database, schema string) {
	t.Helper()
	mustExec(t, db, `UPDATE `+schema+`.jobs SET run_at = now() WHERE status IN ('pending', 'failed') AND run_at > now()`)
}

// requireInputError checks that an error is about this field, tells its kind
// through every wrap, names the value, and is of a readable length.
func requireInputError(t *testing.T, err error, field string, names ...string) {
	t.Helper()
	require.ErrorIs(t, err, scheduler.ErrInvalidInput)
	var input *scheduler.InputError
	require.ErrorAs(t, err, &input)
	require.Equal(t, field, input.Field)
	for _, name := range names {
		require.ErrorContains(t, err, name)
	}
	require.Less(t, len(err.Error()), 600)
}

func requireSameJSON(t *testing.T, expected any, actual json.RawMessage) {
	t.Helper()
	text, err := json.Marshal(expected)
	require.NoError(t, err)
	require.JSONEq(t, string(text), string(actual))
}

// newPoolWith is newPool with the test's own settings.
func newPoolWith(t *testing.T, config *pgxpool.Config) *pgxpool.Pool {
	t.Helper()
	throughPooler(config)
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}
