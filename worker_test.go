package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// runs runs one job of this handler and returns what became of it.
func runs(t *testing.T, s *scheduler.Scheduler, data scheduler.JobData) *scheduler.Job {
	t.Helper()
	job := mustCreate(t, s, "a", data)
	report := mustRun(t, s, scheduler.RunFilter{Queue: data.Queue})
	require.Equal(t, 1, report.Picked)
	require.Zero(t, report.Running)
	return mustGet(t, s, job.ID)
}

func withHandler(t *testing.T, handler scheduler.HandlerFunc) *scheduler.Scheduler {
	return newScheduler(t, func(c *scheduler.Config) { c.JobNames = scheduler.JobNames{"a": handler} })
}

func requireFailed(t *testing.T, job *scheduler.Job, message string) {
	t.Helper()
	require.Equal(t, scheduler.JobStatusFailed, job.Status)
	require.Equal(t, 1, job.Attempt)
	require.Nil(t, job.Result)
	require.Nil(t, job.FinishedAt)
	require.Len(t, job.Errors, 1)
	require.Equal(t, 1, job.Errors[0].Attempt)
	require.Contains(t, job.Errors[0].Error, message)
	require.False(t, job.Errors[0].At.Before(*job.StartedAt))
	require.True(t, job.RunAt.After(job.Errors[0].At))
}

func TestHandleDecodesAndEncodes(t *testing.T) {
	t.Parallel()
	type in struct{ A, B int }
	type out struct {
		Sum int `json:"sum"`
	}
	s := withHandler(t, scheduler.Handle(func(_ context.Context, in in) (out, error) { return out{in.A + in.B}, nil }))
	job := runs(t, s, scheduler.JobData{Payload: in{1, 2}})
	require.Equal(t, scheduler.JobStatusSucceeded, job.Status)
	require.JSONEq(t, `{"sum": 3}`, string(job.Result))
	require.Equal(t, 1, job.Attempt)
	require.Empty(t, job.Errors)
	require.False(t, job.StartedAt.Before(job.CreatedAt))
	require.False(t, job.FinishedAt.Before(*job.StartedAt))
	require.Equal(t, time.UTC, job.FinishedAt.Location())

	requireFailed(t, runs(t, s, scheduler.JobData{Payload: `no object`}), "decode the payload into scheduler_test.in")
	requireFailed(t, runs(t, s, scheduler.JobData{Payload: json.RawMessage(`{"A": "1"}`)}), "string")
	job = runs(t, s, scheduler.JobData{})
	require.JSONEq(t, `{"sum": 0}`, string(job.Result), "null is the zero value, as encoding/json has it")
}

func TestVerdicts(t *testing.T) {
	t.Parallel()
	reason := errors.New("no such customer")
	wrap := func(err error) error {
		return fmt.Errorf("outer: %w", errors.Join(errors.New("beside"), fmt.Errorf("inner: %w", err)))
	}
	const failed, dead, pending = scheduler.JobStatusFailed, scheduler.JobStatusDead, scheduler.JobStatusPending
	for name, test := range map[string]struct {
		err     error
		status  scheduler.JobStatus
		attempt int
		message string // "": no error is recorded
		wait    time.Duration
	}{
		"Cancel":              {scheduler.Cancel(reason), dead, 1, "no such customer", 0},
		"Cancel wrapped":      {wrap(scheduler.Cancel(reason)), dead, 1, "no such customer", 0},
		"Cancel without":      {scheduler.Cancel(nil), dead, 1, "cancelled by its handler", 0},
		"Snooze":              {scheduler.Snooze(time.Hour), pending, 0, "", time.Hour},
		"Snooze wrapped":      {wrap(scheduler.Snooze(time.Hour)), pending, 0, "", time.Hour},
		"Snooze 0":            {scheduler.Snooze(0), pending, 0, "", 0},
		"Snooze below 0":      {scheduler.Snooze(-time.Hour), failed, 1, "Snooze(-1h0m0s)", time.Second},
		"RetryAfter":          {scheduler.RetryAfter(48*time.Hour, reason), failed, 1, "no such customer", 48 * time.Hour},
		"RetryAfter wrapped":  {wrap(scheduler.RetryAfter(time.Minute, reason)), failed, 1, "no such customer", time.Minute},
		"RetryAfter 0":        {scheduler.RetryAfter(0, reason), failed, 1, "no such customer", 0},
		"RetryAfter without":  {scheduler.RetryAfter(time.Minute, nil), failed, 1, "rerun after 1m0s", time.Minute},
		"RetryAfter below 0":  {scheduler.RetryAfter(-time.Minute, reason), failed, 1, "no such customer", time.Second},
		"Cancel a RetryAfter": {scheduler.Cancel(scheduler.RetryAfter(time.Hour, reason)), dead, 1, "no such customer", 0},
		"plain":               {reason, failed, 1, "no such customer", time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := withHandler(t, func(context.Context, *scheduler.Job) (any, error) { return "not kept", test.err })
			before := mustQuery[time.Time](t, newPool(t), "SELECT now()")
			job := runs(t, s, scheduler.JobData{})
			after := mustQuery[time.Time](t, newPool(t), "SELECT now()")
			require.Equal(t, test.status, job.Status)
			require.Equal(t, test.attempt, job.Attempt)
			require.Nil(t, job.Result)
			require.Equal(t, test.status == dead, job.FinishedAt != nil)
			if test.message == "" {
				require.Empty(t, job.Errors)
			} else {
				require.Len(t, job.Errors, 1)
				require.Contains(t, job.Errors[0].Error, test.message)
			}
			if test.status != dead {
				jitter := time.Duration(0)
				if test.wait == time.Second { // the backoff
					jitter = 100 * time.Millisecond
				}
				require.False(t, job.RunAt.Before(before.Add(test.wait-jitter)))
				require.False(t, job.RunAt.After(after.Add(test.wait+jitter)))
			}
		})
	}
}

