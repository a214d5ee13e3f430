package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// around writes into the context that it was there.
func around(mark string) scheduler.Middleware {
	return func(name string, next scheduler.HandlerFunc) scheduler.HandlerFunc {
		return func(ctx context.Context, job *scheduler.Job) (any, error) {
			marks, _ := ctx.Value(contextKey{}).(string)
			result, err := next(context.WithValue(ctx, contextKey{}, marks+mark+"("+name+")"), job)
			return fmt.Sprintf("%s<%v>", mark, result), err
		}
	}
}

func TestMiddlewareIsAroundEveryHandler(t *testing.T) {
	t.Parallel()
	var made atomic.Int32
	marks := func(ctx context.Context, _ *scheduler.Job) (any, error) { return ctx.Value(contextKey{}), nil }
	s := newScheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"a": marks, "b": marks}
		c.Middleware = []scheduler.Middleware{
			around("first"), around("second"),
			func(_ string, next scheduler.HandlerFunc) scheduler.HandlerFunc {
				made.Add(1)
				return next
			},
		}
	})
	for _, name := range []string{"a", "b", "a"} {
		id := mustCreate(t, s, name, scheduler.JobData{}).ID
		mustRun(t, s, scheduler.RunFilter{})
		require.JSONEq(t, fmt.Sprintf(`"first<second<first(%[1]s)second(%[1]s)>>"`, name), string(mustGet(t, s, id).Result))
	}
	require.EqualValues(t, 2, made.Load(), "once for each name")
}

// What the outermost one returns is the verdict.
func TestMiddlewareMayChangeTheVerdict(t *testing.T) {
	t.Parallel()
	called := false
	s := newScheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"a": fail, "b": func(context.Context, *scheduler.Job) (any, error) { called = true; return nil, nil }}
		c.Middleware = []scheduler.Middleware{func(name string, next scheduler.HandlerFunc) scheduler.HandlerFunc {
			return func(ctx context.Context, job *scheduler.Job) (any, error) {
				if name == "b" {
					return nil, scheduler.Snooze(time.Hour)
				}
				_, err := next(ctx, job)
				return nil, scheduler.Cancel(err)
			}
		}}
	})
	dead := mustCreate(t, s, "a", scheduler.JobData{})
	mustCreate(t, s, "b", scheduler.JobData{})
	report := mustRun(t, s, scheduler.RunFilter{Limit: 2})
	require.Equal(t, 1, report.Dead)
	require.Equal(t, 1, report.Snoozed)
	require.Equal(t, "failed as asked", mustGet(t, s, dead.ID).Errors[0].Error)
	require.False(t, called)
}

func TestAPanicInMiddlewareIsAFailedAttempt(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"a": succeed}
		c.Middleware = []scheduler.Middleware{func(string, scheduler.HandlerFunc) scheduler.HandlerFunc {
			return func(context.Context, *scheduler.Job) (any, error) { panic("not today") }
		}}
	})
	job := runs(t, s, scheduler.JobData{})
	requireFailed(t, job, "handler panicked: not today")
	require.Contains(t, job.Errors[0].Error, "middleware_test.go:", "the stack")
}

func TestNewRefusesBadMiddlewareAndBackoffs(t *testing.T) {
	t.Parallel()
	names := scheduler.JobNames{"a": succeed}
	none := func(string, scheduler.HandlerFunc) scheduler.HandlerFunc { return nil }
	minute := func(int) time.Duration { return time.Minute }
	for _, test := range []struct {
		config scheduler.Config
		field  string
		names  []string
	}{
		{scheduler.Config{JobNames: names, Middleware: []scheduler.Middleware{around("first"), nil}}, "middleware", []string{"middleware[1]", "nil"}},
		{scheduler.Config{Middleware: []scheduler.Middleware{nil}}, "middleware", []string{"middleware[0]", "nil"}},
		{scheduler.Config{JobNames: names, Middleware: []scheduler.Middleware{none}}, "middleware", []string{"middleware[0]", `"a"`, "nil"}},
		{scheduler.Config{JobNames: names, Backoffs: map[string]func(int) time.Duration{"b": minute}}, "backoffs", []string{`"b"`, "JobNames"}},
		{scheduler.Config{JobNames: names, Backoffs: map[string]func(int) time.Duration{"a": nil}}, "backoffs", []string{`"a"`, "nil"}},
	} {
		_, err := scheduler.New(idlePool(t), test.config)
		requireInputError(t, err, test.field, test.names...)
	}
}

// A backoff of a name goes before the queue's, whatever made the attempt fail.
func TestBackoffOfAName(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{
			"own": fail, "queue": fail,
			"panics": func(context.Context, *scheduler.Job) (any, error) { panic("as asked") },
			"asks":   func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.RetryAfter(time.Second, nil) },
		}
		linear := func(attempt int) time.Duration { return time.Duration(attempt) * time.Minute }
		c.Backoffs = map[string]func(int) time.Duration{"own": linear, "panics": linear, "asks": linear}
		c.Queues = queueConfigs{"default": {Backoff: func(int) time.Duration { return time.Hour }}}
	})
	for name, wait := range map[string]time.Duration{"own": time.Minute, "panics": time.Minute, "queue": time.Hour, "asks": time.Second} {
		id := mustCreate(t, s, name, scheduler.JobData{}).ID
		require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Failed)
		job := mustGet(t, s, id)
		require.Equal(t, wait, job.RunAt.Sub(job.Errors[0].At), name)
	}
}

func TestLastAttempt(t *testing.T) {
	t.Parallel()
	var last []bool
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Queues = queueConfigs{"default": {Backoff: func(int) time.Duration { return 0 }}}
		c.JobNames = scheduler.JobNames{"a": func(_ context.Context, job *scheduler.Job) (any, error) {
			last = append(last, job.LastAttempt())
			return nil, errors.New("again")
		}}
	})
	job := mustCreate(t, s, "a", scheduler.JobData{MaxAttempts: 3})
	require.False(t, job.LastAttempt())
	for range 3 {
		mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusAny})
	}
	require.Equal(t, []bool{false, false, true}, last)
	require.Equal(t, scheduler.JobStatusDead, mustGet(t, s, job.ID).Status)
	once := mustCreate(t, s, "a", scheduler.JobData{MaxAttempts: 1})
	require.False(t, once.LastAttempt(), "none was begun")
	mustRun(t, s, scheduler.RunFilter{})
	require.True(t, last[3])
}
