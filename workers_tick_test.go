package scheduler_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// A worker calls only if a run with its filter would pick something now.
func TestTickCallsOnlyWhenSomethingIsDue(t *testing.T) {
	t.Parallel()
	blocking := scheduler.QueueConfig{Extends: scheduler.JobQueueBlocking}
	w := newWorkerTest(t, func(c *scheduler.Config) {
		c.Queues = map[scheduler.JobQueue]scheduler.QueueConfig{"plain": {}, "serial": blocking}
	})
	calls := newEndpoint(t, answer(http.StatusOK, ""))
	jobs := w.schema + ".jobs"
	job := func(queue scheduler.JobQueue, change string) {
		id := mustCreate(t, w.Scheduler, "work", scheduler.JobData{Queue: queue}).ID
		if change != "" {
			mustExec(t, w.pool, "UPDATE "+jobs+" SET "+change+" WHERE id = $1::text::uuid", id)
		}
	}
	lease := func(expires string) string {
		return mustQuery[string](t, w.pool, "INSERT INTO "+w.schema+".leases (id, holder, expires_at) VALUES (gen_random_uuid(), 'test', "+expires+") RETURNING id::text")
	}
	const (
		failed = "status = 'failed', lane = 1, attempt = 1, claims = 1"
		later  = "run_at = now() + interval '1 hour'"
		done   = "status = 'succeeded', lane = NULL, finished_at = now()"
	)
	running := func(expires string) string {
		return "status = 'running', attempt = 1, claims = 1, lease_id = '" + lease(expires) + "'"
	}
	head := func(queue scheduler.JobQueue, change string) { // a job that was started, and one behind it
		job(queue, change+", started_at = now()")
		mustExec(t, w.pool, "UPDATE "+w.schema+".queues SET head = (SELECT id FROM "+jobs+" WHERE queue = $1) WHERE name = $1", string(queue))
		job(queue, "")
	}
	for _, test := range []struct {
		title   string
		given   func()
		queries map[string]bool // the endpoint's parameters, and whether it is called
	}{
		{"nothing", func() {}, map[string]bool{"": false, "?status=any": false, "?queue=serial": false, "?queue=nobody-declared-it": false}},
		{"pending", func() { job("", "") }, map[string]bool{
			"": true, "?status=any": true, "?status=failed": false, "?queue=failed": false, "?queue=plain": false,
		}},
		{"pending for later", func() { job("", later) }, map[string]bool{"": false, "?status=any": false}},
		{"finished", func() { job("", done) }, map[string]bool{"": false, "?status=any": false}},
		{"failed", func() { job("", failed) }, map[string]bool{
			"": false, "?status=any": true, "?status=failed": true, "?queue=failed": true, "?queue=failed&status=failed": true,
		}},
		{"failed, to be rerun later", func() { job("", failed+", "+later) }, map[string]bool{"?status=any": false, "?queue=failed": false}},
		{"in a queue of its own", func() { job("plain", "") }, map[string]bool{"": false, "?queue=plain": true, "?queue=plain&status=failed": false}},
		{"running", func() { job("", running("now() + interval '1 hour'")) }, map[string]bool{"": false, "?status=any": false}},
		{"lease lost", func() { job("", running("now()")) }, map[string]bool{"": true, "?status=any": true, "?queue=plain": false}},
		{"blocking", func() { job("serial", "") }, map[string]bool{"?queue=serial": true, "?queue=serial&status=failed": true, "": false}},
		{"blocking, its head to be rerun later", func() { head("serial", failed+", "+later) }, map[string]bool{"?queue=serial": false, "?queue=serial&status=any": false}},
		{"blocking, its head to be rerun", func() { head("serial", failed) }, map[string]bool{"?queue=serial": true, "?queue=serial&status=failed": true}},
		{"blocking, its head running", func() { head("serial", running("now() + interval '1 hour'")) }, map[string]bool{"?queue=serial": false}},
		{"blocking, its head's lease lost", func() { head("serial", running("now()")) }, map[string]bool{"?queue=serial": true}},
		{"blocking, its head finished", func() { head("serial", done) }, map[string]bool{"?queue=serial": true}},
	} {
		mustExec(t, w.pool, "TRUNCATE "+jobs+", "+w.schema+".leases")
		mustExec(t, w.pool, "UPDATE "+w.schema+".queues SET head = NULL")
		test.given()
		for query, called := range test.queries {
			w.work(t, calls.URL+"/api/jobs/run"+query, 10)
			before := len(calls.asked())
			outcome, err := w.tick(t)
			require.NoError(t, err)
			if called {
				require.Equal(t, "answered 200", outcome, "%s: %q", test.title, query)
				require.Equal(t, []string{"POST /api/jobs/run" + query}, calls.asked()[before:])
			} else {
				require.Equal(t, "nothing due", outcome, "%s: %q", test.title, query)
				require.Len(t, calls.asked(), before, "%s: %q", test.title, query)
			}
		}
	}
}

