package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// priorityTest is two schedulers that share a schema, one handler at a time
// each, whose handlers note the payloads they were given.
type priorityTest struct {
	one, two *scheduler.Scheduler
	pool     *pgxpool.Pool
	schema   string

	mu  sync.Mutex
	ran []string
}

func newPriorityTest(t *testing.T, configure func(*scheduler.Config)) *priorityTest {
	p := &priorityTest{pool: newPool(t)}
	both := func(c *scheduler.Config) {
		c.Concurrency = 1
		c.JobNames = scheduler.JobNames{"a": p.note}
		if configure != nil {
			configure(c)
		}
	}
	p.one = newScheduler(t, func(c *scheduler.Config) { both(c); p.schema = c.Schema })
	p.two = newScheduler(t, func(c *scheduler.Config) { both(c); c.Schema = p.schema })
	return p
}

func (p *priorityTest) note(_ context.Context, job *scheduler.Job) (any, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ran = append(p.ran, string(job.Payload))
	return nil, nil
}

// taken is what has run since the last time.
func (p *priorityTest) taken() (ran []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ran, p.ran = p.ran, nil
	return ran
}

// add creates a job of a priority that is due since some time; so says its payload.
func (p *priorityTest) add(t *testing.T, priority int, since time.Duration) string {
	at := mustQuery[time.Time](t, p.pool, "SELECT now()").Add(-since)
	payload := fmt.Sprintf("%d since %s", priority, since)
	job := mustCreate(t, p.one, "a", scheduler.JobData{Priority: priority, RunAt: at, Payload: payload})
	require.Equal(t, priority, job.Priority)
	return `"` + payload + `"`
}

func TestLowerPrioritiesGoFirst(t *testing.T) {
	t.Parallel()
	p := newPriorityTest(t, nil)
	for _, together := range []bool{false, true} {
		jobs := map[string]string{}
		for _, priority := range []int{5, 0, -100, 100, -1, 1} {
			for _, since := range []time.Duration{time.Minute, 5 * time.Minute, 3 * time.Minute} {
				jobs[fmt.Sprint(priority, since)] = p.add(t, priority, since)
			}
		}
		p.add(t, -7, -time.Hour) // for later
		var expected []string
		for _, priority := range []int{-100, -1, 0, 1, 5, 100} {
			for _, since := range []time.Duration{5 * time.Minute, 3 * time.Minute, time.Minute} {
				expected = append(expected, jobs[fmt.Sprint(priority, since)])
			}
		}
		if together {
			require.Equal(t, len(jobs), mustRun(t, p.one, scheduler.RunFilter{Limit: 100}).Succeeded)
		} else {
			for range len(jobs) / 2 {
				require.Equal(t, 1, mustRun(t, p.one, scheduler.RunFilter{}).Succeeded)
				require.Equal(t, 1, mustRun(t, p.two, scheduler.RunFilter{Status: scheduler.JobStatusAny}).Succeeded)
			}
		}
		require.Equal(t, expected, p.taken())
		report := mustRun(t, p.two, scheduler.RunFilter{Limit: 100, Status: scheduler.JobStatusAny})
		require.Zero(t, report.Picked)
		require.True(t, report.NextDueAt.After(time.Now().Add(50*time.Minute)), "the one for later")
	}
}

// What has been overdue for longer than PriorityAge goes first.
func TestPrioritiesStarveNobody(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		age   time.Duration
		first bool // those that are overdue
	}{
		"by default": {0, true},
		"set":        {15 * time.Minute, true},
		"too long":   {time.Hour, false},
		"never":      {-1, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPriorityTest(t, func(c *scheduler.Config) {
				c.Queues = queueConfigs{"default": {PriorityAge: test.age}}
			})
			for _, together := range []bool{false, true} {
				b, c := p.add(t, 50, 20*time.Minute), p.add(t, 0, 19*time.Minute)
				a, d := p.add(t, 100, 21*time.Minute), p.add(t, -7, 18*time.Minute)
				f, e := p.add(t, -50, time.Minute), p.add(t, -50, 2*time.Minute)
				expected := []string{a, b, c, d, e, f}
				if !test.first {
					expected = []string{e, f, d, c, b, a}
				}
				for range 3 {
					if !together {
						require.Equal(t, 1, mustRun(t, p.one, scheduler.RunFilter{}).Succeeded)
						require.Equal(t, 1, mustRun(t, p.two, scheduler.RunFilter{Status: scheduler.JobStatusAny}).Succeeded)
					}
				}
				if together {
					require.Equal(t, 6, mustRun(t, p.two, scheduler.RunFilter{Limit: 6}).Succeeded)
				}
				require.Equal(t, expected, p.taken())
			}
		})
	}
}

