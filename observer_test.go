package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// events are told to a test.
type events chan scheduler.Event

func newEvents() events { return make(events, 10_000) }

func (c events) tell(e scheduler.Event) { c <- e }

// next is the next event, which has to be of this kind.
func (c events) next(t *testing.T, kind scheduler.EventKind) scheduler.Event {
	t.Helper()
	e := await(t, c)
	require.Equal(t, kind, e.Kind)
	require.Equal(t, time.UTC, e.At.Location())
	require.WithinDuration(t, time.Now(), e.At, patience)
	return e
}

func TestEventsOfAWholeLife(t *testing.T) {
	t.Parallel()
	const pause = 30 * time.Millisecond
	told := newEvents()
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Observer = told.tell
		c.JobNames = scheduler.JobNames{"a": func(_ context.Context, job *scheduler.Job) (any, error) {
			defer func() { // what it does to its job is its own matter
				copy(job.Payload, "XXXX")
				job.Tags[0], job.Status = "changed", "odd"
				*job.StartedAt = time.Time{}
			}()
			time.Sleep(pause) // which is measured
			if job.Attempt == 1 {
				return nil, scheduler.RetryAfter(0, errors.New("no answer"))
			}
			return "done", nil
		}}
	})
	job := mustCreate(t, s, "a", scheduler.JobData{Payload: "text", Tags: []string{"x"}, RunAt: time.Now().Add(-time.Hour), MaxAttempts: 3})
	check := func(e scheduler.Event, status scheduler.JobStatus, attempt int) {
		t.Helper()
		require.Equal(t, job.ID, e.Job.ID)
		require.Equal(t, status, e.Job.Status)
		require.Equal(t, attempt, e.Job.Attempt)
		require.JSONEq(t, `"text"`, string(e.Job.Payload))
		require.Equal(t, []string{"x"}, e.Job.Tags)
	}
	e := told.next(t, scheduler.EventCreated)
	check(e, scheduler.JobStatusPending, 0)
	require.NotSame(t, job, e.Job)
	require.Equal(t, job, e.Job)
	require.Zero(t, e.Wait+e.Ran)

	mustRun(t, s, scheduler.RunFilter{})
	e = told.next(t, scheduler.EventStarted)
	check(e, scheduler.JobStatusRunning, 1)
	require.InDelta(t, time.Hour, e.Wait, float64(patience))
	require.Zero(t, e.Ran)
	require.NoError(t, e.Err)
	wait := e.Wait
	e = told.next(t, scheduler.EventFailed)
	check(e, scheduler.JobStatusFailed, 1)
	require.Equal(t, wait, e.Wait)
	require.GreaterOrEqual(t, e.Ran, pause)
	require.Less(t, e.Ran, patience)
	require.ErrorContains(t, e.Err, "no answer")
	require.Nil(t, e.Job.Result)

	mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusFailed})
	e = told.next(t, scheduler.EventStarted)
	check(e, scheduler.JobStatusRunning, 2)
	require.Len(t, e.Job.Errors, 1)
	require.Less(t, e.Wait, patience, "due again only since then")
	e = told.next(t, scheduler.EventSucceeded)
	check(e, scheduler.JobStatusSucceeded, 2)
	require.JSONEq(t, `"done"`, string(e.Job.Result))
	require.False(t, e.Job.StartedAt.IsZero())
	require.NoError(t, e.Err)
	require.Empty(t, told)
}

