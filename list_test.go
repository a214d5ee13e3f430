package scheduler_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func mustList(t *testing.T, s *scheduler.Scheduler, filter scheduler.JobFilter) scheduler.JobPage {
	t.Helper()
	page, err := s.ListJobs(t.Context(), filter)
	require.NoError(t, err)
	require.NotNil(t, page.Jobs)
	return page
}

// listAll returns the ids on all pages.
func listAll(t *testing.T, s *scheduler.Scheduler, filter scheduler.JobFilter) []string {
	t.Helper()
	ids := []string{}
	for {
		page := mustList(t, s, filter)
		ids = append(ids, idsOf(page.Jobs)...)
		if page.Next == "" {
			return ids
		}
		require.Len(t, page.Jobs, filter.Limit, "a page that is not the last one is full")
		filter.Cursor = page.Next
	}
}

func idsOf(jobs []*scheduler.Job) []string {
	ids := make([]string, len(jobs))
	for i, job := range jobs {
		ids[i] = job.ID
	}
	return ids
}

// Every filter alone, and many combined, in every exec mode of the pool.
func TestListJobsFindsWhatTheFilterSays(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	configure := func(c *scheduler.Config) {
		if schema == "" {
			schema = c.Schema
		}
		c.Schema, c.Queues = schema, queueConfigs{"mails": {}}
	}
	schedulers := []*scheduler.Scheduler{newSchedulerOn(t, pool, configure)}
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		config := pool.Config()
		config.ConnConfig.DefaultQueryExecMode = mode
		schedulers = append(schedulers, newSchedulerOn(t, newPoolWith(t, config), configure))
	}
	jobs, random := seed(t, pool, schema, 1200)
	check := func(filter scheduler.JobFilter) {
		expected := []string{}
		for _, job := range jobs {
			if finds(filter, job) {
				expected = append(expected, job.ID)
			}
		}
		require.Equal(t, expected, listAll(t, pick(random, schedulers), filter), "%+v", filter)
	}

	oldest, middle := jobs[len(jobs)-1].CreatedAt, jobs[len(jobs)/2].CreatedAt
	for _, filter := range []scheduler.JobFilter{
		{}, {Owner: "ada"}, {Owner: `"ü`}, {Owner: "nobody"}, {Tags: []string{"x"}}, {Tags: []string{"x", "z"}}, {Tags: []string{"none"}},
		{Queues: []scheduler.JobQueue{"mails"}}, {Queues: []scheduler.JobQueue{"mails", "elsewhere"}}, {Names: []string{"b"}}, {Names: []string{"b", "c", "none"}},
		{CreatedAfter: middle}, {CreatedBefore: middle}, {CreatedAfter: oldest, CreatedBefore: middle}, {CreatedAfter: middle, CreatedBefore: middle},
	} {
		filter.Limit = 7
		check(filter)
	}
	for _, status := range seededStatuses {
		check(scheduler.JobFilter{Statuses: []scheduler.JobStatus{status}, Limit: 3})
	}
	for range 300 {
		filter := scheduler.JobFilter{Limit: pick(random, []int{5, 50, 1000})}
		if random.IntN(2) == 0 {
			filter.Statuses = slices.DeleteFunc(slices.Clone(seededStatuses), func(scheduler.JobStatus) bool { return random.IntN(2) == 0 })
		}
		if random.IntN(3) == 0 {
			filter.Queues = []scheduler.JobQueue{pick(random, seededQueues), pick(random, seededQueues)}
		}
		if random.IntN(3) == 0 {
			filter.Names = []string{pick(random, seededNames), pick(random, seededNames)}
		}
		if random.IntN(3) == 0 {
			filter.Owner = pick(random, seededOwners)
		}
		if random.IntN(3) == 0 {
			filter.Tags = []string{pick(random, seededTags), pick(random, seededTags)}
		}
		if random.IntN(3) == 0 {
			filter.CreatedAfter = pick(random, jobs).CreatedAt
		}
		if at := pick(random, jobs).CreatedAt; random.IntN(3) == 0 && !at.Before(filter.CreatedAfter) {
			filter.CreatedBefore = at
		}
		check(filter)
	}
}

