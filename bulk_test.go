package scheduler_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

type bulkFunc func(ctx context.Context, s *scheduler.Scheduler, filter scheduler.JobFilter) (int, error)

// farOff is when bulks reschedules to.
var farOff = time.Date(2050, 1, 31, 9, 0, 0, 0, time.UTC)

// bulks are what can be done to the jobs of a filter, and the statuses of those
// it is done to; first those that a filter without statuses finds.
var bulks = map[string]struct {
	do             bulkFunc
	found, refused []scheduler.JobStatus
}{
	"cancel jobs": {
		func(ctx context.Context, s *scheduler.Scheduler, f scheduler.JobFilter) (int, error) {
			return s.CancelJobs(ctx, f)
		},
		[]scheduler.JobStatus{"pending", "running", "failed"}, []scheduler.JobStatus{"succeeded", "dead", "cancelled"},
	},
	"retry jobs": {
		func(ctx context.Context, s *scheduler.Scheduler, f scheduler.JobFilter) (int, error) {
			return s.RetryJobs(ctx, f)
		},
		[]scheduler.JobStatus{"failed", "dead"}, []scheduler.JobStatus{"running", "succeeded"},
	},
	"reschedule jobs": {
		func(ctx context.Context, s *scheduler.Scheduler, f scheduler.JobFilter) (int, error) {
			return s.RescheduleJobs(ctx, f, farOff)
		},
		[]scheduler.JobStatus{"pending", "failed"}, []scheduler.JobStatus{"running", "succeeded", "dead", "cancelled"},
	},
	"delete jobs": {
		func(ctx context.Context, s *scheduler.Scheduler, f scheduler.JobFilter) (int, error) {
			return s.DeleteJobs(ctx, f)
		},
		[]scheduler.JobStatus{"pending", "succeeded", "failed", "dead", "cancelled"}, []scheduler.JobStatus{"running"},
	},
}

func mustBulk(t *testing.T, name string, s *scheduler.Scheduler, filter scheduler.JobFilter) int {
	t.Helper()
	n, err := bulks[name].do(t.Context(), s, filter)
	require.NoError(t, err)
	return n
}

// snapshot is every job that there is, by its id.
func snapshot(t *testing.T, s *scheduler.Scheduler) map[string]*scheduler.Job {
	jobs := map[string]*scheduler.Job{}
	for filter := (scheduler.JobFilter{Limit: 1000}); ; {
		page := mustList(t, s, filter)
		for _, job := range page.Jobs {
			jobs[job.ID] = job
		}
		if filter.Cursor = page.Next; page.Next == "" {
			return jobs
		}
	}
}

// Random filters change those jobs that they find, that can be changed so, and
// no others, however many calls it takes.
func TestBulkChangesWhatItsFilterFinds(t *testing.T) {
	t.Parallel()
	for name, b := range bulks {
		for range 4 {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				pool := newPool(t)
				var schema string
				s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
					schema, c.Queues = c.Schema, queueConfigs{"mails": {}, "elsewhere": {}}
				})
				jobs, random := seed(t, pool, schema, 400)
				for range 8 {
					testBulk(t, name, s, b.found, jobs, random)
				}
			})
		}
	}
}

func testBulk(t *testing.T, name string, s *scheduler.Scheduler, found []scheduler.JobStatus, jobs []*scheduler.Job, random *rand.Rand) {
	filter := randomFilter(random, found)
	if name == "cancel jobs" { // that a running one is called off does not show, see TestCancelJobsThatRun
		filter.Statuses = [][]scheduler.JobStatus{{"pending"}, {"failed"}, {"pending", "failed"}}[random.IntN(3)]
	}
	before := snapshot(t, s)
	var want []string // newest first
	for _, seeded := range jobs {
		job := before[seeded.ID]
		if job == nil || !finds(filter, job) || !slices.Contains(found, job.Status) {
			continue
		}
		if name == "reschedule jobs" && job.RunAt.Equal(farOff) {
			continue
		}
		want = append(want, job.ID)
	}
	filter.Limit = 1 + random.IntN(len(want)+10)
	for total := 0; ; {
		n := mustBulk(t, name, s, filter)
		require.Equal(t, min(filter.Limit, len(want)-total), n, "%+v", filter)
		if total += n; n == 0 {
			break
		}
		after := snapshot(t, s)
		for i, id := range want {
			require.Equal(t, i < total, isDone(name, after[id]), "number %d of %d in a call with %+v", i, len(want), filter)
		}
		for id, job := range after {
			if !slices.Contains(want, id) {
				require.Equal(t, before[id], job)
			}
		}
	}
}