func TestEventsOfOtherVerdicts(t *testing.T) {
	t.Parallel()
	told := newEvents()
	pool := newPool(t)
	var verdict func() (any, error)
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		c.Observer = told.tell
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) { return verdict() }}
	})
	oops := errors.New("oops")
	for name, test := range map[string]struct {
		verdict func() (any, error)
		kind    scheduler.EventKind
		status  scheduler.JobStatus
		attempt int
		err     string
	}{
		"dead":   {func() (any, error) { return nil, scheduler.Cancel(oops) }, scheduler.EventDead, scheduler.JobStatusDead, 1, "oops"},
		"snooze": {func() (any, error) { return nil, scheduler.Snooze(time.Hour) }, scheduler.EventSnoozed, scheduler.JobStatusPending, 0, ""},
		"panic":  {func() (any, error) { panic(oops) }, scheduler.EventFailed, scheduler.JobStatusFailed, 1, "observer_test.go:"},
		"result": {func() (any, error) { return make(chan int), nil }, scheduler.EventFailed, scheduler.JobStatusFailed, 1, "chan int"},
	} {
		verdict = test.verdict
		tx, err := pool.Begin(t.Context())
		require.NoError(t, err)
		job, err := s.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{})
		require.NoError(t, err)
		require.NoError(t, tx.Commit(t.Context()))
		require.Equal(t, job, told.next(t, scheduler.EventCreated).Job, name)
		mustRun(t, s, scheduler.RunFilter{})
		told.next(t, scheduler.EventStarted)
		e := told.next(t, test.kind)
		require.Equal(t, job.ID, e.Job.ID)
		require.Equal(t, test.status, e.Job.Status, name)
		require.Equal(t, test.attempt, e.Job.Attempt)
		require.Positive(t, e.Ran)
		if test.err == "" {
			require.NoError(t, e.Err)
		} else {
			require.ErrorContains(t, e.Err, test.err)
		}
		require.Equal(t, test.kind != scheduler.EventSnoozed && test.err == "oops", errors.Is(e.Err, oops), "wrapped")
	}
	ids := mustCreateMany(t, s, 3, "a", scheduler.JobData{RunAt: time.Now().Add(time.Hour), Owner: "ada"})
	for _, id := range ids {
		require.Equal(t, mustGet(t, s, id), told.next(t, scheduler.EventCreated).Job)
	}
	require.Empty(t, told)
}

// The process that loses a job and the one that takes it back tell so.
func TestEventsOfALostLease(t *testing.T) {
	t.Parallel()
	for _, attempts := range []int{1, 2} {
		pool := newPool(t)
		var schema string
		begun, release := make(chan struct{}), make(chan struct{})
		first, second := newEvents(), newEvents()
		s := newScheduler(t, func(c *scheduler.Config) {
			schema, c.Observer = c.Schema, first.tell
			c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) {
				close(begun)
				<-release
				return "late", nil
			}}
		})
		other := newScheduler(t, func(c *scheduler.Config) {
			c.Schema, c.Observer, c.JobNames = schema, second.tell, scheduler.JobNames{"a": succeed}
		})
		job := mustCreate(t, s, "a", scheduler.JobData{MaxAttempts: attempts, Payload: "text", Tags: []string{"x"}})
		run := goRun(t.Context(), s, scheduler.RunFilter{})
		await(t, begun)
		runOutLeases(t, pool, schema)
		mustRun(t, other, scheduler.RunFilter{})
		e := second.next(t, scheduler.EventRescued)
		require.ErrorIs(t, e.Err, scheduler.ErrLeaseLost)
		require.Equal(t, job.ID, e.Job.ID)
		require.Equal(t, "a", e.Job.Name)
		require.Equal(t, scheduler.JobQueueDefault, e.Job.Queue)
		require.JSONEq(t, `"text"`, string(e.Job.Payload))
		require.Equal(t, []string{"x"}, e.Job.Tags)
		require.Len(t, e.Job.Errors, 1)
		require.Equal(t, 1, e.Job.Attempt)
		if attempts == 1 {
			require.Equal(t, scheduler.JobStatusDead, e.Job.Status)
			e = second.next(t, scheduler.EventDead)
			require.Equal(t, job.ID, e.Job.ID)
			require.ErrorIs(t, e.Err, scheduler.ErrLeaseLost)
		} else {
			require.Equal(t, scheduler.JobStatusPending, e.Job.Status)
			second.next(t, scheduler.EventStarted)
			second.next(t, scheduler.EventSucceeded)
		}
		require.Empty(t, second)

		close(release)
		require.Equal(t, 1, await(t, run).report.Lost)
		first.next(t, scheduler.EventCreated)
		first.next(t, scheduler.EventStarted)
		e = first.next(t, scheduler.EventLeaseLost)
		require.ErrorIs(t, e.Err, scheduler.ErrLeaseLost)
		require.Positive(t, e.Ran)
		require.Empty(t, first)
	}
}

// What Shutdown hands back is told before it returns.
func TestEventsOfAShutdown(t *testing.T) {
	t.Parallel()
	told := newEvents()
	begun := make(chan struct{})
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Observer = told.tell
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			close(begun)
			<-ctx.Done()
			return nil, ctx.Err()
		}}
	})
	mustCreate(t, s, "a", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, begun)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.Shutdown(ctx))
	require.Len(t, told, 3)
	told.next(t, scheduler.EventCreated)
	told.next(t, scheduler.EventStarted)
	e := told.next(t, scheduler.EventHandedBack)
	require.ErrorIs(t, e.Err, scheduler.ErrShuttingDown)
	require.Zero(t, e.Job.Attempt)
	require.Equal(t, scheduler.JobStatusPending, e.Job.Status)
	require.Equal(t, 1, await(t, run).report.HandedBack)
	mustCreate(t, s, "a", scheduler.JobData{})
	require.Empty(t, told, "after the end nothing is told")
}

