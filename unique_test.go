package scheduler_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// uniqueTest has two Schedulers on one schema, as two processes are.
type uniqueTest struct {
	*scheduler.Scheduler
	other     *scheduler.Scheduler
	otherPool *pgxpool.Pool
	pool      *pgxpool.Pool // of neither
	name      string        // of the other's connections in Postgres
	schema    string
}

func newUniqueTest(t *testing.T) *uniqueTest {
	u := &uniqueTest{pool: newPool(t), name: unique(), schema: newSchema(t)}
	configure := func(c *scheduler.Config) {
		c.Schema, c.JobNames = u.schema, scheduler.JobNames{"a": succeed, "b": succeed, "failing": fail}
		c.Queues = queueConfigs{"own": {}}
	}
	u.Scheduler = newScheduler(t, configure)
	config := newPool(t).Config()
	config.ConnConfig.RuntimeParams["application_name"] = u.name
	u.otherPool = newPoolWith(t, config)
	u.other = newSchedulerOn(t, u.otherPool, configure)
	return u
}

func (u *uniqueTest) stored(t *testing.T) int {
	t.Helper()
	return mustQuery[int](t, u.pool, "SELECT count(*) FROM "+u.schema+".jobs")
}

// requireDuplicate creates a job again, which is to find this one.
func (u *uniqueTest) requireDuplicate(t *testing.T, of *scheduler.Job, data scheduler.JobData) *scheduler.Job {
	t.Helper()
	job := mustCreate(t, u.other, of.Name, data)
	require.Equal(t, of.ID, job.ID)
	require.True(t, job.Duplicate)
	return job
}

// requireNew creates a job again, which is to find none.
func (u *uniqueTest) requireNew(t *testing.T, name string, data scheduler.JobData) *scheduler.Job {
	t.Helper()
	before := u.stored(t)
	job := mustCreate(t, u.other, name, data)
	require.False(t, job.Duplicate)
	require.Equal(t, before+1, u.stored(t))
	return job
}

// Many create the same at once: a job that was never there, and one that is
// finished.
func TestUniqueJobIsCreatedOnce(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	first := u.createAtOnce(t)
	require.Equal(t, 1, u.stored(t))
	stored := mustGet(t, u.Scheduler, first)
	require.Equal(t, "k", stored.UniqueKey)
	require.False(t, stored.Duplicate, "only a creation says so")

	require.Equal(t, 1, mustRun(t, u.Scheduler, scheduler.RunFilter{}).Succeeded)
	require.NotEqual(t, first, u.createAtOnce(t))
	require.Equal(t, 2, u.stored(t))
}

// createAtOnce creates a job 200 times at once, of which one is to succeed.
func (u *uniqueTest) createAtOnce(t *testing.T) (id string) {
	const n = 200
	jobs, errs := make([]*scheduler.Job, n), make([]error, n)
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range n {
		s := []*scheduler.Scheduler{u.Scheduler, u.other}[i%2]
		all.Go(func() {
			<-begin
			jobs[i], errs[i] = s.CreateJob(t.Context(), "a", scheduler.JobData{UniqueKey: "k", Payload: i})
		})
	}
	close(begin)
	all.Wait()
	created := 0
	for i, job := range jobs {
		require.NoError(t, errs[i])
		require.Equal(t, jobs[0].ID, job.ID)
		require.Equal(t, "k", job.UniqueKey)
		if !job.Duplicate {
			created++
			require.JSONEq(t, fmt.Sprint(i), string(job.Payload))
		}
	}
	require.Equal(t, 1, created)
	return jobs[0].ID
}

// A key is one with the name of the job, whatever the queue; keys are told apart
// by their bytes.
func TestUniqueKeysAreOfAName(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	ids := map[string]bool{}
	for _, name := range []string{"a", "b"} {
		for _, key := range []string{"k", "K", " k", "ü", "u\u0308", strings.Repeat("x", 256), strings.Repeat("x", 255)} {
			ids[u.requireNew(t, name, scheduler.JobData{UniqueKey: key}).ID] = true
		}
		ids[u.requireNew(t, name, scheduler.JobData{}).ID] = true
		ids[u.requireNew(t, name, scheduler.JobData{}).ID] = true
	}
	require.Len(t, ids, 18)
	job := u.requireNew(t, "a", scheduler.JobData{UniqueKey: "q", Queue: "own"})
	require.Equal(t, scheduler.JobQueue("own"), u.requireDuplicate(t, job, scheduler.JobData{UniqueKey: "q"}).Queue)
}

