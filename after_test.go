package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// afterTest is a scheduler whose jobs end in all ways; those named a return their
// payload.
type afterTest struct {
	*scheduler.Scheduler
	pool   *pgxpool.Pool
	schema string
}

func echo(_ context.Context, job *scheduler.Job) (any, error) { return job.Payload, nil }

func newAfterTest(t *testing.T, configure func(*scheduler.Config)) *afterTest {
	a := &afterTest{pool: newPool(t)}
	a.Scheduler = newSchedulerOn(t, a.pool, func(c *scheduler.Config) {
		a.schema = c.Schema
		c.Queues = queueConfigs{"own": {}}
		c.JobNames = scheduler.JobNames{
			"a": echo, "fail": fail,
			"never": func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Cancel(errors.New("never")) },
			"complete": func(ctx context.Context, job *scheduler.Job) (any, error) {
				return nil, pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) error { return a.CompleteTx(ctx, tx, job, nil) })
			},
			"cancelled": func(ctx context.Context, job *scheduler.Job) (any, error) {
				_, err := a.CancelJob(context.WithoutCancel(ctx), job.ID)
				return nil, errors.Join(err, errors.New("as asked"))
			},
		}
		if configure != nil {
			configure(c)
		}
	})
	return a
}

func after(ids ...string) scheduler.JobData { return scheduler.JobData{After: ids} }

func afterAny(ids ...string) scheduler.JobData { return scheduler.JobData{After: ids, AfterAny: true} }

// runAll runs what is due, one at a time, and returns which jobs those were.
func (a *afterTest) runAll(t *testing.T) (ids []string) {
	t.Helper()
	for {
		before := a.started(t)
		if mustRun(t, a.Scheduler, scheduler.RunFilter{Status: scheduler.JobStatusAny}).Picked == 0 {
			return ids
		}
		for id, claims := range a.started(t) {
			if claims > before[id] {
				ids = append(ids, id)
			}
		}
	}
}

func (a *afterTest) started(t *testing.T) map[string]int {
	t.Helper()
	text := mustQuery[[]byte](t, a.pool, "SELECT coalesce(json_object_agg(id, claims), '{}') FROM "+a.schema+".jobs")
	started := map[string]int{}
	require.NoError(t, json.Unmarshal(text, &started))
	return started
}

// requireWaiting checks a job that waits for n others.
func (a *afterTest) requireWaiting(t *testing.T, id string, n int) {
	t.Helper()
	job := mustGet(t, a.Scheduler, id)
	require.Equal(t, scheduler.JobStatusPending, job.Status)
	require.Equal(t, n, job.WaitsFor)
}

// requireCalledOff checks a job that was cancelled because of another one.
func (a *afterTest) requireCalledOff(t *testing.T, id, because string) {
	t.Helper()
	job := mustGet(t, a.Scheduler, id)
	require.Equal(t, scheduler.JobStatusCancelled, job.Status)
	require.Zero(t, job.WaitsFor)
	require.Zero(t, job.Attempt)
	require.Len(t, job.Errors, 1)
	require.Equal(t, "job cancelled: it was to run after job "+because, job.Errors[0].Error)
	require.NotNil(t, job.FinishedAt)
}

// A whole graph in one call, children before their parents.
func TestGraphOfJobs(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	job := func(label string, after ...string) scheduler.NewJob {
		return scheduler.NewJob{Name: "a", Label: label, JobData: scheduler.JobData{Payload: label, After: after}}
	}
	first := mustCreate(t, a.Scheduler, "a", scheduler.JobData{Payload: "first"}).ID
	ids, err := a.CreateJobs(t.Context(), []scheduler.NewJob{
		job("end", "left", "right", "left"), job("left", "top", strings.ToUpper(first)), job("right", "top"), job("top"), job(""),
	})
	require.NoError(t, err)
	end, left, right, top, alone := ids[0], ids[1], ids[2], ids[3], ids[4]
	for id, n := range map[string]int{end: 2, left: 2, right: 1, top: 0, alone: 0, first: 0} {
		a.requireWaiting(t, id, n)
	}
	require.Less(t, top, left)
	require.Less(t, top, right)
	require.Less(t, right, end)
	stats, err := a.QueueStats(t.Context())
	require.NoError(t, err)
	require.Equal(t, scheduler.QueueStat{Queue: "default", Pending: 3, Waiting: 3, OldestDueAt: stats[1].OldestDueAt}, stats[1])
	pending := scheduler.JobFilter{Statuses: []scheduler.JobStatus{"pending"}}
	require.Len(t, mustList(t, a.Scheduler, pending).Jobs, 6)

	order := a.runAll(t)
	require.Len(t, order, 6)
	place := func(id string) int { return slices.Index(order, id) }
	require.Greater(t, place(left), place(top))
	require.Greater(t, place(left), place(first))
	require.Greater(t, place(right), place(top))
	require.Equal(t, end, order[5])
	for _, id := range ids {
		require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, a.Scheduler, id).Status)
	}
	requireParents(t, a.Scheduler, left, first, top)
	requireParents(t, a.Scheduler, end, slices.Sorted(slices.Values([]string{left, right}))...)
	requireParents(t, a.Scheduler, top)
}