// A slow observer costs events, but holds up nobody.
func TestASlowObserverHoldsUpNoJob(t *testing.T) {
	t.Parallel()
	const n = 5000 // more than wait
	log := &logged{}
	slow := newSlowObserver()
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
		c.JobNames = scheduler.JobNames{"a": succeed}
		c.Observer = slow.tell
	})
	mustCreate(t, s, "a", scheduler.JobData{})
	await(t, slow.stuck)
	for range n / 1000 {
		mustCreateMany(t, s, 1000, "a", scheduler.JobData{})
	}
	require.Equal(t, 1000, mustRun(t, s, scheduler.RunFilter{Limit: 1000}).Succeeded)
	require.Equal(t, 1, strings.Count(log.String(), "events were dropped"), "once a minute")
	require.Contains(t, log.String(), "events=1\n")
	close(slow.release)
	require.NoError(t, s.Shutdown(t.Context()))
	require.EqualValues(t, 1+4096, slow.told.Load(), "what waited is told")
	require.Contains(t, log.String(), fmt.Sprintf("events=%d\n", n+2*1000-4096-1), "the others are counted")
}

// Shutdown does not wait for ever for an observer that does not return.
func TestShutdownGivesUpOnAStuckObserver(t *testing.T) {
	t.Parallel()
	log := &logged{}
	stuck, release := make(chan struct{}), make(chan struct{})
	defer close(release)
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
		c.Observer = func(scheduler.Event) {
			close(stuck)
			<-release
		}
	})
	mustCreateMany(t, s, 8, "a", scheduler.JobData{})
	await(t, stuck)
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	require.NoError(t, await(t, done))
	require.Contains(t, log.String(), "events=7\n")
}

func TestAnObserverMayPanic(t *testing.T) {
	t.Parallel()
	log := &logged{}
	told := newEvents()
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Logger = slog.New(slog.NewTextHandler(log, nil))
		c.Observer = func(e scheduler.Event) {
			told <- e
			switch e.Job.Name {
			case "panics":
				panic("not today")
			case "exits":
				runtime.Goexit()
			}
		}
	})
	for _, name := range []string{"panics", "exits", "fine"} {
		mustCreate(t, s, name, scheduler.JobData{})
	}
	for range 3 {
		told.next(t, scheduler.EventCreated)
	}
	require.NoError(t, s.Shutdown(t.Context()))
	require.Contains(t, log.String(), "not today")
	require.Contains(t, log.String(), "observer_test.go:", "the stack")
}

// Not parallel, because allocations are counted.
func TestNoObserverCostsNothing(t *testing.T) {
	s := newScheduler(t, nil)
	job := mustCreate(t, s, "a", scheduler.JobData{})
	require.False(t, scheduler.ObserverBegun(s))
	require.Zero(t, scheduler.TellAll(s, job))
	// One that is told nothing has no goroutine either.
	s = newScheduler(t, func(c *scheduler.Config) { c.Observer = newEvents().tell })
	require.False(t, scheduler.ObserverBegun(s))
	mustCreate(t, s, "a", scheduler.JobData{})
	require.True(t, scheduler.ObserverBegun(s))
}

func init() {
	childRoles["lost with its job"] = func() {
		s := childScheduler(scheduler.Config{Lease: time.Second, JobNames: scheduler.JobNames{
			"a": func(context.Context, *scheduler.Job) (any, error) {
				fmt.Println("begun")
				select {}
			},
		}})
		_, err := s.Run(context.Background(), scheduler.RunFilter{})
		exitOn(err)
		os.Exit(1)
	}
}

// A job whose process was killed is rescued, and told of, by another one.
func TestEventsAfterAKilledProcess(t *testing.T) {
	t.Parallel()
	told := newEvents()
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Observer, c.PollInterval = c.Schema, told.tell, 50*time.Millisecond
		c.JobNames = scheduler.JobNames{"a": succeed}
	})
	id := mustCreate(t, s, "a", scheduler.JobData{}).ID
	told.next(t, scheduler.EventCreated)
	c := startChild(t, "lost with its job", "SCHEMA="+schema)
	require.Equal(t, "begun", c.Line(t))
	c.Kill()
	goWork(t, t.Context(), s)
	for _, kind := range []scheduler.EventKind{scheduler.EventRescued, scheduler.EventStarted, scheduler.EventSucceeded} {
		require.Equal(t, id, told.next(t, kind).Job.ID)
	}
}
