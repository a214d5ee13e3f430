package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// completing is a Scheduler whose jobs write effects, a table of the service.
type completing struct {
	*scheduler.Scheduler
	pool   *pgxpool.Pool
	schema string
}

// newCompleting makes one whose jobs of the name "a" are handled by this.
func newCompleting(t *testing.T, handler func(c *completing, ctx context.Context, job *scheduler.Job) (any, error)) *completing {
	return newCompletingOn(t, newPool(t), handler)
}

func newCompletingOn(t *testing.T, pool *pgxpool.Pool, handler func(c *completing, ctx context.Context, job *scheduler.Job) (any, error)) *completing {
	c := &completing{pool: pool}
	c.Scheduler = newSchedulerOn(t, c.pool, func(config *scheduler.Config) {
		c.schema = config.Schema
		config.JobNames = scheduler.JobNames{"b": succeed, "a": func(ctx context.Context, job *scheduler.Job) (any, error) {
			return handler(c, ctx, job)
		}}
	})
	mustExec(t, c.pool, "CREATE TABLE "+c.schema+".effects (job text)")
	return c
}

// begin begins a transaction in which the effect of the job has happened.
func (c *completing) begin(ctx context.Context, job *scheduler.Job) (pgx.Tx, error) {
	tx, err := c.pool.Begin(ctx)
	if err == nil {
		_, err = tx.Exec(ctx, "INSERT INTO "+c.schema+".effects VALUES ($1)", job.ID)
	}
	return tx, err
}

// complete is begin and CompleteTx.
func (c *completing) complete(ctx context.Context, job *scheduler.Job) (pgx.Tx, error) {
	tx, err := c.begin(ctx, job)
	if err == nil {
		err = c.CompleteTx(ctx, tx, job, "completed")
	}
	return tx, err
}

func (c *completing) effects(t *testing.T) int {
	t.Helper()
	return mustQuery[int](t, c.pool, "SELECT count(*) FROM "+c.schema+".effects")
}

func TestCompleteTxRecordsTheSuccess(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		var transaction string
		c := newCompleting(t, func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
			tx, err := c.complete(ctx, job)
			if err != nil {
				return nil, err
			}
			if err := tx.QueryRow(ctx, "SELECT txid_current()::text").Scan(&transaction); err != nil {
				return nil, err
			}
			return "returned", tx.Commit(ctx)
		})
		id := mustCreate(t, c.Scheduler, "a", scheduler.JobData{Queue: queue}).ID
		next := mustCreate(t, c.Scheduler, "b", scheduler.JobData{Queue: queue}).ID
		report := mustRun(t, c.Scheduler, scheduler.RunFilter{Queue: queue, Limit: 2})
		require.Equal(t, 2, report.Succeeded)
		require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, c.Scheduler, next).Status)
		job := mustGet(t, c.Scheduler, id)
		require.Equal(t, scheduler.JobStatusSucceeded, job.Status)
		require.JSONEq(t, `"completed"`, string(job.Result))
		require.Equal(t, 1, job.Attempt)
		require.Empty(t, job.Errors)
		require.False(t, job.FinishedAt.Before(*job.StartedAt))
		require.Equal(t, 1, c.effects(t))
		require.Equal(t, transaction, mustQuery[string](t, c.pool, "SELECT xmin::text FROM "+c.schema+".jobs WHERE id = $1::text::uuid", id),
			"nothing is recorded after it")
	}
}

// What the transaction came to is what the job came to, whatever the handler
// returns.
func TestCompleteTxFollowsItsTransaction(t *testing.T) {
	t.Parallel()
	const succeeded, failed = scheduler.JobStatusSucceeded, scheduler.JobStatusFailed
	oops := errors.New("oops")
	commit := func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) }
	rollBack := func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) }
	for name, test := range map[string]struct {
		end     func(ctx context.Context, tx pgx.Tx) error
		then    func() error
		status  scheduler.JobStatus
		message string
	}{
		"commit":               {commit, func() error { return nil }, succeeded, ""},
		"commit, error":        {commit, func() error { return oops }, succeeded, ""},
		"commit, Cancel":       {commit, func() error { return scheduler.Cancel(oops) }, succeeded, ""},
		"commit, Snooze":       {commit, func() error { return scheduler.Snooze(time.Hour) }, succeeded, ""},
		"commit, panic":        {commit, func() error { panic(oops) }, succeeded, ""},
		"commit, exit":         {commit, func() error { runtime.Goexit(); return nil }, succeeded, ""},
		"commit, bad error":    {commit, func() error { return badError{} }, succeeded, ""},
		"roll back":            {rollBack, func() error { return nil }, failed, "its transaction was not committed"},
		"roll back, error":     {rollBack, func() error { return oops }, failed, "oops"},
		"roll back, panic":     {rollBack, func() error { panic(oops) }, failed, "handler panicked: oops"},
		"roll back, bad error": {rollBack, func() error { return badError{} }, failed, "no message today"},
		"roll back, Cancel":    {rollBack, func() error { return scheduler.Cancel(oops) }, scheduler.JobStatusDead, "oops"},
		"roll back, Snooze":    {rollBack, func() error { return scheduler.Snooze(time.Hour) }, scheduler.JobStatusPending, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCompleting(t, func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
				tx, err := c.complete(ctx, job)
				if err = errors.Join(err, test.end(ctx, tx)); err != nil {
					return nil, err
				}
				return "returned", test.then()
			})
			id := mustCreate(t, c.Scheduler, "a", scheduler.JobData{}).ID
			report := mustRun(t, c.Scheduler, scheduler.RunFilter{})
			require.Zero(t, report.Lost)
			job := mustGet(t, c.Scheduler, id)
			require.Equal(t, test.status, job.Status)
			if test.message != "" {
				require.Len(t, job.Errors, 1)
				require.Contains(t, job.Errors[0].Error, test.message)
			}
			if test.status == succeeded {
				require.Equal(t, 1, report.Succeeded)
				require.JSONEq(t, `"completed"`, string(job.Result))
				require.Equal(t, 1, c.effects(t))
			} else {
				require.Nil(t, job.Result)
				require.Zero(t, c.effects(t))
			}
			require.Zero(t, mustRun(t, c.Scheduler, scheduler.RunFilter{Limit: 10}).Picked)
		})
	}
}