// isDone says whether what a bulk does has been done to a job.
func isDone(name string, job *scheduler.Job) bool {
	switch name {
	case "cancel jobs":
		return job.Status == scheduler.JobStatusCancelled && job.FinishedAt != nil
	case "retry jobs":
		return job.Status == scheduler.JobStatusPending && !job.RunAt.After(time.Now().Add(patience)) && job.FinishedAt == nil
	case "reschedule jobs":
		return job.RunAt.Equal(farOff)
	default:
		return job == nil
	}
}

// randomFilter has at least one condition.
func randomFilter(random *rand.Rand, statuses []scheduler.JobStatus) (f scheduler.JobFilter) {
	if random.IntN(2) == 0 {
		f.Statuses = []scheduler.JobStatus{pick(random, statuses), pick(random, statuses)}
	}
	if random.IntN(2) == 0 {
		f.Queues = []scheduler.JobQueue{pick(random, seededQueues), pick(random, seededQueues)}
	}
	if random.IntN(3) == 0 {
		f.Names = []string{pick(random, seededNames)}
	}
	if random.IntN(4) == 0 {
		f.Owner = "ada"
	}
	if random.IntN(4) == 0 {
		f.Tags = []string{pick(random, seededTags)}
	}
	f.CreatedAfter = time.Now().Add(-time.Duration(random.IntN(240)) * time.Hour)
	return f
}

func TestBulkTakesAThousandByDefault(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) { c.JobNames = scheduler.JobNames{"a": succeed} })
	mustCreateMany(t, s, 2001, "a", tomorrowIn(""))
	filter := scheduler.JobFilter{Names: []string{"a"}}
	require.Equal(t, 1000, mustBulk(t, "cancel jobs", s, filter))
	filter.Limit = 10_000
	require.Equal(t, 1001, mustBulk(t, "cancel jobs", s, filter))
	require.Zero(t, mustBulk(t, "cancel jobs", s, filter))
	require.Equal(t, 2001, mustBulk(t, "delete jobs", s, filter))
}

// What is left out must not do more than was meant.
func TestBulkRefusesWhatItCanNotUse(t *testing.T) {
	t.Parallel()
	s, ids := newInEachStatus(t)
	before := snapshot(t, s)
	page := mustList(t, s, scheduler.JobFilter{Limit: 1})
	type filter = scheduler.JobFilter
	for name, b := range bulks {
		refused := func(f filter, field string, names ...string) {
			t.Helper()
			n, err := b.do(t.Context(), s, f)
			require.Zero(t, n)
			requireInputError(t, err, field, append(names, name+": ")...)
		}
		refused(filter{}, "filter", "no condition")
		refused(filter{Limit: 10}, "filter", "no condition")
		refused(filter{Statuses: []scheduler.JobStatus{}, Queues: []scheduler.JobQueue{}, Names: []string{}, Tags: []string{}}, "filter")
		refused(filter{Names: []string{"a"}, Cursor: page.Next}, "cursor", page.Next)
		refused(filter{Names: []string{"a"}, Limit: -1}, "limit", "-1", "1 to 10000")
		refused(filter{Names: []string{"a"}, Limit: 10_001}, "limit", "10001", "1 to 10000")
		refused(filter{Names: []string{"a b"}}, "name", `"a b"`)
		refused(filter{Tags: []string{""}}, "tag")
		refused(filter{Owner: "a\x00"}, "owner")
		refused(filter{Statuses: []scheduler.JobStatus{"dying"}}, "status", "dying")
		refused(filter{Queues: []scheduler.JobQueue{"unknown"}}, "queue", "unknown", "default")
		refused(filter{CreatedAfter: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}, "created_after")
		for _, status := range b.refused {
			refused(filter{Statuses: []scheduler.JobStatus{b.found[0], status}}, "status", string(status), string(b.found[0]))
		}
	}
	_, err := s.DeleteJobs(t.Context(), filter{Queues: []scheduler.JobQueue{"unknown"}})
	require.ErrorIs(t, err, scheduler.ErrUnknownQueue)
	_, err = s.RescheduleJobs(t.Context(), filter{Names: []string{"a"}}, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC))
	requireInputError(t, err, "run_at")
	require.Equal(t, before, snapshot(t, s))

	// All of them is something that one can say.
	require.Equal(t, len(ids), mustBulk(t, "delete jobs", s, filter{CreatedBefore: time.Now().Add(time.Hour)}))
	require.Empty(t, snapshot(t, s))
}

