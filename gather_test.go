package scheduler_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// insertTracer sees every statement that creates jobs before it is sent.
type insertTracer struct{ before func() }

func (i insertTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "INSERT INTO") && strings.Contains(data.SQL, ".jobs ") {
		i.before()
	}
	return ctx
}

func (insertTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func newTracedPool(t *testing.T, before func()) *pgxpool.Pool {
	config, err := pgxpool.ParseConfig(shared.cluster.URL("postgres"))
	require.NoError(t, err)
	config.ConnConfig.Tracer = insertTracer{before}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

// holdTable locks the table of jobs against writes until the returned func is called.
func holdTable(t *testing.T, pool *pgxpool.Pool, schema string) (release func()) {
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	_, err = tx.Exec(t.Context(), "LOCK TABLE "+schema+".jobs IN SHARE MODE")
	require.NoError(t, err)
	return func() { require.NoError(t, tx.Commit(t.Context())) }
}

func TestCreationsThatComeTogetherShareStatements(t *testing.T) {
	t.Parallel()
	var statements atomic.Int32
	var schema string
	s := newSchedulerOn(t, newTracedPool(t, func() { statements.Add(1) }), func(c *scheduler.Config) { schema = c.Schema })
	pool := newPool(t)
	release := holdTable(t, pool, schema)

	const n = 400
	jobs := make([]*scheduler.Job, n)
	errs := make([]error, n)
	runAt := time.Now().Add(time.Hour)
	var group, begun sync.WaitGroup
	for i := range n {
		begun.Add(1)
		group.Go(func() {
			begun.Done()
			data := scheduler.JobData{Payload: i, MaxAttempts: 1 + i}
			if i%2 == 1 {
				data.RunAt = runAt
			}
			if i%100 == 7 {
				data.Payload = json.RawMessage("1e999999") // only Postgres can tell that this is no number
			}
			jobs[i], errs[i] = s.CreateJob(t.Context(), fmt.Sprintf("job_%d", i), data)
		})
	}
	begun.Wait()
	waitFor(t, func() bool { return statements.Load() > 0 })
	release()
	group.Wait()
	require.Less(t, int(statements.Load()), n, "the creations shared no statement")

	for i, job := range jobs {
		if i%100 == 7 {
			var input *scheduler.InputError
			require.ErrorAs(t, errs[i], &input)
			require.Equal(t, "payload", input.Field)
			require.Nil(t, job)
			continue
		}
		require.NoError(t, errs[i])
		stored, err := s.GetJob(t.Context(), job.ID)
		require.NoError(t, err)
		require.JSONEq(t, string(stored.Payload), string(job.Payload))
		stored.Payload = job.Payload
		require.Equal(t, stored, job)
		require.Equal(t, fmt.Sprintf("job_%d", i), job.Name)
	}
	var count int
	require.NoError(t, pool.QueryRow(t.Context(), "SELECT count(*) FROM "+schema+".jobs").Scan(&count))
	require.Equal(t, n-4, count, "a refused job took others with it, or was stored")
}

func TestCreationIsNotHeldUpByAnother(t *testing.T) {
	t.Parallel()
	stuck, free := make(chan struct{}), make(chan struct{})
	var once sync.Once
	s := newSchedulerOn(t, newTracedPool(t, func() {
		first := false
		once.Do(func() { first = true })
		if first {
			close(stuck)
			<-free
		}
	}), nil)
	var group sync.WaitGroup
	group.Go(func() {
		_, err := s.CreateJob(t.Context(), "first", scheduler.JobData{})
		require.NoError(t, err)
	})
	<-stuck
	for range 3 {
		_, err := s.CreateJob(t.Context(), "second", scheduler.JobData{})
		require.NoError(t, err)
	}
	close(free)
	group.Wait()
}

// A caller's context ends the waiting for what others hold up, and nothing is
// stored of what was not sent.
func TestCreationEndsWithItsContext(t *testing.T) {
	t.Parallel()
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	pool := newPool(t)
	release := holdTable(t, pool, schema)

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.CreateJob(ended, "ended", scheduler.JobData{})
	require.ErrorIs(t, err, context.Canceled)

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			_, err := s.CreateJob(ctx, "late", scheduler.JobData{})
			require.ErrorIs(t, err, context.DeadlineExceeded)
		})
	}
	group.Wait()
	release()
	job, err := s.CreateJob(t.Context(), "after", scheduler.JobData{})
	require.NoError(t, err)
	_, err = s.GetJob(t.Context(), job.ID)
	require.NoError(t, err)
}
