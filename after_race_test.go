package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// A job created while its parent finishes: whichever of the two transactions is
// first, the other one waits for it and sees what it has done.
func TestCreationBesideTheEndOfAParent(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	// The creation is first.
	parent := mustCreate(t, a.Scheduler, "cancelled", scheduler.JobData{}).ID
	tx, err := a.pool.Begin(t.Context())
	require.NoError(t, err)
	child, err := a.CreateJobTx(t.Context(), tx, "a", after(parent))
	require.NoError(t, err)
	require.Zero(t, mustRun(t, a.Scheduler, scheduler.RunFilter{}).Picked, "the parent is not started meanwhile")
	cancelled := make(chan error, 1)
	go func() {
		_, err := a.CancelJob(context.WithoutCancel(t.Context()), parent)
		cancelled <- err
	}()
	a.waitLocked(t, 1)
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, await(t, cancelled))
	a.requireCalledOff(t, child.ID, parent+", which was cancelled")

	// The end is first.
	for title, commit := range map[string]bool{"commit": true, "rollback": false} {
		parent = mustCreate(t, a.Scheduler, "a", tomorrowIn("")).ID
		tx, err = a.pool.Begin(t.Context())
		require.NoError(t, err)
		_, err = tx.Exec(t.Context(), "SELECT FROM "+a.schema+".cancel_job($1::text::uuid)", parent)
		require.NoError(t, err)
		created := make(chan *scheduler.Job, 1)
		go func() {
			job, err := a.CreateJob(context.WithoutCancel(t.Context()), "a", after(parent))
			if err == nil {
				created <- job
			}
		}()
		a.waitLocked(t, 1)
		if !commit {
			require.NoError(t, tx.Rollback(t.Context()))
			a.requireWaiting(t, await(t, created).ID, 1)
			continue
		}
		require.NoError(t, tx.Commit(t.Context()), title)
		a.requireCalledOff(t, await(t, created).ID, parent+", which was cancelled")
	}
}

// waitLocked waits until n sessions wait for a lock in the test's schema.
func (a *afterTest) waitLocked(t *testing.T, n int) {
	waitFor(t, func() bool {
		return mustQuery[int](t, a.pool, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%"+a.schema+"%'") == n
	})
}

// Transactions that create a job after one that runs may stay open. Its end is not
// recorded until then, that of others is.
func TestOpenCreationsHoldUpNoOtherEnd(t *testing.T) {
	t.Parallel()
	const n = 3 // more than there are writers of ends
	begun, goOn := make(chan struct{}, n), make(chan struct{})
	a := newAfterTest(t, func(c *scheduler.Config) {
		c.JobNames["wait"] = func(context.Context, *scheduler.Job) (any, error) {
			begun <- struct{}{}
			<-goOn
			return nil, nil
		}
	})
	parents := mustCreateMany(t, a.Scheduler, n, "wait", scheduler.JobData{})
	run := goRun(t.Context(), a.Scheduler, scheduler.RunFilter{Limit: n})
	txs := make([]pgx.Tx, n)
	children := make([]string, n)
	for i, parent := range parents {
		await(t, begun)
		var err error
		txs[i], err = a.pool.Begin(t.Context())
		require.NoError(t, err)
		defer func() { _ = txs[i].Rollback(context.Background()) }()
		child, err := a.CreateJobTx(t.Context(), txs[i], "a", after(parent))
		require.NoError(t, err)
		children[i] = child.ID
	}
	close(goOn)
	a.waitLocked(t, 2)
	other := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID
	require.Equal(t, []string{other}, a.runAll(t))
	for _, tx := range txs {
		require.NoError(t, tx.Commit(t.Context()))
	}
	require.Equal(t, n, await(t, run).report.Succeeded)
	require.ElementsMatch(t, children, a.runAll(t))
}

// What waits for a lost job may be locked by a transaction that creates a job after
// it. Such a lost job is left for the next rescue, and the others are not.
func TestRescueWaitsForNoOpenCreation(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	lost := mustCreateMany(t, a.Scheduler, 2, "a", scheduler.JobData{MaxAttempts: 1})
	child := mustCreate(t, a.Scheduler, "a", after(lost[0])).ID
	mustExec(t, a.pool, "INSERT INTO "+a.schema+".leases (id, holder, expires_at) VALUES (gen_random_uuid(), '', now())")
	mustExec(t, a.pool, fmt.Sprintf(`UPDATE %[1]s.jobs SET status = 'running', attempt = 1, claims = 1, lease_id = (SELECT id FROM %[1]s.leases)
		WHERE id = ANY ($1::text[]::uuid[])`, a.schema), lost)
	tx, err := a.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	grandchild, err := a.CreateJobTx(t.Context(), tx, "a", after(child))
	require.NoError(t, err)
	mustRun(t, a.Scheduler, scheduler.RunFilter{})
	require.Equal(t, scheduler.JobStatusRunning, mustGet(t, a.Scheduler, lost[0]).Status)
	require.Equal(t, scheduler.JobStatusDead, mustGet(t, a.Scheduler, lost[1]).Status)
	require.NoError(t, tx.Commit(t.Context()))
	mustRun(t, a.Scheduler, scheduler.RunFilter{})
	require.Equal(t, scheduler.JobStatusDead, mustGet(t, a.Scheduler, lost[0]).Status)
	a.requireCalledOff(t, child, lost[0]+", which is dead")
	a.requireCalledOff(t, grandchild.ID, child+", which was cancelled")
}

// A handler's transaction with an older snapshot can't finish its job past one that
// was created after it since.
func TestCreationAfterTheSnapshotOfAParent(t *testing.T) {
	t.Parallel()
	begun, goOn := make(chan struct{}, 2), make(chan struct{})
	var a *afterTest
	a = newAfterTest(t, func(c *scheduler.Config) {
		c.JobNames["snapshot"] = func(ctx context.Context, job *scheduler.Job) (any, error) {
			return nil, pgx.BeginTxFunc(ctx, a.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead}, func(tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, "SELECT 1 FROM "+a.schema+".jobs LIMIT 1"); err != nil {
					return err
				}
				begun <- struct{}{}
				<-goOn
				return a.CompleteTx(ctx, tx, job, nil)
			})
		}
	})
	parent := mustCreate(t, a.Scheduler, "snapshot", scheduler.JobData{}).ID
	first := mustCreate(t, a.Scheduler, "a", after(parent)).ID
	run := goRun(t.Context(), a.Scheduler, scheduler.RunFilter{})
	await(t, begun)
	second := mustCreate(t, a.Scheduler, "a", after(parent)).ID
	goOn <- struct{}{}
	require.Equal(t, 1, await(t, run).report.Failed, "a serialization failure")
	close(goOn)
	mustRetry(t, a.Scheduler, parent)
	require.ElementsMatch(t, []string{parent, first, second}, a.runAll(t))
}

