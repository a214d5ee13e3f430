package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/relay-club/scheduler"
)

// TestModel does to two Schedulers what services do, in random order, and holds
// the whole table against the model after each step. By default it makes 100
// sequences, of 30 steps on average; where -rapid.checks says another number,
// each of two shares makes so many. This makes 10,000:
//
//	go test -run 'TestModel$' -rapid.checks=5000 -timeout 3h .
//
// A difference is shown as the shortest sequence that leads to it. The times in
// the model are about those of the database: what they are to the microsecond
// it takes over after each step, so that it knows every order.
func TestModel(t *testing.T) {
	t.Parallel()
	shares := []string{"first", "second"}
	if checks := flag.Lookup("rapid.checks"); checks.Value.String() == checks.DefValue {
		shares = shares[:1]
	}
	for _, share := range shares {
		t.Run(share, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			schema := newSchema(t)
			config := modelConfig(schema)
			s, err := scheduler.New(pool, config)
			require.NoError(t, err)
			require.NoError(t, s.Migrate(t.Context()))
			rapid.Check(t, func(t *rapid.T) {
				test := newModelTest(t, pool, schema)
				t.Cleanup(func() { test.end(t) })
				t.Repeat(test.actions())
			})
		})
	}
}

// modelTest is one sequence.
type modelTest struct {
	pool             *pgxpool.Pool
	schema           string
	model            *model
	serial, parallel *testProcess
	crashed          []*testProcess
	slow             []*slowRun
	deleted          []*modelJob

	mu    sync.Mutex
	calls map[string]int // of handlers, by job
	saw   []seen         // by handlers, since the last step
}

// testProcess is a Scheduler of its own, and what the model takes it for.
type testProcess struct {
	*scheduler.Scheduler
	model  *modelProcess
	serial bool // one handler at a time, so in order
}

// slowRun is a run whose handlers wait to be released.
type slowRun struct {
	process *testProcess
	filter  scheduler.RunFilter
	calls   []*modelCall
	begun   chan struct{}
	release chan struct{}
	done    <-chan ran
}

type slowRunKey struct{}

const priorityAge = 90 * time.Minute

func hours(attempt int) time.Duration { return time.Duration(attempt) * time.Hour }

func modelConfig(schema string) scheduler.Config {
	return scheduler.Config{
		Schema: schema, Lease: time.Hour, Logger: slog.New(slog.DiscardHandler),
		Queues: queueConfigs{
			"default":  {MaxAttempts: 3, Backoff: hours, PriorityAge: priorityAge},
			"blocking": {MaxAttempts: 2, Backoff: hours},
			"own":      {MaxAttempts: 1},
			"skipping": {Extends: scheduler.JobQueueBlocking, SkipFailed: true},
		},
	}
}

func newModelTest(t *rapid.T, pool *pgxpool.Pool, schema string) *modelTest {
	_, err := pool.Exec(context.Background(), `
		DELETE FROM `+schema+`.jobs;
		DELETE FROM `+schema+`.leases;
		DELETE FROM `+schema+`.unique_keys;
		UPDATE `+schema+`.queues SET head = NULL, prioritized = false, paused = false;
		UPDATE `+schema+`.all_queues SET paused = false;
		UPDATE `+schema+`.clean_up_state SET last_id = DEFAULT, last_name = '', last_key = ''`, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	m := &modelTest{pool: pool, schema: schema, calls: map[string]int{}}
	m.model = &model{keys: map[modelKey]*modelHolders{}, queues: map[scheduler.JobQueue]*modelQueue{}}
	for _, q := range []modelQueue{
		{name: "default", maxAttempts: 3},
		{name: "own", maxAttempts: 1},
		{name: "blocking", maxAttempts: 2, blocking: true},
		{name: "skipping", maxAttempts: 2, blocking: true, skipFailed: true},
	} {
		q.backoff, q.priorityAge = hours, priorityAge
		m.model.queues[q.name] = &q
	}
	m.serial = m.newProcess(t, 1, "a")
	m.parallel = m.newProcess(t, 0, "a", "b")
	return m
}

func (m *modelTest) newProcess(t *rapid.T, concurrency int, names ...string) *testProcess {
	p := &testProcess{serial: concurrency == 1, model: &modelProcess{names: names}}
	config := modelConfig(m.schema)
	config.Concurrency = concurrency
	config.JobNames = scheduler.JobNames{}
	for _, name := range names {
		config.JobNames[name] = func(ctx context.Context, job *scheduler.Job) (any, error) { return m.handle(ctx, p, job) }
	}
	s, err := scheduler.New(m.pool, config)
	require.NoError(t, err)
	scheduler.NeverCleanUp(s)
	p.Scheduler = s
	return p
}

// end lets all handlers return, and ends all processes.
func (m *modelTest) end(t *rapid.T) {
	for _, slow := range m.slow {
		close(slow.release)
	}
	for _, p := range append(m.crashed, m.serial, m.parallel) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, p.Shutdown(ctx))
	}
}