// An attempt that was rolled back, as a serialization failure makes one do, may
// complete its job in another transaction, or at another savepoint.
func TestCompleteTxAgainAfterARollback(t *testing.T) {
	t.Parallel()
	c := newCompleting(t, func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
		tx, err := c.complete(ctx, job)
		if err = errors.Join(err, tx.Rollback(ctx)); err != nil {
			return nil, err
		}
		if tx, err = c.begin(ctx, job); err != nil {
			return nil, err
		}
		savepoint, err := tx.Begin(ctx)
		if err != nil {
			return nil, err
		}
		if err = errors.Join(c.CompleteTx(ctx, savepoint, job, 1), savepoint.Rollback(ctx)); err != nil {
			return nil, err
		}
		return nil, errors.Join(c.CompleteTx(ctx, tx, job, 2), tx.Commit(ctx))
	})
	id := mustCreate(t, c.Scheduler, "a", scheduler.JobData{}).ID
	require.Equal(t, 1, mustRun(t, c.Scheduler, scheduler.RunFilter{}).Succeeded)
	require.JSONEq(t, "2", string(mustGet(t, c.Scheduler, id).Result))
	require.Equal(t, 1, c.effects(t))
}

func TestCompleteTxRefusesWhatItCannotRecord(t *testing.T) {
	t.Parallel()
	other := newScheduler(t, nil)
	var c *completing
	var otherJob *scheduler.Job
	var late func() error
	c = newCompleting(t, func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
		tx, err := c.begin(ctx, job)
		if err != nil {
			return nil, err
		}
		defer func() { _ = tx.Rollback(ctx) }()
		requireInputError(t, c.CompleteTx(ctx, nil, job, nil), "tx", "nil")
		requireInputError(t, c.CompleteTx(ctx, tx, nil, nil), "job", "nil")
		requireInputError(t, c.CompleteTx(t.Context(), tx, job, nil), "job", job.ID, "the handler's context")
		requireInputError(t, c.CompleteTx(ctx, tx, otherJob, nil), "job", otherJob.ID, job.ID, "another job")
		requireInputError(t, other.CompleteTx(ctx, tx, job, nil), "job", job.ID, "another Scheduler")
		requireInputError(t, c.CompleteTx(ctx, tx, job, make(chan int)), "result", "chan int")
		savepoint, err := tx.Begin(ctx)
		if err != nil {
			return nil, err
		}
		requireInputError(t, c.CompleteTx(ctx, savepoint, job, json.RawMessage("1e200000")), "result")
		if err := savepoint.Rollback(ctx); err != nil {
			return nil, err
		}
		// The job as it is read, and a context that does not end, will do.
		read, err := c.GetJob(ctx, job.ID)
		if err != nil {
			return nil, err
		}
		if err := c.CompleteTx(context.WithoutCancel(ctx), tx, read, "good"); err != nil {
			return nil, err
		}
		requireInputError(t, c.CompleteTx(ctx, tx, job, "twice"), "job", job.ID, "completed already")
		if err := tx.Commit(ctx); err != nil {
			return nil, err
		}
		tx, err = c.begin(ctx, job)
		if err != nil {
			return nil, err
		}
		requireInputError(t, c.CompleteTx(ctx, tx, job, "twice"), "job", job.ID, "completed already")
		if err := tx.Rollback(ctx); err != nil {
			return nil, err
		}
		late = func() error {
			tx, err := c.begin(t.Context(), job)
			require.NoError(t, err)
			defer func() { _ = tx.Rollback(t.Context()) }()
			return c.CompleteTx(context.WithoutCancel(ctx), tx, job, "late")
		}
		return nil, nil
	})
	id := mustCreate(t, c.Scheduler, "a", scheduler.JobData{}).ID
	otherJob = mustCreate(t, c.Scheduler, "b", scheduler.JobData{RunAt: time.Now().Add(time.Hour)})
	require.Equal(t, 1, mustRun(t, c.Scheduler, scheduler.RunFilter{}).Succeeded)
	require.JSONEq(t, `"good"`, string(mustGet(t, c.Scheduler, id).Result))
	requireInputError(t, late(), "job", id, "its handler has returned")
	require.Equal(t, otherJob, mustGet(t, c.Scheduler, otherJob.ID))
	require.Equal(t, 1, c.effects(t))
}

