package scheduler_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// objects lists everything that is defined in a schema, and which transaction
// wrote it.
const objects = `
SELECT string_agg(kind || ' ' || name || ' ' || version, E'\n' ORDER BY kind, name) FROM (
	SELECT 'relation', relname::text, xmin::text FROM pg_class WHERE relnamespace = to_regnamespace($1)
	UNION ALL SELECT 'function', oid::regprocedure::text, xmin::text FROM pg_proc WHERE pronamespace = to_regnamespace($1)
	UNION ALL SELECT 'constraint', conname::text, xmin::text FROM pg_constraint WHERE connamespace = to_regnamespace($1)
) AS t (kind, name, version)`

func TestMigrateChangesNothingWhereNothingIsToDo(t *testing.T) {
	t.Parallel()
	pool := newPoolOn(t, newDatabase(t))
	s, err := scheduler.New(pool, scheduler.Config{})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	before := mustQuery[string](t, pool, objects, "scheduler") + mustQuery[string](t, pool, objects, "public")
	require.Contains(t, before, "relation jobs")
	require.Contains(t, before, "create_job(")
	rows := mustQuery[string](t, pool, "SELECT string_agg(version || ' ' || name || ' ' || applied_at, ',') FROM scheduler.schema_migrations")
	job := mustCreate(t, s, "a", scheduler.JobData{})
	for range 2 {
		require.NoError(t, s.Migrate(t.Context()))
		require.Equal(t, before, mustQuery[string](t, pool, objects, "scheduler")+mustQuery[string](t, pool, objects, "public"))
		require.Equal(t, rows, mustQuery[string](t, pool, "SELECT string_agg(version || ' ' || name || ' ' || applied_at, ',') FROM scheduler.schema_migrations"))
	}
	require.Equal(t, job, mustGet(t, s, job.ID))
}

func TestManyMayMigrateAtOnce(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			url := newDatabase(t)
			mustExec(t, newPoolOn(t, url), fmt.Sprintf("DO $$ BEGIN EXECUTE format('ALTER DATABASE %%I SET default_transaction_isolation = %%L', current_database(), '%s'); END $$", level))
			pool := newPoolOn(t, url)
			var all sync.WaitGroup
			errs := make([]error, 8)
			for i := range errs {
				s, err := scheduler.New(pool, scheduler.Config{Queues: queueConfigs{scheduler.JobQueue("own" + string(rune('0'+i))): {MaxAttempts: i + 1}}})
				require.NoError(t, err)
				all.Go(func() { errs[i] = s.Migrate(context.Background()) })
			}
			all.Wait()
			for _, err := range errs {
				require.NoError(t, err)
			}
			require.True(t, mustQuery[bool](t, pool, "SELECT count(*) = max(version) AND min(version) = 1 FROM scheduler.schema_migrations"))
			require.Equal(t, 8, mustQuery[int](t, pool, "SELECT count(*) FROM scheduler.queues WHERE name LIKE 'own%' AND max_attempts = 1 + substr(name, 4)::int"))
		})
	}
}

func TestMigrateRefusesANewerSchema(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	mustExec(t, pool, "INSERT INTO "+schema+".schema_migrations (version, name) VALUES (999, 'from the future')")
	newer, err := scheduler.New(pool, scheduler.Config{Schema: schema, Queues: queueConfigs{"own": {}}})
	require.NoError(t, err)
	for _, s := range []*scheduler.Scheduler{s, newer} {
		err = s.Migrate(t.Context())
		require.ErrorIs(t, err, scheduler.ErrNewerSchema)
		require.ErrorContains(t, err, schema)
		require.ErrorContains(t, err, "999")
	}
	require.False(t, mustQuery[bool](t, pool, "SELECT EXISTS (SELECT FROM "+schema+".queues WHERE name = 'own')"))
}

