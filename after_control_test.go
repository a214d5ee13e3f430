package scheduler_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// What people do to a job that waits.
func TestControlOfJobsThatWait(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	parent := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID
	child := mustCreate(t, a.Scheduler, "a", scheduler.JobData{After: []string{parent}, RunAt: time.Now().Add(time.Hour)}).ID
	grandchild := mustCreate(t, a.Scheduler, "a", after(child)).ID

	job, err := a.RescheduleJob(t.Context(), child, time.Now().Add(2*time.Hour))
	require.NoError(t, err)
	require.Equal(t, 1, job.WaitsFor)
	require.WithinDuration(t, time.Now().Add(2*time.Hour), job.RunAt, time.Minute)
	require.Equal(t, 1, mustRetry(t, a.Scheduler, child).WaitsFor, "it is due, and goes on waiting")
	require.Equal(t, 1, mustBulk(t, "reschedule jobs", a.Scheduler, scheduler.JobFilter{Names: []string{"a"}, Limit: 1}))
	a.requireWaiting(t, child, 1)
	a.requireWaiting(t, grandchild, 1)

	require.Equal(t, scheduler.JobStatusCancelled, mustCancel(t, a.Scheduler, child).Status)
	a.requireCalledOff(t, grandchild, child+", which was cancelled")
	_, err = a.RetryJob(t.Context(), grandchild)
	require.ErrorIs(t, err, scheduler.ErrJobState)
	require.ErrorContains(t, err, "job "+grandchild+" is to run after job "+child+", which has not succeeded")
	require.Equal(t, 1, mustRetry(t, a.Scheduler, child).WaitsFor, "it waits again")
	require.Equal(t, 1, mustRetry(t, a.Scheduler, grandchild).WaitsFor)

	require.Equal(t, []string{parent}, ranOnce(t, a))
	require.Equal(t, []string{child, grandchild}, a.runAll(t))

	deleted := mustCreate(t, a.Scheduler, "a", after(mustCreate(t, a.Scheduler, "a", tomorrowIn("")).ID)).ID
	require.NoError(t, a.DeleteJob(t.Context(), deleted))
	require.Zero(t, mustQuery[int](t, a.pool, "SELECT count(*) FROM "+a.schema+".job_dependencies WHERE child = $1::text::uuid", deleted))
}

// A dead job and those that were called off because of it are driven again, level
// by level.
func TestRetryOfAGraph(t *testing.T) {
	t.Parallel()
	for title, retry := range map[string]func(t *testing.T, a *afterTest, ids []string){
		"one by one": func(t *testing.T, a *afterTest, ids []string) {
			for _, id := range ids {
				mustRetry(t, a.Scheduler, id)
			}
		},
		"all": func(t *testing.T, a *afterTest, _ []string) {
			filter := scheduler.JobFilter{Statuses: []scheduler.JobStatus{"dead", "cancelled"}, Limit: 10}
			for _, n := range []int{1, 2, 1, 0} {
				require.Equal(t, n, mustBulk(t, "retry jobs", a.Scheduler, filter))
			}
		},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			a := newAfterTest(t, nil)
			parent := mustCreate(t, a.Scheduler, "never", scheduler.JobData{}).ID
			other := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID
			child := mustCreate(t, a.Scheduler, "a", after(parent, other)).ID
			sibling := mustCreate(t, a.Scheduler, "a", scheduler.JobData{After: []string{parent}, UniqueKey: "k"}).ID
			inAnyCase := mustCreate(t, a.Scheduler, "a", afterAny(parent, child)).ID
			grandchild := mustCreate(t, a.Scheduler, "a", after(child)).ID
			require.ElementsMatch(t, []string{parent, other, inAnyCase}, a.runAll(t))
			mustExec(t, a.pool, "UPDATE "+a.schema+".jobs SET name = 'a' WHERE id = $1::text::uuid", parent)
			retry(t, a, []string{parent, child, sibling, grandchild})
			a.requireWaiting(t, child, 1)
			a.requireWaiting(t, grandchild, 1)
			order := a.runAll(t)
			require.Len(t, order, 4, "what has run is not run again")
			require.Equal(t, parent, order[0])
			require.Less(t, mustGet(t, a.Scheduler, child).StartedAt.UnixMicro(), mustGet(t, a.Scheduler, grandchild).StartedAt.UnixMicro())
		})
	}
}

// A job whose parents are gone can't be retried: nobody knows what came of them.
func TestRetryWithoutParents(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	parent := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID
	child := mustCreate(t, a.Scheduler, "a", after(parent)).ID
	inAnyCase := mustCreate(t, a.Scheduler, "a", afterAny(parent)).ID
	mustCancel(t, a.Scheduler, inAnyCase)
	require.NoError(t, a.DeleteJob(t.Context(), parent))
	a.requireCalledOff(t, child, parent+", which was deleted")
	_, err := a.RetryJob(t.Context(), child)
	require.ErrorIs(t, err, scheduler.ErrJobState)
	mustRetry(t, a.Scheduler, inAnyCase)
	require.Equal(t, []string{inAnyCase}, a.runAll(t))
}

