package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func init() {
	// A resident process whose jobs fail at their first attempt.
	childRoles["fail at first"] = func() {
		s := childScheduler(scheduler.Config{JobNames: scheduler.JobNames{"a": failAtFirst}})
		go func() { exitOn(s.Work(context.Background())) }()
		fmt.Println("working")
		select {}
	}
}

func failAtFirst(_ context.Context, job *scheduler.Job) (any, error) {
	if job.Attempt == 1 {
		return nil, errors.New("failed at first")
	}
	return nil, nil
}

// Two processes that cancel by filter: running jobs are called off once, and
// their handlers, in a third one, end.
func TestCancelJobsThatRun(t *testing.T) {
	t.Parallel()
	const n = 10
	started, causes := make(chan struct{}, n), make(chan error, n)
	told := newEvents()
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			started <- struct{}{}
			<-ctx.Done()
			causes <- context.Cause(ctx)
			return nil, ctx.Err()
		}}
	})
	other := newScheduler(t, func(c *scheduler.Config) { c.Schema, c.Observer = schema, told.tell })
	mustCreateMany(t, s, n, "a", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: n})
	for range n {
		await(t, started)
	}
	waiting := mustCreate(t, s, "a", tomorrowIn("")).ID
	filter := scheduler.JobFilter{Names: []string{"a"}, Limit: n - 1}
	for _, want := range []int{n - 1, 2, 0} {
		require.Equal(t, want, mustBulk(t, "cancel jobs", other, filter))
	}
	for range n {
		require.ErrorIs(t, await(t, causes), scheduler.ErrJobCancelled)
	}
	require.Equal(t, n, await(t, run).report.Cancelled)
	require.Equal(t, waiting, told.next(t, scheduler.EventCancelled).Job.ID)
	require.Empty(t, told, "of the others their own process tells")
}

// Many calls at once change each job once, and none of them waits for another.
func TestBulksShareTheirJobs(t *testing.T) {
	t.Parallel()
	const n = 500
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema, c.JobNames = c.Schema, scheduler.JobNames{"a": fail} })
	other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	ids := mustCreateMany(t, s, n, "a", scheduler.JobData{MaxAttempts: 1})
	require.Equal(t, n, mustRun(t, s, scheduler.RunFilter{Limit: n}).Dead)
	together := func(name string, filter scheduler.JobFilter) {
		var all sync.WaitGroup
		var total atomic.Int64
		errs := make(chan error, 8)
		for i := range 8 {
			all.Go(func() {
				for {
					changed, err := bulks[name].do(t.Context(), []*scheduler.Scheduler{s, other}[i%2], filter)
					if total.Add(int64(changed)); changed == 0 || err != nil {
						errs <- err
						return
					}
				}
			})
		}
		all.Wait()
		close(errs)
		for err := range errs {
			require.NoError(t, err)
		}
		for left := 1; left > 0; { // what was locked for all of them at their ends
			left = mustBulk(t, name, s, filter)
			total.Add(int64(left))
		}
		require.EqualValues(t, n, total.Load(), name)
	}
	together("retry jobs", scheduler.JobFilter{Statuses: []scheduler.JobStatus{"dead"}, Limit: 30})
	for _, id := range ids {
		require.Equal(t, 2, mustGet(t, s, id).MaxAttempts, "one more, once")
	}
	together("reschedule jobs", scheduler.JobFilter{Names: []string{"a"}, Limit: 30})
	together("cancel jobs", scheduler.JobFilter{Names: []string{"a"}, Limit: 30})
	together("delete jobs", scheduler.JobFilter{Names: []string{"a"}, Limit: 30})
}

// A job that somebody has locked is passed over, and holds nobody up.
func TestBulkPassesOverWhatIsLocked(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	ids := mustCreateMany(t, s, 5, "a", tomorrowIn(""))
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	mustExec(t, tx, "SELECT FROM "+schema+".jobs WHERE id IN ($1::text::uuid, $2::text::uuid) FOR NO KEY UPDATE", ids[4], ids[2])
	filter := scheduler.JobFilter{Names: []string{"a"}, Limit: 2}
	for _, name := range []string{"reschedule jobs", "cancel jobs", "delete jobs"} {
		for _, want := range []int{2, 1, 0} {
			require.Equal(t, want, mustBulk(t, name, s, filter), name)
		}
	}
	require.NoError(t, tx.Rollback(t.Context()))
	require.Equal(t, 2, mustBulk(t, "delete jobs", s, filter))
}

