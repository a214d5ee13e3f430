package scheduler_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
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
	t.Cleanup(func() { go pool.Close() }) // not waited for: a panic in a tracer leaves its connection in use
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

// together creates n jobs at once while the table is held, so that they come
// together, and returns what became of them and how many statements that took.
func together(t *testing.T, n int, prepare func(pool *pgxpool.Pool, schema string), create func(s *scheduler.Scheduler, i int) (*scheduler.Job, error)) (
	s *scheduler.Scheduler, jobs []*scheduler.Job, errs []error, sent int,
) {
	var statements atomic.Int32
	var schema string
	s = newSchedulerOn(t, newTracedPool(t, func() { statements.Add(1) }), func(c *scheduler.Config) { schema = c.Schema })
	pool := newPool(t)
	prepare(pool, schema)
	release := holdTable(t, pool, schema)
	jobs, errs = make([]*scheduler.Job, n), make([]error, n)
	var group, begun sync.WaitGroup
	for i := range n {
		begun.Add(1)
		group.Go(func() {
			begun.Done()
			jobs[i], errs[i] = create(s, i)
		})
	}
	begun.Wait()
	waitFor(t, func() bool { return statements.Load() > 0 })
	release()
	group.Wait()
	return s, jobs, errs, int(statements.Load())
}

func TestCreationsThatComeTogetherShareStatements(t *testing.T) {
	t.Parallel()
	const n = 400
	runAt := time.Now().Add(time.Hour)
	s, jobs, errs, sent := together(t, n, func(*pgxpool.Pool, string) {}, func(s *scheduler.Scheduler, i int) (*scheduler.Job, error) {
		data := scheduler.JobData{Payload: i, MaxAttempts: 1 + i}
		if i%2 == 1 {
			data.RunAt = runAt
		}
		return s.CreateJob(t.Context(), fmt.Sprintf("job_%d", i), data)
	})
	require.Less(t, sent, n/2)
	for i, job := range jobs {
		require.NoError(t, errs[i])
		stored := mustGet(t, s, job.ID)
		require.Equal(t, stored, job)
		require.Equal(t, fmt.Sprintf("job_%d", i), job.Name)
		require.Equal(t, strconv.Itoa(i), string(job.Payload))
	}
}

// What Postgres refuses of one job is told to its caller only.
func TestRefusedCreationTakesNoOtherWithIt(t *testing.T) {
	t.Parallel()
	const n = 100
	s, jobs, errs, _ := together(t, n, func(pool *pgxpool.Pool, schema string) {
		mustExec(t, pool, "ALTER TABLE "+schema+".jobs ADD CONSTRAINT no_bad CHECK (name NOT LIKE 'bad%')")
	}, func(s *scheduler.Scheduler, i int) (*scheduler.Job, error) {
		name := "good"
		if i%25 == 7 {
			name = "bad"
		}
		return s.CreateJob(t.Context(), name, scheduler.JobData{Payload: i})
	})
	for i, job := range jobs {
		if i%25 == 7 {
			var refused *pgconn.PgError
			require.ErrorAs(t, errs[i], &refused)
			require.Equal(t, "no_bad", refused.ConstraintName)
			require.Nil(t, job)
			continue
		}
		require.NoError(t, errs[i])
		require.Equal(t, strconv.Itoa(i), string(mustGet(t, s, job.ID).Payload))
	}
}

// stuckPool is a pool whose first creation is stuck until free is closed, and
// whose other ones do what then says.
func stuckPool(t *testing.T, then func()) (pool *pgxpool.Pool, stuck, free chan struct{}) {
	stuck, free = make(chan struct{}), make(chan struct{})
	var once atomic.Bool
	return newTracedPool(t, func() {
		if once.CompareAndSwap(false, true) {
			close(stuck)
			<-free
			return
		}
		then()
	}), stuck, free
}

func TestCreationIsNotHeldUpByAnother(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	pool, stuck, free := stuckPool(t, func() {})
	s := newSchedulerOn(t, pool, nil)
	var group sync.WaitGroup
	group.Go(func() { mustCreate(t, s, "first", scheduler.JobData{}) })
	await(t, stuck)
	for range 3 {
		_, err := s.CreateJob(ctx, "second", scheduler.JobData{})
		require.NoError(t, err)
	}
	close(free)
	group.Wait()
}

// A hook of the pool may do anything: whoever waits gets an answer.
func TestCreationsSurviveAPanicInATracer(t *testing.T) {
	t.Parallel()
	var calm atomic.Bool
	pool, stuck, free := stuckPool(t, func() {
		if !calm.Load() {
			panic("no tracing today")
		}
	})
	s := newSchedulerOn(t, pool, nil)
	var group sync.WaitGroup
	group.Go(func() { mustCreate(t, s, "first", scheduler.JobData{}) })
	await(t, stuck)
	for range 2 { // they wait for the first one, and then go by themselves
		group.Go(func() {
			defer func() { _ = recover() }() // alone, the panic is its caller's
			_, err := s.CreateJob(t.Context(), "second", scheduler.JobData{})
			require.ErrorContains(t, err, "no tracing today")
		})
	}
	close(free)
	group.Wait()
	calm.Store(true)
	mustCreate(t, s, "third", scheduler.JobData{})
}

// A caller's context ends the waiting for what others hold up, and nothing is
// stored of what was not sent.
func TestCreationEndsWithItsContext(t *testing.T) {
	t.Parallel()
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	pool := newPool(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.CreateJob(ended, "ended", scheduler.JobData{})
	require.ErrorIs(t, err, context.Canceled)

	release := holdTable(t, pool, schema)
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
	mustCreate(t, s, "after", scheduler.JobData{})
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE name = 'ended'"))
}

// A full queue of notifications, which somebody else's session causes, is no
// reason to refuse a job.
func TestCreationThatCannotNotifyIsStored(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	jobs := make(chan *scheduler.Job, 2)
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": telling(jobs)}
	})
	goWork(t, t.Context(), s)
	waitFor(t, func() bool { return listening(t, pool, schema) })
	other, err := scheduler.New(pool, scheduler.Config{Schema: schema})
	require.NoError(t, err)
	mustCreate(t, other, "a", scheduler.JobData{}) // by which it learns that somebody listens
	await(t, jobs)
	// What Postgres says then, once: the sequence moves on though the statement fails.
	mustExecAll(t, pool, inTestSchema(schema, `
		CREATE SEQUENCE s.tries;
		CREATE FUNCTION s.full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF nextval('s.tries') = 1 THEN
				RAISE 'too many notifications in the NOTIFY queue' USING ERRCODE = '54000';
			END IF;
			RETURN NEW;
		END $$;
		CREATE TRIGGER full_queue BEFORE INSERT ON s.jobs FOR EACH ROW EXECUTE FUNCTION s.full();`))
	id := mustCreate(t, other, "a", scheduler.JobData{}).ID
	require.Equal(t, id, await(t, jobs).ID)
	require.Equal(t, 2, mustQuery[int](t, pool, "SELECT last_value FROM "+schema+".tries"))
}
