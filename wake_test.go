package scheduler_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// newWakeTest is newWorkerTest in a database that has the double of pg_net too.
func newWakeTest(t *testing.T, configure func(*scheduler.Config)) *workerTest {
	needsWorkers(t)
	if !shared.net {
		t.Skip("needs PL/Python: scripts/install-postgres.sh test")
	}
	return newWorkerTest(t, configure)
}

// workAwake makes a worker with wake. The URL tells its requests from those of
// other tests.
func (w *workerTest) workAwake(t *testing.T, name, url string) {
	t.Helper()
	mustExec(t, w.pool, "SELECT "+w.schema+".create_queue_worker($1, $2, $3, $4, wake => true)", name, url, w.token, never)
}

// url is one that only the requests of this test have.
func (w *workerTest) url() string { return "http://127.0.0.1:9/" + w.name }

// queued counts the requests that pg_net is to send to URLs that begin so.
func queued(t *testing.T, db database, url string) int {
	t.Helper()
	return mustQuery[int](t, db, "SELECT count(*) FROM net.http_request_queue WHERE starts_with(url, $1)", url)
}

// deliver sends them, and returns how many those were.
func deliver(t *testing.T, db database, url string) int {
	t.Helper()
	return mustQuery[int](t, db, "SELECT net.deliver($1)", url)
}

// forget is as if no wake had ever been asked for.
func (w *workerTest) forget(t *testing.T) {
	mustExec(t, w.pool, "DELETE FROM net.http_request_queue WHERE starts_with(url, $1)", w.url())
	mustExec(t, w.pool, "UPDATE "+w.schema+".queue_workers SET wake_asked_at = NULL")
}

// The whole of it: pg_cron's schedule is far away, the handler runs all the same.
func TestWakeRunsAJobAtOnce(t *testing.T) {
	t.Parallel()
	ran := make(chan string, 1)
	w := newWakeTest(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"greet": scheduler.Handle(func(_ context.Context, name string) (any, error) {
			ran <- name
			return nil, nil
		})}
	})
	run := newEndpoint(t, w.Handler())
	w.workAwake(t, w.name, run.URL+"/api/jobs/run?limit=2")
	require.True(t, mustQuery[bool](t, w.pool, "SELECT wake FROM "+w.schema+".workers WHERE name = $1", w.name))
	for _, name := range []string{"ada", "bob"} {
		job := mustCreate(t, w.Scheduler, "greet", scheduler.JobData{Payload: name})
		require.Equal(t, 1, deliver(t, w.pool, run.URL))
		require.Equal(t, name, await(t, ran))
		waitFor(t, func() bool { return mustGet(t, w.Scheduler, job.ID).Status == scheduler.JobStatusSucceeded })
	}
	require.Equal(t, []string{"POST /api/jobs/run?limit=2", "POST /api/jobs/run?limit=2"}, run.asked())
	outcome, err := w.tick(t)
	require.NoError(t, err)
	require.Equal(t, "nothing due", outcome)
}

