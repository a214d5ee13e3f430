package scheduler_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// timed is a writer that notes how long a body may take, and the body that comes
// when that is over.
type timed struct {
	*httptest.ResponseRecorder
	deadline time.Time
}

func (t *timed) SetReadDeadline(at time.Time) error {
	t.deadline = at
	return nil
}

func (t *timed) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// A body that is sent slowly, or never, is not waited for: not by a creation, and
// not by the server, which would read it after an answer, be that a refusal.
func TestHTTPBoundsTheTimeOfABody(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	for _, authorization := range []string{"Bearer " + webToken, "Bearer no"} {
		for _, path := range []string{"/api/jobs", "/api/jobs/run?wait=2m"} {
			slow := &timed{ResponseRecorder: httptest.NewRecorder()}
			r := httptest.NewRequestWithContext(t.Context(), "POST", path, slow)
			r.Header.Set("Authorization", authorization)
			w.Handler().ServeHTTP(slow, r)
			longest := 30 * time.Second
			if path == "/api/jobs/run?wait=2m" && authorization != "Bearer no" { // which may be about to be answered then
				longest += 2 * time.Minute
			}
			require.WithinDuration(t, time.Now().Add(longest), slow.deadline, 10*time.Second)
			if path == "/api/jobs" && authorization != "Bearer no" {
				reply{slow.Code, slow.Header(), slow.Body.String()}.requireProblem(t, http.StatusRequestTimeout, "", "too long")
			}
		}
	}
	// Without a body there is nothing to wait for; a run may take longer.
	none := &timed{ResponseRecorder: httptest.NewRecorder()}
	w.Handler().ServeHTTP(none, httptest.NewRequestWithContext(t.Context(), "POST", "/api/jobs/run", http.NoBody))
	require.True(t, none.deadline.IsZero())
	// Once it is there, its time is not that of the call, which the server would end.
	there := &timed{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequestWithContext(t.Context(), "POST", "/api/jobs", strings.NewReader(`{}`))
	r.Header.Set("Authorization", "Bearer "+webToken)
	w.Handler().ServeHTTP(there, r)
	require.Equal(t, http.StatusUnprocessableEntity, there.Code)
	require.True(t, there.deadline.IsZero())

	// The service's own bound counts, and is told in the same way.
	w.server.Close()
	server := httptest.NewUnstartedServer(w.Handler())
	server.Config.ReadTimeout = 100 * time.Millisecond
	server.Start()
	t.Cleanup(server.Close)
	body, never := io.Pipe()
	t.Cleanup(func() { _ = never.Close() })
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/api/jobs", body)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+webToken)
	response, err := server.Client().Do(request)
	require.NoError(t, err)
	require.NoError(t, response.Body.Close())
	require.Equal(t, http.StatusRequestTimeout, response.StatusCode)
	require.Zero(t, w.stored(t))
}

// What is in a header is bounded where it is kept, or compared.
func TestHTTPBoundsHeaders(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("t", 4096)
	w := newWeb(t, func(c *scheduler.Config) { c.Tokens = []string{longest} })
	w.call(t, "POST", "/api/jobs/run", "", "Authorization", "Bearer "+longest).requireJSON(t, http.StatusOK, &scheduler.RunReport{})
	w.requireRefused(t, "Bearer "+longest+"t")
	w.requireRefused(t, "Bearer "+strings.Repeat("t", 500_000))
	allowed := []string{"Authorization", "Bearer " + longest}
	w.call(t, "POST", "/api/jobs", `{"name": "succeed"}`, append(allowed, "Idempotency-Key", strings.Repeat("k", 500_000))...).
		requireProblem(t, http.StatusBadRequest, "", "500000 bytes")
	var job scheduler.Job
	w.call(t, "POST", "/api/jobs", `{"name": "succeed"}`, append(allowed, "Traceparent", "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-"+strings.Repeat("x", 500_000))...).
		requireJSON(t, http.StatusCreated, &job)
	require.Less(t, mustQuery[int](t, w.pool, "SELECT pg_column_size(attributes) FROM "+w.schema+".jobs WHERE id = $1::text::uuid", job.ID), 200)
}

// What somebody has sent as a payload is not to be taken for a page of the site.
func TestHTTPAnswersAreNoPages(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	job := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{Payload: "<script>alert(1)</script>"})
	for _, call := range everyCall(job.ID) {
		for _, token := range []string{webToken, "no"} {
			answer := w.call(t, call[0], call[1], call[2], "Authorization", "Bearer "+token)
			require.Equal(t, "nosniff", answer.header.Get("X-Content-Type-Options"))
			require.Equal(t, "no-store", answer.header.Get("Cache-Control"))
			require.Contains(t, []string{"application/json", "application/problem+json"}, answer.header.Get("Content-Type"))
		}
	}
}

// Text that Go would read as another one, the same for several, is refused: two
// owners, or two unique keys, would be one.
func TestHTTPRefusesTextThatWouldBecomeAnother(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	for _, text := range []string{"\xff", `\ud800`, `a\udc00`, `\ud800\ud800`, `\u0000`, "a\xc3("} {
		for field, value := range map[string]string{"name": `"%"`, "queue": `"%"`, "owner": `"%"`, "tags": `["a", "%"]`, "key": `"%"`, "unique_key": `"%"`,
			"run_at": `"%"`, "timeout": `"%"`, "unique_for": `"%"`, "on_duplicate": `"%"`, "after": `["%"]`, "payload": `"%"`, "metadata": `{"%": 1}`} {
			body := `{"name": "succeed", "` + field + `": ` + strings.ReplaceAll(value, "%", text) + `}`
			w.call(t, "POST", "/api/jobs", body).requireProblem(t, http.StatusUnprocessableEntity, field)
		}
	}
	require.Zero(t, w.stored(t))
}
