package scheduler_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

var errCut = errors.New("the wire was cut")

// wires are the connections of a pool, which a test may cut: the database goes
// on with what it was sent, but its answer does not arrive.
type wires struct {
	mu   sync.Mutex
	all  []*wire
	down bool
}

type wire struct {
	net.Conn
	cut atomic.Bool
}

func (w *wire) Read(p []byte) (int, error) {
	if w.cut.Load() {
		return 0, errCut // whoever closes it waits for the end, with a deadline of its own
	}
	n, err := w.Conn.Read(p)
	if w.cut.Load() {
		return 0, errCut
	}
	return n, err
}

func (w *wire) Write(p []byte) (int, error) {
	if w.cut.Load() {
		return 0, errCut
	}
	return w.Conn.Write(p)
}

func (w *wire) Close() error {
	if w.cut.Load() {
		return nil // the database is to notice nothing
	}
	return w.Conn.Close()
}

func (w *wires) dial(ctx context.Context, network, address string) (net.Conn, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		return nil, errCut
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	w.all = append(w.all, &wire{Conn: conn})
	return w.all[len(w.all)-1], nil
}

// cut cuts every connection, and there is no other one (also none to cancel
// what is under way) until mend.
func (w *wires) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = true
	for _, wire := range w.all {
		wire.cut.Store(true)
		_ = wire.SetReadDeadline(time.Unix(1, 0)) // it may be closed already
	}
}

func (w *wires) mend() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = false
}

// newWires makes a pool whose wires can be cut, and the name by which Postgres
// knows its connections.
func newWires(t *testing.T) (pool *pgxpool.Pool, w *wires, name string) {
	w, name = &wires{}, unique()
	config := newPool(t).Config()
	config.ConnConfig.DialFunc = w.dial
	config.ConnConfig.RuntimeParams["application_name"] = name
	t.Cleanup(func() {
		for _, wire := range w.all {
			_ = wire.Conn.Close() // most are closed already
		}
	})
	return newPoolWith(t, config), w, name
}

// waitBlocked waits until one of the connections waits for a lock in Postgres.
func waitBlocked(t *testing.T, db database, name string) {
	waitFor(t, func() bool {
		return mustQuery[bool](t, db, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock')`, name)
	})
}

// loseClaim makes a run claim the job without getting to know: the claim is held
// up by a lock on what it needs until its wire is cut.
func loseClaim(t *testing.T, s *scheduler.Scheduler, w *wires, name, schema string, job *scheduler.Job) {
	pool := newPool(t)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	if job.Queue == scheduler.JobQueueBlocking {
		mustExec(t, tx, "SELECT FROM "+schema+".queues WHERE name = 'blocking' FOR UPDATE")
	} else {
		mustExec(t, tx, "SELECT FROM "+schema+".leases FOR UPDATE")
	}
	run := goRun(t.Context(), s, scheduler.RunFilter{Queue: job.Queue})
	waitBlocked(t, pool, name)
	w.cut()
	require.Error(t, await(t, run).err)
	require.NoError(t, tx.Rollback(t.Context()))
	waitFor(t, func() bool {
		return mustQuery[string](t, pool, "SELECT status FROM "+schema+".jobs WHERE id = $1::text::uuid", job.ID) == "running"
	})
	w.mend()
}

// A claim that happened although its answer was lost leaves a job running under
// a lease that the process goes on renewing. It must be found all the same.
func TestAClaimWhoseAnswerIsLostStrandsNoJob(t *testing.T) {
	t.Parallel()
	wired, w, name := newWires(t)
	var schema string
	started, release := make(chan context.Context), make(chan struct{})
	s := newSchedulerOn(t, wired, func(c *scheduler.Config) {
		schema, c.Lease = c.Schema, 10*time.Second
		c.JobNames = scheduler.JobNames{"a": succeed, "long": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			started <- ctx
			<-release
			return nil, ctx.Err()
		}}
	})
	mustCreate(t, s, "long", scheduler.JobData{})
	long := goRun(t.Context(), s, scheduler.RunFilter{})
	ctx := await(t, started)

	job := mustCreate(t, s, "a", scheduler.JobData{})
	loseClaim(t, s, w, name, schema, job)

	waitFor(t, func() bool { return mustRun(t, s, scheduler.RunFilter{}).Succeeded == 1 })
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, s, job.ID).Status)
	require.NoError(t, ctx.Err(), "the lease is the same")
	close(release)
	require.Equal(t, 1, await(t, long).report.Succeeded)
}

// A record that was written although its answer was lost counts, once.
func TestAFinishWhoseAnswerIsLostCountsOnce(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	wired, w, name := newWires(t)
	var schema string
	started, release := make(chan struct{}), make(chan struct{})
	s := newSchedulerOn(t, wired, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			close(started)
			<-release
			return nil, scheduler.RetryAfter(time.Hour, errors.New("failed"))
		}}
	})
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, started)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	mustExec(t, tx, "SELECT FROM "+schema+".jobs FOR UPDATE") // which a finish needs
	close(release)
	waitBlocked(t, pool, name)
	w.cut()
	require.NoError(t, tx.Rollback(t.Context()))
	waitFor(t, func() bool {
		return mustQuery[string](t, pool, "SELECT status FROM "+schema+".jobs") == "failed"
	})
	w.mend()

	r := await(t, run)
	require.NoError(t, r.err)
	job := mustGet(t, s, id)
	require.Equal(t, scheduler.JobStatusFailed, job.Status)
	require.Equal(t, 1, job.Attempt)
	require.Len(t, job.Errors, 1)
	require.Equal(t, 1, r.report.Failed)
	require.Zero(t, r.report.Lost)
}