// Dead jobs are redriven while two processes run what is due, one of them
// another one for the system too: each runs once more, and none is lost.
func TestRedriveWhileProcessesRun(t *testing.T) {
	t.Parallel()
	const n = 400
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": failAtFirst}
	})
	goWork(t, t.Context(), s)
	require.Equal(t, "working", startChild(t, "fail at first", "SCHEMA="+schema).Line(t))
	ids := mustCreateMany(t, s, n, "a", scheduler.JobData{MaxAttempts: 1})
	filter := scheduler.JobFilter{Statuses: []scheduler.JobStatus{scheduler.JobStatusDead}, Limit: 37}
	redriven := 0
	waitFor(t, func() bool {
		redriven += mustBulk(t, "retry jobs", s, filter)
		return redriven == n
	})
	for _, id := range ids {
		waitFor(t, func() bool { return mustGet(t, s, id).Status == scheduler.JobStatusSucceeded })
		job := mustGet(t, s, id)
		require.Equal(t, []int{2, 2}, []int{job.Attempt, job.MaxAttempts})
		require.Len(t, job.Errors, 1)
	}
	require.Zero(t, mustBulk(t, "retry jobs", s, filter))
}

// All of it at once beside claims, records and rescues: nothing deadlocks, and
// every job comes to an end.
func TestBulksBesideEverythingElse(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	configure := func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"a": failAtFirst}
		c.Queues = queueConfigs{"mortal": {OnDead: "a", MaxAttempts: 1}}
	}
	s := newScheduler(t, func(c *scheduler.Config) { configure(c); schema = c.Schema })
	other := newScheduler(t, func(c *scheduler.Config) { configure(c); c.Schema = schema })
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	for _, s := range []*scheduler.Scheduler{s, other} {
		goWork(t, t.Context(), s)
	}
	var all sync.WaitGroup
	errs := make(chan error, 100)
	forever := func(do func() error) {
		all.Go(func() {
			for ctx.Err() == nil {
				if err := do(); err != nil && ctx.Err() == nil {
					errs <- err
					return
				}
			}
		})
	}
	for _, queue := range []scheduler.JobQueue{"default", "blocking", "mortal"} {
		jobs := make([]scheduler.NewJob, 20)
		for i := range jobs {
			jobs[i] = scheduler.NewJob{Name: "a", JobData: scheduler.JobData{Queue: queue}}
		}
		forever(func() error {
			_, err := s.CreateJobs(ctx, jobs)
			return err
		})
	}
	for name := range bulks {
		for _, s := range []*scheduler.Scheduler{s, other} {
			forever(func() error {
				_, err := bulks[name].do(ctx, s, scheduler.JobFilter{Names: []string{"a"}, Limit: 50})
				return err
			})
		}
	}
	forever(func() error {
		_, err := pool.Exec(ctx, "SELECT FROM "+schema+".rescue()")
		return err
	})
	all.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	waitFor(t, func() bool {
		for _, status := range []scheduler.JobStatus{"pending", "failed"} {
			mustBulk(t, "cancel jobs", s, scheduler.JobFilter{Statuses: []scheduler.JobStatus{status}, Limit: 10_000})
		}
		return mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE lane IS NOT NULL") == 0
	})
}

// Resident processes learn of what is due by that, as for a single job; also
// where that is the next one of a blocking queue.
func TestBulkTellsResidentProcesses(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	jobs := make(chan string, 10)
	resident := newScheduler(t, func(c *scheduler.Config) {
		schema, c.PollInterval = c.Schema, time.Hour
		c.JobNames = scheduler.JobNames{"a": func(_ context.Context, job *scheduler.Job) (any, error) {
			jobs <- job.ID
			return nil, scheduler.Cancel(nil)
		}}
	})
	other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	goWork(t, t.Context(), resident)
	waitFor(t, func() bool { return listening(t, pool, schema) })
	for _, queue := range []scheduler.JobQueue{"default", "blocking"} {
		id := mustCreate(t, other, "a", tomorrowIn(queue)).ID
		filter := scheduler.JobFilter{Queues: []scheduler.JobQueue{queue}}
		n, err := other.RescheduleJobs(t.Context(), filter, time.Time{})
		require.NoError(t, err)
		require.Equal(t, 1, n)
		require.Equal(t, id, await(t, jobs))
		waitFor(t, func() bool { return mustGet(t, other, id).Status == scheduler.JobStatusDead })
		require.Equal(t, 1, mustBulk(t, "retry jobs", other, filter))
		require.Equal(t, id, await(t, jobs))
		waitFor(t, func() bool { return mustGet(t, other, id).Status == scheduler.JobStatusDead })
	}
	for _, name := range []string{"cancel jobs", "delete jobs"} {
		first := mustCreate(t, other, "b", scheduler.JobData{Queue: "blocking", Owner: name}).ID // nobody has a handler
		second := mustCreate(t, other, "a", scheduler.JobData{Queue: "blocking"}).ID
		require.Equal(t, 1, mustBulk(t, name, other, scheduler.JobFilter{Owner: name}), first)
		require.Equal(t, second, await(t, jobs))
		waitFor(t, func() bool { return mustGet(t, other, second).Status == scheduler.JobStatusDead })
	}
}
