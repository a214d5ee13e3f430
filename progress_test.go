package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// reporting makes a Scheduler whose jobs of the name "a" are handled by this,
// and another process's on the same jobs, which runs none.
func reporting(t *testing.T, handler scheduler.HandlerFunc) (s, other *scheduler.Scheduler, schema string) {
	s = newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": handler}
	})
	return s, newScheduler(t, func(c *scheduler.Config) { c.Schema = schema }), schema
}

func requireProgress(t *testing.T, job *scheduler.Job, percent int, note, checkpoint string) {
	t.Helper()
	require.NotNil(t, job.Progress)
	require.Equal(t, percent, job.Progress.Percent)
	require.Equal(t, note, job.Progress.Note)
	if checkpoint == "" {
		require.Nil(t, job.Progress.Checkpoint)
	} else {
		require.JSONEq(t, checkpoint, string(job.Progress.Checkpoint))
	}
	require.Equal(t, time.UTC, job.Progress.At.Location())
	require.False(t, job.Progress.At.Before(job.CreatedAt))
}

// Others see how far a job is while it runs, and how far it was when it ended.
func TestProgressIsSeenByOtherProcesses(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		t.Run(string(queue), func(t *testing.T) {
			t.Parallel()
			seen := make(chan struct{})
			s, other, _ := reporting(t, func(ctx context.Context, job *scheduler.Job) (any, error) {
				if job.Progress != nil {
					return nil, errors.New("unexpected progress")
				}
				if err := errors.Join(scheduler.SetProgress(ctx, 40, "half-way"), scheduler.Checkpoint(ctx, map[string]int{"row": 7})); err != nil {
					return nil, err
				}
				<-seen
				return nil, scheduler.SetProgress(ctx, 100, "")
			})
			job := mustCreate(t, s, "a", scheduler.JobData{Queue: queue})
			require.Nil(t, job.Progress)
			require.Nil(t, mustGet(t, other, job.ID).Progress)
			run := goRun(t.Context(), s, scheduler.RunFilter{Queue: queue})
			waitFor(t, func() bool { return mustGet(t, other, job.ID).Progress != nil })
			running := mustGet(t, other, job.ID)
			require.Equal(t, scheduler.JobStatusRunning, running.Status)
			requireProgress(t, running, 40, "half-way", `{"row": 7}`)
			require.Equal(t, []*scheduler.Job{running}, mustList(t, other, scheduler.JobFilter{}).Jobs)

			close(seen)
			require.Equal(t, 1, await(t, run).report.Succeeded)
			ended := mustGet(t, other, job.ID)
			requireProgress(t, ended, 100, "", `{"row": 7}`)
			require.True(t, ended.Progress.At.After(running.Progress.At))
		})
	}
}

// A resident process writes the same.
func TestProgressOfAResidentProcess(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	s, other, _ := reporting(t, func(ctx context.Context, _ *scheduler.Job) (any, error) {
		err := scheduler.SetProgress(ctx, 5, "begun")
		<-release
		return nil, err
	})
	goWork(t, t.Context(), s)
	id := mustCreate(t, other, "a", scheduler.JobData{}).ID
	waitFor(t, func() bool { return mustGet(t, other, id).Progress != nil })
	requireProgress(t, mustGet(t, other, id), 5, "begun", "")
	close(release)
	waitFor(t, func() bool { return mustGet(t, other, id).Status == scheduler.JobStatusSucceeded })
}