// In a rolling deploy a newer library migrates, adding columns, while older ones are
// at work, and some of these are started once more. What rights.sql does in the end
// is part of it.
func TestOlderProcessesGoOnWithANewerSchema(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	config := func(c *scheduler.Config) {
		schema = c.Schema
		c.Queues = queueConfigs{"wide": {MaxConcurrency: 2}, "lanes": {MaxConcurrencyPerKey: 1}}
		c.JobNames = scheduler.JobNames{"a": scheduler.Handle(func(_ context.Context, fails bool) (any, error) {
			if fails {
				return nil, errors.New("fails")
			}
			return "done", nil
		})}
	}
	work := func(s *scheduler.Scheduler) {
		for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking, "wide", "lanes"} {
			mustCreate(t, s, "a", scheduler.JobData{Queue: queue, Payload: true, Key: "k", MaxAttempts: 1})
			done := mustCreate(t, s, "a", scheduler.JobData{Queue: queue, Payload: false, Key: "k"}).ID
			for mustGet(t, s, done).Status == scheduler.JobStatusPending {
				require.NotZero(t, mustRun(t, s, scheduler.RunFilter{Queue: queue, Limit: 2}).Picked)
			}
			require.JSONEq(t, `"done"`, string(mustGet(t, s, done).Result))
			changed := mustCreate(t, s, "a", scheduler.JobData{Queue: queue, UniqueKey: "u"}).ID
			for _, change := range []func(context.Context, string) (*scheduler.Job, error){s.CancelJob, s.RetryJob, s.CancelJob} {
				_, err := change(t.Context(), changed)
				require.NoError(t, err)
			}
		}
		lost := mustCreate(t, s, "a", scheduler.JobData{MaxAttempts: 1}).ID
		mustExec(t, pool, "UPDATE "+schema+".jobs SET status = 'running', attempt = 1, lease_id = gen_random_uuid() WHERE id = $1::text::uuid", lost)
		mustExec(t, pool, "INSERT INTO "+schema+".leases (id, holder, expires_at) SELECT lease_id, '', now() FROM "+schema+".jobs WHERE id = $1::text::uuid", lost)
		mustRun(t, s, scheduler.RunFilter{})
		require.Equal(t, scheduler.JobStatusDead, mustGet(t, s, lost).Status)
		_, err := s.ListJobs(t.Context(), scheduler.JobFilter{})
		require.NoError(t, err)
	}
	rights, err := os.ReadFile("sql/rights.sql")
	require.NoError(t, err)
	older := newScheduler(t, config)
	work(older)
	mustExec(t, pool, fmt.Sprintf(`ALTER TABLE %[1]s.jobs ADD COLUMN of_newer text; ALTER TABLE %[1]s.leases ADD COLUMN of_newer integer NOT NULL DEFAULT 1;
		ALTER TABLE %[1]s.queues ADD COLUMN of_newer text; ALTER TABLE %[1]s.queue_limits ADD COLUMN of_newer text;
		INSERT INTO %[1]s.schema_migrations (version, name) VALUES (999, 'newer');`, schema)+strings.ReplaceAll(string(rights), "{{schema}}", schema), pgx.QueryExecModeSimpleProtocol)
	work(older)
	again := scheduler.Config{Schema: schema}
	config(&again)
	s, err := scheduler.New(pool, again)
	require.NoError(t, err)
	require.ErrorIs(t, s.Migrate(t.Context()), scheduler.ErrNewerSchema)
	work(s)
	require.NoError(t, s.Shutdown(t.Context()))
}

func TestMigrateIsOneTransaction(t *testing.T) {
	t.Parallel()
	pool, schema := newPool(t), newSchema(t)
	// Something of somebody else is in the way of the last steps.
	mustExec(t, pool, "CREATE SCHEMA "+schema)
	mustExec(t, pool, "CREATE TABLE "+schema+".queues (mine int)")
	before := mustQuery[string](t, pool, objects, schema)
	s, err := scheduler.New(pool, scheduler.Config{Schema: schema})
	require.NoError(t, err)
	require.ErrorContains(t, s.Migrate(t.Context()), schema)
	require.Equal(t, before, mustQuery[string](t, pool, objects, schema))
	mustExec(t, pool, "DROP TABLE "+schema+".queues")
	require.NoError(t, s.Migrate(t.Context()))
}

