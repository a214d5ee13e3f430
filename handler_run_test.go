package scheduler_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// gate is a handler that tells when it begins, and ends when it is let.
type gate struct {
	began chan context.Context // of each begun attempt, its context
	let   chan struct{}        // closed: all may end
}

func newGate() *gate { return &gate{make(chan context.Context, 100), make(chan struct{})} }

func (g *gate) handler(ctx context.Context, _ *scheduler.Job) (any, error) {
	g.began <- ctx
	select {
	case <-g.let:
		return "let", nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// withGate adds a job "gate" to the Config.
func (g *gate) withGate(c *scheduler.Config) { c.JobNames["gate"] = g.handler }

// failThenReturn fails at the first attempt, to be rerun at once.
func failThenReturn(result any) scheduler.HandlerFunc {
	return func(_ context.Context, job *scheduler.Job) (any, error) {
		if job.Attempt == 1 {
			return nil, scheduler.RetryAfter(0, errors.New("not yet"))
		}
		return result, nil
	}
}

// within receives what should come at once.
func within[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case value := <-c:
		return value
	case <-time.After(patience):
		require.FailNow(t, "nothing has come")
		panic("not reached")
	}
}

func (w *web) requireStatus(t *testing.T, id string, status scheduler.JobStatus) {
	t.Helper()
	waitFor(t, func() bool { return mustGet(t, w.Scheduler, id).Status == status })
}

func TestHTTPRunPicksOnePendingJobOfTheDefaultQueue(t *testing.T) {
	t.Parallel()
	w := newWeb(t, func(c *scheduler.Config) { c.JobNames["twice"] = failThenReturn(nil) })
	failed := mustCreate(t, w.Scheduler, "twice", scheduler.JobData{})
	mustRun(t, w.Scheduler, scheduler.RunFilter{})
	first := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{})
	second := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{})
	elsewhere := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{Queue: scheduler.JobQueueBlocking})
	later := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{RunAt: time.Now().Add(time.Hour)})

	var report map[string]any
	answer := w.call(t, "POST", "/api/jobs/run", "")
	answer.requireJSON(t, http.StatusOK, &report)
	require.Equal(t, "no-store", answer.header.Get("Cache-Control"))
	require.NotEmpty(t, report["run_id"])
	require.NotEmpty(t, report["next_due_at"], "more is due")
	require.Equal(t, map[string]any{
		"run_id": report["run_id"], "queue": "default", "status": "pending", "picked": 1.0, "succeeded": 1.0,
		"failed": 0.0, "dead": 0.0, "cancelled": 0.0, "snoozed": 0.0, "handed_back": 0.0, "lost": 0.0, "running": 0.0,
		"done": true, "next_due_at": report["next_due_at"], "rate_limited_until": nil,
	}, report)
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, w.Scheduler, first.ID).Status)
	for _, job := range []*scheduler.Job{second, elsewhere, later} {
		require.Equal(t, scheduler.JobStatusPending, mustGet(t, w.Scheduler, job.ID).Status)
	}
	require.Equal(t, scheduler.JobStatusFailed, mustGet(t, w.Scheduler, failed.ID).Status)
}

func TestHTTPRunHeedsItsParameters(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]scheduler.RunReport{
		"":                             {Queue: "default", Status: "pending", Picked: 1},
		"?queue=&status=&limit=&wait=": {Queue: "default", Status: "pending", Picked: 1},
		"?limit=10000":                 {Queue: "default", Status: "pending", Picked: 2},
		"?status=failed&limit=9":       {Queue: "default", Status: "failed", Picked: 3},
		"?queue=failed&limit=2":        {Queue: "failed", Status: "failed", Picked: 2},
		"?status=any&limit=9":          {Queue: "default", Status: "any", Picked: 5},
		"?queue=mails&limit=9":         {Queue: "mails", Status: "pending", Picked: 4},
		"?queue=blocking&limit=9":      {Queue: "blocking", Status: "pending"},
	} {
		t.Run(query, func(t *testing.T) {
			t.Parallel()
			w := newWeb(t, func(c *scheduler.Config) {
				c.JobNames["twice"] = failThenReturn(nil)
				c.Queues = map[scheduler.JobQueue]scheduler.QueueConfig{"mails": {}}
			})
			mustCreateMany(t, w.Scheduler, 3, "twice", scheduler.JobData{})
			require.Equal(t, 3, mustRun(t, w.Scheduler, scheduler.RunFilter{Limit: 3}).Failed)
			mustCreateMany(t, w.Scheduler, 2, "succeed", scheduler.JobData{})
			mustCreateMany(t, w.Scheduler, 4, "succeed", scheduler.JobData{Queue: "mails"})

			var report scheduler.RunReport
			w.call(t, "POST", "/api/jobs/run"+query, "").requireJSON(t, http.StatusOK, &report)
			want.Succeeded, want.Done = want.Picked, true
			report.RunID, report.NextDueAt = "", nil
			require.Equal(t, want, report)
		})
	}
}

