package scheduler_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// FuzzPath: whatever path or target a request has, without a token it starts no
// run, also where the service's own check lets everybody do everything else; and
// with a token it is nothing to break on.
func FuzzPath(f *testing.F) {
	z := newFuzzed(f)
	open := newSchedulerOn(f, z.pool, func(c *scheduler.Config) {
		c.Schema = z.schema
		c.Tokens, c.Authorize = []string{webToken}, func(*http.Request) bool { return true }
	})
	mux := http.NewServeMux()
	mux.Handle("/api/jobs", open.Handler())
	mux.Handle("/api/jobs/", open.Handler())
	job, err := z.CreateJob(f.Context(), "a", scheduler.JobData{RunAt: time.Now().Add(time.Hour)})
	require.NoError(f, err)
	for _, target := range []string{
		"/api/jobs", "/api/jobs/run", "//api/jobs/run", "/api/jobs//run", "/api/jobs/run/", "/api/jobs/./run", "/api/jobs/x/../run", "/api/jobs/%2e/run", "/api/jobs%2Frun", "/api/jobs/%72un",
		"/api/jobs/run%00", "/api/jobs/run%2f", "/api/jobs/run;a", "/api/jobs/RUN", "/api/jobs/run?queue=default", "http://b/api/jobs/run", "http://b//api/jobs/run", "*", "a:80",
		"/api/jobs/queues", "/api/jobs/" + job.ID, "/api/jobs/" + job.ID + "/cancel", "/api/jobs/" + job.ID + "/retry", "/api/jobs/" + strings.ToUpper(job.ID), "/api/jobs/run/cancel",
		"/api/jobs/%00/retry", "/api/jobs/%ff", "/api/jobs/{" + job.ID + "}", "/api/jobs?limit=1", "/api/jobs/\\run", "/api/jobs/run\t", "/api/jobs/..", "/api/jobs/%252frun",
	} {
		f.Add("POST", target)
		f.Add("GET", target)
	}
	f.Add("CONNECT", "/api/jobs/run")
	f.Add("run", "/api/jobs/run")
	f.Fuzz(func(t *testing.T, method, target string) {
		text := method + " " + target + " HTTP/1.1\r\nHost: a\r\n\r\n"
		for _, handler := range []http.Handler{open.Handler(), mux} {
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
			if err != nil {
				return
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r.WithContext(t.Context()))
			require.Less(t, w.Code, 500, "%q: %s", text, w.Body)
			require.NotContains(t, w.Body.String(), `"run_id"`, "%q", text)
		}
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
		require.NoError(t, err)
		if r.Header.Get("Authorization") == "" { // else the target has broken the line
			r.Header.Set("Authorization", "Bearer "+webToken)
			w := httptest.NewRecorder()
			z.handler.ServeHTTP(w, r.WithContext(t.Context()))
			require.Less(t, w.Code, 500, "%q: %s", text, w.Body)
			require.True(t, json.Valid(w.Body.Bytes()), "%q: %s", text, w.Body)
		}
	})
}

var traceparents = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// FuzzTraceparent: what is kept of a traceparent is one of version 00, which is
// kept as it is.
func FuzzTraceparent(f *testing.F) {
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, seed := range []string{"", trace, strings.ToUpper(trace), trace + "-", trace[:54], "ff" + trace[2:], "01" + trace[2:], "01" + trace[2:] + "-a", "01" + trace[2:] + ".a",
		"00-" + strings.Repeat("0", 32) + trace[35:], trace[:36] + strings.Repeat("0", 16) + "-01", "01" + trace[2:53] + "ff", " " + trace, strings.Replace(trace, "4", "٤", 1)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		kept := scheduler.Traceparent(scheduler.WithTraceparent(t.Context(), text))
		if kept == "" {
			require.False(t, traceparents.MatchString(text) && strings.Trim(text[3:35], "0") != "" && strings.Trim(text[36:52], "0") != "")
			return
		}
		require.Regexp(t, traceparents, kept)
		require.Equal(t, text[2:53], kept[2:53])
		require.Equal(t, kept, scheduler.Traceparent(scheduler.WithTraceparent(t.Context(), kept)))
	})
}

