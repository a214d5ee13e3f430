package scheduler_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// A cancellation that comes at the same time as the verdict never leaves the
// job running or to be rerun: one of the two sees the other.
func TestCancelJobRacesWithItsFinish(t *testing.T) {
	t.Parallel()
	for verdict, result := range map[string]error{
		"succeeded": nil, "failed": errors.New("failed"), "retry": scheduler.RetryAfter(0, nil), "snoozed": scheduler.Snooze(0),
	} {
		t.Run(verdict, func(t *testing.T) {
			t.Parallel()
			started, release := make(chan struct{}), make(chan struct{})
			var schema string
			s := newScheduler(t, func(c *scheduler.Config) {
				schema = c.Schema
				c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
					started <- struct{}{}
					<-release
					return nil, result
				}}
			})
			other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
			for range 50 {
				id := mustCreate(t, s, "a", scheduler.JobData{}).ID
				run := goRun(t.Context(), s, scheduler.RunFilter{})
				await(t, started)
				cancelled := make(chan error, 1)
				go func() {
					_, err := other.CancelJob(t.Context(), id)
					cancelled <- err
				}()
				release <- struct{}{}
				require.NoError(t, await(t, cancelled))
				require.Equal(t, 1, await(t, run).report.Picked)
				want := scheduler.JobStatusCancelled
				if result == nil {
					want = scheduler.JobStatusSucceeded
				}
				require.Equal(t, want, mustGet(t, s, id).Status)
				require.Zero(t, mustRun(t, other, scheduler.RunFilter{Status: scheduler.JobStatusAny}).Picked)
			}
		})
	}
}

// The same with the order of the two made certain: the verdict waits for the
// cancellation's lock, and sees the mark that was not there when it began.
func TestAVerdictSeesACancellationThatCommitsMeanwhile(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	pool, name := newPool(t), unique()
	config := pool.Config()
	config.ConnConfig.RuntimeParams["application_name"] = name
	var schema string
	s := newSchedulerOn(t, newPoolWith(t, config), func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			started <- struct{}{}
			<-release
			return nil, scheduler.RetryAfter(0, errors.New("failed"))
		}}
	})
	ids := mustCreateMany(t, s, 3, "a", scheduler.JobData{}) // recorded together
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: 3})
	for range ids {
		await(t, started)
	}
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	mustExec(t, tx, "SELECT "+schema+".cancel_job($1::text::uuid)", ids[1])
	close(release)
	waitBlocked(t, pool, name)
	require.NoError(t, tx.Commit(t.Context()))
	report := await(t, run).report
	require.Equal(t, []int{2, 1}, []int{report.Failed, report.Cancelled})
	requireCancelled(t, mustGet(t, s, ids[1]), "failed")
	for _, id := range []string{ids[0], ids[2]} {
		require.Equal(t, scheduler.JobStatusFailed, mustGet(t, s, id).Status)
	}
}

// A rescue, too, sees a mark that is set while it waits.
func TestARescueSeesACancellationThatCommitsMeanwhile(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	for range 20 {
		mustExec(t, pool, "INSERT INTO "+schema+".leases (id, holder, expires_at) VALUES (gen_random_uuid(), 'gone', now())")
		mustExec(t, pool, "UPDATE "+schema+`.jobs SET status = 'running', lane = 0, finished_at = NULL, lease_id = (SELECT min(id::text)::uuid FROM `+schema+`.leases),
			started_at = now(), attempt = attempt + 1, claims = claims + 1, max_attempts = 1000`)
		var all sync.WaitGroup
		all.Go(func() { _, _ = pool.Exec(t.Context(), "SELECT FROM "+schema+".rescue()") })
		all.Go(func() { _, _ = s.CancelJob(t.Context(), id) })
		all.Wait()
		waitFor(t, func() bool { // it may have passed over the locked row
			mustExec(t, pool, "SELECT FROM "+schema+".rescue()")
			return mustGet(t, s, id).Status != scheduler.JobStatusRunning
		})
		require.Equal(t, scheduler.JobStatusCancelled, mustGet(t, s, id).Status)
	}
}