// The failed queue is a view here too.
func TestBulkInTheFailedQueue(t *testing.T) {
	t.Parallel()
	s, ids := newInEachStatus(t)
	require.Equal(t, 1, mustBulk(t, "cancel jobs", s, scheduler.JobFilter{Queues: []scheduler.JobQueue{scheduler.JobQueueFailed}}))
	require.Equal(t, scheduler.JobStatusCancelled, mustGet(t, s, ids["failed"]).Status)
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, s, ids["pending"]).Status)
}

// What is planned, and what was called off, is not run by leaving a status out.
func TestRetryJobsWithoutStatuses(t *testing.T) {
	t.Parallel()
	s, ids := newInEachStatus(t)
	all := scheduler.JobFilter{Names: []string{"a"}}
	require.Equal(t, 2, mustBulk(t, "retry jobs", s, all))
	for status, want := range map[scheduler.JobStatus]scheduler.JobStatus{"failed": "pending", "dead": "pending", "cancelled": "cancelled"} {
		job := mustGet(t, s, ids[status])
		require.Equal(t, want, job.Status)
		require.Len(t, job.Errors, 1, "they are kept")
	}
	dead := mustGet(t, s, ids["dead"])
	require.Equal(t, []int{1, 2}, []int{dead.Attempt, dead.MaxAttempts})
	require.True(t, mustGet(t, s, ids["pending"]).RunAt.After(time.Now().Add(time.Hour)))
	require.Zero(t, mustBulk(t, "retry jobs", s, all))

	all.Statuses = []scheduler.JobStatus{"pending", "cancelled"}
	require.Equal(t, 2, mustBulk(t, "retry jobs", s, all))
	require.Zero(t, mustBulk(t, "retry jobs", s, all), "what is due already stays as it is")
	require.Equal(t, 4, mustRun(t, s, scheduler.RunFilter{Limit: 9}).Picked)
}

func TestRetryJobsPassesOverWhatHasHadAThousandAttempts(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": fail}
	})
	ids := mustCreateMany(t, s, 2, "a", scheduler.JobData{MaxAttempts: 1})
	require.Equal(t, 2, mustRun(t, s, scheduler.RunFilter{Limit: 2}).Dead)
	mustExec(t, pool, "UPDATE "+schema+".jobs SET attempt = 1000, claims = 1000, max_attempts = 1000 WHERE id = $1::text::uuid", ids[1])
	filter := scheduler.JobFilter{Statuses: []scheduler.JobStatus{scheduler.JobStatusDead}, Limit: 1}
	require.Equal(t, 1, mustBulk(t, "retry jobs", s, filter), "it is not in the way of the others")
	require.Zero(t, mustBulk(t, "retry jobs", s, filter))
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, s, ids[0]).Status)
}