// A blocking queue goes on without jobs that wait for others, and takes them in the
// order in which they are due.
func TestDependantsInABlockingQueue(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	run := func() int {
		return mustRun(t, a.Scheduler, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking}).Picked
	}
	parent := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID
	in := func(after ...string) string {
		return mustCreate(t, a.Scheduler, "a", scheduler.JobData{Queue: scheduler.JobQueueBlocking, After: after}).ID
	}
	child := in(parent)
	first, second := in(), in()
	require.Equal(t, 1, run())
	require.Equal(t, []string{parent}, a.runAll(t))
	require.Equal(t, 1, run())
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, a.Scheduler, second).Status)
	third := in(child)
	require.Equal(t, 1, run())
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, a.Scheduler, child).Status)
	require.Equal(t, 1, run())
	require.Zero(t, run())
	for _, id := range []string{first, second, child, third} {
		require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, a.Scheduler, id).Status)
	}
}

// Priorities hold from the moment a job waits no longer, and a queue is not taken for
// one that has a priority which no job can have.
func TestDependantsWithPriorities(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	parent := mustCreate(t, a.Scheduler, "a", scheduler.JobData{Priority: 100}).ID
	child := mustCreate(t, a.Scheduler, "a", scheduler.JobData{After: []string{parent}, Priority: -100}).ID
	other := mustCreate(t, a.Scheduler, "a", scheduler.JobData{Priority: 1}).ID
	later := mustCreate(t, a.Scheduler, "a", scheduler.JobData{After: []string{child}, Priority: 100}).ID
	require.Equal(t, []string{other, parent, child, later}, a.runAll(t))
}

func TestDependantsInAPausedQueue(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	parent := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID
	child := mustCreate(t, a.Scheduler, "a", scheduler.JobData{Queue: "own", After: []string{parent}}).ID
	require.NoError(t, a.PauseQueue(t.Context(), "own"))
	require.Equal(t, []string{parent}, a.runAll(t))
	own := scheduler.RunFilter{Queue: "own"}
	require.Zero(t, mustRun(t, a.Scheduler, own).Picked)
	require.NoError(t, a.ResumeQueue(t.Context(), "own"))
	require.Equal(t, 1, mustRun(t, a.Scheduler, own).Succeeded)
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, a.Scheduler, child).Status)
}

// A resident process learns at once of jobs that wait no longer.
func TestResidentProcessGoesOnWithDependants(t *testing.T) {
	t.Parallel()
	needsSession(t) // to listen
	told := newEvents()
	a := newAfterTest(t, func(c *scheduler.Config) { c.Observer, c.PollInterval = told.tell, time.Hour })
	stop := goWork(t, t.Context(), a.Scheduler)
	defer stop()
	parent := mustCreate(t, a.Scheduler, "a", tomorrowIn("own")).ID
	id := mustCreate(t, a.Scheduler, "a", after(parent)).ID
	for range 5 {
		id = mustCreate(t, a.Scheduler, "a", after(id)).ID
	}
	mustRetry(t, a.Scheduler, parent)
	for e := await(t, told); e.Kind != scheduler.EventSucceeded || e.Job.ID != id; {
		e = await(t, told)
	}
}

// What an unfinished job may read is kept; the rest goes, and what is known of what
// jobs waited for goes with them.
func TestCleanUpKeepsParents(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	scheduler.NeverCleanUp(a.Scheduler) // beside the test
	parent := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID
	other := mustCreate(t, a.Scheduler, "a", tomorrowIn("")).ID
	child := mustCreate(t, a.Scheduler, "a", after(parent, other)).ID
	done := mustCreate(t, a.Scheduler, "a", after(parent)).ID
	require.Equal(t, []string{parent, done}, a.runAll(t))
	cleanUp := func() int {
		waitFor(t, func() bool { // ids begin with milliseconds: those of now are to be behind all that there are
			return mustQuery[bool](t, a.pool, "SELECT left("+a.schema+".new_job_id()::text, 13) > (SELECT left(max(id::text), 13) FROM "+a.schema+".jobs)")
		})
		return mustQuery[int](t, a.pool, "SELECT "+a.schema+".clean_up('0', '0')")
	}
	edges := func() int { return mustQuery[int](t, a.pool, "SELECT count(*) FROM "+a.schema+".job_dependencies") }
	require.Equal(t, 1, cleanUp())
	require.Equal(t, 2, edges())
	requireParents(t, a.Scheduler, child, parent, other)
	mustCancel(t, a.Scheduler, child)
	require.Equal(t, 2, cleanUp())
	require.Zero(t, edges())
}