// A request for each way to create a job, once it is committed, if it is due.
func TestWakeIsAskedForByTheCreation(t *testing.T) {
	t.Parallel()
	w := newWakeTest(t, func(c *scheduler.Config) { c.Queues = queueConfigs{"other": {}} })
	w.workAwake(t, w.name, w.url())
	later := scheduler.JobData{RunAt: mustQuery[time.Time](t, w.pool, "SELECT now() + interval '1 minute'")}
	inTx := func(end func(context.Context, pgx.Tx) error) {
		tx, err := w.pool.Begin(t.Context())
		require.NoError(t, err)
		_, err = w.CreateJobTx(t.Context(), tx, "work", scheduler.JobData{})
		require.NoError(t, err)
		require.Zero(t, queued(t, w.pool, w.url()), "before the commit")
		require.NoError(t, end(t.Context(), tx))
	}
	createSQL := "SELECT " + w.schema + ".create_job"
	for title, test := range map[string]struct {
		requests int
		create   func()
	}{
		"CreateJob":                {1, func() { mustCreate(t, w.Scheduler, "work", scheduler.JobData{}) }},
		"CreateJob, later":         {0, func() { mustCreate(t, w.Scheduler, "work", later) }},
		"CreateJob, elsewhere":     {0, func() { mustCreate(t, w.Scheduler, "work", scheduler.JobData{Queue: "other"}) }},
		"CreateJob, refused":       {0, func() { _, _ = w.CreateJob(t.Context(), "work", scheduler.JobData{Payload: "\x00"}) }},
		"CreateJobs":               {1, func() { mustCreateMany(t, w.Scheduler, 3, "work", scheduler.JobData{}) }},
		"CreateJobs, later":        {0, func() { mustCreateMany(t, w.Scheduler, 3, "work", later) }},
		"CreateJobs, elsewhere":    {0, func() { mustCreateMany(t, w.Scheduler, 3, "work", scheduler.JobData{Queue: "other"}) }},
		"CreateJobTx":              {1, func() { inTx(func(ctx context.Context, tx pgx.Tx) error { return tx.Commit(ctx) }) }},
		"CreateJobTx, rolled back": {0, func() { inTx(func(ctx context.Context, tx pgx.Tx) error { return tx.Rollback(ctx) }) }},
		"CreateJobSQL": {1, func() {
			tx := beginSQL(t, stdlib.OpenDBFromPool(w.pool))
			_, err := w.CreateJobSQL(t.Context(), tx, "work", scheduler.JobData{})
			require.NoError(t, err)
			require.Zero(t, queued(t, w.pool, w.url()), "before the commit")
			require.NoError(t, tx.Commit())
		}},
		"create_job":                  {1, func() { mustExec(t, w.pool, createSQL+"('work')") }},
		"create_job, later":           {0, func() { mustExec(t, w.pool, createSQL+"('work', now() + interval '1 minute')") }},
		"create_job, elsewhere":       {0, func() { mustExec(t, w.pool, createSQL+"('work', queue => 'other')") }},
		"one of many is due":          {1, func() { mustCreateSome(t, w.Scheduler, later, scheduler.JobData{}) }},
		"one of many is here and due": {1, func() { mustCreateSome(t, w.Scheduler, scheduler.JobData{Queue: "other"}, scheduler.JobData{}) }},
		"HTTP": {1, func() {
			request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/api/jobs", strings.NewReader(`{"name": "work"}`))
			request.Header.Set("Authorization", "Bearer "+w.token)
			answer := httptest.NewRecorder()
			w.Handler().ServeHTTP(answer, request)
			require.Equal(t, http.StatusCreated, answer.Code)
		}},
	} {
		w.forget(t)
		test.create()
		require.Equal(t, test.requests, queued(t, w.pool, w.url()), title)
	}

	w.forget(t)
	mustCreate(t, w.Scheduler, "work", scheduler.JobData{})
	require.Equal(t, "POST Bearer "+w.token+" application/json {} 10000", mustQuery[string](t, w.pool, `
		SELECT concat_ws(' ', method, headers ->> 'Authorization', headers ->> 'Content-Type', convert_from(body, 'UTF8'), timeout_milliseconds)
		FROM net.http_request_queue WHERE url = $1`, w.url()))
}

func mustCreateSome(t *testing.T, s *scheduler.Scheduler, data ...scheduler.JobData) {
	jobs := make([]scheduler.NewJob, len(data))
	for i := range data {
		jobs[i] = scheduler.NewJob{Name: "work", JobData: data[i]}
	}
	_, err := s.CreateJobs(t.Context(), jobs)
	require.NoError(t, err)
}