// FuzzDuration: a duration in a body or a parameter is Go's, in its bounds, or it
// is refused with the name of the field.
func FuzzDuration(f *testing.F) {
	z := newFuzzed(f)
	for _, text := range []string{"", "90s", "0", "-1s", "1.5h", "1h2m3s4ms5us6µs7ns", "1e3s", "9223372036854775807ns", "9223372036854775808ns", "24h", "8784h", "8784h1ns", "0.4ns", "1d", " 1s", "1s ", ".s", "+5s", "∞"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		body, err := json.Marshal(map[string]string{"name": "a", "timeout": text})
		require.NoError(t, err)
		var job scheduler.Job
		if answer := z.call(t, "POST", "", string(body), nil); answer.Code == http.StatusCreated {
			require.NoError(t, json.Unmarshal(answer.Body.Bytes(), &job))
			if text != "" {
				given, err := time.ParseDuration(text)
				require.NoError(t, err)
				require.GreaterOrEqual(t, given, time.Duration(0))
				require.InDelta(t, given, mustGet(t, z.Scheduler, job.ID).Timeout, float64(time.Millisecond))
			}
		} else {
			require.Contains(t, answer.Body.String(), `"field":"timeout"`)
		}
		body, err = json.Marshal(map[string]string{"name": "a", "unique_key": "u", "unique_for": text})
		require.NoError(t, err)
		if answer := z.call(t, "POST", "", string(body), nil); answer.Code >= 400 {
			require.Contains(t, answer.Body.String(), `"field":"unique_for"`)
		}
		if answer := z.call(t, "POST", "/run?queue=blocking&wait="+url.QueryEscape(text), "", nil); answer.Code >= 400 {
			require.Contains(t, answer.Body.String(), `"field":"wait"`)
		}
	})
}

// FuzzOutcome: whatever a handler returns and reports, the job is recorded, and
// can be read.
func FuzzOutcome(f *testing.F) {
	var result, failure, note string
	pool := newPool(f)
	s := newSchedulerOn(f, pool, func(c *scheduler.Config) {
		c.Tokens = []string{webToken}
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			_ = scheduler.SetProgress(ctx, 50, note)                   // it refuses what can't be kept
			_ = scheduler.Checkpoint(ctx, json.RawMessage(result+" ")) // so does this
			if failure != "" {
				return nil, scheduler.Cancel(errors.New(failure))
			}
			return json.RawMessage(result), nil
		}}
	})
	z := &fuzzed{Scheduler: s, pool: pool, handler: s.Handler()}
	for _, seed := range [][3]string{{"null", "", ""}, {`{"a": [1]}`, "", "half"}, {"", "no", "\x00"}, {`"\u0000"`, "", "\xff"}, {"nope", "", "é"}, {"1e999999", "", strings.Repeat("x", 10_000)},
		{"1", "\x00\xff\xc3(" + strings.Repeat("é", 5_000), "\u202e"}, {strings.Repeat("[", 9_990) + strings.Repeat("]", 9_990), "", ""}, {"1", "\x1b[31m\r\n", "\t"}} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, r, e, n string) {
		result, failure, note = r, e, n
		job := mustCreate(t, s, "a", scheduler.JobData{MaxAttempts: 1})
		require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Picked)
		switch job := mustGet(t, s, job.ID); job.Status {
		case scheduler.JobStatusSucceeded:
			require.Empty(t, failure)
			require.True(t, mustQuery[bool](t, pool, "SELECT $1::text::jsonb = $2::text::jsonb", result, string(job.Result)))
		case scheduler.JobStatusDead:
			require.Len(t, job.Errors, 1)
			require.LessOrEqual(t, len(job.Errors[0].Error), 8<<10)
		default:
			require.Fail(t, "the job is "+string(job.Status))
		}
		require.Equal(t, http.StatusOK, z.call(t, "GET", "/"+job.ID, "", nil).Code)
	})
}