func requireParents(t *testing.T, s *scheduler.Scheduler, id string, expected ...string) {
	t.Helper()
	var ids []string
	for parent, err := range s.Parents(t.Context(), id) {
		require.NoError(t, err)
		require.Equal(t, mustGet(t, s, parent.ID), parent)
		ids = append(ids, parent.ID)
	}
	require.Equal(t, expected, ids)
}

func TestParentsOfNoJob(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, nil)
	for _, id := range []string{"", uuid.NewString()} {
		n := 0
		for job, err := range s.Parents(t.Context(), id) {
			require.Nil(t, job)
			require.ErrorIs(t, err, scheduler.ErrJobNotFound)
			n++
		}
		require.Equal(t, 1, n)
	}
}

// Whatever finishes a job tells those that wait for it.
func TestHowAParentEnds(t *testing.T) {
	t.Parallel()
	cancelled, dead, deleted := "was cancelled", "is dead", "was deleted"
	bulk := func(name string) func(*testing.T, *afterTest, string) {
		return func(t *testing.T, a *afterTest, _ string) {
			require.Equal(t, 1, mustBulk(t, name, a.Scheduler, scheduler.JobFilter{Owner: "parent"}))
		}
	}
	run := func(t *testing.T, a *afterTest, _ string) {
		require.Equal(t, 1, mustRun(t, a.Scheduler, scheduler.RunFilter{Queue: "own"}).Picked)
	}
	for title, end := range map[string]struct {
		name   string // of the parent
		do     func(t *testing.T, a *afterTest, id string)
		reason string // "": it succeeds
	}{
		"succeeds":                         {"a", run, ""},
		"completes in its own transaction": {"complete", run, ""},
		"dies":                             {"fail", run, dead},
		"says never":                       {"never", run, dead},
		"is cancelled":                     {"a", func(t *testing.T, a *afterTest, id string) { mustCancel(t, a.Scheduler, id) }, cancelled},
		"is cancelled with many":           {"a", bulk("cancel jobs"), cancelled},
		"is deleted":                       {"a", func(t *testing.T, a *afterTest, id string) { require.NoError(t, a.DeleteJob(t.Context(), id)) }, deleted},
		"is deleted with many":             {"a", bulk("delete jobs"), deleted},
		"is cancelled while it runs":       {"cancelled", run, cancelled},
		"dies with its process": {"a", func(t *testing.T, a *afterTest, id string) {
			a.lose(t, id, "")
		}, dead},
		"is cancelled and loses its process": {"a", func(t *testing.T, a *afterTest, id string) {
			a.lose(t, id, ", cancelling = true")
		}, cancelled},
		"is cancelled and handed back": {"a", func(t *testing.T, a *afterTest, id string) {
			mustExec(t, a.pool, "UPDATE "+a.schema+".jobs SET status = 'running', lease_id = id, attempt = 1, claims = 1, cancelling = true WHERE id = $1::text::uuid", id)
			require.Equal(t, id, mustQuery[string](t, a.pool, "SELECT id::text FROM "+a.schema+".hand_back($1::text::uuid, '{}', now())", id))
		}, cancelled},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			a := newAfterTest(t, nil)
			parent := mustCreate(t, a.Scheduler, end.name, scheduler.JobData{Queue: "own", MaxAttempts: 1, Owner: "parent"}).ID
			other := mustCreate(t, a.Scheduler, "a", tomorrowIn("")).ID
			child := mustCreate(t, a.Scheduler, "a", after(parent)).ID
			both := mustCreate(t, a.Scheduler, "a", after(parent, other)).ID
			grandchild := mustCreate(t, a.Scheduler, "a", after(child)).ID
			inAnyCase := mustCreate(t, a.Scheduler, "a", afterAny(parent)).ID
			both2 := mustCreate(t, a.Scheduler, "a", afterAny(parent, other, child)).ID
			require.Empty(t, a.runAll(t), "they wait")

			end.do(t, a, parent)
			if end.reason == "" {
				a.requireWaiting(t, both, 1)
				a.requireWaiting(t, both2, 2)
				require.ElementsMatch(t, []string{child, grandchild, inAnyCase}, a.runAll(t))
				a.requireWaiting(t, both2, 1)
				return
			}
			a.requireCalledOff(t, child, parent+", which "+end.reason)
			a.requireCalledOff(t, both, parent+", which "+end.reason)
			a.requireCalledOff(t, grandchild, child+", which "+cancelled)
			a.requireWaiting(t, inAnyCase, 0)
			a.requireWaiting(t, both2, 1)
			require.Equal(t, []string{inAnyCase}, a.runAll(t))
			mustExec(t, a.pool, "UPDATE "+a.schema+".jobs SET run_at = now() WHERE id = $1::text::uuid", other)
			require.Equal(t, []string{other, both2}, a.runAll(t))
		})
	}
}

// lose leaves a job to a process that is gone.
func (a *afterTest) lose(t *testing.T, id, more string) {
	mustExec(t, a.pool, "INSERT INTO "+a.schema+".leases (id, holder, expires_at) VALUES ($1::text::uuid, 'lost', now())", id)
	mustExec(t, a.pool, "UPDATE "+a.schema+".jobs SET status = 'running', lease_id = id, attempt = 1, claims = 1"+more+" WHERE id = $1::text::uuid", id)
	mustExec(t, a.pool, "SELECT FROM "+a.schema+".rescue()")
}
