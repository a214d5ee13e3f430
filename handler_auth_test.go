package scheduler_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// everyCall has one call of each kind; job is the id of one that exists.
func everyCall(job string) [][3]string {
	return [][3]string{
		{"POST", "/api/jobs/run", ""},
		{"POST", "/api/jobs", `{"name": "succeed"}`},
		{"GET", "/api/jobs/" + job, ""},
		{"HEAD", "/api/jobs/" + job, ""},
		{"POST", "/api/jobs/" + job + "/cancel", ""},
		{"POST", "/api/jobs/" + job + "/retry", ""},
		{"GET", "/api/jobs/nope", ""},
		{"DELETE", "/api/jobs/" + job, ""},
		{"GET", "/api/jobs/run", ""},
		{"GET", "/api/jobs", ""},
		{"HEAD", "/api/jobs", ""},
		{"GET", "/api/jobs/queues", ""},
		{"POST", "/api/jobs/", ""},
	}
}

// requireRefused makes every call with this header, and checks that each is
// refused and none has an effect.
func (w *web) requireRefused(t *testing.T, header string) {
	t.Helper()
	job := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{})
	before := w.stored(t)
	for _, call := range everyCall(job.ID) {
		answer := w.call(t, call[0], call[1], call[2], "Authorization", header)
		require.Equal(t, http.StatusUnauthorized, answer.status, "%q: %s %s", header, call[0], call[1])
		require.Equal(t, "Bearer", answer.header.Get("WWW-Authenticate"))
		if call[0] != "HEAD" {
			answer.requireProblem(t, http.StatusUnauthorized, "", "Authorization")
			require.NotContains(t, answer.body, job.ID)
		}
	}
	require.Equal(t, before, w.stored(t))
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, w.Scheduler, job.ID).Status)
}

func TestHTTPNeedsAToken(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	for _, header := range []string{
		"", "Bearer", "Bearer ", "Bearer undefined", "Bearer null", "Bearer 123ABC4", "Bearer 123AB", "Bearer 123abc", "Bearer 123ABC 123ABC",
		"Bearer 123ABC,", `Bearer "123ABC"`, "Bearer123ABC", "Basic 123ABC", "Basic OjEyM0FCQw==", "Token 123ABC", "123ABC",
		"Bearer Bearer 123ABC", "Bearer " + strings.Repeat("x", 10_000),
	} {
		w.requireRefused(t, header)
	}
	// In another place it is no token.
	for _, call := range [][3]string{{"/api/jobs/run?token=123ABC", "Authorization", ""}, {"/api/jobs/run", "X-Authorization", "Bearer 123ABC"}, {"/api/jobs/run", "Cookie", "token=123ABC"}} {
		require.Equal(t, http.StatusUnauthorized, w.call(t, "POST", call[0], "", "Authorization", "", call[1], call[2]).status)
	}
	for _, header := range []string{"Bearer 123ABC", "bearer 123ABC", "BEARER  123ABC"} { // the scheme is of any case, RFC 9110
		require.Equal(t, http.StatusOK, w.call(t, "POST", "/api/jobs/run", "", "Authorization", header).status, header)
	}
}

func TestHTTPWithoutTokensRefusesEverybody(t *testing.T) {
	t.Parallel()
	for _, tokens := range [][]string{nil, {}} {
		w := newWeb(t, func(c *scheduler.Config) { c.Tokens = tokens })
		for _, header := range []string{"", "Bearer", "Bearer ", "Bearer undefined", "Bearer 123ABC"} {
			w.requireRefused(t, header)
		}
	}
}

func TestHTTPTokensCanBeRotated(t *testing.T) {
	t.Parallel()
	w := newWeb(t, func(c *scheduler.Config) { c.Tokens = []string{"old", "new", "next"} })
	for _, token := range []string{"old", "new", "next"} {
		created := w.call(t, "POST", "/api/jobs", `{"name": "succeed"}`, "Authorization", "Bearer "+token)
		require.Equal(t, http.StatusCreated, created.status)
		require.Equal(t, http.StatusOK, w.call(t, "GET", created.header.Get("Location"), "", "Authorization", "Bearer "+token).status)
		var report scheduler.RunReport
		w.call(t, "POST", "/api/jobs/run", "", "Authorization", "Bearer "+token).requireJSON(t, http.StatusOK, &report)
		require.Equal(t, 1, report.Succeeded)
	}
	w.requireRefused(t, "Bearer older")
	w.requireRefused(t, "Bearer oldnew")
}