// A listed job has all that GetJob has, in every status that it goes through.
func TestListJobsShowsWhatGetJobShows(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}), make(chan struct{})
	s := newScheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"succeed": succeed, "fail": fail, "never": func(context.Context, *scheduler.Job) (any, error) {
			return nil, scheduler.Cancel(nil)
		}, "long": func(context.Context, *scheduler.Job) (any, error) {
			close(started)
			<-release
			return nil, nil
		}}
	})
	data := scheduler.JobData{Payload: []int{1}, Owner: "ada", Tags: []string{"x"}, Metadata: map[string]int{"n": 1}, Timeout: time.Minute}
	want := map[scheduler.JobStatus]string{}
	for name, status := range map[string]scheduler.JobStatus{"succeed": "succeeded", "fail": "failed", "never": "dead"} {
		want[status] = mustCreate(t, s, name, data).ID
	}
	require.Equal(t, 3, mustRun(t, s, scheduler.RunFilter{Limit: 3}).Picked)
	want["running"] = mustCreate(t, s, "long", data).ID
	run := goRun(t.Context(), s, scheduler.RunFilter{})
	await(t, started)
	want["pending"] = mustCreate(t, s, "succeed", data).ID
	for status, id := range want {
		page := mustList(t, s, scheduler.JobFilter{Statuses: []scheduler.JobStatus{status}})
		require.Equal(t, []string{id}, idsOf(page.Jobs), status)
		expected, err := json.Marshal(mustGet(t, s, id))
		require.NoError(t, err)
		requireSameJSON(t, page.Jobs[0], expected)
		require.Equal(t, time.Minute, page.Jobs[0].Timeout)
	}
	require.Len(t, mustList(t, s, scheduler.JobFilter{}).Jobs, 5)
	close(release)
	require.NoError(t, await(t, run).err)
}

// Going through the pages shows every job once that was there at the beginning
// and is still there at the end, whatever comes and goes meanwhile.
func TestListJobsWhileJobsComeAndGo(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	ids := mustCreateMany(t, s, 400, "a", scheduler.JobData{})
	slices.Reverse(ids)
	doomed := func(id string) bool { return slices.Index(ids, id)%2 == 0 }
	remove := func(ctx context.Context, id string) error {
		_, err := pool.Exec(ctx, "DELETE FROM "+schema+".jobs WHERE id = $1::text::uuid", id)
		return err
	}

	ctx, stop := context.WithCancel(t.Context())
	churned := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if _, err := other.CreateJob(t.Context(), "a", scheduler.JobData{}); err != nil {
				churned <- err
				return
			}
			if err := remove(t.Context(), ids[2*rand.IntN(len(ids)/2)]); err != nil {
				churned <- err
				return
			}
		}
		churned <- nil
	}()
	defer stop()

	var shown []string
	for filter := (scheduler.JobFilter{Limit: 7}); ; {
		page := mustList(t, s, filter)
		shown = append(shown, idsOf(page.Jobs)...)
		if page.Next == "" {
			break
		}
		filter.Cursor = page.Next
		// The job at which the page ended goes, and so may the one that comes next.
		if last := shown[len(shown)-1]; doomed(last) {
			require.NoError(t, remove(t.Context(), last))
		} else if next := slices.Index(ids, last) + 1; next > 0 && next < len(ids) {
			require.NoError(t, remove(t.Context(), ids[next]))
		}
		mustCreate(t, other, "a", scheduler.JobData{})
	}
	stop()
	require.NoError(t, await(t, churned))
	require.True(t, slices.IsSortedFunc(shown, func(a, b string) int { return strings.Compare(b, a) }), "newest first")
	require.Len(t, slices.Compact(slices.Clone(shown)), len(shown), "none twice")
	var kept []string
	for _, id := range shown {
		if at := slices.Index(ids, id); at >= 0 && !doomed(id) {
			kept = append(kept, id)
		}
	}
	require.Equal(t, slices.DeleteFunc(slices.Clone(ids), doomed), kept)
}

