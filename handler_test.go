package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// webToken is a token of every web.
const webToken = "123ABC"

// web is a Scheduler whose Handler is mounted in a host, as in a service.
type web struct {
	*scheduler.Scheduler
	pool   *pgxpool.Pool
	schema string
	server *httptest.Server
}

func newWeb(t *testing.T, configure func(*scheduler.Config)) *web {
	w := &web{pool: newPool(t)}
	basePath := "/api/jobs"
	w.Scheduler = newSchedulerOn(t, w.pool, func(c *scheduler.Config) {
		c.Tokens = []string{webToken}
		c.JobNames = scheduler.JobNames{"succeed": succeed, "fail": fail}
		if configure != nil {
			configure(c)
		}
		w.schema = c.Schema
		if c.BasePath != "" {
			basePath = c.BasePath
		}
	})
	mux := http.NewServeMux()
	mux.Handle(basePath, w.Handler())
	if basePath != "/" {
		mux.Handle(basePath+"/", w.Handler())
	}
	w.serve(t, mux)
	return w
}

// serve is what newWeb does, with another handler around the jobs'.
func (w *web) serve(t *testing.T, handler http.Handler) {
	w.server = httptest.NewServer(handler)
	t.Cleanup(w.server.Close)
	client := w.server.Client()
	client.Timeout = patience
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
}

// reply is what came back.
type reply struct {
	status int
	header http.Header
	body   string
}

// call makes a request with a valid token. headers, in pairs, are set after
// that; one with an empty value is left out.
func (w *web) call(t *testing.T, method, path, body string, headers ...string) reply {
	t.Helper()
	answer, err := w.send(t.Context(), method, path, body, headers...)
	require.NoError(t, err)
	return answer
}