// Many processes create, finish, cancel, retry and delete at once. None is lost, and
// no job starts before those it waits for.
func TestManyDependantsAtOnce(t *testing.T) {
	t.Parallel()
	const n, workers = 60, 4
	a := newAfterTest(t, nil)
	mustExec(t, a.pool, "CREATE TABLE "+a.schema+".journal (id uuid, at timestamptz DEFAULT clock_timestamp())")
	others := make([]*scheduler.Scheduler, workers)
	for i := range others {
		others[i] = newSchedulerOn(t, newPool(t), func(c *scheduler.Config) { c.Schema, c.JobNames = a.schema, a.noting() })
	}
	var mu sync.Mutex
	ids := mustCreateMany(t, others[0], 10, "a", scheduler.JobData{})
	pick := func(r *rand.Rand) string {
		mu.Lock()
		defer mu.Unlock()
		return ids[max(0, len(ids)-1-r.IntN(20))]
	}
	errs := make(chan error, workers*n)
	var all sync.WaitGroup
	for i, s := range others {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range n {
				errs <- a.disturb(t.Context(), s, r, pick, func(more ...string) {
					mu.Lock()
					defer mu.Unlock()
					ids = append(ids, more...)
				})
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	for picked := 1; picked > 0; {
		picked = mustRun(t, others[0], scheduler.RunFilter{Limit: 100, Status: scheduler.JobStatusAny}).Picked
		mustExec(t, a.pool, "UPDATE "+a.schema+".jobs SET run_at = now() WHERE status = 'failed'")
	}
	a.requireNoneLostOrEarly(t)
}

func (a *afterTest) noting() scheduler.JobNames {
	return scheduler.JobNames{"a": func(ctx context.Context, job *scheduler.Job) (any, error) {
		_, err := a.pool.Exec(context.WithoutCancel(ctx), "INSERT INTO "+a.schema+".journal (id) VALUES ($1::text::uuid)", job.ID)
		return nil, err
	}}
}

// disturb does one thing of what services do.
func (a *afterTest) disturb(ctx context.Context, s *scheduler.Scheduler, r *rand.Rand, pick func(*rand.Rand) string, created func(...string)) error {
	data := scheduler.JobData{After: []string{pick(r), pick(r)}, AfterAny: r.IntN(3) == 0}
	switch r.IntN(10) {
	case 0, 1, 2, 3:
		job, err := s.CreateJob(ctx, "a", data)
		if errors.Is(err, scheduler.ErrInvalidInput) {
			return nil // it was deleted
		}
		if err == nil {
			created(job.ID)
		}
		return err
	case 4:
		ids, err := s.CreateJobs(ctx, []scheduler.NewJob{
			{Name: "a", JobData: scheduler.JobData{After: []string{"x", "y"}}}, {Name: "a", Label: "x"}, {Name: "a", Label: "y", JobData: scheduler.JobData{After: []string{"x"}}},
		})
		created(ids...)
		return err
	case 5:
		_, err := s.CancelJobs(ctx, scheduler.JobFilter{Names: []string{"a"}, Limit: 2})
		return err
	case 6:
		_, err := s.DeleteJobs(ctx, scheduler.JobFilter{Names: []string{"a"}, Statuses: []scheduler.JobStatus{"pending"}, Limit: 1})
		return err
	case 7:
		_, err := s.RetryJobs(ctx, scheduler.JobFilter{Names: []string{"a"}, Statuses: []scheduler.JobStatus{"cancelled"}, Limit: 3})
		return err
	default:
		_, err := s.Run(ctx, scheduler.RunFilter{Limit: 10})
		return err
	}
}

// requireNoneLostOrEarly holds the table of jobs against the journal of their starts,
// when nothing is left to do.
func (a *afterTest) requireNoneLostOrEarly(t *testing.T) {
	t.Helper()
	require.Zero(t, mustQuery[int](t, a.pool, "SELECT count(*) FROM "+a.schema+".jobs WHERE lane IS NOT NULL"), "unfinished")
	require.Zero(t, mustQuery[int](t, a.pool, fmt.Sprintf(`
		SELECT count(*) FROM %[1]s.jobs c JOIN %[1]s.job_dependencies d ON d.child = c.id JOIN %[1]s.jobs p ON p.id = d.parent
		JOIN %[1]s.journal s ON s.id = c.id
		WHERE s.at < p.finished_at AND NOT d.after_any OR p.status <> 'succeeded' AND NOT d.after_any`, a.schema)), "early")
	require.Zero(t, mustQuery[int](t, a.pool, fmt.Sprintf(`
		SELECT count(*) FROM %[1]s.jobs c WHERE c.status = 'cancelled' AND c.waits_for > 0 AND c.attempt > 0`, a.schema)))
	require.Zero(t, mustQuery[int](t, a.pool, fmt.Sprintf(`
		SELECT count(*) FROM %[1]s.jobs c WHERE c.status = 'succeeded' AND NOT EXISTS (SELECT FROM %[1]s.journal s WHERE s.id = c.id)`, a.schema)))
}

// A creation may hold a job that waits for one whose record is under way, and want
// another one of that record: it is the record that gives way.
func TestARecordGivesWayToACreation(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	first := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID
	waiting := mustCreate(t, a.Scheduler, "a", after(first)).ID
	last := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID
	mustExec(t, a.pool, "UPDATE "+a.schema+".jobs SET status = 'running', started_at = now(), attempt = 1, claims = 1 WHERE id = ANY ($1::text[]::uuid[])", []string{first, last})
	creation, err := a.pool.Begin(t.Context())
	require.NoError(t, err)
	lock := "SELECT FROM " + a.schema + ".jobs WHERE id = $1::text::uuid FOR NO KEY UPDATE" // in the order of ids
	mustExec(t, creation, lock, waiting)
	record := "SELECT FROM " + a.schema + ".finish($1::text[]::uuid[], '{1,1}', '{succeeded,succeeded}', NULL, NULL, NULL, NULL)"
	recorded := make(chan error, 1)
	go func() {
		_, err := a.pool.Exec(context.WithoutCancel(t.Context()), record, []string{first, last})
		recorded <- err
	}()
	a.waitLocked(t, 1)
	mustExec(t, creation, lock, last)
	var postgres *pgconn.PgError
	require.ErrorAs(t, await(t, recorded), &postgres)
	require.Equal(t, "55P03", postgres.Code)
	require.NoError(t, creation.Commit(t.Context()))
	mustExec(t, a.pool, record, []string{first, last})
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, a.Scheduler, last).Status)
}