func TestHTTPRunIsFineWhenJobsFailOrNoneIsDue(t *testing.T) {
	t.Parallel()
	w := newWeb(t, func(c *scheduler.Config) {
		c.JobNames["never"] = func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Cancel(nil) }
		c.JobNames["later"] = func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Snooze(time.Hour) }
	})
	var report scheduler.RunReport
	w.call(t, "POST", "/api/jobs/run?limit=9", "").requireJSON(t, http.StatusOK, &report)
	require.Zero(t, report.Picked)
	require.Nil(t, report.NextDueAt)

	for _, name := range []string{"succeed", "fail", "never", "later"} {
		mustCreate(t, w.Scheduler, name, scheduler.JobData{})
	}
	answer := w.call(t, "POST", "/api/jobs/run?limit=9", `{"nothing": "here counts"}`)
	answer.requireJSON(t, http.StatusOK, &report)
	require.Equal(t, [5]int{4, 1, 1, 1, 1}, [5]int{report.Picked, report.Succeeded, report.Failed, report.Dead, report.Snoozed})
	require.NotContains(t, answer.body, "failed as asked", "why is told about the job, not here")
}

func TestHTTPRunRefusesBadParameters(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	job := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{})
	long := strings.Repeat("q", 10_000)
	for _, test := range []struct {
		query, field string
		names        []string
	}{
		{"queue=nowhere", "queue", []string{`"nowhere"`, "blocking, default"}},
		{"queue=Default", "queue", []string{`"Default"`}},
		{"queue=a%00%27%3B--", "queue", []string{`a\x00';--`}},
		{"queue=" + long, "queue", []string{"10000 bytes"}},
		{"queue=default&queue=blocking", "queue", []string{"once", "2 times"}},
		{"status=running", "status", []string{`"running"`, `"pending"`, `"failed"`, `"any"`}},
		{"status=succeeded", "status", []string{`"succeeded"`}},
		{"status=PENDING", "status", []string{`"PENDING"`}},
		{"queue=failed&status=pending", "status", []string{`"pending"`, `"failed"`}},
		{"queue=failed&status=any", "status", []string{`"any"`, `"failed"`}},
		{"limit=0", "limit", []string{`"0"`, "1 to 10000"}},
		{"limit=-1", "limit", []string{"-1", "1 to 10000"}},
		{"limit=10001", "limit", []string{"10001", "1 to 10000"}},
		{"limit=99999999999999999999", "limit", []string{"99999999999999999999"}},
		{"limit=ten", "limit", []string{`"ten"`}},
		{"limit=1.5", "limit", []string{`"1.5"`}},
		{"limit=1&limit=1", "limit", []string{"once"}},
		{"wait=4", "wait", []string{`"4"`, "2s", "5m"}},
		{"wait=-1s", "wait", []string{`"-1s"`}},
		{"wait=5m1s", "wait", []string{`"5m1s"`, "5m"}},
		{"wait=soon", "wait", []string{`"soon"`}},
		{"priority=1", "query", []string{`"priority"`, "queue, status, limit or wait"}},
		{"Queue=default", "query", []string{`"Queue"`}},
		{"token=" + webToken, "query", []string{`"token"`}},
		{"queue=%zz", "query", []string{"queue=%zz"}},
		{"queue=default;limit=5", "query", []string{"queue=default;limit=5"}},
	} {
		w.call(t, "POST", "/api/jobs/run?"+test.query, "").requireProblem(t, http.StatusBadRequest, test.field, test.names...)
	}
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, w.Scheduler, job.ID).Status)
}

func TestHTTPRunAnswers202AndGoesOn(t *testing.T) {
	t.Parallel()
	g := newGate()
	w := newWeb(t, g.withGate)
	quick := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{})
	slow := mustCreate(t, w.Scheduler, "gate", scheduler.JobData{})
	var report scheduler.RunReport
	w.call(t, "POST", "/api/jobs/run?limit=9&wait=3s", "").requireJSON(t, http.StatusAccepted, &report)
	require.Equal(t, [3]int{2, 1, 1}, [3]int{report.Picked, report.Succeeded, report.Running}, "the report so far")
	require.False(t, report.Done)
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, w.Scheduler, quick.ID).Status)
	require.Equal(t, scheduler.JobStatusRunning, mustGet(t, w.Scheduler, slow.ID).Status)

	require.NoError(t, within(t, g.began).Err(), "the end of the request is not the end of the job")
	close(g.let)
	w.requireStatus(t, slow.ID, scheduler.JobStatusSucceeded)
	require.JSONEq(t, `"let"`, string(mustGet(t, w.Scheduler, slow.ID).Result))
}

