package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// besides is another process's Scheduler on the same jobs.
func (c *completing) besides(t *testing.T) *scheduler.Scheduler {
	return newScheduler(t, func(config *scheduler.Config) {
		config.Schema = c.schema
		config.JobNames = scheduler.JobNames{"b": succeed, "a": func(context.Context, *scheduler.Job) (any, error) { return "another", nil }}
	})
}

// One who comes after its job was taken away writes nothing, whether it knows
// of that or not.
func TestCompleteTxOfALateAttemptFails(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		t.Run(string(queue), func(t *testing.T) {
			t.Parallel()
			begun, taken := make(chan struct{}), make(chan struct{})
			errs := make(chan error, 1)
			c := newCompleting(t, func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
				close(begun)
				<-taken
				tx, err := c.complete(context.WithoutCancel(ctx), job)
				errs <- err
				return nil, errors.Join(err, tx.Rollback(ctx))
			})
			other := c.besides(t)
			id := mustCreate(t, c.Scheduler, "a", scheduler.JobData{Queue: queue}).ID
			run := goRun(t.Context(), c.Scheduler, scheduler.RunFilter{Queue: queue})
			await(t, begun)
			runOutLeases(t, c.pool, c.schema)
			require.Equal(t, 1, mustRun(t, other, scheduler.RunFilter{Queue: queue}).Succeeded)
			job := mustGet(t, other, id)
			close(taken)
			require.ErrorIs(t, await(t, errs), scheduler.ErrLeaseLost)
			require.Equal(t, 1, await(t, run).report.Lost)
			require.Equal(t, job, mustGet(t, other, id))
			require.JSONEq(t, `"another"`, string(job.Result))
			require.Zero(t, c.effects(t))
		})
	}
}

// A job that is finished already, or under way again, is not that attempt's.
func TestCompleteTxOfAJobThatWasTakenAwayFails(t *testing.T) {
	t.Parallel()
	for name, take := range map[string]string{
		"dead":      "status = 'dead', lane = NULL, lease_id = NULL, finished_at = now()",
		"pending":   "status = 'pending', lane = 0, lease_id = NULL",
		"again":     "claims = claims + 1, attempt = attempt + 1",
		"succeeded": "status = 'succeeded', lane = NULL, lease_id = NULL, finished_at = now(), claims = claims + 1",
	} {
		errs := make(chan error, 1)
		c := newCompleting(t, func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
			if _, err := c.pool.Exec(ctx, "UPDATE "+c.schema+".jobs SET "+take); err != nil {
				return nil, err
			}
			tx, err := c.complete(ctx, job)
			errs <- err
			return nil, tx.Rollback(ctx)
		})
		mustCreate(t, c.Scheduler, "a", scheduler.JobData{})
		require.Equal(t, 1, mustRun(t, c.Scheduler, scheduler.RunFilter{}).Lost, name)
		require.ErrorIs(t, await(t, errs), scheduler.ErrLeaseLost, name)
		require.Zero(t, c.effects(t))
	}
}

// A job that was called off, whose work is done all the same, has succeeded.
func TestCompleteTxOfACancelledJobSucceeds(t *testing.T) {
	t.Parallel()
	var other *scheduler.Scheduler
	c := newCompleting(t, func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
		if _, err := other.CancelJob(ctx, job.ID); err != nil {
			return nil, err
		}
		tx, err := c.complete(ctx, job)
		if err != nil {
			return nil, errors.Join(err, tx.Rollback(ctx))
		}
		return nil, tx.Commit(ctx)
	})
	other = c.besides(t)
	id := mustCreate(t, c.Scheduler, "a", scheduler.JobData{}).ID
	require.Equal(t, 1, mustRun(t, c.Scheduler, scheduler.RunFilter{}).Succeeded)
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, other, id).Status)
	require.Equal(t, 1, c.effects(t))
}

