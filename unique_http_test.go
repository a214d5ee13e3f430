package scheduler_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

const keyHeader = "Idempotency-Key"

// created makes a call that is to answer with this status, and returns the job.
func (w *web) created(t *testing.T, status int, body string, headers ...string) *scheduler.Job {
	t.Helper()
	var job scheduler.Job
	answer := w.call(t, "POST", "/api/jobs", body, headers...)
	answer.requireJSON(t, status, &job)
	require.Equal(t, "/api/jobs/"+job.ID, answer.header.Get("Location"))
	require.Equal(t, status == http.StatusOK, job.Duplicate)
	return &job
}

func TestHTTPUniqueJobs(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	const body = `{"name": "succeed", "payload": 1, "unique_key": "k", "unique_for": "1h30m", "on_duplicate": "keep"}`
	job := w.created(t, 201, body)
	require.Equal(t, "k", job.UniqueKey)
	require.Equal(t, job.ID, w.created(t, 200, body).ID)
	replaced := w.created(t, 200, `{"name": "succeed", "payload": 2, "unique_key": "k", "on_duplicate": "replace"}`)
	require.Equal(t, job.ID, replaced.ID)
	require.JSONEq(t, "2", string(replaced.Payload))
	mustRun(t, w.Scheduler, scheduler.RunFilter{})
	require.Equal(t, scheduler.JobStatusSucceeded, w.created(t, 200, body).Status)
	var shown map[string]any
	w.call(t, "GET", "/api/jobs/"+job.ID, "").requireJSON(t, 200, &shown)
	require.Equal(t, "k", shown["unique_key"])
	require.NotContains(t, shown, "duplicate")
	w.created(t, 201, `{"name": "succeed", "unique_key": "k"}`)

	for fields, field := range map[string]string{
		`"unique_key": 1`:                          "unique_key",
		`"unique_key": "a\u0000"`:                  "unique_key",
		`"unique_for": "1h"`:                       "unique_for",
		`"unique_key": "k", "unique_for": 1`:       "unique_for",
		`"unique_key": "k", "unique_for": "week"`:  "unique_for",
		`"unique_key": "k", "unique_for": "-1s"`:   "unique_for",
		`"on_duplicate": "keep"`:                   "on_duplicate",
		`"on_duplicate": "replace"`:                "on_duplicate",
		`"unique_key": "k", "on_duplicate": "x"`:   "on_duplicate",
		`"unique_key": "k", "on_duplicate": true`:  "on_duplicate",
		`"unique_key": "k", "on_duplicates": "no"`: "on_duplicates",
	} {
		w.call(t, "POST", "/api/jobs", `{"name": "succeed", `+fields+`}`).requireProblem(t, 422, field)
	}
	require.Equal(t, 2, w.stored(t))
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	const body = `{"name": "succeed", "payload": {"a": [1, "<é>"], "b": null}, "run_at": "2020-01-31T10:30:00+01:00", "queue": "default"}`
	job := w.created(t, 201, body, keyHeader, "k")
	for _, same := range []string{
		body,
		` {"queue":"", "payload": {"b":null,"a":[1,"\u003c\u00e9>"]}, "run_at":"2020-01-31T09:30:00Z", "owner": null, "name":"succeed"} `,
	} {
		require.Equal(t, job.ID, w.created(t, 200, same, keyHeader, "k").ID)
	}
	mustRun(t, w.Scheduler, scheduler.RunFilter{})
	require.Equal(t, scheduler.JobStatusSucceeded, w.created(t, 200, body, keyHeader, "k").Status)

	for _, other := range []string{
		`{"name": "fail", "payload": {"a": [1, "<é>"], "b": null}, "run_at": "2020-01-31T09:30:00Z"}`,
		`{"name": "succeed", "payload": {"a": [1, "<é>"]}, "run_at": "2020-01-31T09:30:00Z"}`,
		`{"name": "succeed", "payload": {"a": [1, "<é>"], "b": null}, "run_at": "2020-01-31T09:30:01Z"}`,
		`{"name": "succeed", "payload": {"a": [1, "<é>"], "b": null}}`,
		strings.Replace(body, `"default"`, `"blocking"`, 1),
		strings.Replace(body, `"name"`, `"owner": "ada", "name"`, 1),
		strings.Replace(body, `"name"`, `"unique_key": "u", "name"`, 1),
		strings.Replace(body, `"name"`, `"max_attempts": 10, "name"`, 1),
		`{"name": "succeed", "payload": ""}`,
	} {
		w.call(t, "POST", "/api/jobs", other, keyHeader, "k").requireProblem(t, 409, "", "Idempotency-Key")
	}
	require.Equal(t, 1, w.stored(t))

	// It is no unique key, and no other key.
	require.Empty(t, job.UniqueKey)
	w.created(t, 201, body, keyHeader, "K")
	w.created(t, 201, body)
	w.created(t, 201, `{"name": "succeed", "unique_key": "k"}`)
	w.created(t, 201, body, keyHeader, strings.Repeat("é", 256))
	w.created(t, 200, body, keyHeader, strings.Repeat("é", 256))
	require.Equal(t, 5, w.stored(t))
}