func TestListJobsLimits(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, nil)
	require.Equal(t, scheduler.JobPage{Jobs: []*scheduler.Job{}}, mustList(t, s, scheduler.JobFilter{}))
	mustCreateMany(t, s, 1002, "a", scheduler.JobData{})
	page := mustList(t, s, scheduler.JobFilter{})
	require.Len(t, page.Jobs, 50)
	require.Len(t, mustList(t, s, scheduler.JobFilter{Limit: 1000}).Jobs, 1000)
	// With a page that ends where the jobs do, there is no other.
	page = mustList(t, s, scheduler.JobFilter{Limit: 1000, Cursor: page.Next})
	require.Len(t, page.Jobs, 952)
	require.Empty(t, page.Next)
	for filter := (scheduler.JobFilter{Limit: 501}); ; filter.Cursor = page.Next {
		page = mustList(t, s, filter)
		require.Len(t, page.Jobs, 501)
		if filter.Cursor != "" {
			break
		}
	}
	require.Empty(t, page.Next)

	// Large jobs make short pages.
	large := newScheduler(t, nil)
	ids := mustCreateMany(t, large, 20, "a", scheduler.JobData{Payload: strings.Repeat("a", 1<<20-2)})
	slices.Reverse(ids)
	page = mustList(t, large, scheduler.JobFilter{})
	require.Less(t, len(page.Jobs), 18)
	rest := mustList(t, large, scheduler.JobFilter{Cursor: page.Next})
	require.Empty(t, rest.Next)
	require.Equal(t, ids, append(idsOf(page.Jobs), idsOf(rest.Jobs)...))
}

func TestListJobsRefusesOtherCursors(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, nil)
	mustCreateMany(t, s, 3, "a", scheduler.JobData{})
	cursor := mustList(t, s, scheduler.JobFilter{Limit: 1}).Next
	require.Regexp(t, "^[A-Za-z0-9_-]{28}$", cursor)
	bytes, err := base64.RawURLEncoding.DecodeString(cursor)
	require.NoError(t, err)
	tampered := []string{
		" ", "nope", "0", cursor[1:], cursor[:27], cursor + "A", cursor + "=", cursor + "\n", cursor[:14] + "\n" + cursor[14:], " " + cursor,
		cursor + cursor, strings.ToLower(cursor), strings.Repeat("A", 28), strings.Repeat("A", 10_000), "\x00", "\xff", mustList(t, s, scheduler.JobFilter{}).Jobs[0].ID,
		base64.RawURLEncoding.EncodeToString(bytes[1:17]), base64.StdEncoding.EncodeToString(bytes[:20]),
	}
	for i := range bytes {
		for bit := range 8 {
			other := slices.Clone(bytes)
			other[i] ^= 1 << bit
			tampered = append(tampered, base64.RawURLEncoding.EncodeToString(other))
		}
	}
	for _, text := range tampered {
		_, err := s.ListJobs(t.Context(), scheduler.JobFilter{Cursor: text})
		requireInputError(t, err, "cursor")
	}
	require.Len(t, mustList(t, s, scheduler.JobFilter{Cursor: cursor}).Jobs, 2)
}