func TestCancelAndRetryAfterKeepTheirReason(t *testing.T) {
	t.Parallel()
	reason := errors.New("reason")
	require.ErrorIs(t, scheduler.Cancel(reason), reason)
	require.ErrorIs(t, scheduler.RetryAfter(time.Second, reason), reason)
}

func TestTheLastAttemptLeavesTheJobDead(t *testing.T) {
	t.Parallel()
	for name, err := range map[string]error{"plain": errors.New("no"), "RetryAfter": scheduler.RetryAfter(0, nil)} {
		s := withHandler(t, func(context.Context, *scheduler.Job) (any, error) { return nil, err })
		job := runs(t, s, scheduler.JobData{MaxAttempts: 1})
		require.Equal(t, scheduler.JobStatusDead, job.Status, name)
		require.Len(t, job.Errors, 1)
		require.NotNil(t, job.FinishedAt)
	}
	// A snoozed attempt is none, also the last one.
	s := withHandler(t, func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Snooze(0) })
	job := runs(t, s, scheduler.JobData{MaxAttempts: 1})
	for range 3 {
		require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Snoozed)
	}
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, s, job.ID).Status)
}

type badError struct{}

func (badError) Error() string { panic("no message today") }

type badJSON struct{ do func() }

func (b badJSON) MarshalJSON() ([]byte, error) { b.do(); return nil, errors.New("no JSON today") }

func TestAHandlerThatDoesNotReturn(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		handler scheduler.HandlerFunc
		message string
	}{
		"panic":        {func(context.Context, *scheduler.Job) (any, error) { panic("as asked") }, "handler panicked: as asked"},
		"panic nil":    {func(context.Context, *scheduler.Job) (any, error) { panic(nil) }, "nil"},
		"nil pointer":  {func(context.Context, *scheduler.Job) (any, error) { var none *scheduler.Job; return none.ID, nil }, "nil pointer"},
		"Goexit":       {func(context.Context, *scheduler.Job) (any, error) { runtime.Goexit(); return nil, nil }, "runtime.Goexit"},
		"bad message":  {func(context.Context, *scheduler.Job) (any, error) { return nil, badError{} }, "no message today"},
		"bad panic":    {func(context.Context, *scheduler.Job) (any, error) { panic(badError{}) }, "no message today"},
		"result panic": {func(context.Context, *scheduler.Job) (any, error) { return badJSON{func() { panic("as asked") }}, nil }, "as asked"},
		"result exits": {func(context.Context, *scheduler.Job) (any, error) { return badJSON{runtime.Goexit}, nil }, "runtime.Goexit"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			job := runs(t, withHandler(t, test.handler), scheduler.JobData{})
			requireFailed(t, job, test.message)
			if !strings.Contains(test.message, "Goexit") {
				require.Contains(t, job.Errors[0].Error, "worker_test.go:", "the stack")
			}
		})
	}
}

func TestResultsThatCannotBeStored(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		result any
		names  string
	}{
		"channel":   {make(chan int), "chan int"},
		"failing":   {badJSON{func() {}}, "no JSON today"},
		"not JSON":  {json.RawMessage(`{"a"`), "expected JSON"},
		"NUL":       {"\x00", `\u0000`},
		"surrogate": {json.RawMessage(`"\ud800"`), `\ud800`},
		"large":     {strings.Repeat("x", 1<<20), "1048578 bytes"},
		"number":    {json.RawMessage(`1e200000`), ""},
		"precision": {json.RawMessage(`1e-200000`), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := withHandler(t, func(context.Context, *scheduler.Job) (any, error) { return test.result, nil })
			job := runs(t, s, scheduler.JobData{})
			requireFailed(t, job, "the handler's result")
			require.Contains(t, job.Errors[0].Error, test.names)
		})
	}
	largest := strings.Repeat("x", 1<<20-2)
	job := runs(t, withHandler(t, func(context.Context, *scheduler.Job) (any, error) { return largest, nil }), scheduler.JobData{})
	require.Equal(t, scheduler.JobStatusSucceeded, job.Status)
	require.Len(t, job.Result, 1<<20)
	job = runs(t, withHandler(t, succeed), scheduler.JobData{})
	require.JSONEq(t, "null", string(job.Result))
}