// Whatever became of the attempt before, the next one goes on where it was, in
// whatever process.
func TestTheNextAttemptHasTheCheckpoint(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		end   func() error
		again scheduler.JobStatus
	}{
		"failed":  {func() error { return scheduler.RetryAfter(0, nil) }, scheduler.JobStatusFailed},
		"snoozed": {func() error { return scheduler.Snooze(0) }, scheduler.JobStatusPending},
		"panic":   {func() error { panic("oops") }, scheduler.JobStatusFailed},
		"dead":    {func() error { return scheduler.Cancel(nil) }, scheduler.JobStatusDead},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			s, other, schema := reporting(t, func(ctx context.Context, _ *scheduler.Job) (any, error) {
				if err := errors.Join(scheduler.SetProgress(ctx, 60, "so far"), scheduler.Checkpoint(ctx, []int{1}), scheduler.Checkpoint(ctx, []int{1, 2})); err != nil {
					return nil, err
				}
				return nil, test.end()
			})
			next := newScheduler(t, func(c *scheduler.Config) {
				c.Schema = schema
				c.JobNames = scheduler.JobNames{"a": scheduler.Handle(func(ctx context.Context, _ any) ([]int, error) {
					var rows []int
					if found, err := scheduler.LoadCheckpoint(ctx, &rows); err != nil || !found {
						return nil, fmt.Errorf("found: %t: %w", found, err)
					}
					return rows, nil
				})}
			})
			id := mustCreate(t, s, "a", scheduler.JobData{}).ID
			require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Picked)
			job := mustGet(t, other, id)
			require.Equal(t, test.again, job.Status)
			requireProgress(t, job, 60, "so far", "[1, 2]")
			if test.again == scheduler.JobStatusDead {
				requireProgress(t, mustRetry(t, other, id), 60, "so far", "[1, 2]")
			}

			passTime(t, pool, schema)
			require.Equal(t, 1, mustRun(t, next, scheduler.RunFilter{Status: scheduler.JobStatusAny}).Succeeded)
			job = mustGet(t, other, id)
			require.JSONEq(t, "[1, 2]", string(job.Result))
			requireProgress(t, job, 60, "so far", "[1, 2]")
		})
	}
}

// An attempt reads its own checkpoints before they are written.
func TestLoadCheckpointInTheSameAttempt(t *testing.T) {
	t.Parallel()
	type place struct{ Row int }
	s, other, _ := reporting(t, func(ctx context.Context, job *scheduler.Job) (any, error) {
		at := place{-1}
		found, err := scheduler.LoadCheckpoint(ctx, &at)
		if err != nil || found != (job.Attempt > 1) {
			return nil, fmt.Errorf("found: %t: %w", found, err)
		}
		if job.Attempt == 2 && at.Row != 9 || job.Attempt == 1 && at.Row != -1 {
			return nil, fmt.Errorf("at %d", at.Row)
		}
		for row := range 10 {
			if err := scheduler.Checkpoint(ctx, place{row}); err != nil {
				return nil, err
			}
			if found, err := scheduler.LoadCheckpoint(ctx, &at); err != nil || !found || at.Row != row {
				return nil, fmt.Errorf("found: %t at %d: %w", found, at.Row, err)
			}
		}
		var text string
		if _, err := scheduler.LoadCheckpoint(ctx, &text); err == nil || !strings.Contains(err.Error(), "*string") {
			return nil, fmt.Errorf("expected an error about *string, got %w", err)
		}
		if job.Attempt == 1 {
			return nil, scheduler.RetryAfter(0, nil)
		}
		if err := scheduler.Checkpoint(ctx, nil); err != nil {
			return nil, err
		}
		found, err = scheduler.LoadCheckpoint(ctx, &at)
		return found, err
	})
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Failed)
	require.JSONEq(t, `{"Row": 9}`, string(mustGet(t, other, id).Progress.Checkpoint))
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusFailed}).Succeeded)
	job := mustGet(t, other, id)
	require.JSONEq(t, "false", string(job.Result), "nil leaves none")
	requireProgress(t, job, 0, "", "")
}

