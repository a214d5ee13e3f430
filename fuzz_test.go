package scheduler_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// fuzzed is a Handler without a server around it: what a fuzzer makes up would
// not get through http.Client.
type fuzzed struct {
	*scheduler.Scheduler
	pool    *pgxpool.Pool
	schema  string
	handler http.Handler
}

func newFuzzed(f *testing.F) *fuzzed {
	z := &fuzzed{pool: newPool(f)}
	z.Scheduler = newSchedulerOn(f, z.pool, func(c *scheduler.Config) {
		z.schema, c.Tokens = c.Schema, []string{webToken}
		c.JobNames = scheduler.JobNames{"a": succeed}
	})
	z.handler = z.Handler()
	return z
}

// call makes a request and checks what is to be so of every answer: it is none
// of a broken service, in JSON, short if it is an error, and without the token.
func (z *fuzzed) call(t *testing.T, method, target, body string, header http.Header) *httptest.ResponseRecorder {
	path, query, _ := strings.Cut(target, "?")
	r := httptest.NewRequestWithContext(t.Context(), method, "/api/jobs"+path, strings.NewReader(body))
	r.URL.RawQuery = query
	if header != nil {
		r.Header = header
	}
	if r.Header.Get("Authorization") == "" {
		r.Header.Set("Authorization", "Bearer "+webToken)
	}
	w := httptest.NewRecorder()
	z.handler.ServeHTTP(w, r)
	require.Less(t, w.Code, 500, w.Body.String())
	require.True(t, json.Valid(w.Body.Bytes()), w.Body.String())
	require.NotContains(t, w.Body.String(), webToken)
	if w.Code >= 400 {
		require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
		require.Less(t, w.Body.Len(), 4096)
	}
	return w
}

// FuzzCreation holds the body of a creation against what is stored then: what is
// accepted is there, as GetJob and as Postgres have it, and refused is whatever
// can't be kept.
func FuzzCreation(f *testing.F) {
	z := newFuzzed(f)
	for _, body := range []string{
		``, `{}`, `[]`, `null`, `{"name": "a"}`, `{"name": "a", "payload": {"a": [1, -0.0, 1e10, "é\u0000"]}}`, `{"name": "a", "payload": "\ud800"}`,
		`{"name": "a", "run_at": "2026-01-31T09:30:00+01:00", "queue": "blocking", "max_attempts": 3, "timeout": "90s"}`,
		`{"name": "a", "owner": "o", "tags": ["x", "y"], "metadata": {"a": 1}, "priority": 5, "key": "k"}`,
		`{"name": "a", "unique_key": "u", "unique_for": "1h", "on_duplicate": "replace"}`,
		`{"name": "a", "after": ["0190a5b2-0000-7000-8000-000000000000"], "after_any": true}`,
		`{"name": "a", "name": "b"}`, `{"NAME": "a"}`, `{"name": "a", "payload": 1e99999}`, "{\"name\": \"\xff\"}", `{"name": "a", "timeout": "-1ns"}`,
		`{"name": "a", "run_at": "0000-01-01T00:00:00Z"}`, `{"name": "a", "run_at": "9999-12-31T23:59:59-23:59"}`, `{"name": "a", "metadata": []}`,
	} {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		answer := z.call(t, "POST", "", body, nil)
		if answer.Code >= 400 {
			return
		}
		var job scheduler.Job
		require.NoError(t, json.Unmarshal(answer.Body.Bytes(), &job))
		require.Equal(t, job.Name, mustGet(t, z.Scheduler, job.ID).Name)
		if sent := map[string]json.RawMessage{}; json.Unmarshal([]byte(body), &sent) == nil && !job.Duplicate && job.UniqueKey == "" {
			payload := sent["payload"]
			if payload == nil {
				payload = json.RawMessage("null")
			}
			require.True(t, mustQuery[bool](t, z.pool, "SELECT payload = $2::text::jsonb FROM "+z.schema+".jobs WHERE id = $1::text::uuid", job.ID, string(payload)))
		}
	})
}

// FuzzPayload: what Go takes for a payload, Postgres stores, and gives back as the
// same JSON.
func FuzzPayload(f *testing.F) {
	z := newFuzzed(f)
	for _, payload := range []string{`null`, `"a"`, `{"a": {"b": [1, 2.50, -0, 1E+2]}}`, `"\\u0000"`, `"\\\u0000"`, `"\ud83d\ude00"`, `"\ude00"`, `1e16383`, `0e99999`,
		`[[[[]]]]`, ` 1 `, "\"\xc3\x28\"", `"\u2028"`, `-`, `01`, `{"a": 1, "a": 2}`, `1.0000000000000000000000000000001`} {
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload string) {
		job, err := z.CreateJob(t.Context(), "a", scheduler.JobData{Payload: json.RawMessage(payload)})
		if err != nil {
			requireInputError(t, err, "payload")
			return
		}
		require.True(t, mustQuery[bool](t, z.pool, "SELECT $1::text::jsonb = $2::text::jsonb", payload, string(mustGet(t, z.Scheduler, job.ID).Payload)))
	})
}

