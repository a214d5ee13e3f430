package scheduler_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// Owner, tags and metadata are the same however a job was created, and its
// handler sees them.
func TestAttributes(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	jobs := make(chan *scheduler.Job, 1)
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": telling(jobs)}
	})
	data := scheduler.JobData{Owner: "ada", Tags: []string{"x", "ü \"quoted\""}, Metadata: map[string]int{"n": 1}}
	check := func(job *scheduler.Job) {
		require.Equal(t, data.Owner, job.Owner)
		require.Equal(t, data.Tags, job.Tags)
		require.JSONEq(t, `{"n": 1}`, string(job.Metadata))
	}
	handled := func(id string) {
		mustRun(t, s, scheduler.RunFilter{})
		job := await(t, jobs)
		require.Equal(t, id, job.ID)
		check(job)
		check(mustGet(t, s, id))
	}
	created := mustCreate(t, s, "a", data)
	check(created)
	handled(created.ID)

	ids, err := s.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "a", JobData: data}})
	require.NoError(t, err)
	handled(ids[0])

	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	inTx, err := s.CreateJobTx(t.Context(), tx, "a", data)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	check(inTx)
	handled(inTx.ID)

	handled(mustQuery[string](t, pool, "SELECT "+schema+`.create_job('a', owner => 'ada', tags => $1, metadata => '{"n": 1}')::text`, data.Tags))

	plain := mustCreate(t, s, "a", scheduler.JobData{})
	mustRun(t, s, scheduler.RunFilter{})
	for _, job := range []*scheduler.Job{plain, await(t, jobs), mustGet(t, s, plain.ID)} {
		require.Empty(t, job.Owner)
		require.Equal(t, []string{}, job.Tags)
		require.Nil(t, job.Metadata)
	}
	require.Equal(t, 1, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE attributes IS NULL"))
}

func TestAttributesInput(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	for name, c := range map[string]struct {
		field string
		data  scheduler.JobData
	}{
		"long owner":        {"owner", scheduler.JobData{Owner: strings.Repeat("a", 257)}},
		"NUL in owner":      {"owner", scheduler.JobData{Owner: "a\x00b"}},
		"owner not UTF-8":   {"owner", scheduler.JobData{Owner: "\xff"}},
		"too many tags":     {"tags", scheduler.JobData{Tags: strings.Split(strings.Repeat("a,", 32)+"a", ",")}},
		"empty tag":         {"tags", scheduler.JobData{Tags: []string{"a", ""}}},
		"long tag":          {"tags", scheduler.JobData{Tags: []string{strings.Repeat("a", 257)}}},
		"metadata an array": {"metadata", scheduler.JobData{Metadata: []int{1}}},
		"metadata no JSON":  {"metadata", scheduler.JobData{Metadata: json.RawMessage("{")}},
		"long metadata":     {"metadata", scheduler.JobData{Metadata: map[string]string{"a": strings.Repeat("a", 16<<10)}}},
	} {
		_, err := s.CreateJob(t.Context(), "a", c.data)
		var input *scheduler.InputError
		require.ErrorAs(t, err, &input, name)
		require.Equal(t, c.field, input.Field, name)
	}
	for _, arguments := range []string{
		"owner => repeat('a', 257)", "tags => ARRAY['']", "tags => ARRAY[NULL]", "tags => array_fill('a'::text, ARRAY[33])",
		"metadata => '[]'", "metadata => '1'", "metadata => jsonb_build_object('a', repeat('a', 16384))",
	} {
		_, err := pool.Exec(t.Context(), "SELECT "+schema+".create_job('a', "+arguments+")")
		require.ErrorContains(t, err, "create_job: ", arguments)
	}
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs"))
	empty := mustCreate(t, s, "a", scheduler.JobData{Tags: []string{}, Metadata: json.RawMessage("null")})
	require.Nil(t, empty.Metadata)
	require.Nil(t, mustQuery[*string](t, pool, "SELECT attributes::text FROM "+schema+".jobs"))
}

func TestAttributesOverHTTP(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	var job scheduler.Job
	w.call(t, "POST", "/api/jobs", `{"name": "succeed", "owner": "ada", "tags": ["x", "y"], "metadata": {"n": 1}, "max_attempts": 3, "timeout": "90s"}`).
		requireJSON(t, 201, &job)
	require.Equal(t, "ada", job.Owner)
	require.Equal(t, []string{"x", "y"}, job.Tags)
	require.JSONEq(t, `{"n": 1}`, string(job.Metadata))
	stored := mustGet(t, w.Scheduler, job.ID)
	require.Equal(t, 3, stored.MaxAttempts)
	require.Equal(t, 90*time.Second, stored.Timeout)
	require.Equal(t, job.Tags, stored.Tags)

	for body, field := range map[string]string{
		`"owner": 1`:            "owner",
		`"tags": "a"`:           "tags",
		`"tags": [""]`:          "tags",
		`"metadata": []`:        "metadata",
		`"max_attempts": "1"`:   "max_attempts",
		`"max_attempts": -1`:    "max_attempts",
		`"max_attempts": 1.5`:   "max_attempts",
		`"timeout": 1`:          "timeout",
		`"timeout": "tomorrow"`: "timeout",
		`"timeout": "-1s"`:      "timeout",
	} {
		w.call(t, "POST", "/api/jobs", `{"name": "succeed", `+body+`}`).requireProblem(t, 422, field)
	}
	require.Equal(t, 1, w.stored(t))
}