// Each worker that runs pending jobs of the queue and is there and on.
func TestWakeIsForWorkersThatTakeTheJob(t *testing.T) {
	t.Parallel()
	w := newWakeTest(t, func(c *scheduler.Config) {
		c.Queues = queueConfigs{"other": {}, "serial": {Extends: scheduler.JobQueueBlocking}}
	})
	for name, query := range map[string]string{
		"pending": "?limit=7", "any": "?status=any", "other": "?queue=other", "serial": "?queue=serial", "removed": "?", "unscheduled": "?a", "off": "?b",
	} {
		w.workAwake(t, w.name+"-"+name, w.url()+query)
	}
	mustExec(t, w.pool, "SELECT "+w.schema+".create_queue_worker($1, $2, $3, $4)", w.name+"-without", w.url()+"?without", w.token, never)
	mustExec(t, w.pool, "SELECT "+w.schema+".create_queue_worker($1, $2, $3, $4)", w.name+"-failed", w.url()+"?status=failed", w.token, never)
	mustExec(t, w.pool, "SELECT "+w.schema+".remove_queue_worker($1)", w.name+"-removed")
	mustExec(t, w.pool, "SELECT cron.unschedule($1)", w.name+"-unscheduled")
	mustExec(t, w.pool, "UPDATE cron.job SET active = false WHERE jobname = $1", w.name+"-off")
	woken := func(queue scheduler.JobQueue) string {
		w.forget(t)
		mustCreateMany(t, w.Scheduler, 2, "work", scheduler.JobData{Queue: queue})
		mustCreate(t, w.Scheduler, "work", scheduler.JobData{Queue: queue})
		return mustQuery[string](t, w.pool, "SELECT coalesce(string_agg(substr(url, length($1::text) + 1), ' ' ORDER BY url), '') FROM net.http_request_queue WHERE starts_with(url, $1)", w.url())
	}
	require.Equal(t, "?limit=7 ?status=any", woken(""))
	require.Equal(t, "?queue=other", woken("other"))
	require.Equal(t, "?queue=serial", woken("serial"))
	require.Empty(t, woken(scheduler.JobQueueBlocking))
}

// What a request under way will find asks for no other one.
func TestWakesOfABurstAreOne(t *testing.T) {
	t.Parallel()
	w := newWakeTest(t, nil)
	w.workAwake(t, w.name, w.url())
	for title, create := range map[string]func(){
		"CreateJobs": func() { mustCreateMany(t, w.Scheduler, 10_000, "work", scheduler.JobData{}) },
		"create_job": func() { // fewer: on a busy machine 10,000 may take the ten seconds that a wake counts
			mustExec(t, w.pool, "SELECT "+w.schema+".create_job('work') FROM generate_series(1, 1000)")
		},
		"CreateJob": func() {
			var all sync.WaitGroup
			errs := make(chan error, 8*50)
			for range 8 {
				all.Go(func() {
					for range 50 {
						_, err := w.CreateJob(t.Context(), "work", scheduler.JobData{})
						errs <- err
					}
				})
			}
			all.Wait()
			for range cap(errs) {
				require.NoError(t, <-errs)
			}
		},
	} {
		w.forget(t)
		create()
		require.Equal(t, 1, queued(t, w.pool, w.url()), title)
	}
	require.Equal(t, 11_400, mustQuery[int](t, w.pool, "SELECT count(*) FROM "+w.schema+".jobs"))
}

// With runs in the middle of the burst, there is a request more for each; what
// they have missed is left to the tick.
func TestWakesAreAsManyAsRuns(t *testing.T) {
	t.Parallel()
	w := newWakeTest(t, nil)
	run := newEndpoint(t, w.Handler())
	w.workAwake(t, w.name, run.URL+"/api/jobs/run?limit=1000")
	var creators sync.WaitGroup
	errs := make(chan error, 4*100)
	for range 4 {
		creators.Go(func() {
			for range 100 {
				_, err := w.CreateJob(t.Context(), "work", scheduler.JobData{})
				errs <- err
			}
		})
	}
	wakes := 0
	for created := range cap(errs) {
		require.NoError(t, await(t, errs))
		if created%80 == 0 {
			wakes += deliver(t, w.pool, run.URL)
		}
	}
	creators.Wait()
	wakes += deliver(t, w.pool, run.URL)
	require.Positive(t, wakes)
	require.LessOrEqual(t, wakes, 6, "as often as they were sent")
	require.Len(t, run.asked(), wakes)

	_, err := w.tick(t)
	require.NoError(t, err)
	require.Equal(t, cap(errs), mustQuery[int](t, w.pool, "SELECT count(*) FROM "+w.schema+".jobs WHERE status = 'succeeded' AND attempt = 1"))
}

