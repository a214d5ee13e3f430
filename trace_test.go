package scheduler_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

const (
	traceA = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	traceB = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
)

func TestTraceparents(t *testing.T) {
	t.Parallel()
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for given, kept := range map[string]string{
		traceA:                              traceA,
		traceB:                              traceB,
		"00-" + id + "-" + parent + "-ff":   "00-" + id + "-" + parent + "-ff",
		"cc-" + id + "-" + parent + "-01":   traceA,
		"cc-" + id + "-" + parent + "-03-x": traceA,
		"01-" + id + "-" + parent + "-fe-":  "00-" + id + "-" + parent + "-00",

		"":                                   "",
		"00":                                 "",
		traceA[:54]:                          "",
		traceA + "-":                         "",
		traceA + "-00":                       "",
		traceA + " ":                         "",
		" " + traceA:                         "",
		strings.ToUpper(traceA):              "",
		"0G" + traceA[2:]:                    "",
		"ff" + traceA[2:]:                    "",
		"cc" + traceA[2:] + "x":              "",
		strings.ReplaceAll(traceA, "-", "_"): "",
		"00-" + strings.Repeat("0", 32) + "-" + parent + "-01": "",
		"00-" + id + "-0000000000000000-01":                    "",
		"00-" + id + "-" + parent + "-0G":                      "",
		"00-" + id[:31] + "\x00-" + parent + "-01":             "",
		"00-" + id[:30] + "é-" + parent + "-01":                "",
	} {
		ctx := scheduler.WithTraceparent(t.Context(), given)
		require.Equal(t, kept, scheduler.Traceparent(ctx), "%q", given)
		before := scheduler.WithTraceparent(t.Context(), traceB)
		if kept == "" {
			require.Same(t, before, scheduler.WithTraceparent(before, given), "%q is ignored", given)
		} else {
			require.Equal(t, kept, scheduler.Traceparent(scheduler.WithTraceparent(before, given)))
		}
	}
}

// traced is what handlers saw.
type traced struct{ payload, traceparent string }

func tracing(c chan<- traced) scheduler.HandlerFunc {
	return func(ctx context.Context, job *scheduler.Job) (any, error) {
		c <- traced{string(job.Payload), scheduler.Traceparent(ctx)}
		if job.Attempt == 1 {
			return nil, scheduler.RetryAfter(0, nil)
		}
		return nil, nil
	}
}

// However a job is created, its handler has the trace context of that, also when
// it is run again.
func TestTraceparentComesBackInTheHandler(t *testing.T) {
	t.Parallel()
	seen := make(chan traced, 10)
	w := newWeb(t, func(c *scheduler.Config) { c.JobNames = scheduler.JobNames{"a": tracing(seen)} })
	ctx := scheduler.WithTraceparent(t.Context(), traceA)
	check := func(expected string) {
		t.Helper()
		for _, status := range []scheduler.JobStatus{scheduler.JobStatusPending, scheduler.JobStatusFailed} {
			require.Equal(t, 1, mustRun(t, w.Scheduler, scheduler.RunFilter{Status: status}).Picked)
			require.Equal(t, expected, await(t, seen).traceparent)
		}
	}
	created, err := w.CreateJob(ctx, "a", scheduler.JobData{Owner: "ada"})
	require.NoError(t, err)
	require.Equal(t, created, mustGet(t, w.Scheduler, created.ID))
	check(traceA)

	_, err = w.CreateJobs(ctx, []scheduler.NewJob{{Name: "a"}})
	require.NoError(t, err)
	check(traceA)

	tx, err := w.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = w.CreateJobTx(ctx, tx, "a", scheduler.JobData{})
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	check(traceA)

	mustCreate(t, w.Scheduler, "a", scheduler.JobData{})
	check("")
	require.Equal(t, 1, mustQuery[int](t, w.pool, "SELECT count(*) FROM "+w.schema+".jobs WHERE attributes IS NULL"))

	// One that was created without gets that of its run, if any.
	mustCreate(t, w.Scheduler, "a", scheduler.JobData{})
	_, err = w.Run(scheduler.WithTraceparent(t.Context(), traceB), scheduler.RunFilter{})
	require.NoError(t, err)
	require.Equal(t, traceB, await(t, seen).traceparent)
	_, err = w.CreateJob(ctx, "a", scheduler.JobData{})
	require.NoError(t, err)
	_, err = w.Run(scheduler.WithTraceparent(t.Context(), traceB), scheduler.RunFilter{})
	require.NoError(t, err)
	require.Equal(t, traceA, await(t, seen).traceparent)

	// By hand.
	mustExec(t, w.pool, "UPDATE "+w.schema+`.jobs SET attributes = '{"traceparent": "x"}', run_at = now() WHERE status = 'failed'`)
	for range 2 {
		mustRun(t, w.Scheduler, scheduler.RunFilter{Status: scheduler.JobStatusFailed})
		require.Empty(t, await(t, seen).traceparent)
	}
}

