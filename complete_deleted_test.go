package scheduler_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// A job that is deleted as soon as its success is committed, before its handler
// returns, has succeeded all the same; one whose transaction did not commit has not.
func TestAJobThatIsDeletedAfterItsCompletion(t *testing.T) {
	t.Parallel()
	for _, commit := range []bool{true, false} {
		for _, result := range []error{nil, errors.New("failed")} {
			told := newEvents()
			c := &completing{pool: newPool(t)}
			var other *scheduler.Scheduler
			c.Scheduler = newSchedulerOn(t, c.pool, func(config *scheduler.Config) {
				c.schema, config.Observer = config.Schema, told.tell
				config.JobNames = scheduler.JobNames{"b": succeed, "a": func(ctx context.Context, job *scheduler.Job) (any, error) {
					tx, err := c.complete(ctx, job)
					if err != nil {
						return nil, err
					}
					if !commit {
						if err := tx.Rollback(ctx); err != nil {
							return nil, err
						}
						_, err := c.pool.Exec(ctx, "DELETE FROM "+c.schema+".jobs")
						return nil, errors.Join(err, result)
					}
					return nil, errors.Join(tx.Commit(ctx), other.DeleteJob(ctx, job.ID), result)
				}}
			})
			mustExec(t, c.pool, "CREATE TABLE "+c.schema+".effects (job text)")
			other = c.besides(t)
			mustCreate(t, c.Scheduler, "a", scheduler.JobData{})
			report := mustRun(t, c.Scheduler, scheduler.RunFilter{})
			told.next(t, scheduler.EventCreated)
			told.next(t, scheduler.EventStarted)
			if commit {
				require.Equal(t, []int{1, 0}, []int{report.Succeeded, report.Lost})
				require.JSONEq(t, `"completed"`, string(told.next(t, scheduler.EventSucceeded).Job.Result))
				require.Equal(t, 1, c.effects(t))
			} else {
				require.Equal(t, []int{0, 1}, []int{report.Succeeded, report.Lost})
				told.next(t, scheduler.EventLeaseLost)
				require.Zero(t, c.effects(t))
			}
		}
	}
}