// Nor do those of lower priorities that are due at the same time as the last of
// what is taken: a batch, of which all are.
func TestABatchDoesNotGoBeforeWhatIsOlder(t *testing.T) {
	t.Parallel()
	p := newPriorityTest(t, func(c *scheduler.Config) { c.Concurrency = 3 }) // that claims 3 at once
	hour := mustQuery[time.Time](t, p.pool, "SELECT now() - interval '1 hour'")
	oldest := []string{p.add(t, 100, 3*time.Hour), p.add(t, 50, 2*time.Hour)}
	batch := make([]scheduler.NewJob, 5)
	for i := range batch {
		batch[i] = scheduler.NewJob{Name: "a", JobData: scheduler.JobData{RunAt: hour, Priority: 5 - i, Payload: 5 - i}}
	}
	_, err := p.two.CreateJobs(t.Context(), batch)
	require.NoError(t, err)
	require.Equal(t, 3, mustRun(t, p.one, scheduler.RunFilter{Limit: 3}).Succeeded)
	require.ElementsMatch(t, append(oldest, "1"), p.taken(), "of the same age the lower priority")
	require.Equal(t, 4, mustRun(t, p.one, scheduler.RunFilter{Limit: 4}).Succeeded)
}

// A job keeps its priority over retries, snoozes, and the loss of its process.
func TestPriorityIsKept(t *testing.T) {
	t.Parallel()
	begun := make(chan struct{}, 1)
	var p *priorityTest
	p = newPriorityTest(t, func(c *scheduler.Config) {
		c.Concurrency, c.Lease = 2, 3*time.Second
		c.JobNames["first"] = func(ctx context.Context, job *scheduler.Job) (any, error) {
			switch job.Attempt {
			case 1:
				return nil, scheduler.RetryAfter(0, errors.New("failed as asked"))
			case 2:
				if len(job.Errors) == 1 {
					begun <- struct{}{}
					<-ctx.Done()
					return nil, context.Cause(ctx)
				}
			case 3:
				if job.Priority == -7 {
					_, err := p.note(ctx, job)
					return nil, err
				}
			}
			return nil, errors.New("not expected")
		}
	})
	job := mustCreate(t, p.one, "first", scheduler.JobData{Priority: -7, Payload: "first"})
	sooner := p.add(t, 0, 5*time.Minute)
	both := scheduler.RunFilter{Status: scheduler.JobStatusAny}

	require.Equal(t, 1, mustRun(t, p.one, both).Failed)
	require.Equal(t, -7, mustGet(t, p.two, job.ID).Priority)
	run := goRun(t.Context(), p.one, both)
	await(t, begun)
	mustExec(t, p.pool, "UPDATE "+p.schema+".leases SET expires_at = now()")
	require.Equal(t, 1, mustRun(t, p.two, both).Succeeded, "what was rescued comes before what is older")
	require.Equal(t, []string{`"first"`}, p.taken())
	require.Equal(t, 1, mustRun(t, p.two, both).Succeeded)
	require.Equal(t, []string{sooner}, p.taken())
	stored := mustGet(t, p.two, job.ID)
	require.Equal(t, scheduler.JobStatusSucceeded, stored.Status)
	require.Equal(t, -7, stored.Priority)
	require.Equal(t, 3, stored.Attempt)
	require.Equal(t, 1, await(t, run).report.Lost)
}