// Batches that have the same keys in other orders don't wait for each other in
// a circle, and agree on the jobs.
func TestUniqueJobsInBatches(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	const batches, keys = 24, 40
	ids, errs := make([]map[string]string, batches), make([]error, batches)
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range batches {
		s := []*scheduler.Scheduler{u.Scheduler, u.other}[i%2]
		order := append(rand.Perm(keys), rand.Perm(keys)...) // each key twice
		all.Go(func() {
			var jobs []scheduler.NewJob
			for _, k := range order {
				jobs = append(jobs, scheduler.NewJob{Name: "a", JobData: scheduler.JobData{UniqueKey: fmt.Sprint(k), OnDuplicate: "replace"}})
			}
			jobs = append(jobs, scheduler.NewJob{Name: "b"})
			<-begin
			got, err := s.CreateJobs(t.Context(), jobs)
			errs[i], ids[i] = err, map[string]string{}
			if err != nil || len(got) != len(jobs) {
				return
			}
			for j, job := range jobs[:len(order)] {
				if id, ok := ids[i][job.UniqueKey]; ok && id != got[j] {
					errs[i] = fmt.Errorf("key %s has the jobs %s and %s in one batch", job.UniqueKey, id, got[j])
				}
				ids[i][job.UniqueKey] = got[j]
			}
		})
	}
	close(begin)
	all.Wait()
	for i := range batches {
		require.NoError(t, errs[i])
		require.Len(t, ids[i], keys)
		require.Equal(t, ids[0], ids[i])
	}
	require.Equal(t, keys+batches, u.stored(t), "and one of each batch that is not unique")
	for key, id := range ids[0] {
		require.Equal(t, key, mustGet(t, u.Scheduler, id).UniqueKey)
	}
}

// All or none holds for keys too, and the ids are in their places.
func TestUniqueJobsOfABatchAreAllOrNone(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	there := u.requireNew(t, "a", scheduler.JobData{UniqueKey: "there"})
	batch := []scheduler.NewJob{
		{Name: "a", JobData: scheduler.JobData{UniqueKey: "new", Payload: 1}},
		{Name: "a", JobData: scheduler.JobData{Payload: "plain"}},
		{Name: "a", JobData: scheduler.JobData{UniqueKey: "there"}},
		{Name: "a", JobData: scheduler.JobData{UniqueKey: "new", Payload: 2, OnDuplicate: scheduler.DuplicateReplace}},
		{Name: "a", JobData: scheduler.JobData{UniqueKey: "new", Payload: 3}},
	}
	mustExec(t, u.pool, "ALTER TABLE "+u.schema+".jobs ADD CONSTRAINT no_b CHECK (name <> 'b')")
	ids, err := u.CreateJobs(t.Context(), append(slices.Clone(batch), scheduler.NewJob{Name: "b"}))
	requirePgError(t, err, "23514")
	require.Nil(t, ids)
	require.Equal(t, 1, mustQuery[int](t, u.pool, "SELECT count(*) FROM "+u.schema+".unique_keys"))
	require.Equal(t, 1, u.stored(t))

	ids, err = u.CreateJobs(t.Context(), batch)
	require.NoError(t, err)
	require.Equal(t, []string{ids[0], ids[1], there.ID, ids[0], ids[0]}, ids)
	require.JSONEq(t, "2", string(mustGet(t, u.Scheduler, ids[0]).Payload))
	require.JSONEq(t, `"plain"`, string(mustGet(t, u.Scheduler, ids[1]).Payload))
	require.Equal(t, 3, u.stored(t))
}

