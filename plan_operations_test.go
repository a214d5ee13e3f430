package scheduler_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// What TestPlansFindJobsByTheirIndexes does. Each leaves the table as it was, but
// for jobs that are finished, or due tomorrow.

func (p *planTest) createJob(t *testing.T) { mustCreate(t, p.Scheduler, "short", tomorrow()) }

func (p *planTest) createJobs(t *testing.T) { mustCreateMany(t, p.Scheduler, 100, "short", tomorrow()) }

// createUnique creates a job that is new, kept, and replaced.
func (p *planTest) createUnique(t *testing.T) {
	data := tomorrow()
	data.UniqueKey, data.UniqueFor = unique(), time.Hour
	job := mustCreate(t, p.Scheduler, "short", data)
	require.True(t, mustCreate(t, p.Scheduler, "short", data).Duplicate)
	data.OnDuplicate = scheduler.DuplicateReplace
	require.Equal(t, []string{job.ID, job.ID}, mustCreateMany(t, p.Scheduler, 2, "short", data))
}

func tomorrow() scheduler.JobData {
	return scheduler.JobData{Queue: "quiet", RunAt: time.Now().Add(24 * time.Hour)}
}

func (p *planTest) createJobTx(t *testing.T) {
	tx, err := p.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = p.CreateJobTx(t.Context(), tx, "short", tomorrow())
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
}

func (p *planTest) createJobInSQL(t *testing.T) {
	mustExec(t, p.pool, "SELECT scheduler.create_job('short', now() + interval '1 day', queue => 'quiet')")
}

func (p *planTest) readJob(t *testing.T) {
	id := mustQuery[string](t, p.aside, "SELECT max(id::text) FROM scheduler.jobs")
	mustGet(t, p.Scheduler, id)
}

func (p *planTest) runNothingDue(t *testing.T) {
	require.Zero(t, mustRun(t, p.Scheduler, scheduler.RunFilter{Status: scheduler.JobStatusAny, Limit: 10}).Picked)
}

func (p *planTest) runTen(t *testing.T) { p.run(t, 10) }

func (p *planTest) runHundred(t *testing.T) { p.run(t, 100) }

func (p *planTest) run(t *testing.T, n int) {
	mustCreateMany(t, p.Scheduler, n, "short", scheduler.JobData{})
	require.Equal(t, n, mustRun(t, p.Scheduler, scheduler.RunFilter{Limit: n}).Succeeded)
}

// runAfter runs ten jobs of which each runs after the one before, and one after all.
func (p *planTest) runAfter(t *testing.T) {
	var ids []string
	for i := range 10 {
		ids = append(ids, mustCreate(t, p.Scheduler, "short", scheduler.JobData{After: ids[max(0, i-1):]}).ID)
	}
	last := mustCreate(t, p.Scheduler, "short", scheduler.JobData{After: ids}).ID
	for range 11 {
		require.Equal(t, 1, mustRun(t, p.Scheduler, scheduler.RunFilter{}).Succeeded)
	}
	for parent, err := range p.Parents(t.Context(), last) {
		require.NoError(t, err)
		require.Equal(t, ids[0], parent.ID)
		ids = ids[1:]
	}
	require.Empty(t, ids)
}

// callOffAfter cancels jobs with those that wait for them, retries and deletes them.
func (p *planTest) callOffAfter(t *testing.T) {
	data := tomorrow()
	data.After = []string{mustCreate(t, p.Scheduler, "short", tomorrow()).ID}
	child := mustCreate(t, p.Scheduler, "short", data).ID
	mustCancel(t, p.Scheduler, data.After[0])
	mustRetry(t, p.Scheduler, data.After[0])
	mustRetry(t, p.Scheduler, child)
	require.NoError(t, p.DeleteJob(t.Context(), data.After[0]))
	require.NoError(t, p.DeleteJob(t.Context(), child))
}

func (p *planTest) rerunFailed(t *testing.T) {
	mustCreateMany(t, p.Scheduler, 10, "failing", scheduler.JobData{})
	require.Equal(t, 10, mustRun(t, p.Scheduler, scheduler.RunFilter{Limit: 10}).Failed)
	require.Equal(t, 10, mustRun(t, p.Scheduler, scheduler.RunFilter{Queue: scheduler.JobQueueFailed, Limit: 10}).Succeeded)
}

