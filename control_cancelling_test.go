package scheduler_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// That a job was called off is seen, by everybody, for as long as it runs.
func TestAJobThatRunsIsSeenToBeCancelling(t *testing.T) {
	t.Parallel()
	began, let := make(chan struct{}), make(chan struct{})
	w := newWeb(t, func(c *scheduler.Config) {
		c.JobNames["a"] = func(context.Context, *scheduler.Job) (any, error) {
			close(began)
			<-let
			return nil, errors.New("called off")
		}
	})
	cancelling := func(id string) bool {
		var shown map[string]any
		w.call(t, "GET", "/api/jobs/"+id, "").requireJSON(t, http.StatusOK, &shown)
		job := mustGet(t, w.Scheduler, id)
		require.Equal(t, job.Cancelling, shown["cancelling"])
		require.Equal(t, []*scheduler.Job{job}, mustList(t, w.Scheduler, scheduler.JobFilter{Names: []string{"a"}}).Jobs)
		return job.Cancelling
	}
	id := mustCreate(t, w.Scheduler, "a", scheduler.JobData{}).ID
	run := goRun(t.Context(), w.Scheduler, scheduler.RunFilter{})
	await(t, began)
	require.False(t, cancelling(id))
	require.True(t, mustCancel(t, w.Scheduler, id).Cancelling)
	require.True(t, cancelling(id))
	close(let)
	require.Equal(t, 1, await(t, run).report.Cancelled)
	require.False(t, cancelling(id))
	require.False(t, mustRetry(t, w.Scheduler, id).Cancelling)
}

// Who hands back a job that was called off tells that it is cancelled, with the
// attempt that it has used.
func TestEventsOfCancelledJobsThatAreHandedBack(t *testing.T) {
	t.Parallel()
	told := newEvents()
	wired, w, name := newWires(t)
	var schema string
	var other *scheduler.Scheduler
	s := newSchedulerOn(t, wired, func(c *scheduler.Config) {
		schema, c.Lease, c.Observer = c.Schema, 10*time.Second, told.tell
		c.JobNames = scheduler.JobNames{"a": succeed, "waits": func(ctx context.Context, job *scheduler.Job) (any, error) {
			<-ctx.Done()
			_, err := other.CancelJob(context.WithoutCancel(ctx), job.ID)
			return nil, errors.Join(err, ctx.Err())
		}}
	})
	other = newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	// One that a claim took whose answer was lost.
	require.Zero(t, mustRun(t, s, scheduler.RunFilter{}).Picked) // has a lease from then on
	job := mustCreate(t, other, "a", scheduler.JobData{})
	loseClaim(t, s, w, name, schema, job)
	mustCancel(t, other, job.ID)
	requireEnd := func() {
		e := told.next(t, scheduler.EventCancelled)
		require.Equal(t, job.ID, e.Job.ID)
		require.Equal(t, scheduler.JobStatusCancelled, e.Job.Status)
		require.Equal(t, 1, e.Job.Attempt)
		requireCancelled(t, mustGet(t, other, job.ID), "job cancelled")
		require.Equal(t, 1, mustGet(t, other, job.ID).Attempt)
	}
	requireEnd()

	// One that Shutdown interrupts, called off just then.
	job = mustCreate(t, other, "waits", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	told.next(t, scheduler.EventStarted)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.Shutdown(over))
	requireEnd()
	require.Equal(t, 1, await(t, run).report.Cancelled)
}