func TestRescheduleJobsToNow(t *testing.T) {
	t.Parallel()
	s, _ := newInEachStatus(t)
	overdue := mustCreate(t, s, "a", scheduler.JobData{RunAt: time.Now().Add(-time.Hour)})
	for _, want := range []int{2, 0} {
		n, err := s.RescheduleJobs(t.Context(), scheduler.JobFilter{Names: []string{"a"}}, time.Time{})
		require.NoError(t, err)
		require.Equal(t, want, n)
	}
	require.Equal(t, overdue.RunAt, mustGet(t, s, overdue.ID).RunAt)
	require.Equal(t, 3, mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusAny, Limit: 9}).Picked)
}

// What others refer to is theirs to delete first; it holds up no other job.
func TestDeleteJobsPassesOverWhatIsReferredTo(t *testing.T) {
	t.Parallel()
	c := newCleanUpTest(t, nil)
	ids := c.jobs(t, 10, "succeeded", "1 hour")
	mustExecAll(t, c.pool, inTestSchema(c.schema, `
		CREATE TABLE s.orders (job uuid REFERENCES s.jobs);
		CREATE TABLE s.notes (job uuid REFERENCES s.jobs ON DELETE CASCADE)`))
	mustExec(t, c.pool, inTestSchema(c.schema, "INSERT INTO s.orders VALUES ($1::text::uuid), ($2::text::uuid)"), ids[4], ids[9])
	mustExec(t, c.pool, inTestSchema(c.schema, "INSERT INTO s.notes SELECT id FROM s.jobs"))
	filter := scheduler.JobFilter{Statuses: []scheduler.JobStatus{"succeeded"}, Limit: 3}
	for _, want := range []int{3, 3, 2, 0} {
		require.Equal(t, want, mustBulk(t, "delete jobs", c.Scheduler, filter))
	}
	require.Equal(t, []string{ids[4], ids[9]}, c.left(t))
	require.Equal(t, 2, mustQuery[int](t, c.pool, "SELECT count(*) FROM "+c.schema+".notes"))
}

// Where prepared statements can't be used, everything works all the same.
func TestBulkInEveryExecMode(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeCacheDescribe} {
		config := newPool(t).Config()
		config.ConnConfig.DefaultQueryExecMode = mode
		told := newEvents()
		s := newSchedulerOn(t, newPoolWith(t, config), func(c *scheduler.Config) { c.Observer = told.tell })
		ids := mustCreateMany(t, s, 2, "a", scheduler.JobData{Owner: "ada", RunAt: time.Now().Add(time.Hour), Payload: "text"})
		for range ids {
			told.next(t, scheduler.EventCreated)
		}
		filter := scheduler.JobFilter{Owner: "ada", Queues: []scheduler.JobQueue{"default"}, Names: []string{"a"},
			CreatedAfter: time.Now().Add(-time.Hour), CreatedBefore: time.Now().Add(time.Hour)}
		for _, name := range []string{"reschedule jobs", "cancel jobs", "retry jobs", "delete jobs"} {
			filter.Statuses = nil
			if name == "retry jobs" {
				filter.Statuses = []scheduler.JobStatus{"cancelled"}
			}
			require.Equal(t, 2, mustBulk(t, name, s, filter))
			require.Zero(t, mustBulk(t, name, s, filter))
		}
		for _, id := range []string{ids[1], ids[0]} { // newest first
			e := told.next(t, scheduler.EventCancelled)
			require.Equal(t, id, e.Job.ID)
			require.Equal(t, scheduler.JobStatusCancelled, e.Job.Status)
			require.JSONEq(t, `"text"`, string(e.Job.Payload))
		}
		require.Empty(t, told)
	}
}

func TestBulkKnowsOfNoTable(t *testing.T) {
	t.Parallel()
	s, err := scheduler.New(newPool(t), scheduler.Config{Schema: unique()})
	require.NoError(t, err)
	for name, b := range bulks {
		_, err := b.do(t.Context(), s, scheduler.JobFilter{Names: []string{"a"}})
		require.ErrorContains(t, err, "call Migrate first")
		require.True(t, strings.HasPrefix(err.Error(), name), err)
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("over"))
		_, err = b.do(ctx, s, scheduler.JobFilter{Names: []string{"a"}})
		require.ErrorIs(t, err, context.Canceled)
	}
}