func TestHTTPAHostsOwnCheckIsForCreatingAndReading(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	w := newWeb(t, func(c *scheduler.Config) {
		c.Authorize = func(r *http.Request) bool {
			asked.Add(1)
			return r.Header.Get("X-User") == "ada"
		}
	})
	as := func(user string) []string { return []string{"Authorization", "", "X-User", user} }
	created := w.call(t, "POST", "/api/jobs", `{"name": "succeed"}`, as("ada")...)
	var job scheduler.Job
	created.requireJSON(t, http.StatusCreated, &job)
	w.call(t, "GET", "/api/jobs/"+job.ID, "", as("ada")...).requireJSON(t, http.StatusOK, &job)
	for _, user := range []string{"", "eve"} {
		w.call(t, "POST", "/api/jobs", `{"name": "succeed"}`, as(user)...).requireProblem(t, http.StatusUnauthorized, "")
		w.call(t, "GET", "/api/jobs/"+job.ID, "", as(user)...).requireProblem(t, http.StatusUnauthorized, "")
	}
	require.EqualValues(t, 6, asked.Load())
	require.Equal(t, 1, w.stored(t))

	// Never for running, not even asked.
	w.call(t, "POST", "/api/jobs/run", "", as("ada")...).requireProblem(t, http.StatusUnauthorized, "")
	require.EqualValues(t, 6, asked.Load())
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, w.Scheduler, job.ID).Status)
	// A token goes on counting for everything.
	w.call(t, "GET", "/api/jobs/"+job.ID, "").requireJSON(t, http.StatusOK, &job)
	var report scheduler.RunReport
	w.call(t, "POST", "/api/jobs/run", "").requireJSON(t, http.StatusOK, &report)
	require.Equal(t, 1, report.Succeeded)
}

func TestHTTPNoSpellingOfThePathLetsARunIn(t *testing.T) {
	t.Parallel()
	for _, tokens := range [][]string{nil, {webToken}} {
		w := newWeb(t, func(c *scheduler.Config) {
			c.Tokens = tokens
			c.Authorize = func(*http.Request) bool { return true } // as far as it is asked
		})
		job := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{})
		bare := *w
		bare.serve(t, w.Handler()) // without a router before it
		for _, path := range []string{
			"/api/jobs/run", "//api/jobs/run", "/api/jobs//run", "/api//jobs/run", "/api/jobs/run/", "/api/jobs/run//", "/api/jobs/./run",
			"/api/jobs/../jobs/run", "/api/jobs/x/../run", "/api/jobs/%2e/run", "/api/jobs/%2e%2e/jobs/run", "/api/jobs%2Frun", "/api%2Fjobs%2Frun",
			"/api/jobs/%72un", "/api/jobs/r%75n", "/api/jobs/run%2F", "/api/jobs/run%00", "/api/jobs/run%20", "/api/jobs/run%3F", "/api/jobs/run;x=1",
			"/api/jobs/RUN", "/API/jobs/run", "/api/jobs/run?", "/api/jobs/run?queue=default", "/api/jobs/%252frun", `/api/jobs/%5Crun`, "/api/jobs/run.",
		} {
			for _, method := range []string{"POST", "GET", "PUT", "HEAD"} {
				for _, w := range []*web{w, &bare} {
					answer := w.call(t, method, path, "", "Authorization", "", "X-HTTP-Method-Override", "POST")
					require.GreaterOrEqual(t, answer.status, 300, "%s %s: %s", method, path, answer.body)
					require.Less(t, answer.status, 500, "%s %s: %s", method, path, answer.body)
				}
			}
		}
		require.Equal(t, scheduler.JobStatusPending, mustGet(t, w.Scheduler, job.ID).Status)
		require.Equal(t, 1, w.stored(t))
	}
}

func TestHTTPShowsNoInternals(t *testing.T) {
	t.Parallel()
	nobody, err := pgxpool.New(t.Context(), "postgres://hidden:secret@127.0.0.1:1/nowhere?connect_timeout=5")
	require.NoError(t, err)
	t.Cleanup(nobody.Close)
	for name, pool := range map[string]*pgxpool.Pool{"no database": nobody, "no tables": newPool(t)} {
		var log strings.Builder
		s, err := scheduler.New(pool, scheduler.Config{
			Tokens: []string{webToken}, Schema: unique(), Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		require.NoError(t, err)
		const id = "0190a5b2-0000-7000-8000-000000000000"
		calls := [][3]string{
			{"POST", "/api/jobs/run", ""},
			{"POST", "/api/jobs/run?queue=blocking&status=any", ""},
			{"POST", "/api/jobs", `{"name": "any"}`},
			{"POST", "/api/jobs", `{"name": "any", "unique_key": "a"}`},
			{"POST", "/api/jobs", `{"name": "any", "after": ["` + id + `"]}`},
			{"POST", "/api/jobs/" + id + "/cancel", ""},
			{"POST", "/api/jobs/" + id + "/retry", ""},
			{"GET", "/api/jobs/" + id, ""},
			{"GET", "/api/jobs", ""},
			{"GET", "/api/jobs?queue=other", ""},
			{"GET", "/api/jobs?owner=a&tag=b&created_after=2026-01-31T09:30:00Z", ""},
			{"GET", "/api/jobs/queues", ""},
		}
		for _, call := range calls {
			request := httptest.NewRequestWithContext(t.Context(), call[0], call[1], strings.NewReader(call[2]))
			request.Header.Set("Authorization", "Bearer "+webToken)
			recorder := httptest.NewRecorder()
			s.Handler().ServeHTTP(recorder, request)
			answer := reply{recorder.Code, recorder.Header(), recorder.Body.String()}
			answer.requireProblem(t, http.StatusInternalServerError, "")
			for _, internal := range []string{"hidden", "secret", "127.0.0.1", "nowhere", "connect", "SQLSTATE", "relation", "schema", "t_", ".go"} {
				require.NotContains(t, answer.body, internal, "%s: %v", name, call)
			}
		}
		require.NoError(t, s.Shutdown(t.Context()))
		require.Equal(t, len(calls), strings.Count(log.String(), "can't answer a request"), "the log says it: %s", log.String())
	}
}