func (p *planTest) runSerial(t *testing.T) {
	mustCreateMany(t, p.Scheduler, 3, "short", scheduler.JobData{Queue: scheduler.JobQueueBlocking})
	require.Equal(t, 3, mustRun(t, p.Scheduler, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking, Limit: 10}).Succeeded)
}

func (p *planTest) finishTakenAway(t *testing.T) {
	mustCreate(t, p.Scheduler, "taken", scheduler.JobData{})
	require.Equal(t, 1, mustRun(t, p.Scheduler, scheduler.RunFilter{}).Lost)
}

func (p *planTest) complete(t *testing.T) {
	mustCreate(t, p.Scheduler, "completing", scheduler.JobData{})
	require.Equal(t, 1, mustRun(t, p.Scheduler, scheduler.RunFilter{}).Succeeded)
}

// reportProgress is of jobs that end, so that it is not waited for.
func (p *planTest) reportProgress(t *testing.T) {
	mustCreateMany(t, p.Scheduler, 10, "reporting", scheduler.JobData{})
	require.Equal(t, 10, mustRun(t, p.Scheduler, scheduler.RunFilter{Limit: 10}).Succeeded)
}

func (p *planTest) settle(t *testing.T) {
	const n = 40 // some are needed to be worth it
	mustCreateMany(t, p.Scheduler, n, "long", scheduler.JobData{})
	run := goRun(t.Context(), p.Scheduler, scheduler.RunFilter{Limit: n})
	p.waitAsked(t, "settle(")
	for range n {
		p.release <- struct{}{}
	}
	require.Equal(t, n, await(t, run).report.Succeeded)
}

func (p *planTest) resident(t *testing.T) {
	stop := goWork(t, t.Context(), p.Scheduler)
	mustCreate(t, p.scheduler(t), "short", scheduler.JobData{}) // by another process
	p.waitAsked(t, "finish(")
	stop()
}

func (p *planTest) tickDefault(t *testing.T) { p.tick(t, "quiet") }

func (p *planTest) tickSerial(t *testing.T) { p.tick(t, "blocking") }

func (p *planTest) tickLost(t *testing.T) {
	p.loseLease(t)
	p.tick(t, "quiet")
	require.Equal(t, lostJobs, mustRun(t, p.Scheduler, scheduler.RunFilter{Limit: lostJobs}).Succeeded)
}

// tick is what pg_cron does. It finds nothing due.
func (p *planTest) tick(t *testing.T, queue string) {
	worker := "worker-" + unique()
	mustExec(t, p.aside, `INSERT INTO scheduler.queue_workers (name, endpoint, queue, status, http_extension, timeout_seconds)
		VALUES ($1, 'http://127.0.0.1:9/api/jobs/run', $2, 'any', 'http', 10)`, worker, queue)
	require.Equal(t, "nothing due", mustQuery[string](t, p.pool, "SELECT scheduler.run_worker('"+worker+"')", pgx.QueryExecModeSimpleProtocol))
}

// loseLease leaves jobs behind that a lost process was running.
func (p *planTest) loseLease(t *testing.T) {
	mustExec(t, p.aside, "INSERT INTO scheduler.leases (id, holder, expires_at) VALUES (gen_random_uuid(), 'lost', now())")
	p.insert(t, fmt.Sprintf("(%d, '1 hour', '1 second', 'short', 'running', 0, '0', NULL, 1, 'lost')", lostJobs))
}

func (p *planTest) rescue(t *testing.T) {
	p.loseLease(t)
	require.Equal(t, lostJobs, mustRun(t, p.Scheduler, scheduler.RunFilter{Limit: lostJobs}).Succeeded)
}

func (p *planTest) cleanUp(t *testing.T) {
	p.insert(t, fmt.Sprintf("(%d, '10 days', '1 second', 'short', 'succeeded', NULL, '0', '1 second', 1, NULL)", oldJobs))
	require.Equal(t, oldJobs, mustQuery[int](t, p.pool, "SELECT scheduler.clean_up('7 days', '30 days', 1000)"))
}

func (p *planTest) comeAndGo(t *testing.T) {
	other := p.scheduler(t)
	require.Zero(t, mustRun(t, other, scheduler.RunFilter{}).Picked)
	p.waitAsked(t, "clean_up(")
	require.NoError(t, other.Shutdown(t.Context()))
}