// send is call for other goroutines than the test's.
func (w *web) send(ctx context.Context, method, path, body string, headers ...string) (reply, error) {
	request, err := http.NewRequestWithContext(ctx, method, w.server.URL+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	request.Header.Set("Authorization", "Bearer "+webToken)
	for header := range slices.Chunk(headers, 2) {
		if request.Header.Set(header[0], header[1]); header[1] == "" {
			request.Header.Del(header[0])
		}
	}
	response, err := w.server.Client().Do(request)
	if err != nil {
		return reply{}, err
	}
	text, err := io.ReadAll(response.Body)
	return reply{response.StatusCode, response.Header, string(text)}, errors.Join(err, response.Body.Close())
}

// requireJSON checks that the call went well and decodes its answer.
func (r reply) requireJSON(t *testing.T, status int, value any) {
	t.Helper()
	require.Equal(t, status, r.status, "%.1000s", r.body)
	require.Equal(t, "application/json", r.header.Get("Content-Type"))
	require.NoError(t, json.Unmarshal([]byte(r.body), value), r.body)
}

// requireProblem checks that the answer is an error in the form of RFC 9457,
// about this field ("" for none), and that it names these values.
func (r reply) requireProblem(t *testing.T, status int, field string, names ...string) {
	t.Helper()
	require.Equal(t, status, r.status, "%.1000s", r.body)
	require.Equal(t, "application/problem+json", r.header.Get("Content-Type"), r.body)
	var problem struct {
		Type, Title, Detail, Field string
		Status                     int
	}
	require.NoError(t, json.Unmarshal([]byte(r.body), &problem), r.body)
	require.Equal(t, "about:blank", problem.Type)
	require.Equal(t, http.StatusText(status), problem.Title)
	require.Equal(t, status, problem.Status)
	require.NotEmpty(t, problem.Detail)
	require.Equal(t, field, problem.Field, r.body)
	for _, name := range names {
		require.Contains(t, problem.Detail, name)
	}
	require.Less(t, len(r.body), 1000, "a problem is bounded, whatever was sent")
}

// stored is how many jobs there are.
func (w *web) stored(t *testing.T) int {
	t.Helper()
	return mustQuery[int](t, w.pool, "SELECT count(*) FROM "+w.schema+".jobs")
}

func TestHTTPCreatesAJobAndShowsIt(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	created := w.call(t, "POST", "/api/jobs", `{"name": "succeed", "run_at": "2030-01-31T10:30:00+01:00", "payload": {"n": [1, null]}, "queue": "blocking", "key": "acme"}`)
	var job map[string]any
	created.requireJSON(t, http.StatusCreated, &job)
	id := job["id"].(string)
	require.Equal(t, "/api/jobs/"+id, created.header.Get("Location"))
	require.Equal(t, "no-store", created.header.Get("Cache-Control"))

	got := w.call(t, "GET", created.header.Get("Location"), "")
	require.Equal(t, "no-store", got.header.Get("Cache-Control"))
	var same map[string]any
	got.requireJSON(t, http.StatusOK, &same)
	require.Equal(t, job, same)
	createdAt, err := time.Parse(time.RFC3339Nano, job["created_at"].(string))
	require.NoError(t, err)
	require.Equal(t, time.UTC, createdAt.Location())
	require.Equal(t, map[string]any{
		"id": id, "name": "succeed", "queue": "blocking", "status": "pending",
		"payload": map[string]any{"n": []any{1.0, nil}}, "result": nil,
		"run_at": "2030-01-31T09:30:00Z", "created_at": job["created_at"], "started_at": nil, "finished_at": nil,
		"attempt": 0.0, "max_attempts": 10.0, "errors": []any{}, "owner": "", "tags": []any{}, "metadata": nil, "unique_key": "", "key": "acme", "priority": 0.0, "cancelling": false, "progress": nil,
		"waits_for": 0.0,
	}, job)
	requireSameJSON(t, job["payload"], mustGet(t, w.Scheduler, id).Payload)
}

func TestHTTPShowsAFinishedJob(t *testing.T) {
	t.Parallel()
	w := newWeb(t, func(c *scheduler.Config) {
		c.JobNames["twice"] = failThenReturn("done")
	})
	job := mustCreate(t, w.Scheduler, "twice", scheduler.JobData{})
	mustRun(t, w.Scheduler, scheduler.RunFilter{})
	mustRun(t, w.Scheduler, scheduler.RunFilter{Status: scheduler.JobStatusFailed})

	var shown struct {
		Status, Result string
		Attempt        int
		StartedAt      time.Time `json:"started_at"`
		FinishedAt     time.Time `json:"finished_at"`
		Errors         []struct {
			Attempt int
			At      time.Time
			Error   string
		}
	}
	w.call(t, "GET", "/api/jobs/"+strings.ToUpper(job.ID), "").requireJSON(t, http.StatusOK, &shown)
	require.Equal(t, "succeeded", shown.Status)
	require.Equal(t, "done", shown.Result)
	require.Equal(t, 2, shown.Attempt)
	require.False(t, shown.StartedAt.Before(job.CreatedAt))
	require.False(t, shown.FinishedAt.Before(shown.StartedAt))
	require.Len(t, shown.Errors, 1)
	require.Equal(t, 1, shown.Errors[0].Attempt)
	require.Equal(t, "not yet", shown.Errors[0].Error)
	require.False(t, shown.Errors[0].At.IsZero())
}

func TestHTTPCreatesWithDefaults(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	for _, body := range []string{
		`{"name": "succeed"}`,
		`{"name": "succeed", "run_at": null, "payload": null, "queue": null}`,
		"\n\t{ \"name\" : \"succeed\", \"queue\": \"\" }\n",
	} {
		before := mustQuery[time.Time](t, w.pool, "SELECT clock_timestamp()")
		var job scheduler.Job
		w.call(t, "POST", "/api/jobs", body).requireJSON(t, http.StatusCreated, &job)
		require.Equal(t, scheduler.JobQueueDefault, job.Queue)
		require.JSONEq(t, "null", string(job.Payload))
		require.False(t, job.RunAt.Before(before), "now, by the database's clock")
		require.False(t, job.RunAt.After(mustQuery[time.Time](t, w.pool, "SELECT clock_timestamp()")))
	}
}

func TestHTTPKeepsTimesAsUTC(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	for text, utc := range map[string]string{
		"2030-01-31T09:30:00Z":           "2030-01-31T09:30:00Z",
		"2030-01-31T10:30:00+01:00":      "2030-01-31T09:30:00Z",
		"2030-01-31T04:00:00.5-05:30":    "2030-01-31T09:30:00.5Z",
		"2030-01-31T09:30:00.123456789Z": "2030-01-31T09:30:00.123456Z", // in microseconds
		"2030-01-31T09:30Z":              "2030-01-31T09:30:00Z",
		"2030-01-31T10:30:00+0100":       "2030-01-31T09:30:00Z",
		"20300131T093000Z":               "2030-01-31T09:30:00Z",
		"0001-01-01T00:00:00Z":           "now", // the zero time
		"0001-01-01T00:00:01Z":           "0001-01-01T00:00:01Z",
		"9999-12-31T23:59:59Z":           "9999-12-31T23:59:59Z",
		"0000-12-31T23:30:00-01:00":      "0001-01-01T00:30:00Z", // in UTC that is year 1
	} {
		var job map[string]any
		w.call(t, "POST", "/api/jobs", fmt.Sprintf(`{"name": "succeed", "run_at": %q}`, text)).requireJSON(t, http.StatusCreated, &job)
		if utc == "now" {
			utc = job["created_at"].(string)
		}
		require.Equal(t, utc, job["run_at"], text)
	}
}

func TestHTTPRefusesBodiesThatAreNoJob(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	for _, body := range []string{
		"", " ", "nope", "null", "[]", `"succeed"`, "7", `{"name": "succeed"`, `{"name": "succeed"} {}`, `{"name": "succeed",}`,
		`{"name": "succeed", "payload": NaN}`, `{'name': 'succeed'}`, "name=succeed", "\x00", "\xff\xfe", `[{"name": "succeed"}]`,
		`{"name": "succeed", "payload": ` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`,
	} {
		w.call(t, "POST", "/api/jobs", body).requireProblem(t, http.StatusBadRequest, "", "JSON object")
	}
	tooLarge := `{"name": "succeed", "payload": "` + strings.Repeat("a", 10<<20) + `"}`
	w.call(t, "POST", "/api/jobs", tooLarge).requireProblem(t, http.StatusRequestEntityTooLarge, "", "too large", "expected at most")
	require.Zero(t, w.stored(t))
}

func TestHTTPRefusesFieldsThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	w := newWeb(t, func(c *scheduler.Config) {
		c.Queues = map[scheduler.JobQueue]scheduler.QueueConfig{"mails": {}}
	})
	long := strings.Repeat("n", 10_000)
	for _, test := range []struct {
		body, field string
		names       []string
	}{
		{`{}`, "name", []string{"missing"}},
		{`{"name": null}`, "name", []string{"missing"}},
		{`{"name": 5}`, "name", []string{"5", "string"}},
		{`{"name": "unknown"}`, "name", []string{`"unknown"`, "unknown job name"}},
		{`{"name": "Succeed"}`, "name", []string{`"Succeed"`}},
		{`{"name": "a b"}`, "name", []string{`"a b"`, "letters"}},
		{`{"name": "succeed\u0000"}`, "name", []string{`\u0000`}},
		{`{"name": "` + long + `"}`, "name", []string{"10000 bytes"}},
		{`{"name": "succeed", "queue": "nowhere"}`, "queue", []string{`"nowhere"`, "unknown queue", "blocking, default, mails"}},
		{`{"name": "succeed", "queue": "failed"}`, "queue", []string{`"failed"`, "view", `"default"`}},
		{`{"name": "succeed", "queue": "a\u0000'\";--"}`, "queue", []string{`\u0000`}},
		{`{"name": "succeed", "queue": "a'\";--"}`, "queue", []string{"unknown queue"}},
		{`{"name": "succeed", "queue": "` + long + `"}`, "queue", []string{"10000 bytes"}},
		{`{"name": "succeed", "queue": ["default"]}`, "queue", []string{"string"}},
		{`{"name": "succeed", "run_at": ""}`, "run_at", []string{`""`}},
		{`{"name": "succeed", "run_at": 1900000000}`, "run_at", []string{"1900000000", "string"}},
		{`{"name": "succeed", "run_at": "tomorrow"}`, "run_at", []string{`"tomorrow"`, "zone"}},
		{`{"name": "succeed", "run_at": "2030-01-31"}`, "run_at", []string{`"2030-01-31"`, "zone"}},
		{`{"name": "succeed", "run_at": "2030-01-31T09:30:00"}`, "run_at", []string{"2030-01-31T09:30:00", "zone"}},
		{`{"name": "succeed", "run_at": "2030-02-30T09:30:00Z"}`, "run_at", []string{"2030-02-30"}},
		{`{"name": "succeed", "run_at": "2030-01-31T25:30:00Z"}`, "run_at", []string{"T25:30"}},
		{`{"name": "succeed", "run_at": "0000-06-30T00:00:00Z"}`, "run_at", []string{"year 1 to 9999"}},
		{`{"name": "succeed", "run_at": "9999-12-31T23:30:00-01:00"}`, "run_at", []string{"year 1 to 9999"}},
		{`{"name": "succeed", "run_at": "10000-01-01T00:00:00Z"}`, "run_at", []string{"10000-01-01"}},
		{`{"name": "succeed", "run_at": "-0001-01-01T00:00:00Z"}`, "run_at", []string{"-0001-01-01"}},
		{`{"name": "succeed", "run_at": "` + long + `"}`, "run_at", []string{"10000 bytes"}},
		{`{"name": "succeed", "payload": "a\u0000b"}`, "payload", []string{`\u0000`, "Postgres"}},
		{`{"name": "succeed", "payload": {"\u0000": 1}}`, "payload", []string{`\u0000`}},
		{`{"name": "succeed", "payload": "\ud800"}`, "payload", []string{`\ud800`, "surrogate"}},
		{`{"name": "succeed", "payload": "\udc00x"}`, "payload", []string{`\udc00`, "surrogate"}},
		{`{"name": "succeed", "payload": "` + "\xff" + `"}`, "payload", []string{"UTF-8"}},
		{`{"name": "succeed", "payload": 1e400000}`, "payload", nil},
		{`{"name": "succeed", "payload": "` + strings.Repeat("a", 1<<20-1) + `"}`, "payload", []string{"1048577 bytes", "at most 1048576"}},
		{`{"name": "succeed", "delay": 5}`, "delay", []string{"unknown field", "name, run_at, payload, queue"}},
		{`{"name": "succeed", "Queue": "default"}`, "Queue", []string{"unknown field"}},
		{`{"name": "succeed", "prio": 1}`, "prio", []string{"unknown field"}},
		{`{"name": "succeed", "` + long + `": 1}`, long[:64], []string{"unknown field"}},
	} {
		w.call(t, "POST", "/api/jobs", test.body).requireProblem(t, http.StatusUnprocessableEntity, test.field, test.names...)
	}
	require.Zero(t, w.stored(t))
	// The largest payload there may be.
	var job scheduler.Job
	w.call(t, "POST", "/api/jobs", `{"name": "succeed", "payload": "`+strings.Repeat("a", 1<<20-2)+`"}`).requireJSON(t, http.StatusCreated, &job)
}

func TestHTTPKnowsNoJobByOtherIDs(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	id := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{}).ID
	for _, other := range []string{
		"0190a5b2-0000-7000-8000-000000000000", "1", "-", "nope", strings.Repeat("a", 2000), id[:35], id + "0",
		strings.ReplaceAll(id, "-", ""), "{" + id + "}", "urn:uuid:" + id, "%27%3B--", id + "%00", id + "%20", "r%75n", "run%20",
	} {
		w.call(t, "GET", "/api/jobs/"+other, "").requireProblem(t, http.StatusNotFound, "")
	}
	w.call(t, "GET", "/api/jobs/"+id, "").requireJSON(t, http.StatusOK, &scheduler.Job{})
}

func TestHTTPRefusesOtherMethods(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	job := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{})
	for path, allowed := range map[string]string{
		"/api/jobs": "GET, HEAD, POST", "/api/jobs/run": "POST", "/api/jobs/queues": "GET, HEAD", "/api/jobs/" + job.ID: "GET, HEAD",
		"/api/jobs/" + job.ID + "/cancel": "POST", "/api/jobs/" + job.ID + "/retry": "POST",
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} {
			if slices.Contains(strings.Split(allowed, ", "), method) {
				continue
			}
			answer := w.call(t, method, path, "")
			require.Equal(t, http.StatusMethodNotAllowed, answer.status, "%s %s", method, path)
			require.Equal(t, allowed, answer.header.Get("Allow"), "%s %s", method, path)
			if method != "HEAD" {
				answer.requireProblem(t, http.StatusMethodNotAllowed, "", method, allowed)
			}
		}
	}
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, w.Scheduler, job.ID).Status)

	head, get := w.call(t, "HEAD", "/api/jobs/"+job.ID, ""), w.call(t, "GET", "/api/jobs/"+job.ID, "")
	require.Equal(t, http.StatusOK, head.status)
	require.Empty(t, head.body)
	require.Equal(t, get.header.Get("Content-Type"), head.header.Get("Content-Type"))
	require.Equal(t, http.StatusNotFound, w.call(t, "HEAD", "/api/jobs/0190a5b2-0000-7000-8000-000000000000", "").status)
}

func TestHTTPHasNothingAtOtherPaths(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	w.serve(t, w.Handler()) // at the root, so that all paths come to it
	for _, path := range []string{"/", "/api", "/api/", "/api/jobs/", "/api/jobs/run/", "/api/jobs/a/b", "/api/jobsrun", "/API/JOBS", "/jobs", "/run"} {
		for _, method := range []string{"GET", "POST"} {
			w.call(t, method, path, `{"name": "succeed"}`).requireProblem(t, http.StatusNotFound, "")
		}
	}
	require.Zero(t, w.stored(t))
}

func TestHTTPCanBeMountedElsewhere(t *testing.T) {
	t.Parallel()
	for _, base := range []string{"/", "/v1/~jobs_a.b-c"} {
		w := newWeb(t, func(c *scheduler.Config) { c.BasePath = base })
		below := strings.TrimSuffix(base, "/")
		created := w.call(t, "POST", base, `{"name": "succeed"}`)
		var job scheduler.Job
		created.requireJSON(t, http.StatusCreated, &job)
		require.Equal(t, below+"/"+job.ID, created.header.Get("Location"))
		var report scheduler.RunReport
		w.call(t, "POST", below+"/run", "").requireJSON(t, http.StatusOK, &report)
		require.Equal(t, 1, report.Succeeded)
		w.call(t, "GET", below+"/"+job.ID, "").requireJSON(t, http.StatusOK, &job)
		require.Equal(t, scheduler.JobStatusSucceeded, job.Status)
	}
}