func TestProgressRefusesWhatItCannotStore(t *testing.T) {
	t.Parallel()
	handled := make(chan context.Context, 1)
	s, other, _ := reporting(t, func(ctx context.Context, job *scheduler.Job) (any, error) {
		type key struct{}
		derived := context.WithValue(ctx, key{}, "derived")
		requireInputError(t, scheduler.SetProgress(derived, -1, ""), "percent", "-1")
		requireInputError(t, scheduler.SetProgress(ctx, 101, ""), "percent", "101")
		requireInputError(t, scheduler.SetProgress(ctx, 1, strings.Repeat("x", 1025)), "note", "1025", "1024")
		requireInputError(t, scheduler.SetProgress(ctx, 1, "a\x00b"), "note", "NUL")
		requireInputError(t, scheduler.SetProgress(ctx, 1, "\xff"), "note", "UTF-8")
		requireInputError(t, scheduler.Checkpoint(ctx, make(chan int)), "checkpoint", "chan int")
		requireInputError(t, scheduler.Checkpoint(ctx, json.RawMessage(`{`)), "checkpoint", "JSON")
		requireInputError(t, scheduler.Checkpoint(ctx, "a\x00b"), "checkpoint", "u0000")
		requireInputError(t, scheduler.Checkpoint(ctx, strings.Repeat("x", 64<<10-1)), "checkpoint", "65537", "65536")
		for _, value := range []any{nil, job.Progress, *job} {
			_, err := scheduler.LoadCheckpoint(ctx, value)
			requireInputError(t, err, "value", fmt.Sprintf("%T", value), "pointer")
		}
		requireReportsRefused(t, t.Context(), "about no job")
		handled <- derived
		return nil, nil
	})
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)
	requireReportsRefused(t, await(t, handled), id)
	require.Nil(t, mustGet(t, other, id).Progress)

	s, other, _ = reporting(t, func(ctx context.Context, _ *scheduler.Job) (any, error) {
		handled <- ctx
		return nil, errors.Join(scheduler.SetProgress(ctx, 0, strings.Repeat("x", 1024)), scheduler.Checkpoint(ctx, strings.Repeat("x", 64<<10-2)))
	})
	id = mustCreate(t, s, "a", scheduler.JobData{}).ID
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)
	requireReportsRefused(t, await(t, handled), id)
	requireProgress(t, mustGet(t, other, id), 0, strings.Repeat("x", 1024), `"`+strings.Repeat("x", 64<<10-2)+`"`)
}

func requireReportsRefused(t *testing.T, ctx context.Context, names ...string) {
	t.Helper()
	requireInputError(t, scheduler.SetProgress(ctx, 1, ""), "ctx", names...)
	requireInputError(t, scheduler.Checkpoint(ctx, 1), "ctx", names...)
	var value any
	_, err := scheduler.LoadCheckpoint(ctx, &value)
	requireInputError(t, err, "ctx", names...)
}

// progressTracer counts the statements that have to do with progress.
type progressTracer struct {
	written, read, runs atomic.Int32
	during              func() // while the first report is under way; may be nil
}

func (p *progressTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	switch {
	case strings.Contains(data.SQL, "report_progress("):
		if p.written.Add(1) == 1 && p.during != nil {
			p.during()
		}
	case strings.HasPrefix(data.SQL, "SELECT checkpoint"):
		p.read.Add(1)
	case strings.Contains(data.SQL, "finish("):
		p.runs.Add(1)
	}
	return ctx
}