// newRole creates a role that may log in and create schemas in the database,
// and nothing else, and a pool of it.
func newRole(t *testing.T, admin *pgxpool.Pool) (name string, pool *pgxpool.Pool) {
	name = unique()
	mustExec(t, admin, "CREATE ROLE "+name+" LOGIN")
	t.Cleanup(func() {
		_, err := admin.Exec(context.WithoutCancel(t.Context()), "DROP OWNED BY "+name+" CASCADE; DROP ROLE "+name, pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
	})
	mustExec(t, admin, "GRANT CREATE ON DATABASE "+mustQuery[string](t, admin, "SELECT current_database()")+" TO "+name)
	config := admin.Config()
	config.ConnConfig.User = name
	return name, newPoolWith(t, config)
}

func TestMigrateWithoutTheRightToCreateInPublic(t *testing.T) {
	t.Parallel()
	admin := newPoolOn(t, newDatabase(t))
	mustExec(t, admin, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
	_, pool := newRole(t, admin)
	var log bytes.Buffer
	s, err := scheduler.New(pool, scheduler.Config{
		JobNames: scheduler.JobNames{"a": succeed}, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	require.NoError(t, err)
	for range 2 {
		log.Reset()
		require.NoError(t, s.Migrate(t.Context()))
		require.Contains(t, log.String(), "public", "it says so")
	}
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"))
	id := mustQuery[string](t, pool, "SELECT scheduler.create_job('a')::text")
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, s, id).Status)
	require.NoError(t, s.Shutdown(t.Context()))

	// A role that may not even create a schema is told so.
	mustExec(t, admin, "REVOKE CREATE ON DATABASE "+mustQuery[string](t, admin, "SELECT current_database()")+" FROM "+mustQuery[string](t, pool, "SELECT current_user"))
	require.NoError(t, s.Migrate(t.Context()), "nothing is to do")
	other, err := scheduler.New(pool, scheduler.Config{Schema: "other"})
	require.NoError(t, err)
	require.ErrorContains(t, other.Migrate(t.Context()), "permission denied")
}

// Everything is in one schema, so that a distributed Postgres can place it; and
// in another schema than the default one it leaves public alone.
func TestEverythingIsInTheSchema(t *testing.T) {
	t.Parallel()
	pool := newPoolOn(t, newDatabase(t))
	const others = `
		SELECT count(*) FROM (
			SELECT relnamespace FROM pg_class UNION ALL SELECT pronamespace FROM pg_proc UNION ALL SELECT typnamespace FROM pg_type
		) AS t (schema) JOIN pg_namespace n ON n.oid = t.schema
		WHERE n.nspname <> $1 AND n.nspname NOT LIKE 'pg\_toast%'`
	before := mustQuery[int](t, pool, others, "my_jobs_2")
	s, err := scheduler.New(pool, scheduler.Config{Schema: "my_jobs_2", JobNames: scheduler.JobNames{"a": succeed}})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	require.Equal(t, before, mustQuery[int](t, pool, others, "my_jobs_2"))
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid WHERE c.relnamespace = 'my_jobs_2'::regnamespace"))
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM pg_event_trigger"))
	mustCreate(t, s, "a", scheduler.JobData{})
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)
	require.NoError(t, s.Shutdown(t.Context()))

	// Two schemas in one database know nothing of each other.
	two, err := scheduler.New(pool, scheduler.Config{Schema: "other", JobNames: scheduler.JobNames{"a": succeed}})
	require.NoError(t, err)
	require.NoError(t, two.Migrate(t.Context()))
	mustCreate(t, two, "a", scheduler.JobData{})
	require.Equal(t, 1, mustQuery[int](t, pool, "SELECT count(*) FROM other.jobs"))
	require.Equal(t, 1, mustRun(t, two, scheduler.RunFilter{Limit: 10}).Picked)
	require.NoError(t, two.Shutdown(t.Context()))
}

func TestTheTableRefusesBadStates(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	mustCreate(t, s, "a", scheduler.JobData{})
	const doneInLane = "status = 'succeeded'"
	const unsound = "jobs_status_is_sound"
	for change, constraint := range map[string]string{
		"status = 'done'":                   "job_status_known",
		"lane = 304":                        "job_lane_known",
		"lane = -303, priority = -101":      "job_lane_known",
		"status = 'succeeded', lane = NULL": unsound,
		"finished_at = now()":               unsound,
		doneInLane:                          unsound,
		"attempt = -1":                      "job_attempt_not_negative",
		"max_attempts = 0":                  "job_attempts_positive",
		"queue = 'failed'":                  "job_queue_is_a_place",
		"name = ''":                         "job_name_length",
		"timeout_ms = 0":                    "job_timeout_positive",
		"run_at = 'infinity'":               "job_time_is_finite",
		"errors = '{}'":                     "job_errors_is_array",
	} {
		_, err := pool.Exec(t.Context(), "UPDATE "+schema+".jobs SET "+change)
		require.ErrorContains(t, err, constraint, strings.ToUpper(change))
	}
	mustCancel(t, s, mustList(t, s, scheduler.JobFilter{}).Jobs[0].ID)
	_, err := pool.Exec(t.Context(), "UPDATE "+schema+".jobs SET status = 'pending'")
	require.ErrorContains(t, err, unsound)
	_, err = pool.Exec(t.Context(), "UPDATE "+schema+".jobs SET status = 'pending', finished_at = NULL")
	require.ErrorContains(t, err, unsound)
}

// A job that is not finished is found, whatever somebody has made of its status.
func TestJobsPutOffByHandAreRun(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	for title, change := range map[string][]string{
		"failed":                 {"status = 'failed'"},
		"failed and put off":     {"status = 'failed', lane = 1", "status = 'pending'"},
		"running and put off":    {"status = 'running', lease_id = id", "status = 'pending', lease_id = NULL"},
		"of a priority, put off": {"status = 'failed', priority = 5, lane = 16", "status = 'pending'"},
	} {
		var schema string
		s := newScheduler(t, func(c *scheduler.Config) {
			schema = c.Schema
			c.JobNames = scheduler.JobNames{"a": succeed}
		})
		mustCreate(t, s, "a", scheduler.JobData{})
		mustExec(t, pool, "UPDATE "+schema+".queues SET prioritized = true")
		for _, set := range change {
			mustExec(t, pool, "UPDATE "+schema+".jobs SET "+set)
		}
		require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusAny}).Succeeded, title)
	}
}