// FuzzList holds the parameters of a list, its cursor among them.
func FuzzList(f *testing.F) {
	z := newFuzzed(f)
	for range 3 {
		_, err := z.CreateJob(f.Context(), "a", scheduler.JobData{Tags: []string{"x"}, Owner: "o"})
		require.NoError(f, err)
	}
	page, err := z.ListJobs(f.Context(), scheduler.JobFilter{Limit: 1})
	require.NoError(f, err)
	for _, query := range []string{
		"", "status=pending&status=failed", "queue=failed", "queue=other&queue=default", "name=a&tag=x&owner=o", "limit=1&cursor=" + page.Next,
		"cursor=AAAA", "created_after=2026-01-31T09:30:00Z&created_before=2026-01-31T09:30%2B01:00", "limit=0", "limit=1000", "a=1", "%zz", "a;b", "owner=%00", "tag=%ff",
		"limit=1&limit=1", "cursor=" + strings.Repeat("A", 100), "created_after=0001-01-01T00:00:00Z",
	} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		answer := z.call(t, "GET", "?"+query, "", nil)
		require.Contains(t, []int{http.StatusOK, http.StatusBadRequest}, answer.Code, answer.Body.String())
	})
}

// FuzzCursor: no cursor but those that were given out is taken.
func FuzzCursor(f *testing.F) {
	z := newFuzzed(f)
	for range 2 {
		_, err := z.CreateJob(f.Context(), "a", scheduler.JobData{})
		require.NoError(f, err)
	}
	page, err := z.ListJobs(f.Context(), scheduler.JobFilter{Limit: 1})
	require.NoError(f, err)
	f.Add(page.Next)
	f.Add(page.Next + "=")
	f.Add(page.Next + "\n")
	f.Add(page.Next[1:])
	f.Add("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, cursor string) {
		if cursor == "" {
			return
		}
		page, err := z.ListJobs(t.Context(), scheduler.JobFilter{Cursor: cursor, Limit: 1})
		if err != nil {
			requireInputError(t, err, "cursor")
			return
		}
		again, err := z.ListJobs(t.Context(), scheduler.JobFilter{Cursor: cursor, Limit: 1})
		require.NoError(t, err)
		require.Equal(t, page.Next, again.Next)
	})
}

// FuzzRun holds the parameters of a run.
func FuzzRun(f *testing.F) {
	z := newFuzzed(f)
	for _, query := range []string{
		"", "queue=default&status=any&limit=1&wait=1ms", "queue=failed", "queue=failed&status=pending", "limit=-1", "limit=99999999999999999999", "wait=5m1s",
		"wait=-1s", "wait=1e9s", "queue=%00", "token=a", "limit", "limit=1;wait=1s", "queue=blocking&queue=blocking", strings.Repeat("x", 5000) + "=1&" + strings.Repeat("x", 5000) + "=1",
	} {
		f.Add(query)
	}
	f.Fuzz(func(t *testing.T, query string) {
		answer := z.call(t, "POST", "/run?"+query, "", nil)
		require.Contains(t, []int{http.StatusOK, http.StatusAccepted, http.StatusBadRequest}, answer.Code, answer.Body.String())
	})
}

// FuzzHeaders holds what is read of headers: no Authorization but those with the
// token lets anything in, an Idempotency-Key is good for one job, and of a
// traceparent only what is one is kept.
func FuzzHeaders(f *testing.F) {
	z := newFuzzed(f)
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, seed := range [][3]string{
		{"Bearer " + webToken, "a", trace}, {"bearer  " + webToken + " ", "", "00-" + strings.Repeat("0", 32) + "-00f067aa0ba902b7-01"},
		{"Bearer " + webToken + "\x00", strings.Repeat("é", 256), trace + "-01"}, {"Basic " + webToken, strings.Repeat("k", 257), "cc" + trace[2:] + "-what"},
		{"Bearer", "\x00", "ff" + trace[2:]}, {"Bearer " + webToken + ", Bearer x", "\xff", strings.ToUpper(trace)}, {"Bearer\t" + webToken, " ", trace + " "},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, authorization, key, traceparent string) {
		header := func() http.Header {
			return http.Header{"Authorization": {authorization}, "Idempotency-Key": {key}, "Traceparent": {traceparent}}
		}
		if authorization == "" {
			return // for call, one that is not there
		}
		answer := z.call(t, "POST", "", `{"name": "a"}`, header())
		scheme, token, _ := strings.Cut(authorization, " ")
		if !strings.EqualFold(scheme, "bearer") || strings.TrimSpace(token) != webToken {
			require.Equal(t, http.StatusUnauthorized, answer.Code)
			return
		}
		if answer.Code >= 400 {
			require.Equal(t, http.StatusBadRequest, answer.Code)
			return
		}
		var job, again scheduler.Job
		require.NoError(t, json.Unmarshal(answer.Body.Bytes(), &job))
		require.NoError(t, json.Unmarshal(z.call(t, "POST", "", `{"name": "a"}`, header()).Body.Bytes(), &again))
		require.Equal(t, job.ID, again.ID)
		require.True(t, again.Duplicate)
		kept := mustQuery[*string](t, z.pool, "SELECT attributes ->> 'traceparent' FROM "+z.schema+".jobs WHERE id = $1::text::uuid", job.ID)
		if kept != nil {
			require.Regexp(t, `^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`, *kept)
		}
	})
}