// The same however a job was created.
func TestPriorityOfEveryCreation(t *testing.T) {
	t.Parallel()
	jobs := make(chan *scheduler.Job, 1)
	p := newPriorityTest(t, func(c *scheduler.Config) { c.JobNames["a"] = telling(jobs) })
	data := scheduler.JobData{Priority: 7}
	handled := func(id string) {
		require.Equal(t, 7, mustGet(t, p.two, id).Priority)
		require.Equal(t, 1, mustRun(t, p.two, scheduler.RunFilter{}).Succeeded)
		job := await(t, jobs)
		require.Equal(t, id, job.ID)
		require.Equal(t, 7, job.Priority)
		require.Equal(t, 7, mustGet(t, p.two, id).Priority)
	}
	handled(mustQuery[string](t, p.pool, "SELECT "+p.schema+".create_job('a', priority => 7)::text"))
	handled(mustCreate(t, p.one, "a", data).ID)
	ids, err := p.one.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "a", JobData: data}})
	require.NoError(t, err)
	handled(ids[0])
	tx, err := p.pool.Begin(t.Context())
	require.NoError(t, err)
	job, err := p.one.CreateJobTx(t.Context(), tx, "a", data)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	handled(job.ID)

	// Of a batch, each has its own.
	ids, err = p.one.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "a"}, {Name: "a", JobData: data}, {Name: "a", JobData: scheduler.JobData{Priority: -9}}})
	require.NoError(t, err)
	for i, priority := range []int{0, 7, -9} {
		require.Equal(t, priority, mustGet(t, p.one, ids[i]).Priority)
	}
	for _, i := range []int{2, 0, 1} {
		mustRun(t, p.two, scheduler.RunFilter{})
		require.Equal(t, ids[i], await(t, jobs).ID)
	}
}

func TestPriorityInput(t *testing.T) {
	t.Parallel()
	p := newPriorityTest(t, func(c *scheduler.Config) {
		c.Queues = queueConfigs{"serial": {Extends: scheduler.JobQueueBlocking}}
	})
	for _, queue := range []string{"blocking", "serial"} {
		_, err := p.one.CreateJob(t.Context(), "a", scheduler.JobData{Priority: -1, Queue: scheduler.JobQueue(queue)})
		requireInputError(t, err, "priority", "-1", queue, "expected 0")
		_, err = p.pool.Exec(t.Context(), "SELECT "+p.schema+".create_job('a', queue => $1, priority => -1)", queue)
		requirePgError(t, err, "22023", "-1", queue, "expected 0")
	}
	for _, priority := range []int{-101, 101} {
		_, err := p.one.CreateJob(t.Context(), "a", scheduler.JobData{Priority: priority})
		requireInputError(t, err, "priority", fmt.Sprint(priority), "-100 to 100")
		_, err = p.pool.Exec(t.Context(), "SELECT "+p.schema+".create_job('a', priority => $1)", priority)
		requirePgError(t, err, "22023", fmt.Sprint(priority), "-100 to 100")
	}
	require.Zero(t, mustQuery[int](t, p.pool, "SELECT count(*) FROM "+p.schema+".jobs"))

	w := newWeb(t, nil)
	var job scheduler.Job
	w.call(t, "POST", "/api/jobs", `{"name": "succeed", "priority": -20}`).requireJSON(t, 201, &job)
	require.Equal(t, -20, job.Priority)
	require.Equal(t, -20, mustGet(t, w.Scheduler, job.ID).Priority)
	for _, body := range []string{`"priority": 101`, `"priority": "1"`, `"priority": 1.5`, `"priority": 1, "queue": "blocking"`} {
		w.call(t, "POST", "/api/jobs", `{"name": "succeed", `+body+`}`).requireProblem(t, 422, "priority")
	}
	require.Equal(t, 1, w.stored(t))
}

