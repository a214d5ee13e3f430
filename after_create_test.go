package scheduler_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// What can't be waited for is refused by name, and nothing is stored.
func TestDependenciesThatAreRefused(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	id, none := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID, uuid.NewString()
	many := make([]string, 10_001)
	for i := range many {
		many[i] = uuid.NewString()
	}
	stored := func() int { return mustQuery[int](t, a.pool, "SELECT count(*) FROM "+a.schema+".jobs") }
	for _, refused := range []struct {
		after   []string
		message string
	}{
		{[]string{"x"}, `after: "x": expected the id of a job, or in CreateJobs the label of another one of the call`},
		{[]string{id, ""}, `after: "": expected the id of a job`},
		{[]string{id, none}, "after: there is no job " + none},
		{[]string{"{" + id + "}"}, "expected the id of a job"},
		{many, "after: 10001 jobs: expected at most 10000"},
	} {
		_, err := a.CreateJob(t.Context(), "a", after(refused.after...))
		requireRefused(t, err, "after", refused.message)
		_, err = a.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "a"}, {Name: "a", JobData: after(refused.after...)}})
		requireRefused(t, err, "jobs[1].after", refused.message)
		require.Equal(t, 1, stored())
	}

	job := func(label string, after ...string) scheduler.NewJob {
		return scheduler.NewJob{Name: "a", Label: label, JobData: scheduler.JobData{After: after}}
	}
	keyed := job("k")
	keyed.UniqueKey = "k"
	chain := []scheduler.NewJob{job("0", "99")}
	for i := range 99 {
		chain = append(chain, job(fmt.Sprint(i+1), fmt.Sprint(i)))
	}
	for _, refused := range []struct {
		jobs           []scheduler.NewJob
		field, message string
	}{
		{[]scheduler.NewJob{job("x"), job("", "y")}, "jobs[1].after", `"y": expected the id of a job`},
		{[]scheduler.NewJob{job("x"), job("x")}, "jobs[1].label", `"x": jobs[0] has it too`},
		{[]scheduler.NewJob{job(id)}, "jobs[0].label", "expected no UUID"},
		{[]scheduler.NewJob{job(strings.Repeat("x", 129))}, "jobs[0].label", "expected at most 128"},
		{[]scheduler.NewJob{keyed}, "jobs[0].label", `"k": the job has a unique_key`},
		{[]scheduler.NewJob{job("x"), job("y", "x", "y")}, "jobs[1].after", `the job waits for itself: "y", "y": expected no circle`},
		{[]scheduler.NewJob{job("x", "z"), job("y", "x"), job("z", "y"), job("", "z")}, "jobs[0].after",
			`the job waits for itself: "x" after "z" after "y", "x": expected no circle`},
		{chain, "jobs[0].after", `"0" after "99" after`},
		{[]scheduler.NewJob{job("x"), job("", append(many[:10_000:10_000], "x")...)}, "jobs[1].after", "10001 jobs"},
	} {
		_, err := a.CreateJobs(t.Context(), refused.jobs)
		requireRefused(t, err, refused.field, refused.message)
		require.Less(t, len(err.Error()), 500)
		require.Equal(t, 1, stored())
	}
	require.Zero(t, mustQuery[int](t, a.pool, "SELECT count(*) FROM "+a.schema+".job_dependencies"))
}

func requireRefused(t *testing.T, err error, field, message string) {
	t.Helper()
	require.ErrorIs(t, err, scheduler.ErrInvalidInput)
	require.ErrorContains(t, err, message)
	var input *scheduler.InputError
	require.ErrorAs(t, err, &input)
	require.Equal(t, field, input.Field)
}

