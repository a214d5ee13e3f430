package scheduler_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// The key of a finished job may be another one's by the time it is retried.
func TestRetryJobRefusesAKeyThatIsTaken(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	data := scheduler.JobData{UniqueKey: "k"}
	first := mustCreate(t, u.Scheduler, "a", data)
	mustCancel(t, u.Scheduler, first.ID)
	second := u.requireNew(t, "a", data)
	_, err := u.RetryJob(t.Context(), first.ID)
	require.ErrorIs(t, err, scheduler.ErrJobState)
	require.ErrorContains(t, err, second.ID)
	require.Equal(t, scheduler.JobStatusCancelled, mustGet(t, u.Scheduler, first.ID).Status)

	mustRetry(t, u.Scheduler, second.ID) // has it
	mustCancel(t, u.Scheduler, second.ID)
	mustRetry(t, u.Scheduler, first.ID)
	u.requireDuplicate(t, first, data)
	mustCancel(t, u.Scheduler, first.ID)
	u.requireNew(t, "a", data)
}

// Nor is it lost where the key was cleaned up.
func TestARetriedJobHasItsKeyAgain(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	data := scheduler.JobData{UniqueKey: "k"}
	job := mustCreate(t, u.Scheduler, "failing", scheduler.JobData{UniqueKey: "k", MaxAttempts: 1})
	require.Equal(t, 1, mustRun(t, u.Scheduler, scheduler.RunFilter{}).Dead)
	mustExec(t, u.pool, "DELETE FROM "+u.schema+".unique_keys")
	mustRetry(t, u.Scheduler, job.ID)
	u.requireDuplicate(t, job, data)
}

// Whatever comes together, no two unfinished jobs have one key, and nobody
// waits for each other.
func TestRetriesRaceWithCreationsOfTheSameKey(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	data := scheduler.JobData{UniqueKey: "k", OnDuplicate: scheduler.DuplicateReplace}
	const workers, rounds = 6, 40
	var all sync.WaitGroup
	errs := make([]error, workers)
	for i := range workers {
		s := []*scheduler.Scheduler{u.Scheduler, u.other}[i%2]
		all.Go(func() {
			for range rounds {
				job, err := s.CreateJob(t.Context(), "a", data)
				if err == nil && rand.IntN(2) == 0 {
					_, err = s.CancelJob(t.Context(), job.ID)
				}
				if err == nil {
					_, err = s.RetryJob(t.Context(), job.ID)
				}
				if err != nil && !errors.Is(err, scheduler.ErrJobState) {
					errs[i] = err
				}
				var unfinished int
				if err := u.pool.QueryRow(t.Context(), "SELECT count(*) FROM "+u.schema+".jobs WHERE finished_at IS NULL").Scan(&unfinished); err != nil {
					errs[i] = err
				} else if unfinished > 1 {
					errs[i] = errors.New("two unfinished jobs with one key")
				}
			}
		})
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
}

// Of many, those are retried whose key is free, and of several with one key the
// newest.
func TestRetryJobsTakesKeysThatAreFree(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	cancelled := func(key string) string {
		job := u.requireNew(t, "a", scheduler.JobData{UniqueKey: key, Owner: "ada"})
		return mustCancel(t, u.Scheduler, job.ID).ID
	}
	older, newer, taken, free := cancelled("twice"), cancelled("twice"), cancelled("taken"), cancelled("free")
	holder := u.requireNew(t, "a", scheduler.JobData{UniqueKey: "taken"})
	keyless := mustCreate(t, u.Scheduler, "a", scheduler.JobData{Owner: "ada"})
	mustCancel(t, u.Scheduler, keyless.ID)

	filter := scheduler.JobFilter{Owner: "ada", Statuses: []scheduler.JobStatus{scheduler.JobStatusCancelled}}
	for _, want := range []int{3, 0} {
		n, err := u.RetryJobs(t.Context(), filter)
		require.NoError(t, err)
		require.Equal(t, want, n)
	}
	for id, status := range map[string]scheduler.JobStatus{
		older: scheduler.JobStatusCancelled, taken: scheduler.JobStatusCancelled,
		newer: scheduler.JobStatusPending, free: scheduler.JobStatusPending, keyless.ID: scheduler.JobStatusPending,
	} {
		require.Equal(t, status, mustGet(t, u.Scheduler, id).Status)
	}
	u.requireDuplicate(t, mustGet(t, u.Scheduler, newer), scheduler.JobData{UniqueKey: "twice"})
	u.requireDuplicate(t, holder, scheduler.JobData{UniqueKey: "taken"})
}
