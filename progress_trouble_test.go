package scheduler_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// What is wrong with the table of progress alone costs no job anything but that.
func TestJobsDoNotWaitForProgressThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ begin, code string }{
		"gone":   {"ALTER TABLE %[1]s.job_progress RENAME TO away", "42P01"},
		"locked": {"LOCK TABLE %[1]s.job_progress IN EXCLUSIVE MODE", "55P03"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			var log bytes.Buffer
			var schema string
			s := newScheduler(t, func(c *scheduler.Config) {
				schema, c.Logger = c.Schema, slog.New(slog.NewTextHandler(&log, nil))
				c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
					return "done", scheduler.SetProgress(ctx, 10, "lost")
				}}
			})
			id := mustCreate(t, s, "a", scheduler.JobData{}).ID
			tx, err := pool.Begin(t.Context())
			require.NoError(t, err)
			mustExec(t, tx, fmt.Sprintf(test.begin, schema))
			if name == "gone" {
				require.NoError(t, tx.Commit(t.Context()))
			}
			require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)
			if name == "gone" {
				mustExec(t, pool, "ALTER TABLE "+schema+".away RENAME TO job_progress")
			} else {
				require.NoError(t, tx.Rollback(t.Context()))
			}
			job := mustGet(t, s, id)
			require.JSONEq(t, `"done"`, string(job.Result))
			require.Nil(t, job.Progress)
			require.NoError(t, s.Shutdown(t.Context()))
			require.Contains(t, log.String(), "can't write the progress of a job")
			require.Contains(t, log.String(), test.code)
			require.Contains(t, log.String(), id)
		})
	}
}

// One report that is refused takes no other with it.
func TestAReportThatPostgresRefusesIsDropped(t *testing.T) {
	t.Parallel()
	const jobs = 3
	pool := newPool(t)
	reported, release := make(chan error, jobs), make(chan struct{})
	s, other, schema := reporting(t, func(ctx context.Context, job *scheduler.Job) (any, error) {
		reported <- scheduler.SetProgress(ctx, 10, string(job.Payload))
		<-release
		return nil, nil
	})
	mustExec(t, pool, "ALTER TABLE "+schema+".job_progress ADD CONSTRAINT not_the_second CHECK (note <> '1')")
	var ids []string
	for i := range jobs {
		ids = append(ids, mustCreate(t, s, "a", scheduler.JobData{Payload: i}).ID)
	}
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: jobs})
	for range jobs {
		require.NoError(t, await(t, reported))
	}
	// A statement for all of them is first.
	for _, i := range []int{0, 2} {
		waitFor(t, func() bool { return mustGet(t, other, ids[i]).Progress != nil })
		requireProgress(t, mustGet(t, other, ids[i]), 10, fmt.Sprint(i), "")
	}
	close(release)
	require.Equal(t, jobs, await(t, run).report.Succeeded)
	require.Nil(t, mustGet(t, other, ids[1]).Progress)
}

// A database that is away for a while gets the last checkpoint before it learns
// what became of the attempt.
func TestReportsOutliveALostConnection(t *testing.T) {
	t.Parallel()
	wired, w, _ := newWires(t)
	var schema string
	cut := make(chan struct{})
	s := newSchedulerOn(t, wired, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			w.cut()
			err := scheduler.Checkpoint(ctx, "made offline")
			close(cut)
			return nil, errors.Join(err, errors.New("no connection"))
		}}
	})
	other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	id := mustCreate(t, other, "a", scheduler.JobData{}).ID
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, cut)
	require.Equal(t, scheduler.JobStatusRunning, mustGet(t, other, id).Status)
	w.mend()
	await(t, run)
	job := mustGet(t, other, id)
	require.Equal(t, scheduler.JobStatusFailed, job.Status)
	requireProgress(t, job, 0, "", `"made offline"`)
}

// Nothing of it needs a prepared statement.
func TestProgressInExecModesForPoolers(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeCacheDescribe} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config := newPool(t).Config()
			config.ConnConfig.DefaultQueryExecMode = mode
			s := newSchedulerOn(t, newPoolWith(t, config), func(c *scheduler.Config) {
				c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
					var place map[string]any
					switch found, err := scheduler.LoadCheckpoint(ctx, &place); {
					case err != nil:
						return nil, err
					case found:
						return place, scheduler.SetProgress(ctx, 100, `é "quoted" \ $1 'single'`)
					}
					return nil, errors.Join(scheduler.Checkpoint(ctx, map[string]any{"at": `'é" \ $1`}), scheduler.RetryAfter(0, nil))
				}}
			})
			id := mustCreate(t, s, "a", scheduler.JobData{}).ID
			require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Failed)
			require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusFailed}).Succeeded)
			job := mustGet(t, s, id)
			requireSameJSON(t, map[string]any{"at": `'é" \ $1`}, job.Result)
			requireProgress(t, job, 100, `é "quoted" \ $1 'single'`, string(job.Result))
			require.Equal(t, []*scheduler.Job{job}, mustList(t, s, scheduler.JobFilter{}).Jobs)
		})
	}
}

// Progress goes with its job.
func TestProgressIsDeletedWithItsJob(t *testing.T) {
	t.Parallel()
	c := newCleanUpTest(t, nil)
	left := func() []string {
		return mustQuery[[]string](t, c.pool, "SELECT coalesce(array_agg(job_id::text ORDER BY job_id), '{}') FROM "+c.schema+".job_progress")
	}
	report := func(ids ...string) {
		mustExec(t, c.pool, "INSERT INTO "+c.schema+".job_progress (job_id, claims, reported_at) SELECT unnest($1::text[])::uuid, 1, now()", ids)
	}
	old, young, running := c.job(t, "succeeded", "8 days"), c.job(t, "succeeded", "6 days"), c.job(t, "running", "5 days")
	report(old, young, running)
	require.NoError(t, c.DeleteJob(t.Context(), young))
	require.Equal(t, []string{old, running}, left())
	require.Equal(t, 1, c.cleanUp(t))
	require.Equal(t, []string{running}, left())

	// What is deleted by hand leaves some behind. A call looks at ten times the
	// batch, and the next one goes on.
	gone := c.jobs(t, 25, "dead", "2 days")
	report(gone...)
	mustExec(t, c.pool, "DELETE FROM "+c.schema+".jobs WHERE status = 'dead'")
	for n := 26; n > 1; n = len(left()) {
		require.Len(t, left(), n)
		require.Zero(t, c.cleanUp(t, "7 days", "30 days", 1))
		require.GreaterOrEqual(t, len(left()), n-10)
	}
	require.Equal(t, []string{running}, left())
}