func TestHTTPRunWaitsAsLongAsItIsTold(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		config  time.Duration
		query   string
		atLeast time.Duration
	}{
		{"by default", 0, "", 4 * time.Second},
		{"in Config", 200 * time.Millisecond, "", 200 * time.Millisecond},
		{"in the query", 0, "?wait=300ms", 300 * time.Millisecond},
		{"not at all", 0, "?wait=0s", 0},
		{"not at all by Config", -1, "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			g := newGate()
			w := newWeb(t, func(c *scheduler.Config) {
				g.withGate(c)
				c.RunWait = test.config
			})
			job := mustCreate(t, w.Scheduler, "gate", scheduler.JobData{})
			before := time.Now()
			w.call(t, "POST", "/api/jobs/run"+test.query, "").requireJSON(t, http.StatusAccepted, &scheduler.RunReport{})
			require.GreaterOrEqual(t, time.Since(before), test.atLeast)
			within(t, g.began) // also if the answer came before the pick
			close(g.let)
			w.requireStatus(t, job.ID, scheduler.JobStatusSucceeded)
		})
	}
}

func TestHTTPRunAnswersWhenItIsOver(t *testing.T) {
	t.Parallel()
	g := newGate()
	w := newWeb(t, g.withGate)
	w.server.Client().Timeout = 0
	mustCreate(t, w.Scheduler, "gate", scheduler.JobData{})
	go func() {
		<-g.began
		close(g.let)
	}()
	var report scheduler.RunReport
	before := time.Now()
	w.call(t, "POST", "/api/jobs/run?wait=5m", "").requireJSON(t, http.StatusOK, &report)
	require.Less(t, time.Since(before), patience)
	require.Equal(t, 1, report.Succeeded)
}

func TestHTTPRunOutlivesAClientThatHangsUp(t *testing.T) {
	t.Parallel()
	g := newGate()
	w := newWeb(t, g.withGate)
	type key struct{}
	over := make(chan struct{})
	w.serve(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.Handler().ServeHTTP(rw, r.WithContext(context.WithValue(r.Context(), key{}, "of the request")))
		close(over)
	}))
	job := mustCreate(t, w.Scheduler, "gate", scheduler.JobData{})
	next := mustCreate(t, w.Scheduler, "gate", scheduler.JobData{})

	ctx, hangUp := context.WithCancel(t.Context())
	hungUp := make(chan error, 1)
	go func() {
		_, err := w.send(ctx, "POST", "/api/jobs/run?wait=5m", "")
		hungUp <- err
	}()
	handling := within(t, g.began)
	hangUp()
	require.ErrorIs(t, within(t, hungUp), context.Canceled)
	within(t, over) // the service has noticed

	require.NoError(t, handling.Err())
	require.Nil(t, handling.Value(key{}), "routers use a request's context again for another one")
	close(g.let)
	w.requireStatus(t, job.ID, scheduler.JobStatusSucceeded)
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, w.Scheduler, next.ID).Status, "its limit was 1")
}

func TestShutdownWaitsForRunsThatWereAnswered(t *testing.T) {
	t.Parallel()
	g := newGate()
	w := newWeb(t, g.withGate)
	job := mustCreate(t, w.Scheduler, "gate", scheduler.JobData{})
	w.call(t, "POST", "/api/jobs/run?wait=0s", "").requireJSON(t, http.StatusAccepted, &scheduler.RunReport{})
	handling := within(t, g.began)

	shut := make(chan error, 1)
	go func() { shut <- w.Shutdown(context.WithoutCancel(t.Context())) }()
	waitFor(t, func() bool { return w.call(t, "POST", "/api/jobs/run", "").status == http.StatusServiceUnavailable })
	answer := w.call(t, "POST", "/api/jobs/run", "")
	answer.requireProblem(t, http.StatusServiceUnavailable, "", "shutting down")
	require.Equal(t, "5", answer.header.Get("Retry-After"))
	require.NoError(t, handling.Err())
	select {
	case err := <-shut:
		require.Fail(t, "Shutdown did not wait", "%v", err)
	default:
	}
	// Jobs are created and shown to the end.
	w.call(t, "POST", "/api/jobs", `{"name": "succeed"}`).requireJSON(t, http.StatusCreated, &scheduler.Job{})
	w.call(t, "GET", "/api/jobs/"+job.ID, "").requireJSON(t, http.StatusOK, &scheduler.Job{})

	close(g.let)
	require.NoError(t, within(t, shut))
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, w.Scheduler, job.ID).Status)
}

func TestATriggerIsOnlyAHint(t *testing.T) {
	t.Parallel()
	var handled atomic.Int32
	w := newWeb(t, func(c *scheduler.Config) {
		c.JobNames["count"] = func(context.Context, *scheduler.Job) (any, error) { return handled.Add(1), nil }
	})
	const doubled = 10
	job := mustCreate(t, w.Scheduler, "count", scheduler.JobData{})
	replies := make(chan reply, doubled)
	for range doubled {
		go func() {
			answer, _ := w.send(t.Context(), "POST", "/api/jobs/run?limit=10", "") // none: no 200
			replies <- answer
		}()
	}
	picked := 0
	for range doubled {
		var report scheduler.RunReport
		within(t, replies).requireJSON(t, http.StatusOK, &report)
		picked += report.Picked
	}
	require.Equal(t, 1, picked)
	require.EqualValues(t, 1, handled.Load())
	require.Equal(t, 1, mustGet(t, w.Scheduler, job.ID).Attempt)
}