func (p *planTest) loseClaim(t *testing.T) {
	other := p.scheduler(t)
	id := mustCreate(t, other, "refused", scheduler.JobData{Queue: "refused"}).ID
	_, err := other.Run(t.Context(), scheduler.RunFilter{Queue: "refused"})
	require.ErrorContains(t, err, "nobody_may_run_it")
	p.waitAsked(t, "hand_back.lease")
	require.NoError(t, other.Shutdown(t.Context()))
	mustExec(t, p.aside, "DELETE FROM scheduler.jobs WHERE id = $1::text::uuid", id)
}

func (p *planTest) lookForCancelled(t *testing.T) {
	mustExec(t, p.aside, `UPDATE scheduler.jobs SET cancelling = true
		WHERE id IN (SELECT id FROM scheduler.jobs WHERE lane IS NOT NULL AND status = 'running' ORDER BY id LIMIT 2)`)
	mustExec(t, p.pool, "SELECT FROM scheduler.cancelled_under(ARRAY(SELECT id FROM scheduler.leases))")
	mustExec(t, p.aside, "UPDATE scheduler.jobs SET cancelling = NULL WHERE cancelling")
}

func (p *planTest) cancelAndRetry(t *testing.T) {
	for _, queue := range []scheduler.JobQueue{"quiet", scheduler.JobQueueBlocking} {
		id := mustCreate(t, p.Scheduler, "short", tomorrowIn(queue)).ID
		mustCancel(t, p.Scheduler, id)
		mustRetry(t, p.Scheduler, id)
		mustCancel(t, p.Scheduler, id)
	}
}

func (p *planTest) rescheduleAndDelete(t *testing.T) {
	for _, queue := range []scheduler.JobQueue{"quiet", scheduler.JobQueueBlocking} {
		id := mustCreate(t, p.Scheduler, "short", tomorrowIn(queue)).ID
		_, err := p.RescheduleJob(t.Context(), id, tomorrowIn(queue).RunAt)
		require.NoError(t, err)
		require.NoError(t, p.DeleteJob(t.Context(), id))
	}
}

// changeMany changes the newest jobs of a queue that has many others, in two calls each.
func (p *planTest) changeMany(t *testing.T) {
	for _, queue := range []scheduler.JobQueue{"quiet", scheduler.JobQueueBlocking} {
		mustCreateMany(t, p.Scheduler, 20, "short", tomorrowIn(queue))
		for _, step := range []struct {
			bulk   string
			status scheduler.JobStatus
		}{{"reschedule jobs", "pending"}, {"cancel jobs", "pending"}, {"retry jobs", "cancelled"}, {"cancel jobs", "pending"}, {"delete jobs", "cancelled"}} {
			filter := scheduler.JobFilter{Queues: []scheduler.JobQueue{queue}, Names: []string{"short"}, Statuses: []scheduler.JobStatus{step.status}, Limit: 10}
			for range 2 {
				require.Equal(t, 10, mustBulk(t, step.bulk, p.Scheduler, filter))
			}
		}
	}
}

func (p *planTest) tellOfDead(t *testing.T) {
	mustCreateMany(t, p.Scheduler, 3, "failing", scheduler.JobData{Queue: "mortal"})
	require.Equal(t, 3, mustRun(t, p.Scheduler, scheduler.RunFilter{Queue: "mortal", Limit: 3}).Dead)
	require.Equal(t, 3, mustRun(t, p.Scheduler, scheduler.RunFilter{Limit: 3}).Succeeded)
}

func (p *planTest) cancelRunning(t *testing.T) {
	id := mustCreate(t, p.Scheduler, "long", scheduler.JobData{}).ID
	run := goRun(t.Context(), p.Scheduler, scheduler.RunFilter{})
	waitFor(t, func() bool {
		return mustQuery[bool](t, p.aside, "SELECT status = 'running' FROM scheduler.jobs WHERE id = $1::text::uuid", id)
	})
	_, err := p.CancelJob(t.Context(), id)
	require.NoError(t, err)
	p.release <- struct{}{}
	require.Equal(t, 1, await(t, run).report.Succeeded)
}