// Two transactions of one handler would wait for each other for ever.
func TestCompleteTxDoesNotWaitForItself(t *testing.T) {
	t.Parallel()
	c := newCompleting(t, func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
		tx, err := c.complete(ctx, job)
		if err != nil {
			return nil, err
		}
		second, err := c.complete(ctx, job)
		requireInputError(t, err, "job", job.ID, "still open")
		return nil, errors.Join(second.Rollback(ctx), tx.Commit(ctx))
	})
	mustCreate(t, c.Scheduler, "a", scheduler.JobData{})
	require.Equal(t, 1, mustRun(t, c.Scheduler, scheduler.RunFilter{}).Succeeded)
	require.Equal(t, 1, c.effects(t))
}

// A transaction that its handler has left open holds up no other job, and what
// becomes of it later counts.
func TestCompleteTxLeftOpen(t *testing.T) {
	t.Parallel()
	for _, commit := range []bool{true, false} {
		left := make(chan pgx.Tx, 1)
		c := newCompleting(t, func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
			tx, err := c.complete(context.WithoutCancel(ctx), job)
			left <- tx
			return nil, err
		})
		id := mustCreate(t, c.Scheduler, "a", scheduler.JobData{}).ID
		run := goRun(t.Context(), c.Scheduler, scheduler.RunFilter{})
		tx := await(t, left)
		// Both ask for the row until then.
		waitFor(t, func() bool {
			return mustQuery[bool](t, c.pool, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%finish(%')`, c.schema)
		})
		mustCreateMany(t, c.Scheduler, 3, "b", scheduler.JobData{})
		require.Equal(t, 3, mustRun(t, c.Scheduler, scheduler.RunFilter{Limit: 3}).Succeeded)
		require.Equal(t, scheduler.JobStatusRunning, mustGet(t, c.Scheduler, id).Status)
		if commit {
			require.NoError(t, tx.Commit(t.Context()))
			require.Equal(t, 1, await(t, run).report.Succeeded)
			require.JSONEq(t, `"completed"`, string(mustGet(t, c.Scheduler, id).Result))
			require.Equal(t, 1, c.effects(t))
		} else {
			require.NoError(t, tx.Rollback(t.Context()))
			require.Equal(t, 1, await(t, run).report.Failed)
			require.Zero(t, c.effects(t))
		}
	}
}

// Without prepared statements, as through a pooler.
func TestCompleteTxInEveryExecMode(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeDescribeExec} {
		config := newPool(t).Config()
		config.ConnConfig.DefaultQueryExecMode = mode
		c := newCompletingOn(t, newPoolWith(t, config), func(c *completing, ctx context.Context, job *scheduler.Job) (any, error) {
			tx, err := c.complete(ctx, job)
			if err != nil {
				return nil, err
			}
			return nil, tx.Commit(ctx)
		})
		id := mustCreate(t, c.Scheduler, "a", scheduler.JobData{}).ID
		require.Equal(t, 1, mustRun(t, c.Scheduler, scheduler.RunFilter{}).Succeeded)
		require.JSONEq(t, `"completed"`, string(mustGet(t, c.Scheduler, id).Result))
	}
}

func TestEventsOfACompletedJob(t *testing.T) {
	t.Parallel()
	told := newEvents()
	c := &completing{pool: newPool(t)}
	c.Scheduler = newSchedulerOn(t, c.pool, func(config *scheduler.Config) {
		c.schema, config.Observer = config.Schema, told.tell
		config.JobNames = scheduler.JobNames{"a": func(ctx context.Context, job *scheduler.Job) (any, error) {
			tx, err := c.complete(ctx, job)
			if string(job.Payload) == "true" {
				return nil, errors.Join(err, tx.Commit(ctx))
			}
			return nil, errors.Join(err, tx.Rollback(ctx))
		}}
	})
	mustExec(t, c.pool, "CREATE TABLE "+c.schema+".effects (job text)")
	for _, commit := range []bool{true, false} {
		mustCreate(t, c.Scheduler, "a", scheduler.JobData{Payload: commit})
		mustRun(t, c.Scheduler, scheduler.RunFilter{})
		told.next(t, scheduler.EventCreated)
		told.next(t, scheduler.EventStarted)
		if commit {
			require.JSONEq(t, `"completed"`, string(told.next(t, scheduler.EventSucceeded).Job.Result))
		} else {
			require.ErrorContains(t, told.next(t, scheduler.EventFailed).Err, "not committed")
		}
	}
}