func TestTickIsOneCallForUpToLimitJobs(t *testing.T) {
	t.Parallel()
	w := newWorkerTest(t, nil)
	run := newEndpoint(t, w.Handler())
	mustCreateMany(t, w.Scheduler, 5, "work", scheduler.JobData{})
	w.work(t, run.URL+"/api/jobs/run?limit=3", 10)
	for _, waiting := range []int{2, 0, 0} {
		_, err := w.tick(t)
		require.NoError(t, err)
		require.Equal(t, waiting, mustQuery[int](t, w.pool, "SELECT count(*) FROM "+w.schema+".jobs WHERE status = 'pending'"))
	}
	require.Len(t, run.asked(), 2, "the third tick had nothing to call for")
}

func TestTickFailsUnlessTheAnswerIsGood(t *testing.T) {
	t.Parallel()
	w := newWorkerTest(t, nil)
	mustCreate(t, w.Scheduler, "work", scheduler.JobData{})
	mux := http.NewServeMux()
	mux.Handle("/good", answer(http.StatusAccepted, "{}"))
	mux.Handle("/broken", answer(http.StatusInternalServerError, "out of order "+strings.Repeat("x", 10_000)))
	mux.Handle("/moved", http.RedirectHandler("/good", http.StatusFound))
	mux.Handle("/moved-for-good", http.RedirectHandler("/good", http.StatusPermanentRedirect))
	mux.HandleFunc("/echo", func(rw http.ResponseWriter, r *http.Request) {
		http.Error(rw, "can't take "+r.Header.Get("Authorization"), http.StatusTeapot)
	})
	mux.HandleFunc("/bytes", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/octet-stream")
		rw.WriteHeader(http.StatusBadGateway)
		_, _ = rw.Write([]byte("\xff\xfe"))
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then is a client that hangs up noticed
		<-r.Context().Done()
	})
	server := newEndpoint(t, mux)
	tick := func(path string) error {
		w.work(t, server.URL+path, 1)
		_, err := w.tick(t)
		if err != nil {
			require.NotContains(t, err.Error(), w.token)
			require.True(t, utf8.ValidString(err.Error()), "pg_cron would store what can't be read back")
		}
		return err
	}
	require.NoError(t, tick("/good"))
	noted := "SELECT called_at IS NOT NULL FROM " + w.schema + ".queue_workers"
	require.True(t, mustQuery[bool](t, w.pool, noted))

	err := tick("/broken")
	requirePgError(t, err, "P0001", w.name, "500", "out of order x")
	require.Less(t, len(err.Error()), 500, "a cut of the body")
	require.False(t, mustQuery[bool](t, w.pool, noted))
	requirePgError(t, tick("/missing"), "P0001", "404", "page not found")
	requirePgError(t, tick("/moved"), "P0001", "redirects to", "/good", "create_queue_worker")
	requirePgError(t, tick("/moved-for-good"), "P0001", "redirects to", "/good")
	requirePgError(t, tick("/echo"), "P0001", "418", "can't take Bearer …")
	requirePgError(t, tick("/bytes"), "P0001", "502")

	began := time.Now()
	require.ErrorContains(t, tick("/slow"), "timed out")
	require.InDelta(t, 1, time.Since(began).Seconds(), 0.9, "timeout_seconds takes effect")
	server.Close()
	require.ErrorContains(t, tick("/good"), "127.0.0.1")
}

