package scheduler_test

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// lockPatience is how long control waits at most for a job that somebody has
// locked, with room for a busy machine.
const lockPatience = 15 * time.Second

// A handler's transaction holds the job after CompleteTx for as long as it likes.
// Whoever wants to do something to the job is told so, over HTTP and in SQL too.
func TestControlDoesNotWaitForAHandlersTransaction(t *testing.T) {
	t.Parallel()
	completed, end := make(chan struct{}), make(chan struct{})
	commit := sync.OnceFunc(func() { close(end) })
	c := &completing{}
	w := newWeb(t, func(config *scheduler.Config) {
		c.schema = config.Schema
		config.JobNames["a"] = func(ctx context.Context, job *scheduler.Job) (any, error) {
			tx, err := c.complete(ctx, job)
			if err != nil {
				return nil, err
			}
			close(completed)
			<-end
			return nil, tx.Commit(ctx)
		}
	})
	t.Cleanup(commit)
	c.Scheduler, c.pool = w.Scheduler, newPool(t)
	mustExec(t, c.pool, "CREATE TABLE "+c.schema+".effects (job text)")
	id := mustCreate(t, w.Scheduler, "a", scheduler.JobData{}).ID
	run := goRun(t.Context(), w.Scheduler, scheduler.RunFilter{})
	await(t, completed)

	ctx, cancel := context.WithTimeout(t.Context(), lockPatience)
	defer cancel()
	errs := make(chan error, len(controls))
	for _, do := range controls {
		go func() {
			_, err := do(ctx, w.Scheduler, id)
			errs <- err
		}()
	}
	inSQL := make(chan error, 1)
	go func() {
		_, err := c.pool.Exec(ctx, "SELECT "+c.schema+".cancel_job($1::text::uuid)", id)
		inSQL <- err
	}()
	for _, action := range []string{"cancel", "retry"} {
		answer := w.call(t, "POST", "/api/jobs/"+id+"/"+action, "")
		answer.requireProblem(t, http.StatusServiceUnavailable, "", "another transaction")
		require.Equal(t, "5", answer.header.Get("Retry-After"))
	}
	for range controls {
		require.ErrorIs(t, await(t, errs), scheduler.ErrJobLocked)
	}
	require.ErrorContains(t, await(t, inSQL), "55P03")
	// By filter, such a job is passed over.
	n, err := w.CancelJobs(ctx, scheduler.JobFilter{Names: []string{"a"}})
	require.NoError(t, err)
	require.Zero(t, n)

	commit()
	require.Equal(t, 1, await(t, run).report.Succeeded)
	require.NoError(t, w.DeleteJob(t.Context(), id))
}

// Nor does a retry of many wait for a key that an open transaction has, and
// nothing of it is done then.
func TestRetryJobsDoesNotWaitForAKey(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	data := scheduler.JobData{UniqueKey: "k", Owner: "ada"}
	job := mustCancel(t, u.Scheduler, mustCreate(t, u.Scheduler, "a", data).ID)
	keyless := mustCancel(t, u.Scheduler, mustCreate(t, u.Scheduler, "a", scheduler.JobData{Owner: "ada"}).ID)
	tx, err := u.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = u.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{UniqueKey: "k"})
	require.NoError(t, err)

	ctx, cancel := context.WithTimeout(t.Context(), lockPatience)
	defer cancel()
	filter := scheduler.JobFilter{Owner: "ada", Statuses: []scheduler.JobStatus{"cancelled"}}
	n, err := u.RetryJobs(ctx, filter)
	require.ErrorIs(t, err, scheduler.ErrJobLocked)
	require.Zero(t, n)
	_, err = u.RetryJob(ctx, job.ID)
	require.ErrorIs(t, err, scheduler.ErrJobLocked)
	require.Equal(t, scheduler.JobStatusCancelled, mustGet(t, u.Scheduler, keyless.ID).Status)

	require.NoError(t, tx.Rollback(t.Context()))
	require.Equal(t, 2, mustBulk(t, "retry jobs", u.Scheduler, filter))
}