func TestTraceparentOverHTTP(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	stored := func(headers ...string) *string {
		var job scheduler.Job
		w.call(t, "POST", "/api/jobs", `{"name": "succeed"}`, headers...).requireJSON(t, 201, &job)
		return mustQuery[*string](t, w.pool, "SELECT attributes::text FROM "+w.schema+".jobs WHERE id = $1::text::uuid", job.ID)
	}
	require.JSONEq(t, `{"traceparent": "`+traceA+`"}`, *stored("traceparent", traceA))
	require.JSONEq(t, `{"traceparent": "`+traceA+`"}`, *stored("Traceparent", traceA))
	require.Nil(t, stored())
	require.Nil(t, stored("traceparent", traceA+"x"))
	require.Nil(t, stored("traceparent", strings.Repeat("0", 10_000)))
}

func init() {
	childRoles["traced"] = func() {
		s := childScheduler(scheduler.Config{JobNames: scheduler.JobNames{
			"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
				fmt.Println(scheduler.Traceparent(ctx))
				return nil, nil
			},
		}})
		_, err := s.Run(context.Background(), scheduler.RunFilter{Status: scheduler.JobStatusAny})
		exitOn(err)
		exitOn(s.Shutdown(context.Background()))
		os.Exit(0)
	}
}

func TestTraceparentReachesOtherProcesses(t *testing.T) {
	t.Parallel()
	var schema string
	seen := make(chan traced, 1)
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": tracing(seen)}
	})
	_, err := s.CreateJob(scheduler.WithTraceparent(t.Context(), traceA), "a", scheduler.JobData{})
	require.NoError(t, err)
	mustRun(t, s, scheduler.RunFilter{})
	require.Equal(t, traceA, await(t, seen).traceparent)
	c := startChild(t, "traced", "SCHEMA="+schema) // runs it again
	require.Equal(t, traceA, c.Line(t))
	require.NoError(t, c.Wait(t))
}

// Creations that share a statement keep each its own.
func TestTraceparentsOfCreationsThatComeTogether(t *testing.T) {
	t.Parallel()
	var schema string
	var statements atomic.Int32
	s := newSchedulerOn(t, newTracedPool(t, func() { statements.Add(1) }), func(c *scheduler.Config) { schema = c.Schema })
	pool := newPool(t)
	release := holdTable(t, pool, schema)
	const n = 400
	var group, begun sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		begun.Add(1)
		group.Go(func() {
			ctx := t.Context()
			if i%3 > 0 {
				ctx = scheduler.WithTraceparent(ctx, fmt.Sprintf("00-%032x-%016x-01", i, i))
			}
			begun.Done()
			_, errs[i] = s.CreateJob(ctx, "a", scheduler.JobData{Payload: i})
		})
	}
	begun.Wait()
	waitFor(t, func() bool { return statements.Load() > 0 })
	release()
	group.Wait()
	require.Less(t, int(statements.Load()), n, "the creations shared no statement")
	stored := mustQuery[[]string](t, pool, "SELECT array_agg(coalesce(attributes->>'traceparent', '') ORDER BY payload::int) FROM "+schema+".jobs")
	require.Len(t, stored, n)
	for i := range n {
		require.NoError(t, errs[i])
		expected := ""
		if i%3 > 0 {
			expected = fmt.Sprintf("00-%032x-%016x-01", i, i)
		}
		require.Equal(t, expected, stored[i])
	}
}

// A job that a handler creates belongs to the same trace.
func TestTraceparentGoesOnToJobsOfJobs(t *testing.T) {
	t.Parallel()
	seen := make(chan traced, 2)
	var s *scheduler.Scheduler
	s = newScheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"child": tracing(seen), "parent": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			_, err := s.CreateJob(ctx, "child", scheduler.JobData{Payload: "child"})
			return nil, err
		}}
	})
	_, err := s.CreateJob(scheduler.WithTraceparent(t.Context(), traceA), "parent", scheduler.JobData{})
	require.NoError(t, err)
	mustRun(t, s, scheduler.RunFilter{})
	mustRun(t, s, scheduler.RunFilter{})
	require.Equal(t, traced{`"child"`, traceA}, await(t, seen))
}