func TestWakeIsAskedForAgain(t *testing.T) {
	t.Parallel()
	w := newWakeTest(t, nil)
	w.workAwake(t, w.name, w.url())
	requests := 0
	creationAsks := func(asks bool, title string) {
		t.Helper()
		mustCreate(t, w.Scheduler, "work", scheduler.JobData{})
		if asks {
			requests++
		}
		require.Equal(t, requests, queued(t, w.pool, w.url()), title)
	}
	askedAgo := func(age string) {
		mustExec(t, w.pool, "UPDATE "+w.schema+".queue_workers SET wake_asked_at = wake_asked_at - $1::text::interval", age)
	}
	creationAsks(true, "the first")
	creationAsks(false, "one is under way")
	mustRun(t, w.Scheduler, scheduler.RunFilter{})
	creationAsks(true, "a run has begun since")
	creationAsks(false, "one is under way")
	mustRun(t, w.Scheduler, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking})
	creationAsks(false, "it was a run of another queue")
	askedAgo("5 seconds")
	creationAsks(false, "it may still come")
	askedAgo("6 seconds")
	creationAsks(true, "it was lost")
	creationAsks(false, "one is under way")
	w.workAwake(t, w.name, w.url())
	creationAsks(true, "the worker was made anew")
	w.work(t, w.url(), 10)
	creationAsks(false, "without wake")
}

// Whoever holds the row of a worker holds up neither creations nor runs.
func TestWakeWaitsForNobody(t *testing.T) {
	t.Parallel()
	w := newWakeTest(t, nil)
	w.workAwake(t, w.name, w.url())
	begin := func(level pgx.TxIsoLevel) pgx.Tx {
		t.Helper()
		tx, err := w.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: level})
		require.NoError(t, err)
		t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }) // it may be over
		return tx
	}
	createAndRun := func() {
		t.Helper()
		began := time.Now()
		mustCreate(t, w.Scheduler, "work", scheduler.JobData{})
		require.Equal(t, 1, mustRun(t, w.Scheduler, scheduler.RunFilter{}).Succeeded)
		require.Less(t, time.Since(began), time.Second, "when a wait would end")
	}

	tx := begin(pgx.ReadCommitted)
	_, err := w.CreateJobTx(t.Context(), tx, "work", scheduler.JobData{})
	require.NoError(t, err)
	createAndRun()
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, 1, queued(t, w.pool, w.url()), "that of the transaction")

	tx = begin(pgx.ReadCommitted) // while a wake is under way
	mustExec(t, tx, "SELECT "+w.schema+".create_queue_worker($1, $2, $3, $4, wake => true)", w.name, w.url(), w.token, never)
	createAndRun()
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, 1, mustRun(t, w.Scheduler, scheduler.RunFilter{}).Succeeded)

	// Nor do those fail whose snapshot is older than what others have asked for.
	for _, level := range []pgx.TxIsoLevel{pgx.RepeatableRead, pgx.Serializable} {
		tx = begin(level)
		mustExec(t, tx, "SELECT FROM "+w.schema+".queue_workers")
		createAndRun()
		_, err = w.CreateJobTx(t.Context(), tx, "work", scheduler.JobData{})
		require.NoError(t, err)
		require.NoError(t, tx.Commit(t.Context()))
		require.Equal(t, 1, mustRun(t, w.Scheduler, scheduler.RunFilter{}).Succeeded)
	}

	// And whoever changes the table holds creations up for a moment only.
	w.forget(t)
	tx = begin(pgx.ReadCommitted)
	mustExec(t, tx, "LOCK TABLE "+w.schema+".queue_workers IN SHARE MODE")
	mustCreate(t, w.Scheduler, "work", scheduler.JobData{})
	require.NoError(t, tx.Rollback(t.Context()))
	require.Zero(t, queued(t, w.pool, w.url()))
}

func TestWakeThroughAPooler(t *testing.T) {
	t.Parallel()
	w := newWakeTest(t, nil)
	p := newPooler(t)
	w.workAwake(t, w.name, w.url())
	for _, mode := range poolerModes {
		s, err := scheduler.New(p.newPool(t, mode), scheduler.Config{Schema: w.schema, JobNames: scheduler.JobNames{"work": succeed}})
		require.NoError(t, err)
		for _, create := range []func(){
			func() { mustCreate(t, s, "work", scheduler.JobData{}) },
			func() { mustCreateMany(t, s, 3, "work", scheduler.JobData{}) },
		} {
			w.forget(t)
			create()
			require.Equal(t, 1, queued(t, w.pool, w.url()), mode)
		}
		require.Equal(t, 4, mustRun(t, s, scheduler.RunFilter{Limit: 10}).Succeeded)
		require.Zero(t, mustQuery[int](t, w.pool, "SELECT count(wake_asked_at) FROM "+w.schema+".queue_workers"))
		require.NoError(t, s.Shutdown(t.Context()))
	}
}