// It makes no difference whether a parent ends before its child is created.
func TestJobsAfterFinishedOnes(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	done := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID
	dead := mustCreate(t, a.Scheduler, "never", scheduler.JobData{}).ID
	require.ElementsMatch(t, []string{done, dead}, a.runAll(t))
	open := mustCreate(t, a.Scheduler, "a", tomorrowIn("")).ID

	for _, unique := range []string{"", "k"} {
		data := func(data scheduler.JobData) scheduler.JobData {
			if unique != "" {
				data.UniqueKey = uuid.NewString()
			}
			return data
		}
		due := mustCreate(t, a.Scheduler, "a", data(after(done)))
		require.Equal(t, scheduler.JobStatusPending, due.Status)
		require.Zero(t, due.WaitsFor)
		waits := mustCreate(t, a.Scheduler, "a", data(after(done, open)))
		require.Equal(t, 1, waits.WaitsFor)
		called := mustCreate(t, a.Scheduler, "a", data(after(done, dead, open)))
		require.Equal(t, scheduler.JobStatusCancelled, called.Status)
		a.requireCalledOff(t, called.ID, dead+", which is dead")
		inAnyCase := mustCreate(t, a.Scheduler, "a", data(afterAny(done, dead)))
		require.Zero(t, inAnyCase.WaitsFor)
		require.ElementsMatch(t, []string{due.ID, inAnyCase.ID}, a.runAll(t))
		a.requireCalledOff(t, mustCreate(t, a.Scheduler, "a", data(after(called.ID))).ID, called.ID+", which was cancelled")
		a.requireWaiting(t, waits.ID, 1)
	}

	ids, err := a.CreateJobs(t.Context(), []scheduler.NewJob{
		{Name: "a", JobData: after("x")}, {Name: "a", Label: "x", JobData: after(dead)}, {Name: "a", JobData: afterAny("x")}, {Name: "a"},
		{Name: "a", JobData: scheduler.JobData{UniqueKey: "batch", After: []string{"x", open}, AfterAny: true}},
	})
	require.NoError(t, err)
	a.requireCalledOff(t, ids[1], dead+", which is dead")
	a.requireCalledOff(t, ids[0], ids[1]+", which was cancelled")
	a.requireWaiting(t, ids[4], 1)
	require.ElementsMatch(t, []string{ids[2], ids[3]}, a.runAll(t))
}

// All ways to create a job take it.
func TestWaysToCreateDependants(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	parent := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID
	db := stdlib.OpenDBFromPool(a.pool)
	defer func() { require.NoError(t, db.Close()) }()
	tx, err := db.Begin()
	require.NoError(t, err)
	inSQL, err := a.CreateJobSQL(t.Context(), tx, "a", after(parent))
	require.NoError(t, err)
	require.NoError(t, tx.Commit())
	_, err = a.CreateJobSQL(t.Context(), db, "a", after(uuid.NewString()))
	requireRefused(t, err, "after", "there is no job")

	create := func(more string, args ...any) string {
		return mustQuery[string](t, a.pool, "SELECT "+a.schema+".create_job('a', after => $1::text[]::uuid[]"+more+")::text", args...)
	}
	plain := create("", []string{parent, parent})
	keyed := create(", unique_key => 'k'", []string{parent})
	require.Equal(t, keyed, create(", unique_key => 'k', after_any => true", []string{parent}))
	inAnyCase := create(", after_any => true, priority => 3", []string{parent})
	free := create("", []string{})
	for _, id := range []string{inSQL.ID, plain, keyed, inAnyCase} {
		a.requireWaiting(t, id, 1)
	}
	a.requireWaiting(t, free, 0)
	for message, after := range map[string]string{
		"there is no job 00000000-0000-0000-0000-000000000001": "'{00000000-0000-0000-0000-000000000001}'",
		"after has a NULL": "'{NULL}'",
		"after has 10001 jobs: expected at most 10000": "ARRAY(SELECT gen_random_uuid() FROM generate_series(1, 10001))",
	} {
		_, err := a.pool.Exec(t.Context(), "SELECT "+a.schema+".create_job('a', after => "+after+")")
		require.ErrorContains(t, err, message)
	}
	require.Len(t, a.runAll(t), 6)
}

func TestHTTPCreatesDependants(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	parent := w.created(t, 201, `{"name": "succeed"}`).ID
	body := `{"name": "succeed", "after": ["` + parent + `"], "after_any": true}`
	require.Equal(t, 1, w.created(t, 201, body).WaitsFor)
	for field, refused := range map[string]string{
		`"after": "` + parent + `"`:                             "after",
		`"after": ["x"]`:                                        "after",
		`"after": ["00000000-0000-0000-0000-000000000001"]`:     "after",
		`"after": ["` + parent + `"], "after_any": "yes"`:       "after_any",
		`"after": ["` + parent + `"], "label": "no such field"`: "label",
	} {
		w.call(t, "POST", "/api/jobs", `{"name": "succeed", `+field+`}`).requireProblem(t, http.StatusUnprocessableEntity, refused)
	}
	require.Equal(t, 2, w.stored(t))
	w.created(t, 201, `{"name": "succeed", "after": []}`)
}

