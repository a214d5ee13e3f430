package scheduler_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

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

// Keys that are of no use are let go of before others are waited for, so that
// nobody can wait for them the other way round.
func TestLaterPagesOfARetryHoldNoKeys(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	for _, key := range []string{"first", "second"} {
		mustCancel(t, u.Scheduler, mustCreate(t, u.Scheduler, "a", scheduler.JobData{UniqueKey: key, Owner: "ada"}).ID)
	}
	u.requireNew(t, "a", scheduler.JobData{UniqueKey: "second"}) // so the newest can't be retried
	tx, err := u.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	mustExec(t, tx, "SELECT FROM "+u.schema+".lock_keys('{a}', '{first}')")
	retried := make(chan error, 1)
	go func() {
		_, err := u.other.RetryJobs(t.Context(), scheduler.JobFilter{Owner: "ada", Statuses: []scheduler.JobStatus{"cancelled"}, Limit: 1})
		retried <- err
	}()
	waitBlocked(t, u.pool, u.name)
	mustExec(t, tx, "SET LOCAL lock_timeout = '100ms'")
	mustExec(t, tx, "SELECT FROM "+u.schema+".lock_keys('{a}', '{second}')")
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, await(t, retried))
	require.Equal(t, 2, mustQuery[int](t, u.pool, "SELECT count(*) FROM "+u.schema+".jobs WHERE status = 'pending'"))
}

// UniqueFor counts from the creation of the job that was created last. An older
// one that is retried comes first, until it is finished again.
func TestARetriedJobDoesNotHideANewerOne(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	data := scheduler.JobData{UniqueKey: "k", UniqueFor: time.Hour}
	older := mustCreate(t, u.Scheduler, "a", data)
	mustCancel(t, u.Scheduler, older.ID)
	mustExec(t, u.pool, "UPDATE "+u.schema+".jobs SET created_at = created_at - interval '2 hours'")
	newer := u.requireNew(t, "a", data)
	mustCancel(t, u.Scheduler, newer.ID)
	u.requireDuplicate(t, newer, data)

	retries := map[string]func(id string){
		"by id": func(id string) { mustRetry(t, u.Scheduler, id) },
		"by filter": func(string) {
			at := mustGet(t, u.Scheduler, newer.ID).CreatedAt
			require.Equal(t, 1, mustBulk(t, "retry jobs", u.Scheduler, scheduler.JobFilter{CreatedBefore: at, Statuses: []scheduler.JobStatus{"cancelled"}}))
		},
	}
	for name, retry := range retries {
		retry(older.ID)
		u.requireDuplicate(t, older, data)
		_, err := u.RetryJob(t.Context(), newer.ID)
		require.ErrorIs(t, err, scheduler.ErrJobState, name)
		require.ErrorContains(t, err, older.ID, name)
		mustExec(t, u.pool, "SELECT "+u.schema+".clean_up()") // looks at keys too
		u.requireDuplicate(t, older, data)
		mustCancel(t, u.Scheduler, older.ID)
		u.requireDuplicate(t, newer, data)
	}

	// The newer one itself, too.
	mustRetry(t, u.Scheduler, newer.ID)
	u.requireDuplicate(t, newer, data)
	mustCancel(t, u.Scheduler, newer.ID)
	u.requireDuplicate(t, newer, data)

	// Where it is gone, the older one that is retried still has the key.
	mustRetry(t, u.Scheduler, older.ID)
	require.NoError(t, u.DeleteJob(t.Context(), newer.ID))
	mustExec(t, u.pool, "SELECT "+u.schema+".clean_up()")
	u.requireDuplicate(t, older, data)
	mustCancel(t, u.Scheduler, older.ID)
	u.requireNew(t, "a", data)
}
