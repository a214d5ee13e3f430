package scheduler_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// A rescue whose commit fails has sent its rows already. It is told of when it has
// happened, and once.
func TestARescueThatIsNotCommittedIsNotTold(t *testing.T) {
	t.Parallel()
	pool, told := newPool(t), newEvents()
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema, c.Observer = c.Schema, told.tell })
	id := mustCreate(t, s, "a", scheduler.JobData{MaxAttempts: 1}).ID
	told.next(t, scheduler.EventCreated)
	addLease(t, pool, schema, 0)
	mustExec(t, pool, "UPDATE "+schema+".jobs SET status = 'running', attempt = 1, claims = 1, lease_id = (SELECT id FROM "+schema+".leases)")
	mustExec(t, pool, "CREATE FUNCTION "+schema+".fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$")
	mustExec(t, pool, "CREATE CONSTRAINT TRIGGER fail AFTER UPDATE ON "+schema+".jobs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION "+schema+".fail()")
	_, err := s.Run(t.Context(), scheduler.RunFilter{})
	require.ErrorContains(t, err, "not now")
	require.Equal(t, scheduler.JobStatusRunning, mustGet(t, s, id).Status)

	mustExec(t, pool, "DROP TRIGGER fail ON "+schema+".jobs")
	mustRun(t, s, scheduler.RunFilter{})
	require.NoError(t, s.Shutdown(t.Context()))
	told.next(t, scheduler.EventRescued)
	told.next(t, scheduler.EventDead)
	require.Empty(t, told)
}

// A claim that began before its lease ran out may commit after the snapshot of a
// rescue under REPEATABLE READ, which does not see its jobs then.
func TestRescueUnderRepeatableReadLosesNoClaim(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	addLease(t, pool, schema, 0)
	rescue := func(tx pgx.Tx) (rescued []string) {
		rows, err := tx.Query(t.Context(), "SELECT id::text FROM "+schema+".rescue()")
		require.NoError(t, err)
		rescued, err = pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		return rescued
	}
	inRepeatableRead := func(do func(pgx.Tx)) {
		require.NoError(t, pgx.BeginTxFunc(t.Context(), pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
			do(tx)
			return nil
		}))
	}
	inRepeatableRead(func(tx pgx.Tx) {
		mustExec(t, tx, "SELECT") // the snapshot
		mustExec(t, pool, "UPDATE "+schema+".jobs SET status = 'running', attempt = 1, claims = 1, lease_id = (SELECT id FROM "+schema+".leases)")
		require.Empty(t, rescue(tx))
	})
	inRepeatableRead(func(tx pgx.Tx) { require.Equal(t, []string{id}, rescue(tx)) })
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".leases"))
}

// What a process asks to be handed back is asked of the moment in which it knew all
// it held. When that is done late, it has claimed others under the same lease.
func TestALateHandBackLeavesWhatWasClaimedSince(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	lost := mustCreate(t, s, "a", scheduler.JobData{}).ID
	addLease(t, pool, schema, time.Hour)
	count := "SELECT count(*) FROM (" + claimSQL(schema, "default", 10) + ") AS c"
	require.Equal(t, 1, mustQuery[int](t, pool, count))
	at := mustQuery[time.Time](t, pool, "SELECT clock_timestamp()")
	mustCreate(t, s, "a", scheduler.JobData{})
	require.Equal(t, 1, mustQuery[int](t, pool, count))
	require.Equal(t, lost, mustQuery[string](t, pool, "SELECT h.id::text FROM "+schema+".leases l, "+schema+".hand_back(l.id, '{}', $1) AS h", at))
	require.Equal(t, 1, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'running'"))
}

// A claim whose answer was lost may commit while its process ends.
func TestTheEndOfALeaseWaitsForAClaim(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	mustCreate(t, s, "a", scheduler.JobData{})
	addLease(t, pool, schema, time.Hour)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	mustExec(t, tx, claimSQL(schema, "default", 10))
	ender, _, name := newWires(t)
	ended := make(chan error, 1)
	go func() {
		_, err := ender.Exec(t.Context(), "SELECT "+schema+".end_lease(id) FROM "+schema+".leases")
		ended <- err
	}()
	waitBlocked(t, pool, name)
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, await(t, ended))
	require.Equal(t, 1, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".leases"), "its jobs are rescued when it has run out")
}

// A claim may be carried out long after its process has given up, and looked for it.
func TestAVeryLateClaimIsHandedBack(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Lease = c.Schema, 3*time.Second
		c.JobNames = scheduler.JobNames{"a": succeed}
	})
	ctx, stop := context.WithCancel(t.Context())
	worked := make(chan error, 1)
	go func() { worked <- s.Work(ctx) }()
	id := mustCreate(t, s, "a", scheduler.JobData{RunAt: time.Now().Add(time.Hour)}).ID
	waitFor(t, func() bool { return mustQuery[bool](t, pool, "SELECT EXISTS (SELECT FROM "+schema+".leases)") })
	mustExec(t, pool, "UPDATE "+schema+".jobs SET status = 'running', run_at = now(), started_at = now(), claims = 1, lease_id = (SELECT id FROM "+schema+".leases)")
	scheduler.CleanUp(s)
	waitFor(t, func() bool { return mustGet(t, s, id).Status == scheduler.JobStatusSucceeded })
	require.Empty(t, mustGet(t, s, id).Errors, "it was not rescued")
	stop()
	require.NoError(t, await(t, worked))
}