// A field that says what its absence says, or says it in another way, makes no
// other body.
func TestIdempotencyKeyOfBodiesThatMeanTheSame(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	job := w.created(t, 201, `{"name": "succeed", "timeout": "90s", "unique_key": "u", "unique_for": "60s"}`, keyHeader, "k")
	for _, same := range []string{
		`"priority": 0`, `"max_attempts": 0`, `"tags": []`, `"on_duplicate": "keep"`, `"on_duplicate": ""`, `"metadata": null`, `"payload": null`, `"owner": ""`,
	} {
		body := `{"name": "succeed", "timeout": "1m30s", "unique_key": "u", "unique_for": "1m", ` + same + `}`
		require.Equal(t, job.ID, w.created(t, 200, body, keyHeader, "k").ID, same)
	}
	for _, other := range []string{`"priority": 1`, `"tags": ["a"]`, `"on_duplicate": "replace"`, `"metadata": {}`, `"payload": 0`, `"payload": []`} {
		body := `{"name": "succeed", "timeout": "90s", "unique_key": "u", "unique_for": "60s", ` + other + `}`
		w.call(t, "POST", "/api/jobs", body, keyHeader, "k").requireProblem(t, 409, "", "Idempotency-Key")
	}
}

func TestIdempotencyKeyIsForADay(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	const body, other = `{"name": "succeed"}`, `{"name": "succeed", "payload": 1}`
	age := func(age string) {
		mustExec(t, w.pool, "UPDATE "+w.schema+".unique_keys SET asked_at = now() - $1::text::interval", age)
	}
	job := w.created(t, 201, body, keyHeader, "k")
	age("23:59:00")
	mustExec(t, w.pool, "SELECT "+w.schema+".clean_up()")
	require.Equal(t, job.ID, w.created(t, 200, body, keyHeader, "k").ID)
	w.call(t, "POST", "/api/jobs", other, keyHeader, "k").requireProblem(t, 409, "")
	age("24:01:00")
	next := w.created(t, 201, other, keyHeader, "k")
	require.NotEqual(t, job.ID, next.ID)
	w.created(t, 200, other, keyHeader, "k")
	w.call(t, "POST", "/api/jobs", body, keyHeader, "k").requireProblem(t, 409, "")

	mustExec(t, w.pool, "DELETE FROM "+w.schema+".jobs WHERE id = $1::text::uuid", next.ID)
	w.created(t, 201, body, keyHeader, "k") // there is no job to answer with
	age("24:01:00")
	mustExec(t, w.pool, "SELECT "+w.schema+".clean_up()")
	require.Zero(t, mustQuery[int](t, w.pool, "SELECT count(*) FROM "+w.schema+".unique_keys"))
	require.Equal(t, 2, w.stored(t))
}

// A request may have both: it is answered with the job of the unique key, and
// with that again, also when the key is another job's by then.
func TestIdempotencyKeyWithUniqueKey(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	const body = `{"name": "succeed", "unique_key": "u", "payload": 1}`
	job := w.created(t, 201, body)
	require.Equal(t, job.ID, w.created(t, 200, body, keyHeader, "first").ID)
	mustRun(t, w.Scheduler, scheduler.RunFilter{})
	next := w.created(t, 201, body, keyHeader, "second")
	w.created(t, 200, `{"name": "succeed", "unique_key": "u", "payload": 2, "on_duplicate": "replace"}`)
	require.Equal(t, job.ID, w.created(t, 200, body, keyHeader, "first").ID)
	require.Equal(t, next.ID, w.created(t, 200, body, keyHeader, "second").ID)
	require.Equal(t, 2, w.stored(t))
}

func TestIdempotencyKeyInput(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	const body = `{"name": "succeed"}`
	for _, key := range []string{" ", strings.Repeat("k", 257), strings.Repeat("é", 257), "\xff", "a\xc3"} {
		w.call(t, "POST", "/api/jobs", body, keyHeader, key).requireProblem(t, 400, "", "Idempotency-Key", "1 to 256 characters")
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.server.URL+"/api/jobs", strings.NewReader(body))
	require.NoError(t, err)
	request.Header = http.Header{keyHeader: {"a", "b"}, "Authorization": {"Bearer " + webToken}}
	response, err := w.server.Client().Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, 400, response.StatusCode)

	// What is refused has not used the key.
	w.call(t, "POST", "/api/jobs", `{"name": "nobody"}`, keyHeader, "k").requireProblem(t, 422, "name")
	w.call(t, "POST", "/api/jobs", `{"name": "succeed", "payload": 1e400000}`, keyHeader, "k").requireProblem(t, 422, "payload")
	w.call(t, "POST", "/api/jobs", `[]`, keyHeader, "k").requireProblem(t, 400, "")
	require.Zero(t, w.stored(t))
	w.created(t, 201, body, keyHeader, "k")
}

func TestConcurrentCallsWithAnIdempotencyKey(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	other := &web{pool: newPool(t), schema: w.schema}
	other.Scheduler = newSchedulerOn(t, other.pool, func(c *scheduler.Config) { c.Schema, c.Tokens = w.schema, []string{webToken} })
	other.serve(t, other.Handler())
	const n = 50
	replies, errs := make([]reply, n), make([]error, n)
	begin := make(chan struct{})
	var all sync.WaitGroup
	at := time.Now().Add(time.Hour).Format(time.RFC3339)
	for i := range n {
		to := []*web{w, other}[i%2]
		all.Go(func() {
			<-begin
			replies[i], errs[i] = to.send(t.Context(), "POST", "/api/jobs", fmt.Sprintf(`{"name": "succeed", "run_at": %q}`, at), keyHeader, "k")
		})
	}
	close(begin)
	all.Wait()
	created, ids := 0, map[string]bool{}
	for i := range n {
		require.NoError(t, errs[i])
		if replies[i].status == http.StatusCreated {
			created++
		} else {
			require.Equal(t, http.StatusOK, replies[i].status, replies[i].body)
		}
		ids[replies[i].header.Get("Location")] = true
	}
	require.Equal(t, 1, created)
	require.Len(t, ids, 1)
	require.Equal(t, 1, w.stored(t))
}