// A process that knows that its lease is lost does not even ask.
func TestCompleteTxUnderALostLeaseFails(t *testing.T) {
	t.Parallel()
	errs, begun := make(chan error, 1), make(chan struct{})
	c := &completing{pool: newPool(t)}
	c.Scheduler = newSchedulerOn(t, c.pool, func(config *scheduler.Config) {
		config.Lease, c.schema = time.Second, config.Schema
		config.JobNames = scheduler.JobNames{"a": func(ctx context.Context, job *scheduler.Job) (any, error) {
			close(begun)
			<-ctx.Done()
			ctx = context.WithoutCancel(ctx)
			tx, err := c.complete(ctx, job)
			errs <- err
			return nil, errors.Join(err, tx.Rollback(ctx))
		}}
	})
	mustExec(t, c.pool, "CREATE TABLE "+c.schema+".effects (job text)")
	mustCreate(t, c.Scheduler, "a", scheduler.JobData{})
	run := goRun(t.Context(), c.Scheduler, scheduler.RunFilter{})
	await(t, begun)
	runOutLeases(t, c.pool, c.schema)
	require.ErrorIs(t, await(t, errs), scheduler.ErrLeaseLost)
	await(t, run)
	require.Zero(t, c.effects(t))
}

// The lease may run out while the handler's transaction is under way: nobody
// takes the job, waits for it, or, in a blocking queue, starts the next one, and
// what the transaction comes to is what counts.
func TestALeaseRunsOutBeforeTheCommit(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		for _, commit := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/%t", queue, commit), func(t *testing.T) {
				t.Parallel()
				testLeaseRunsOut(t, queue, commit)
			})
		}
	}
}

func testLeaseRunsOut(t *testing.T, queue scheduler.JobQueue, commit bool) {
	completed, end, ended, taken := make(chan struct{}), make(chan struct{}), make(chan error, 1), make(chan struct{})
	c := newCompleting(t, func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
		ctx = context.WithoutCancel(ctx)
		tx, err := c.complete(ctx, job)
		close(completed)
		<-end
		if commit {
			err = errors.Join(err, tx.Commit(ctx))
		} else {
			err = errors.Join(err, tx.Rollback(ctx))
		}
		ended <- err
		<-taken
		return nil, err
	})
	other := c.besides(t)
	id := mustCreate(t, c.Scheduler, "a", scheduler.JobData{Queue: queue}).ID
	next := mustCreate(t, c.Scheduler, "b", scheduler.JobData{Queue: queue, RunAt: time.Now().Add(-time.Second)}).ID
	if queue == scheduler.JobQueueBlocking {
		mustExec(t, c.pool, "UPDATE "+c.schema+".jobs SET run_at = now() WHERE id = $1::text::uuid", next)
	} else {
		require.Equal(t, 1, mustRun(t, c.Scheduler, scheduler.RunFilter{}).Succeeded, "the older one")
	}
	run := goRun(t.Context(), c.Scheduler, scheduler.RunFilter{Queue: queue})
	await(t, completed)
	runOutLeases(t, c.pool, c.schema)
	for range 3 {
		require.Zero(t, mustRun(t, other, scheduler.RunFilter{Queue: queue, Status: scheduler.JobStatusAny, Limit: 10}).Picked)
		require.Equal(t, scheduler.JobStatusRunning, mustGet(t, other, id).Status)
	}
	// Settling, here of this job alone, passes over it too.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := c.pool.Exec(ctx, "SELECT "+c.schema+".settle(lease_id, ARRAY[id]) FROM "+c.schema+".jobs WHERE id = $1::text::uuid", id)
	require.NoError(t, err)

	close(end)
	require.NoError(t, await(t, ended))
	if commit {
		require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, other, id).Status, "already, while the handler is still running")
		close(taken)
		require.Equal(t, 1, await(t, run).report.Succeeded)
		require.JSONEq(t, `"completed"`, string(mustGet(t, other, id).Result))
		require.Equal(t, 1, c.effects(t))
	} else {
		require.Equal(t, 1, mustRun(t, other, scheduler.RunFilter{Queue: queue}).Succeeded, "rescued")
		close(taken)
		require.Equal(t, 1, await(t, run).report.Lost)
		require.JSONEq(t, `"another"`, string(mustGet(t, other, id).Result))
		require.Zero(t, c.effects(t))
	}
	if queue == scheduler.JobQueueBlocking {
		require.Equal(t, scheduler.JobStatusPending, mustGet(t, other, next).Status)
		require.Equal(t, 1, mustRun(t, other, scheduler.RunFilter{Queue: queue}).Succeeded)
		require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, other, next).Status)
	}
	require.Zero(t, mustRun(t, other, scheduler.RunFilter{Queue: queue, Limit: 10}).Picked)
}