// One result that Postgres refuses does not take the others of its run along.
func TestARefusedResultLeavesTheOthersAlone(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}, 11), make(chan struct{})
	s := withHandler(t, func(_ context.Context, job *scheduler.Job) (any, error) {
		started <- struct{}{}
		<-release
		if string(job.Payload) == "5" {
			return json.RawMessage(`1e200000`), nil
		}
		return job.Payload, nil
	})
	for i := range 11 {
		mustCreate(t, s, "a", scheduler.JobData{Payload: i})
	}
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: 11})
	for range 11 {
		await(t, started)
	}
	close(release)
	report := await(t, run).report
	require.Equal(t, 10, report.Succeeded)
	require.Equal(t, 1, report.Failed)
}

func TestErrorsAreBoundedInNumberAndSize(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Queues = queueConfigs{"default": {MaxAttempts: 25, Backoff: func(int) time.Duration { return 0 }}}
		c.JobNames = scheduler.JobNames{"a": func(_ context.Context, job *scheduler.Job) (any, error) {
			texts := []string{"x", "€", "\x00", "x\xff", "\\", `"`}
			return nil, errors.New(fmt.Sprintf("%d: ", job.Attempt) + strings.Repeat(texts[job.Attempt%len(texts)], 100_000))
		}}
	})
	job := mustCreate(t, s, "a", scheduler.JobData{})
	for range 25 {
		require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusAny}).Picked)
	}
	job = mustGet(t, s, job.ID)
	require.Equal(t, scheduler.JobStatusDead, job.Status)
	require.Len(t, job.Errors, 20)
	for i, e := range job.Errors {
		require.Equal(t, i+6, e.Attempt, "newest last")
		require.True(t, strings.HasPrefix(e.Error, fmt.Sprintf("%d: ", e.Attempt)))
		require.True(t, i == 0 || !e.At.Before(job.Errors[i-1].At))
	}
	for _, e := range job.Errors {
		require.LessOrEqual(t, len(e.Error), 8<<10, "%.20q", e.Error)
		require.Greater(t, len(e.Error), 7<<10, "%.20q", e.Error)
	}
}

func TestTimeoutEndsTheContextWithItsCause(t *testing.T) {
	t.Parallel()
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.Queues = queueConfigs{"short": {Timeout: 20 * time.Millisecond}}
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			select {
			case <-ctx.Done():
			case <-time.After(patience):
				return nil, errors.New("no timeout")
			}
			if !errors.Is(context.Cause(ctx), scheduler.ErrJobTimeout) {
				return nil, fmt.Errorf("another cause: %w", context.Cause(ctx))
			}
			return nil, ctx.Err()
		}}
	})
	for _, data := range []scheduler.JobData{
		{Timeout: 20 * time.Millisecond}, {Queue: "short"}, {Queue: "short", Timeout: 30 * time.Millisecond},
	} {
		job := runs(t, s, data)
		requireFailed(t, job, "job timeout: ")
		require.Contains(t, job.Errors[0].Error, "context deadline exceeded")
	}
	// A job's own timeout goes before its queue's, and the handler may come to
	// an end all the same.
	s = newScheduler(t, func(c *scheduler.Config) {
		c.Schema = schema
		c.Queues = queueConfigs{"short": {Timeout: time.Millisecond}}
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, job *scheduler.Job) (any, error) {
			if job.Timeout == 0 {
				<-ctx.Done()
				return "late", nil
			}
			deadline, ok := ctx.Deadline()
			return ok && time.Until(deadline) > 50*time.Second, nil
		}}
	})
	require.JSONEq(t, "true", string(runs(t, s, scheduler.JobData{Queue: "short", Timeout: time.Minute}).Result))
	require.JSONEq(t, `"late"`, string(runs(t, s, scheduler.JobData{Queue: "short"}).Result))
}

// The job that a handler has is its own.
func TestHandlersMayChangeTheirJob(t *testing.T) {
	t.Parallel()
	tricks := map[string]func(job *scheduler.Job){
		"all of it": func(job *scheduler.Job) { *job = scheduler.Job{} },
		"its fence": func(job *scheduler.Job) { job.ID, job.Name, job.Queue, job.Attempt, job.MaxAttempts = "", "", "", 9, 1 },
	}
	for name, trick := range tricks {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScheduler(t, func(c *scheduler.Config) {
				c.JobNames = scheduler.JobNames{"a": func(_ context.Context, job *scheduler.Job) (any, error) {
					trick(job)
					return nil, errors.New("failed as asked")
				}}
				c.Middleware = []scheduler.Middleware{func(_ string, next scheduler.HandlerFunc) scheduler.HandlerFunc {
					return func(ctx context.Context, job *scheduler.Job) (any, error) {
						trick(job)
						return next(ctx, job)
					}
				}}
			})
			job := mustCreate(t, s, "a", scheduler.JobData{Payload: 1, MaxAttempts: 2})
			require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Failed)
			got := mustGet(t, s, job.ID)
			require.Equal(t, scheduler.JobStatusFailed, got.Status)
			require.Equal(t, []int{1, 1}, []int{got.Attempt, got.Errors[0].Attempt})
		})
	}
}