// Only the first creation with a priority writes to the queue's row, and only
// if it commits; queues without priorities are not touched.
func TestAQueueIsPrioritizedOnce(t *testing.T) {
	t.Parallel()
	p := newPriorityTest(t, nil)
	queue := func() string { // its versions and locks
		return mustQuery[string](t, p.pool, "SELECT concat_ws(' ', xmin, xmax, prioritized) FROM "+p.schema+".queues WHERE name = 'default'")
	}
	before := queue()
	mustCreate(t, p.one, "a", scheduler.JobData{})
	mustCreateMany(t, p.one, 3, "a", scheduler.JobData{})
	mustRun(t, p.one, scheduler.RunFilter{Limit: 10})
	require.Equal(t, before, queue())
	require.Contains(t, before, " f")

	tx, err := p.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = p.one.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{Priority: 1})
	require.NoError(t, err)
	require.NoError(t, tx.Rollback(t.Context()))
	require.Contains(t, queue(), " f")

	mustCreate(t, p.one, "a", scheduler.JobData{Priority: 1})
	before = queue()
	require.Contains(t, before, " t")
	mustCreate(t, p.two, "a", scheduler.JobData{Priority: -1})
	mustCreateMany(t, p.two, 3, "a", scheduler.JobData{Priority: 2})
	mustExec(t, p.pool, "SELECT "+p.schema+".create_job('a', priority => 3)")
	require.Equal(t, 6, mustRun(t, p.one, scheduler.RunFilter{Limit: 10}).Succeeded)
	require.Equal(t, before, queue())
}

// Two resident processes share what has priorities, and nothing runs twice.
func TestProcessesShareAPrioritizedQueue(t *testing.T) {
	t.Parallel()
	p := newPriorityTest(t, func(c *scheduler.Config) { c.Concurrency = 8 })
	const n = 2000
	jobs := make([]scheduler.NewJob, n)
	for i := range jobs {
		age := time.Duration(i%30) * time.Minute
		jobs[i] = scheduler.NewJob{Name: "a", JobData: scheduler.JobData{Priority: i%7 - 3, RunAt: time.Now().Add(-age), Payload: i}}
	}
	_, err := p.one.CreateJobs(t.Context(), jobs)
	require.NoError(t, err)
	goWork(t, t.Context(), p.one)
	goWork(t, t.Context(), p.two)
	waitFor(t, func() bool {
		return mustQuery[int](t, p.pool, "SELECT count(*) FROM "+p.schema+".jobs WHERE status = 'succeeded' AND attempt = 1") == n
	})
	ran := map[string]bool{}
	for _, payload := range p.taken() {
		require.False(t, ran[payload], payload)
		ran[payload] = true
	}
	require.Len(t, ran, n)
}

// A queue that was made blocking takes what it has by time, and loses none of it.
func TestAQueueWithPrioritiesThatBecomesBlocking(t *testing.T) {
	t.Parallel()
	p := newPriorityTest(t, func(c *scheduler.Config) { c.Queues = queueConfigs{"own": {}} })
	for i, priority := range []int{5, -5, 0} {
		mustCreate(t, p.one, "a", scheduler.JobData{Queue: "own", Priority: priority, Payload: i})
	}
	serial := newScheduler(t, func(c *scheduler.Config) {
		c.Schema, c.JobNames = p.schema, scheduler.JobNames{"a": p.note}
		c.Queues = queueConfigs{"own": {Extends: scheduler.JobQueueBlocking}}
	})
	require.Equal(t, 3, mustRun(t, serial, scheduler.RunFilter{Queue: "own", Limit: 10}).Succeeded)
	require.Equal(t, []string{"0", "1", "2"}, p.taken())
}

// The first job with a priority, in a transaction that lasts, holds up the next
// one in that queue, but nobody who comes together with that.
func TestTheFirstPriorityHoldsUpNoOtherCreation(t *testing.T) {
	t.Parallel()
	p := newPriorityTest(t, func(c *scheduler.Config) { c.Queues = queueConfigs{"ranked": {}} })
	tx, err := p.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = p.two.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{Queue: "ranked", Priority: 1})
	require.NoError(t, err)

	const n, every = 300, 100
	done, ranked := make(chan error, n), make(chan error, n/every)
	for i := range n {
		if i%every == every/2 {
			go func() {
				_, err := p.one.CreateJob(t.Context(), "a", scheduler.JobData{Queue: "ranked", Priority: 2})
				ranked <- err
			}()
		}
		go func() {
			_, err := p.one.CreateJob(t.Context(), "a", scheduler.JobData{})
			done <- err
		}()
	}
	for range n {
		require.NoError(t, await(t, done))
	}
	require.Empty(t, ranked)
	require.NoError(t, tx.Commit(t.Context()))
	for range cap(ranked) {
		require.NoError(t, await(t, ranked))
	}
}