// handle is the handler of all jobs.
func (m *modelTest) handle(ctx context.Context, p *testProcess, job *scheduler.Job) (any, error) {
	var script []verdict
	if err := json.Unmarshal(job.Payload, &script); err != nil {
		return nil, err
	}
	checkpoint := 0
	if job.Owner != "" {
		if _, err := scheduler.LoadCheckpoint(context.WithoutCancel(ctx), &checkpoint); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	m.calls[job.ID]++
	call := m.calls[job.ID]
	does := script[min(call, len(script))-1]
	m.saw = append(m.saw, seen{
		ID: job.ID, Attempt: job.Attempt, MaxAttempts: job.MaxAttempts, Errors: len(job.Errors), Last: job.LastAttempt(), Owner: job.Owner, Script: script,
		Checkpoint: checkpoint,
	})
	m.mu.Unlock()
	if slow, ok := ctx.Value(slowRunKey{}).(*slowRun); ok {
		slow.begun <- struct{}{}
		<-slow.release
	}
	if job.Owner != "" && does != completes {
		_ = scheduler.Checkpoint(ctx, call) // a job that was taken away takes none
	}
	switch does {
	case succeeds:
		return does, nil
	case completes, uncompletes:
		return nil, m.complete(ctx, p, job, does)
	case panics:
		panic("as asked")
	case givesUp:
		return nil, scheduler.Cancel(errors.New("as asked"))
	case retries:
		return nil, scheduler.RetryAfter(retryDelay, errors.New("as asked"))
	case snoozes:
		return nil, scheduler.Snooze(snoozeDelay)
	default:
		return nil, errors.New("as asked")
	}
}

// complete calls CompleteTx, in a transaction that it then commits or not, also
// when the job has been called off, which a process learns of some time later.
func (m *modelTest) complete(ctx context.Context, p *testProcess, job *scheduler.Job, does verdict) error {
	ctx = context.WithoutCancel(ctx)
	tx, err := m.pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if err := p.CompleteTx(ctx, tx, job, does); err != nil || does == uncompletes {
		return err
	}
	return tx.Commit(ctx)
}

// row is what of a job the model says exactly.
type row struct {
	ID, Name             string
	Queue                scheduler.JobQueue
	Priority             int
	Status               scheduler.JobStatus
	Attempt, MaxAttempts int
	Started, Finished    bool
	Errors               int
	Result, Script       string
	Checkpoint           int
	Owner, Key           string
}

func rowOf(job *scheduler.Job) row {
	var script []verdict
	_ = json.Unmarshal(job.Payload, &script)
	text, _ := json.Marshal(script)
	var result verdict
	_ = json.Unmarshal(job.Result, &result)
	checkpoint := 0
	if job.Progress != nil {
		_ = json.Unmarshal(job.Progress.Checkpoint, &checkpoint)
	}
	return row{
		Checkpoint: checkpoint,
		ID:         job.ID, Name: job.Name, Queue: job.Queue, Priority: job.Priority, Status: job.Status, Attempt: job.Attempt, MaxAttempts: job.MaxAttempts,
		Started: job.StartedAt != nil, Finished: job.FinishedAt != nil, Errors: len(job.Errors), Result: string(result), Script: string(text),
		Owner: job.Owner, Key: job.UniqueKey,
	}
}

func (j *modelJob) row() row {
	text, _ := json.Marshal(j.script)
	return row{
		Checkpoint: j.checkpoint,
		ID:         j.id, Name: j.name, Queue: j.queue.name, Priority: j.priority, Status: j.status, Attempt: j.attempt, MaxAttempts: j.maxAttempts,
		Started: j.started, Finished: j.finished(), Errors: j.errors, Result: j.result, Script: string(text), Owner: j.owner, Key: j.key,
	}
}

// check compares everything, at the end of a step.
func (m *modelTest) check(t *rapid.T) {
	jobs, err := scheduler.AllJobs(t.Context(), m.serial.Scheduler)
	require.NoError(t, err)
	var expected, actual []row
	for _, j := range slices.Backward(m.inOrder(func(*modelJob) bool { return true })) {
		expected = append(expected, j.row())
	}
	for _, job := range jobs {
		actual = append(actual, rowOf(job))
	}
	require.Equal(t, expected, actual)
	for _, job := range jobs {
		m.takeTimes(t, job)
	}

	m.tick()
	stats, err := m.parallel.QueueStats(t.Context())
	require.NoError(t, err)
	var expectedStats []scheduler.QueueStat
	for _, name := range []scheduler.JobQueue{"blocking", "default", "own", "skipping"} {
		expectedStats = append(expectedStats, m.model.stat(m.model.queues[name]))
	}
	for _, stat := range stats {
		if stat.HeldBy != nil {
			require.Equal(t, m.model.headOf(m.model.queues[stat.Queue]).started, stat.HeldBy.StartedAt != nil)
			stat.HeldBy.StartedAt = nil
		}
	}
	require.Equal(t, expectedStats, stats)
}

// tick sets the model's clock. All runs on one machine, so it is the database's.
func (m *modelTest) tick() { m.model.now = time.Now().UTC().Truncate(time.Microsecond) }

// inOrder are jobs of the model, oldest first.
func (m *modelTest) inOrder(which func(*modelJob) bool) (jobs []*modelJob) {
	for _, j := range m.model.jobs {
		if which(j) {
			jobs = append(jobs, j)
		}
	}
	slices.SortFunc(jobs, func(a, b *modelJob) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	return jobs
}

// takeTimes checks that the times of a job are about right, and takes them over.
func (m *modelTest) takeTimes(t *rapid.T, job *scheduler.Job) {
	j := m.model.jobs[slices.IndexFunc(m.model.jobs, func(j *modelJob) bool { return j.id == job.ID })]
	m.take(t, "run_at", &j.runAt, job.RunAt)
	m.take(t, "created_at", &j.createdAt, job.CreatedAt)
	if job.FinishedAt != nil {
		m.take(t, "finished_at", &j.finishedAt, *job.FinishedAt)
	}
}

func (m *modelTest) take(t *rapid.T, field string, expected *time.Time, actual time.Time) {
	require.WithinDuration(t, *expected, actual, time.Minute, field)
	*expected = actual
}