// A key that is taken: the job that is there waits for what it did.
func TestDuplicatesWaitForWhatTheyDid(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	parent := mustCreate(t, a.Scheduler, "a", tomorrowIn("")).ID
	other := mustCreate(t, a.Scheduler, "a", tomorrowIn("")).ID
	unique := func(payload int, after ...string) scheduler.JobData {
		return scheduler.JobData{Payload: payload, UniqueKey: "k", After: after, OnDuplicate: scheduler.DuplicateReplace}
	}
	job := mustCreate(t, a.Scheduler, "a", unique(1, parent))
	for _, data := range []scheduler.JobData{unique(2), unique(3, other), unique(4, parent, other)} {
		again := mustCreate(t, a.Scheduler, "a", data)
		require.True(t, again.Duplicate)
		require.Equal(t, job.ID, again.ID)
		require.Equal(t, 1, again.WaitsFor)
	}
	ids, err := a.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "a", JobData: unique(5, other)}, {Name: "a", JobData: after(other)}})
	require.NoError(t, err)
	require.Equal(t, job.ID, ids[0])
	requireParents(t, a.Scheduler, job.ID, parent)
	require.Equal(t, "5", string(mustGet(t, a.Scheduler, job.ID).Payload))
	mustExec(t, a.pool, "UPDATE "+a.schema+".jobs SET run_at = now() WHERE id = $1::text::uuid", parent)
	require.Equal(t, []string{parent, job.ID}, a.runAll(t))
	a.requireWaiting(t, ids[1], 1)
}

// What waits for its time beside that is due when both have come, and a job that
// waited is due from then on.
func TestWhenDependantsAreDue(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	parent := mustCreate(t, a.Scheduler, "a", scheduler.JobData{}).ID
	late := mustCreate(t, a.Scheduler, "a", scheduler.JobData{After: []string{parent}, RunAt: time.Now().Add(time.Hour)}).ID
	old := mustCreate(t, a.Scheduler, "a", scheduler.JobData{After: []string{parent}, RunAt: time.Now().Add(-time.Hour)}).ID
	require.Equal(t, []string{parent}, ranOnce(t, a))
	require.WithinDuration(t, *mustGet(t, a.Scheduler, parent).FinishedAt, mustGet(t, a.Scheduler, old).RunAt, time.Millisecond)
	require.Equal(t, []string{old}, a.runAll(t))
	a.requireWaiting(t, late, 0)
}

func ranOnce(t *testing.T, a *afterTest) (ids []string) {
	before := a.started(t)
	mustRun(t, a.Scheduler, scheduler.RunFilter{})
	for id, claims := range a.started(t) {
		if claims > before[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// Parents are read some at a time, with no connection held meanwhile.
func TestParentsAreManyAndLarge(t *testing.T) {
	t.Parallel()
	const n = 450
	var s *scheduler.Scheduler
	config := newPool(t).Config()
	config.MaxConns = 1
	var schema string
	s = newSchedulerOn(t, newPoolWith(t, config), func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) { return strings.Repeat("x", 100_000), nil }}
	})
	ids := mustCreateMany(t, s, n, "a", scheduler.JobData{})
	child := mustCreate(t, s, "a", after(ids...)).ID
	require.Equal(t, n, mustRun(t, s, scheduler.RunFilter{Limit: n}).Succeeded)
	read := 0
	for parent, err := range s.Parents(t.Context(), child) {
		require.NoError(t, err)
		require.Equal(t, ids[read], parent.ID)
		require.Len(t, parent.Result, 100_002)
		if read++; read%100 == 1 {
			require.Equal(t, 1, mustGet(t, s, parent.ID).Attempt)
		}
	}
	require.Equal(t, n, read)
	mustExec(t, newPool(t), "DELETE FROM "+schema+".jobs WHERE id <> ALL ($1::text[]::uuid[])", []string{ids[n-1], child})
	requireParents(t, s, child, ids[n-1])
	for _, err := range s.Parents(t.Context(), child) {
		require.NoError(t, err)
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range s.Parents(ctx, child) {
		require.ErrorIs(t, err, context.Canceled)
	}
}