// The second transaction waits for the first one, and has the job if that
// commits, or creates it if not. So does a creation in none.
func TestUniqueJobsInTransactions(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	data := scheduler.JobData{UniqueKey: "k"}
	createInTx := func() (*scheduler.Job, error) {
		var job *scheduler.Job
		err := pgx.BeginFunc(t.Context(), u.otherPool, func(tx pgx.Tx) (err error) {
			job, err = u.other.CreateJobTx(t.Context(), tx, "a", data)
			return err
		})
		return job, err
	}
	create := func() (*scheduler.Job, error) { return u.other.CreateJob(t.Context(), "a", data) }
	for title, create := range map[string]func() (*scheduler.Job, error){"CreateJobTx": createInTx, "CreateJob": create} {
		for _, commits := range []bool{false, true} {
			mustExec(t, u.pool, "DELETE FROM "+u.schema+".jobs")
			tx, err := u.pool.Begin(t.Context())
			require.NoError(t, err)
			t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }) // it may be over
			first, err := u.CreateJobTx(t.Context(), tx, "a", data)
			require.NoError(t, err)
			require.False(t, first.Duplicate)
			again, err := u.CreateJobTx(t.Context(), tx, "a", data)
			require.NoError(t, err)
			require.Equal(t, first.ID, again.ID, "of its own transaction")

			var second *scheduler.Job
			done := make(chan error, 1)
			go func() {
				job, err := create()
				second = job
				done <- err
			}()
			waitBlocked(t, u.pool, u.name)
			if commits {
				require.NoError(t, tx.Commit(t.Context()))
			} else {
				require.NoError(t, tx.Rollback(t.Context()))
			}
			require.NoError(t, await(t, done))
			require.Equal(t, commits, second.Duplicate, title)
			require.Equal(t, commits, first.ID == second.ID, title)
			require.Equal(t, 1, u.stored(t), title)
		}
	}
}

// What another transaction has done since this one's snapshot is an error of
// Postgres, and no second job.
func TestUniqueJobsUnderRepeatableRead(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		tx, err := u.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
		require.NoError(t, err)
		mustExec(t, tx, "SELECT FROM "+u.schema+".jobs")
		_, err = u.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{UniqueKey: string(level) + " mine"})
		require.NoError(t, err)
		u.requireNew(t, "a", scheduler.JobData{UniqueKey: string(level)})
		_, err = u.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{UniqueKey: string(level)})
		requirePgError(t, err, "40001")
		require.NoError(t, tx.Rollback(t.Context()))
	}
	require.Equal(t, 2, u.stored(t))
}

// Unfinished is every status but succeeded, dead and cancelled.
func TestUniqueWhileUnfinished(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	data := scheduler.JobData{UniqueKey: "k", MaxAttempts: 2}
	job := mustCreate(t, u.Scheduler, "failing", data)
	u.requireDuplicate(t, job, data)
	mustRun(t, u.Scheduler, scheduler.RunFilter{})
	require.Equal(t, scheduler.JobStatusFailed, u.requireDuplicate(t, job, data).Status)
	passTime(t, u.pool, u.schema)
	mustRun(t, u.Scheduler, scheduler.RunFilter{Status: scheduler.JobStatusFailed})
	require.Equal(t, scheduler.JobStatusDead, mustGet(t, u.Scheduler, job.ID).Status)
	next := u.requireNew(t, "failing", data)
	u.requireDuplicate(t, next, data)

	mustExec(t, u.pool, "UPDATE "+u.schema+".jobs SET status = 'cancelled', lane = NULL, finished_at = now() WHERE id = $1::text::uuid", next.ID)
	next = u.requireNew(t, "failing", data)
	mustExec(t, u.pool, "DELETE FROM "+u.schema+".jobs WHERE id = $1::text::uuid", next.ID)
	u.requireDuplicate(t, u.requireNew(t, "failing", data), data)
}

func TestUniqueForATime(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	hour := scheduler.JobData{UniqueKey: "k", UniqueFor: time.Hour, OnDuplicate: scheduler.DuplicateReplace, Payload: "new"}
	createdAgo := func(job *scheduler.Job, age string) {
		mustExec(t, u.pool, "UPDATE "+u.schema+".jobs SET created_at = now() - $2::text::interval WHERE id = $1::text::uuid", job.ID, age)
	}
	job := mustCreate(t, u.Scheduler, "a", scheduler.JobData{UniqueKey: "k"})
	createdAgo(job, "2 hours")
	u.requireDuplicate(t, job, scheduler.JobData{UniqueKey: "k", UniqueFor: time.Hour}) // it is not finished
	mustRun(t, u.Scheduler, scheduler.RunFilter{})
	createdAgo(job, "59 minutes")
	got := u.requireDuplicate(t, job, hour)
	require.Equal(t, scheduler.JobStatusSucceeded, got.Status)
	require.JSONEq(t, "null", string(got.Payload), "what is finished is kept")
	createdAgo(job, "61 minutes")
	longer := hour
	longer.UniqueFor = 2 * time.Hour
	u.requireDuplicate(t, job, longer) // each creation says how long

	next := u.requireNew(t, "a", hour)
	mustRun(t, u.Scheduler, scheduler.RunFilter{})
	u.requireDuplicate(t, next, hour)
	u.requireNew(t, "a", scheduler.JobData{UniqueKey: "k"})
}