// A cancellation against a claim: either the job never starts, or its handler
// is told.
func TestCancelJobRacesWithItsClaim(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		t.Run(string(queue), func(t *testing.T) {
			t.Parallel()
			var schema string
			s := newScheduler(t, func(c *scheduler.Config) {
				schema, c.JobNames = c.Schema, scheduler.JobNames{"a": fail}
			})
			other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
			filter := scheduler.RunFilter{Queue: queue, Status: scheduler.JobStatusAny}
			for i := range 100 {
				id := mustCreate(t, s, "a", scheduler.JobData{Queue: queue}).ID
				run := goRun(t.Context(), s, filter)
				if i%2 == 0 { // so that they meet
					time.Sleep(time.Duration(i) * 50 * time.Microsecond)
				}
				mustCancel(t, other, id)
				ran := await(t, run)
				require.NoError(t, ran.err)
				job := mustGet(t, s, id)
				require.Equal(t, scheduler.JobStatusCancelled, job.Status)
				require.Equal(t, ran.report.Picked, job.Attempt)
				require.Len(t, job.Errors, ran.report.Picked)
				require.Zero(t, mustRun(t, s, filter).Picked)
			}
		})
	}
}

// Whatever meets on one job, it is in no two attempts, and the statuses hold.
func TestControlsMeetOnOneJob(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	running, overlapped := 0, false
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
			mu.Lock()
			running++
			overlapped = overlapped || running > 1
			mu.Unlock()
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				running--
			}()
			return nil, errors.New("failed")
		}}
	})
	other := newScheduler(t, func(c *scheduler.Config) { c.Schema, c.JobNames = schema, scheduler.JobNames{"b": succeed} })
	id := mustCreate(t, s, "a", scheduler.JobData{MaxAttempts: 1000}).ID
	var all sync.WaitGroup
	errs := make(chan error, 1000)
	for name, do := range controls {
		if name == "delete job" {
			continue
		}
		all.Go(func() {
			for range 60 {
				if _, err := do(t.Context(), other, id); err != nil && !errors.Is(err, scheduler.ErrJobState) {
					errs <- err
				}
			}
		})
	}
	for range 2 {
		all.Go(func() {
			for range 60 {
				if _, err := s.Run(t.Context(), scheduler.RunFilter{Status: scheduler.JobStatusAny}); err != nil {
					errs <- err
				}
			}
		})
	}
	all.Wait()
	require.Empty(t, errs)
	require.False(t, overlapped)
	require.Equal(t, scheduler.JobStatusCancelled, mustCancel(t, other, id).Status)
	require.NoError(t, other.DeleteJob(t.Context(), id))
	require.Zero(t, mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusAny}).Picked)
}

// What a process says of a cancelled job that never began, or says twice because
// the answer was lost, comes to the same.
func TestFinishOfACancelledJobMayBeRepeated(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema, c.JobNames = c.Schema, scheduler.JobNames{"a": succeed} })
	job := mustCreate(t, s, "a", scheduler.JobData{})
	claimed, err := scheduler.Claim(t.Context(), s, 1)
	require.NoError(t, err)
	require.Equal(t, job.ID, claimed[0].ID)
	mustCancel(t, s, job.ID)
	for range 2 {
		// Handed back, as a job that waited in vain for its handler to start.
		require.True(t, mustQuery[bool](t, pool, "SELECT cancelled FROM "+schema+`.finish(
			ARRAY[$1::text::uuid], ARRAY[1], ARRAY['pending'], ARRAY[NULL], ARRAY[NULL], ARRAY[NULL::bigint], ARRAY[1])`, job.ID))
		requireCancelled(t, mustGet(t, s, job.ID), "job cancelled")
	}
	require.Equal(t, 1, scheduler.Finish(s, claimed), "a success comes too late")
	requireCancelled(t, mustGet(t, s, job.ID), "job cancelled")
}

// A record that was written, and whose job was cancelled while it waited, before it
// is sent again because the answer was lost, was written all the same.
func TestFinishOfAJobCancelledSinceMayBeRepeated(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	said := "job cancelled, says the handler"
	for status, failure := range map[string]*string{"pending": nil, "failed": &said} {
		var schema string
		s := newScheduler(t, func(c *scheduler.Config) { schema, c.JobNames = c.Schema, scheduler.JobNames{"a": succeed} })
		job := mustCreate(t, s, "a", scheduler.JobData{})
		_, err := scheduler.Claim(t.Context(), s, 1)
		require.NoError(t, err)
		finish := func() int {
			return mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+`.finish(
				ARRAY[$1::text::uuid], ARRAY[1], ARRAY[$2::text], ARRAY[NULL], ARRAY[$3::text], ARRAY[NULL::bigint], ARRAY[NULL::int])`, job.ID, status, failure)
		}
		require.Zero(t, finish())
		mustCancel(t, s, job.ID)
		require.Zero(t, finish())
		require.Equal(t, scheduler.JobStatusCancelled, mustGet(t, s, job.ID).Status)
	}
}