func (p *progressTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (p *progressTracer) scheduler(t *testing.T, configure func(*scheduler.Config)) *scheduler.Scheduler {
	config := newPool(t).Config()
	config.ConnConfig.Tracer = p
	return newSchedulerOn(t, newPoolWith(t, config), configure)
}

// Ten thousand reports of ten jobs are a handful of statements, and jobs without
// any are none.
func TestReportsShareStatements(t *testing.T) {
	t.Parallel()
	const jobs, steps = 10, 1000
	var p progressTracer
	begun, release := make(chan struct{}, jobs), make(chan struct{})
	s := p.scheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"silent": succeed, "a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			begun <- struct{}{}
			<-release
			var before int
			if found, err := scheduler.LoadCheckpoint(ctx, &before); err != nil || found {
				return nil, fmt.Errorf("found: %t: %w", found, err)
			}
			for i := range steps {
				if err := errors.Join(scheduler.SetProgress(ctx, i/10, "step"), scheduler.Checkpoint(ctx, i)); err != nil {
					return nil, err
				}
			}
			return nil, nil
		}}
	})
	mustCreateMany(t, s, 50, "silent", scheduler.JobData{})
	require.Equal(t, 50, mustRun(t, s, scheduler.RunFilter{Limit: 50}).Succeeded)
	require.Positive(t, p.runs.Load())
	require.Zero(t, p.written.Load())

	ids := mustCreateMany(t, s, jobs, "a", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: jobs})
	for range jobs {
		await(t, begun)
	}
	began := time.Now()
	close(release)
	require.Equal(t, jobs, await(t, run).report.Succeeded)
	// One for each second, and at most one for the end of each job.
	require.LessOrEqual(t, int(p.written.Load()), jobs+1+int(time.Since(began)/time.Second))
	require.Positive(t, p.written.Load())
	require.Zero(t, p.read.Load(), "there was no attempt before")
	for _, id := range ids {
		requireProgress(t, mustGet(t, s, id), 99, "step", "999")
	}
}

func TestHTTPShowsProgress(t *testing.T) {
	t.Parallel()
	w := newWeb(t, func(c *scheduler.Config) {
		c.JobNames["a"] = func(ctx context.Context, _ *scheduler.Job) (any, error) {
			return nil, errors.Join(scheduler.SetProgress(ctx, 30, "third <row>"), scheduler.Checkpoint(ctx, map[string]any{"row": 3}))
		}
	})
	job := mustCreate(t, w.Scheduler, "a", scheduler.JobData{})
	require.Equal(t, 1, mustRun(t, w.Scheduler, scheduler.RunFilter{}).Succeeded)
	var shown struct{ Progress map[string]any }
	w.call(t, "GET", "/api/jobs/"+job.ID, "").requireJSON(t, http.StatusOK, &shown)
	at, err := time.Parse(time.RFC3339Nano, shown.Progress["at"].(string))
	require.NoError(t, err)
	require.Equal(t, mustGet(t, w.Scheduler, job.ID).Progress.At, at)
	require.Equal(t, map[string]any{"percent": 30.0, "note": "third <row>", "checkpoint": map[string]any{"row": 3.0}, "at": shown.Progress["at"]}, shown.Progress)
}

// What a job has reported is about its payload, so both are replaced together.
func TestAReplacedJobHasNoProgress(t *testing.T) {
	t.Parallel()
	s, other, _ := reporting(t, func(ctx context.Context, job *scheduler.Job) (any, error) {
		var at int
		found, err := scheduler.LoadCheckpoint(ctx, &at)
		if err != nil || found {
			return at, err
		}
		if string(job.Payload) == `"new"` {
			return "from the beginning", nil
		}
		return nil, errors.Join(scheduler.SetProgress(ctx, 40, "half-way"), scheduler.Checkpoint(ctx, 7), scheduler.Snooze(0))
	})
	data := scheduler.JobData{UniqueKey: "k", Payload: "old"}
	job := mustCreate(t, s, "a", data)
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Snoozed)
	data.Payload = "kept out"
	kept := mustCreate(t, other, "a", data)
	require.Equal(t, job.ID, kept.ID)
	requireProgress(t, kept, 40, "half-way", `7`)

	data.Payload, data.OnDuplicate = "new", scheduler.DuplicateReplace
	replaced := mustCreate(t, other, "a", data)
	require.Equal(t, job.ID, replaced.ID)
	require.Nil(t, replaced.Progress)
	require.Nil(t, mustGet(t, s, job.ID).Progress)
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)
	require.JSONEq(t, `"from the beginning"`, string(mustGet(t, other, job.ID).Result))
}