func TestDuplicateReplace(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	at := time.Date(2091, 1, 1, 0, 0, 0, 0, time.UTC)
	job := mustCreate(t, u.Scheduler, "a", scheduler.JobData{
		UniqueKey: "k", Queue: "own", RunAt: at, Payload: 1, MaxAttempts: 3, Owner: "ada", Tags: []string{"x"}})
	kept := u.requireDuplicate(t, job, scheduler.JobData{UniqueKey: "k", Payload: 2, Owner: "bob"})
	require.Equal(t, "ada", kept.Owner)
	require.JSONEq(t, "1", string(kept.Payload))
	require.Equal(t, at, kept.RunAt)

	data := scheduler.JobData{UniqueKey: "k", RunAt: at.Add(time.Hour), Payload: 3, Metadata: map[string]int{"n": 1}, OnDuplicate: scheduler.DuplicateReplace}
	got := u.requireDuplicate(t, job, data)
	require.Equal(t, at.Add(time.Hour), got.RunAt)
	require.JSONEq(t, "3", string(got.Payload))
	require.Empty(t, got.Owner)
	require.Empty(t, got.Tags)
	require.JSONEq(t, `{"n": 1}`, string(got.Metadata))
	require.Equal(t, scheduler.JobQueue("own"), got.Queue, "it stays where it is")
	require.Equal(t, 3, got.MaxAttempts)
	require.Equal(t, job.CreatedAt, got.CreatedAt)
	stored := mustGet(t, u.Scheduler, job.ID)
	require.True(t, got.Duplicate)
	got.Duplicate = false
	require.Equal(t, stored, got)

	data.RunAt, data.Payload = time.Time{}, 4
	got = u.requireDuplicate(t, job, data)
	require.False(t, got.RunAt.After(mustQuery[time.Time](t, u.pool, "SELECT now()")))
	report := mustRun(t, u.Scheduler, scheduler.RunFilter{Queue: "own"})
	require.Equal(t, 1, report.Succeeded)
	require.JSONEq(t, "4", string(mustGet(t, u.Scheduler, job.ID).Payload))
	require.Equal(t, 1, u.stored(t))
}

// Once an attempt has begun, the job is kept, also when it waits for the next.
func TestDuplicateReplaceKeepsWhatWasStarted(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	data := scheduler.JobData{UniqueKey: "k", Payload: 1}
	job := mustCreate(t, u.Scheduler, "failing", data)
	data.Payload, data.OnDuplicate = 2, scheduler.DuplicateReplace
	requireKept := func() {
		t.Helper()
		require.JSONEq(t, "1", string(u.requireDuplicate(t, job, data).Payload))
	}

	// A claim that commits while the replacement waits for it.
	tx, err := u.pool.Begin(t.Context())
	require.NoError(t, err)
	mustExec(t, tx, "UPDATE "+u.schema+".jobs SET status = 'running', lease_id = gen_random_uuid(), attempt = 1, claims = 1")
	done := make(chan *scheduler.Job, 1)
	go func() {
		got, _ := u.other.CreateJob(t.Context(), "failing", data)
		done <- got
	}()
	waitBlocked(t, u.pool, u.name)
	require.NoError(t, tx.Commit(t.Context()))
	got := await(t, done)
	require.NotNil(t, got)
	require.Equal(t, scheduler.JobStatusRunning, got.Status)
	require.JSONEq(t, "1", string(got.Payload))
	require.True(t, got.Duplicate)

	requireKept() // running
	mustExec(t, u.pool, "UPDATE "+u.schema+".jobs SET status = 'failed', lane = 1, lease_id = NULL")
	requireKept()
	mustExec(t, u.pool, "UPDATE "+u.schema+".jobs SET status = 'pending', lane = 0") // rescued
	requireKept()
	mustExec(t, u.pool, "UPDATE "+u.schema+".jobs SET attempt = 0") // snoozed: no attempt was used
	require.JSONEq(t, "2", string(u.requireDuplicate(t, job, data).Payload))
}