func init() {
	// Completes a job and gets stuck before its handler returns.
	childRoles["complete"] = func() {
		c := &completing{}
		c.Scheduler = childScheduler(scheduler.Config{Lease: time.Second, JobNames: scheduler.JobNames{
			"a": func(ctx context.Context, job *scheduler.Job) (any, error) {
				tx, err := c.complete(ctx, job)
				exitOn(err)
				exitOn(tx.Commit(ctx))
				fmt.Println("committed")
				select {}
			},
		}})
		c.pool, c.schema = childPool(), childSchema()
		_, err := c.Run(context.Background(), scheduler.RunFilter{})
		exitOn(err)
	}
}

// What is committed has happened, also if nobody is left to say so.
func TestACrashAfterTheCommitRepeatsNothing(t *testing.T) {
	t.Parallel()
	c := newCompleting(t, func(*completing, context.Context, *scheduler.Job) (any, error) {
		return nil, errors.New("the job is run again")
	})
	id := mustCreate(t, c.Scheduler, "a", scheduler.JobData{}).ID
	name := unique() // of the child's connections
	child := startChild(t, "complete", "SCHEMA="+c.schema, "PGAPPNAME="+name)
	require.Equal(t, "committed", child.Line(t))
	job := mustGet(t, c.Scheduler, id)
	require.Equal(t, scheduler.JobStatusSucceeded, job.Status)
	child.Kill()
	waitGone(t, c.pool, name)
	waitFor(t, func() bool { // until the lease has run out
		require.Zero(t, mustRun(t, c.Scheduler, scheduler.RunFilter{Status: scheduler.JobStatusAny, Limit: 10}).Picked)
		return mustQuery[int](t, c.pool, "SELECT count(*) FROM "+c.schema+".leases WHERE expires_at <= now() OR holder LIKE '%:' || $1", fmt.Sprint(child.cmd.Process.Pid)) == 0
	})
	require.Equal(t, job, mustGet(t, c.Scheduler, id))
	require.Equal(t, 1, c.effects(t))
}

// A transaction that sees what was there when it began learns of a rescue by a
// serialization failure.
func TestCompleteTxInASerializableTransaction(t *testing.T) {
	t.Parallel()
	for _, lost := range []bool{false, true} {
		errs := make(chan error, 1)
		c := newCompleting(t, func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
			tx, err := c.pool.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.Serializable})
			if err != nil {
				return nil, err
			}
			defer func() { _ = tx.Rollback(ctx) }()
			if _, err := tx.Exec(ctx, "INSERT INTO "+c.schema+".effects VALUES ($1)", job.ID); err != nil {
				return nil, err
			}
			if lost {
				_, err = c.pool.Exec(ctx, "UPDATE "+c.schema+".jobs SET status = 'pending', lane = 0, lease_id = NULL")
			}
			if err = errors.Join(err, c.CompleteTx(ctx, tx, job, nil)); err != nil {
				errs <- err
				return nil, err
			}
			return nil, tx.Commit(ctx)
		})
		mustCreate(t, c.Scheduler, "a", scheduler.JobData{})
		report := mustRun(t, c.Scheduler, scheduler.RunFilter{})
		if lost {
			require.ErrorContains(t, await(t, errs), "SQLSTATE 40001")
			require.Equal(t, 1, report.Lost)
			require.Zero(t, c.effects(t))
		} else {
			require.Equal(t, 1, report.Succeeded)
			require.Equal(t, 1, c.effects(t))
		}
	}
}