// The HTTP client's own limits, 5 s and 1 s for the connection, don't hold.
func TestTickWaitsForLongerThanTheClientsDefault(t *testing.T) {
	t.Parallel()
	w := newWorkerTest(t, nil)
	mustCreate(t, w.Scheduler, "work", scheduler.JobData{})
	slow := newEndpoint(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(6 * time.Second):
		case <-r.Context().Done():
		}
	}))
	w.work(t, slow.URL, 10)
	outcome, err := w.tick(t)
	require.NoError(t, err)
	require.Equal(t, "answered 200", outcome)
}

// The client gives up after a second, the job takes fifteen. Ticks that come in
// the meantime find nothing to do.
func TestJobOutlivesTheCallThatStartedIt(t *testing.T) {
	t.Parallel()
	var begun, finished, cut atomic.Int32
	w := newWorkerTest(t, func(c *scheduler.Config) {
		c.RunWait = time.Minute
		c.Lease = 2 * time.Second // so that it has to be renewed
		c.JobNames = scheduler.JobNames{"long": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			begun.Add(1)
			select {
			case <-time.After(15 * time.Second):
				finished.Add(1)
			case <-ctx.Done():
				cut.Add(1)
			}
			return "done", nil
		}}
	})
	run := newEndpoint(t, w.Handler())
	id := mustCreate(t, w.Scheduler, "long", scheduler.JobData{}).ID
	w.work(t, run.URL+"/api/jobs/run", 1)
	_, err := w.tick(t)
	require.ErrorContains(t, err, "timed out")
	require.EqualValues(t, 1, begun.Load())
	for range 3 {
		outcome, err := w.tick(t)
		require.NoError(t, err)
		require.Equal(t, "nothing due", outcome)
	}
	waitFor(t, func() bool { return mustGet(t, w.Scheduler, id).Status == scheduler.JobStatusSucceeded })
	_, err = w.tick(t)
	require.NoError(t, err)
	job := mustGet(t, w.Scheduler, id)
	require.Equal(t, 1, job.Attempt)
	require.JSONEq(t, `"done"`, string(job.Result))
	require.Equal(t, []int32{1, 1, 0}, []int32{begun.Load(), finished.Load(), cut.Load()})
	require.Len(t, run.asked(), 1)
}

// Many workers on one queue, and ticks of each that pg_cron replays all at once.
func TestWorkersShareAQueue(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	times := map[string]int{}
	w := newWorkerTest(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"work": func(_ context.Context, job *scheduler.Job) (any, error) {
			mu.Lock()
			defer mu.Unlock()
			times[job.ID]++
			return nil, nil
		}}
	})
	run := newEndpoint(t, w.Handler())
	ids := mustCreateMany(t, w.Scheduler, 60, "work", scheduler.JobData{})
	const workers, ticks = 4, 5
	var all sync.WaitGroup
	errs := make(chan error, workers*ticks)
	for i := range workers {
		one := *w
		one.name = w.name + "-" + string('a'+rune(i))
		one.work(t, run.URL+"/api/jobs/run?limit=7", 10)
		all.Go(func() {
			for range ticks {
				_, err := one.tick(t)
				errs <- err
			}
		})
	}
	all.Wait()
	for range workers * ticks {
		require.NoError(t, <-errs)
	}
	require.LessOrEqual(t, len(run.asked()), workers*ticks)
	require.Len(t, times, len(ids))
	for _, id := range ids {
		require.Equal(t, 1, times[id])
		require.Equal(t, 1, mustGet(t, w.Scheduler, id).Attempt)
	}
}
