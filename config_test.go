package scheduler_test

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// idlePool is a pool that has never had a connection, and can't have one.
func idlePool(t *testing.T) *pgxpool.Pool {
	pool, err := pgxpool.New(t.Context(), "postgres://nobody@127.0.0.1:1/nowhere?connect_timeout=1")
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func TestNewTouchesNoDatabase(t *testing.T) {
	t.Parallel()
	pool := idlePool(t)
	s, err := scheduler.New(pool, scheduler.Config{})
	require.NoError(t, err)
	require.Zero(t, pool.Stat().NewConnsCount()+int64(pool.Stat().ConstructingConns()))
	require.Error(t, s.Migrate(t.Context()), "the pool works on nothing")
	require.NoError(t, s.Shutdown(t.Context()), "nothing was begun")
	require.NoError(t, s.Shutdown(t.Context()), "once more")
	_, err = s.Run(t.Context(), scheduler.RunFilter{})
	require.ErrorIs(t, err, scheduler.ErrShuttingDown)
}

func TestNewRefusesBadSettings(t *testing.T) {
	t.Parallel()
	type (
		config = scheduler.Config
		queue  = scheduler.QueueConfig
		queues = map[scheduler.JobQueue]queue
	)
	names := func(name string) config { return config{JobNames: scheduler.JobNames{name: succeed}} }
	oneQueue := func(name scheduler.JobQueue, q queue) config { return config{Queues: queues{name: q}} }
	long := strings.Repeat("n", 10_000)
	for _, test := range []struct {
		config config
		field  string
		names  []string
	}{
		{names(""), "job_names", []string{`""`, "1 to 128"}},
		{names("a b"), "job_names", []string{`"a b"`}},
		{names("a\n"), "job_names", []string{`"a\n"`}},
		{names(long), "job_names", []string{"10000 bytes"}},
		{config{JobNames: scheduler.JobNames{"a": nil}}, "job_names", []string{`"a"`, "nil"}},
		{config{Tokens: []string{"good", ""}}, "tokens", []string{"token 1"}},
		{config{Tokens: []string{"s3cret line\n"}}, "tokens", []string{"token 0"}},
		{config{Tokens: []string{"s3crét"}}, "tokens", []string{"token 0"}},
		{config{Tokens: []string{strings.Repeat("t", 4097)}}, "tokens", []string{"token 0", "4096"}},
		{config{Schema: "Scheduler"}, "schema", []string{`"Scheduler"`}},
		{config{Schema: "1st"}, "schema", []string{`"1st"`}},
		{config{Schema: `a"b`}, "schema", []string{`"a\"b"`}},
		{config{Schema: "a;b"}, "schema", []string{`"a;b"`}},
		{config{Schema: "pg_jobs"}, "schema", []string{`"pg_jobs"`, "Postgres"}},
		{config{Schema: strings.Repeat("s", 49)}, "schema", []string{"1 to 48"}},
		{config{BasePath: "api/jobs"}, "base_path", []string{`"api/jobs"`}},
		{config{BasePath: "/api/jobs/"}, "base_path", []string{`"/api/jobs/"`}},
		{config{BasePath: "/api//jobs"}, "base_path", []string{`"/api//jobs"`}},
		{config{BasePath: "/{id}"}, "base_path", []string{`"/{id}"`}},
		{config{BasePath: "/a b"}, "base_path", []string{`"/a b"`}},
		{config{Concurrency: -1}, "concurrency", []string{"-1", "1 to"}},
		{config{Concurrency: 1_000_001}, "concurrency", []string{"1000001", "1 to"}},
		{config{Lease: 999 * time.Millisecond}, "lease", []string{"999ms", "1s"}},
		{config{Lease: -time.Second}, "lease", []string{"-1s", "1s"}},
		{config{Lease: time.Hour + 1}, "lease", []string{"1h"}},
		{config{PollInterval: time.Millisecond}, "poll_interval", []string{"1ms", "10ms"}},
		{config{PollInterval: -1}, "poll_interval", []string{"10ms"}},
		{oneQueue("failed", queue{MaxAttempts: 1}), "queues", []string{`"failed"`, "view"}},
		{oneQueue("default", queue{Extends: "blocking"}), "queues", []string{`"default"`, `"blocking"`}},
		{oneQueue("blocking", queue{Extends: "default"}), "queues", []string{`"blocking"`, `"default"`}},
		{oneQueue("", queue{}), "queues", []string{`""`, "1 to 63"}},
		{oneQueue("a b", queue{}), "queues", []string{`"a b"`, "1 to 63"}},
		{oneQueue("a\x00", queue{}), "queues", []string{`"a\x00"`}},
		{oneQueue("-a", queue{}), "queues", []string{`"-a"`}},
		{oneQueue(scheduler.JobQueue(long), queue{}), "queues", []string{"10000 bytes"}},
		{oneQueue("a", queue{Extends: "failed"}), "queues", []string{`"a"`, `"failed"`}},
		{config{Queues: queues{"a": {Extends: "b"}, "b": {}}}, "queues", []string{`"a"`, `"b"`, `"default"`}},
		{oneQueue("a", queue{MaxAttempts: -1}), "queues", []string{`"a"`, "-1"}},
		{oneQueue("a", queue{MaxAttempts: 1001}), "queues", []string{`"a"`, "1001"}},
		{oneQueue("a", queue{Timeout: -time.Second}), "queues", []string{`"a"`, "-1s"}},
	} {
		_, err := scheduler.New(idlePool(t), test.config)
		requireInputError(t, err, test.field, test.names...)
		require.ErrorContains(t, err, "new scheduler: ")
		require.NotContains(t, err.Error(), "s3cr", "a token is shown to nobody")
	}
	_, err := scheduler.New(nil, config{})
	requireInputError(t, err, "pool", "nil")
}

func TestNewTakesSettingsAtTheirLimits(t *testing.T) {
	t.Parallel()
	for _, config := range []scheduler.Config{
		{JobNames: scheduler.JobNames{"A1_.:/-": succeed, strings.Repeat("n", 128): succeed}},
		{Schema: "_" + strings.Repeat("s", 47), BasePath: "/"},
		{BasePath: "/v1/~jobs_a.b-c", Tokens: []string{"!~", strings.Repeat("t", 1000)}},
		{Concurrency: 1, Lease: time.Second, PollInterval: 10 * time.Millisecond, RunWait: -1, KeepFinished: -1, KeepDead: -1},
		{Concurrency: 100_000, Lease: time.Hour, PollInterval: time.Hour},
		{Queues: map[scheduler.JobQueue]scheduler.QueueConfig{
			"default": {MaxAttempts: 1}, "blocking": {Extends: "blocking", MaxAttempts: 1000}, "A1_.-": {Extends: "default"},
			scheduler.JobQueue(strings.Repeat("q", 63)): {Extends: "blocking", SkipFailed: true, Timeout: time.Nanosecond},
		}},
	} {
		_, err := scheduler.New(idlePool(t), config)
		require.NoError(t, err)
	}
}

func TestNewLeavesTheCallersConfigAlone(t *testing.T) {
	t.Parallel()
	names := scheduler.JobNames{"a": succeed}
	queues := map[scheduler.JobQueue]scheduler.QueueConfig{"own": {}, "blocking": {}}
	tokens := []string{"123ABC"}
	s := newScheduler(t, func(c *scheduler.Config) { c.JobNames, c.Queues, c.Tokens = names, queues, tokens })
	require.Equal(t, []string{"a"}, slices.Collect(maps.Keys(names)))
	require.Equal(t, map[scheduler.JobQueue]scheduler.QueueConfig{"own": {}, "blocking": {}}, queues)

	// And what the caller does with them later changes nothing.
	delete(names, "a")
	names["b"] = succeed
	delete(queues, "own")
	queues["other"] = scheduler.QueueConfig{}
	mustCreate(t, s, "a", scheduler.JobData{Queue: "own"})
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Queue: "own"}).Succeeded)
	_, err := s.CreateJob(t.Context(), "b", scheduler.JobData{})
	require.ErrorIs(t, err, scheduler.ErrUnknownJobName)
	_, err = s.CreateJob(t.Context(), "a", scheduler.JobData{Queue: "other"})
	require.ErrorIs(t, err, scheduler.ErrUnknownQueue)
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	pool := newPoolOn(t, newDatabase(t))
	started, release := make(chan struct{}, 200), make(chan struct{})
	s, err := scheduler.New(pool, scheduler.Config{JobNames: scheduler.JobNames{
		"a": func(context.Context, *scheduler.Job) (any, error) {
			started <- struct{}{}
			<-release
			return nil, nil
		},
	}})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	// Their ages are those of their ids too, as if they had been created then.
	const insertOld = `
		INSERT INTO scheduler.jobs (id, name, status, lane, created_at, finished_at)
		SELECT scheduler.first_id_after(at), 'old', $2, NULL, at, at FROM (SELECT now() - $1::interval) AS t (at) RETURNING id::text`
	old := map[string]string{}
	for name, kind := range map[string][2]string{
		"kept":      {"6 days 23 hours", "succeeded"},
		"gone":      {"7 days 1 hour", "succeeded"},
		"kept dead": {"29 days 23 hours", "dead"},
		"gone dead": {"30 days 1 hour", "dead"},
	} {
		old[name] = mustQuery[string](t, pool, insertOld, kind[0], kind[1])
	}
	mustCreateMany(t, s, 101, "a", scheduler.JobData{})

	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: 101})
	for range 100 {
		await(t, started)
	}
	require.Equal(t, 100, mustQuery[int](t, pool, "SELECT count(*) FROM scheduler.jobs WHERE status = 'running'"), "Concurrency")
	lease := mustQuery[float64](t, pool, "SELECT extract(epoch FROM expires_at - now())::float8 FROM scheduler.leases")
	require.Greater(t, lease, 14.0)
	require.LessOrEqual(t, lease, 30.0)
	close(release)
	require.Equal(t, 101, await(t, run).report.Succeeded)

	exists := func(name string) bool {
		return mustQuery[bool](t, pool, "SELECT EXISTS (SELECT FROM scheduler.jobs WHERE id = $1::text::uuid)", old[name])
	}
	waitFor(t, func() bool { return !exists("gone") && !exists("gone dead") })
	require.True(t, exists("kept"))
	require.True(t, exists("kept dead"))
	require.NoError(t, s.Shutdown(t.Context()))
}