func TestListJobsInput(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) { c.JobNames = scheduler.JobNames{"a": succeed} })
	now := time.Now()
	texts := func(n int) []string { return strings.Split(strings.Repeat("a,", n-1)+"a", ",") }
	for name, c := range map[string]struct {
		field  string
		filter scheduler.JobFilter
		names  []string
	}{
		"no such status":       {"status", scheduler.JobFilter{Statuses: []scheduler.JobStatus{"dead", "done"}}, []string{`"done"`, "pending, running, succeeded, failed, dead, cancelled"}},
		"no status of a job":   {"status", scheduler.JobFilter{Statuses: []scheduler.JobStatus{scheduler.JobStatusAny}}, []string{`"any"`}},
		"empty status":         {"status", scheduler.JobFilter{Statuses: []scheduler.JobStatus{""}}, []string{`""`}},
		"too many statuses":    {"status", scheduler.JobFilter{Statuses: slices.Repeat([]scheduler.JobStatus{"dead"}, 101)}, []string{"101", "100"}},
		"no such queue":        {"queue", scheduler.JobFilter{Queues: []scheduler.JobQueue{"default", "nowhere"}}, []string{`"nowhere"`, "blocking, default"}},
		"no name of a queue":   {"queue", scheduler.JobFilter{Queues: []scheduler.JobQueue{"a\x00"}}, []string{`"a\x00"`}},
		"empty queue":          {"queue", scheduler.JobFilter{Queues: []scheduler.JobQueue{""}}, []string{`""`}},
		"too many queues":      {"queue", scheduler.JobFilter{Queues: slices.Repeat([]scheduler.JobQueue{"default"}, 101)}, []string{"101"}},
		"failed beside others": {"queue", scheduler.JobFilter{Queues: []scheduler.JobQueue{"failed", "default"}}, []string{`"failed"`, "alone"}},
		"dead in failed":       {"status", scheduler.JobFilter{Queues: []scheduler.JobQueue{"failed"}, Statuses: []scheduler.JobStatus{"dead"}}, []string{`"dead"`, `"failed"`}},
		"no name of a job":     {"name", scheduler.JobFilter{Names: []string{"a b"}}, []string{`"a b"`}},
		"too many names":       {"name", scheduler.JobFilter{Names: texts(101)}, []string{"101"}},
		"empty tag":            {"tag", scheduler.JobFilter{Tags: []string{"x", ""}}, []string{`""`}},
		"long tag":             {"tag", scheduler.JobFilter{Tags: []string{strings.Repeat("a", 257)}}, []string{"257"}},
		"too many tags":        {"tag", scheduler.JobFilter{Tags: texts(33)}, []string{"33"}},
		"long owner":           {"owner", scheduler.JobFilter{Owner: strings.Repeat("a", 257)}, []string{"257"}},
		"NUL in owner":         {"owner", scheduler.JobFilter{Owner: "a\x00"}, nil},
		"far year":             {"created_after", scheduler.JobFilter{CreatedAfter: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}, []string{"10000"}},
		"times reversed":       {"created_before", scheduler.JobFilter{CreatedAfter: now, CreatedBefore: now.Add(-time.Second)}, []string{"created_after"}},
		"limit below zero":     {"limit", scheduler.JobFilter{Limit: -1}, []string{"-1", "1000"}},
		"limit too large":      {"limit", scheduler.JobFilter{Limit: 1001}, []string{"1001", "1000"}},
	} {
		_, err := s.ListJobs(t.Context(), c.filter)
		require.Error(t, err, name)
		requireInputError(t, err, c.field, c.names...)
		if c.field == "queue" && name != "too many queues" && name != "failed beside others" {
			require.ErrorIs(t, err, scheduler.ErrUnknownQueue, name)
		}
	}
	// The ends of what there may be.
	for _, filter := range []scheduler.JobFilter{
		{CreatedAfter: time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC), CreatedBefore: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
		{Names: texts(100), Tags: texts(32), Queues: slices.Repeat([]scheduler.JobQueue{"default"}, 100), Statuses: slices.Repeat([]scheduler.JobStatus{"dead"}, 100)},
		{Names: []string{"b"}}, // no handler here
	} {
		require.Empty(t, mustList(t, s, filter).Jobs)
	}
}

// The failed queue is a view here too; and a queue is known that only another
// process has declared, or that has jobs.
func TestListJobsOfQueues(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"fail": fail, "succeed": succeed}
	})
	failed := mustCreate(t, s, "fail", scheduler.JobData{}).ID
	mustRun(t, s, scheduler.RunFilter{})
	mustCreate(t, s, "succeed", scheduler.JobData{})
	for _, statuses := range [][]scheduler.JobStatus{nil, {scheduler.JobStatusFailed}} {
		page := mustList(t, s, scheduler.JobFilter{Queues: []scheduler.JobQueue{scheduler.JobQueueFailed}, Statuses: statuses})
		require.Equal(t, []string{failed}, idsOf(page.Jobs))
	}

	others := scheduler.JobFilter{Queues: []scheduler.JobQueue{"others"}}
	_, err := s.ListJobs(t.Context(), others)
	requireInputError(t, err, "queue", `"others"`)
	other, err := scheduler.New(pool, scheduler.Config{Schema: schema, Queues: queueConfigs{"others": {}}})
	require.NoError(t, err)
	require.Empty(t, mustList(t, other, others).Jobs, "declared here")
	id := mustCreate(t, other, "a", scheduler.JobData{Queue: "others"}).ID
	require.Equal(t, []string{id}, idsOf(mustList(t, s, others).Jobs), "there is a job")
	mustExec(t, pool, "DELETE FROM "+schema+".jobs WHERE id = $1::text::uuid", id)
	_, err = s.ListJobs(t.Context(), others)
	requireInputError(t, err, "queue", `"others"`)
	require.NoError(t, other.Migrate(t.Context()))
	require.Empty(t, mustList(t, s, others).Jobs, "declared elsewhere")
}

func TestListJobsNeedsTheSchema(t *testing.T) {
	t.Parallel()
	s, err := scheduler.New(newPool(t), scheduler.Config{Schema: unique()})
	require.NoError(t, err)
	_, err = s.ListJobs(t.Context(), scheduler.JobFilter{})
	require.ErrorContains(t, err, "call Migrate first")
	_, err = s.QueueStats(t.Context())
	require.ErrorContains(t, err, "call Migrate first")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.ListJobs(ctx, scheduler.JobFilter{})
	require.ErrorIs(t, err, context.Canceled, fmt.Sprint(err))
}
