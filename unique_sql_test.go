package scheduler_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func TestUniqueInput(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	for _, test := range []struct {
		data  scheduler.JobData
		field string
		names []string
	}{
		{scheduler.JobData{UniqueKey: strings.Repeat("k", 257)}, "unique_key", []string{"257 bytes", "at most 256"}},
		{scheduler.JobData{UniqueKey: "a\x00b"}, "unique_key", []string{`"a\x00b"`}},
		{scheduler.JobData{UniqueKey: "\xff"}, "unique_key", []string{"UTF-8"}},
		{scheduler.JobData{UniqueKey: "k", UniqueFor: -time.Second}, "unique_for", []string{"-1s"}},
		{scheduler.JobData{UniqueKey: "k", UniqueFor: 367 * 24 * time.Hour}, "unique_for", []string{"8808h", "8784h"}},
		{scheduler.JobData{UniqueFor: time.Hour}, "unique_for", []string{"1h", "without a unique_key"}},
		{scheduler.JobData{OnDuplicate: scheduler.DuplicateReplace}, "on_duplicate", []string{`"replace"`, "without a unique_key"}},
		{scheduler.JobData{UniqueKey: "k", OnDuplicate: "merge"}, "on_duplicate", []string{`"merge"`, `"keep" or "replace"`}},
		{scheduler.JobData{OnDuplicate: "merge"}, "on_duplicate", []string{`"merge"`}},
	} {
		_, err := u.CreateJob(t.Context(), "a", test.data)
		requireInputError(t, err, test.field, test.names...)
		_, err = u.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "a", JobData: scheduler.JobData{UniqueKey: "good"}}, {Name: "a", JobData: test.data}})
		requireInputError(t, err, "jobs[1]."+test.field, test.names...)
	}
	_, err := u.CreateJob(t.Context(), "a", scheduler.JobData{UniqueKey: "k", Payload: badJobs()[len(badJobs())-1].data.Payload})
	requireInputError(t, err, "payload")
	for arguments, names := range map[string][]string{
		"unique_key => repeat('k', 257)":                       {"257 bytes", "at most 256"},
		"unique_for => '1 hour'":                               {"01:00:00", "without a unique_key"},
		"unique_key => '', unique_for => '1 hour'":             {"without a unique_key"},
		"unique_key => 'k', unique_for => '-1 s'":              {"-00:00:01", "0 to 366 days"},
		"unique_key => 'k', unique_for => '367 days'":          {"367 days", "0 to 366 days"},
		"unique_key => 'k', unique_for => '1 s', queue => 'x'": {"'x'"},
		"unique_key => 'k', tags => ARRAY['']":                 {"tags"},
	} {
		_, err := u.pool.Exec(t.Context(), "SELECT "+u.schema+".create_job('a', "+arguments+")")
		requirePgError(t, err, "22023", names...)
	}
	require.Zero(t, u.stored(t))
	require.Zero(t, mustQuery[int](t, u.pool, "SELECT count(*) FROM "+u.schema+".unique_keys"))
	u.requireNew(t, "a", scheduler.JobData{UniqueKey: "k", UniqueFor: 366 * 24 * time.Hour, OnDuplicate: "keep"})
}

// create_job and CreateJob have the same keys.
func TestUniqueJobsInSQL(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	create := func(arguments string) string {
		return mustQuery[string](t, u.pool, "SELECT "+u.schema+".create_job('a', "+arguments+")::text")
	}
	id := create("owner => 'ada', payload => '1', unique_key => 'k'")
	job := mustGet(t, u.Scheduler, id)
	require.Equal(t, "k", job.UniqueKey)
	require.Equal(t, "ada", job.Owner)
	require.JSONEq(t, "1", string(job.Payload))
	require.Equal(t, 10, job.MaxAttempts)
	require.Equal(t, id, create("unique_key => 'k', queue => 'own', payload => '2'"))
	u.requireDuplicate(t, job, scheduler.JobData{UniqueKey: "k"})
	require.Equal(t, job, mustGet(t, u.Scheduler, id))
	require.NotEqual(t, create("unique_key => ''"), create("unique_key => NULL, unique_for => '0'"))

	mustRun(t, u.Scheduler, scheduler.RunFilter{Limit: 3})
	require.Equal(t, id, create("unique_key => 'k', unique_for => '1 hour'"))
	next := create("unique_key => 'k'")
	require.NotEqual(t, id, next)
	require.Equal(t, next, create("unique_key => 'k', unique_for => '1 hour'"))
	require.Equal(t, 4, u.stored(t))
	require.Equal(t, 2, mustQuery[int](t, u.pool, "SELECT count(*) FROM "+u.schema+`.jobs WHERE attributes @> '{"unique_key": "k"}'`))
}

func TestUniqueJobsInEveryExecMode(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeCacheDescribe,
	} {
		config := newPool(t).Config()
		config.ConnConfig.DefaultQueryExecMode = mode
		pool := newPoolWith(t, config)
		s := newSchedulerOn(t, pool, func(c *scheduler.Config) { c.Schema = u.schema })
		data := scheduler.JobData{UniqueKey: mode.String(), UniqueFor: time.Minute, Timeout: time.Second, RunAt: time.Now().Add(time.Hour)}
		job := mustCreate(t, s, "a", data)
		require.False(t, job.Duplicate)
		require.Equal(t, time.Second, job.Timeout)
		u.requireDuplicate(t, job, data)
		data.OnDuplicate, data.RunAt, data.Payload = scheduler.DuplicateReplace, time.Time{}, "new"
		ids, err := s.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "b"}, {Name: "a", JobData: data}})
		require.NoError(t, err)
		require.Equal(t, job.ID, ids[1])
		require.JSONEq(t, `"new"`, string(mustGet(t, s, job.ID).Payload))
		tx, err := pool.Begin(t.Context())
		require.NoError(t, err)
		inTx, err := s.CreateJobTx(t.Context(), tx, "a", data)
		require.NoError(t, err)
		require.NoError(t, tx.Commit(t.Context()))
		require.Equal(t, job.ID, inTx.ID)
	}
}

// Keys go when nobody can be refused for them any more, and not before.
func TestCleanUpOfUniqueKeys(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	cleanUp := func(batch int) int {
		return mustQuery[int](t, u.pool, "SELECT "+u.schema+".clean_up(batch => $1)", batch)
	}
	keys := func() []string {
		return mustQuery[[]string](t, u.pool, "SELECT coalesce(array_agg(key ORDER BY key), '{}') FROM "+u.schema+".unique_keys")
	}
	create := func(key, age string, finished bool) *scheduler.Job {
		job := mustCreate(t, u.Scheduler, "a", scheduler.JobData{UniqueKey: key})
		mustExec(t, u.pool, `UPDATE `+u.schema+`.jobs SET created_at = now() - $2::text::interval,
			status = CASE WHEN $3 THEN 'dead' ELSE 'pending' END, lane = CASE WHEN NOT $3 THEN 0 END,
			finished_at = CASE WHEN $3 THEN now() END WHERE id = $1::text::uuid`, job.ID, age, finished)
		return job
	}
	create("a unfinished", "400 days", false)
	create("b finished", "1 second", true)
	create("c finished", "365 days", true)
	create("d finished", "367 days", true)
	gone := create("e gone", "1 second", false)
	mustExec(t, u.pool, "DELETE FROM "+u.schema+".jobs WHERE id = $1::text::uuid", gone.ID)
	require.Zero(t, cleanUp(1000))
	require.Equal(t, []string{"a unfinished", "b finished", "c finished"}, keys())

	// Deleted with their jobs, and bounded: a call looks at ten times the batch,
	// and the next one goes on.
	mustExec(t, u.pool, "DELETE FROM "+u.schema+".jobs")
	mustExec(t, u.pool, "INSERT INTO "+u.schema+".unique_keys (name, key, job_id) SELECT 'b', n, gen_random_uuid() FROM generate_series(1, 22) AS n")
	for _, left := range []int{15, 5, 0, 0} {
		require.Zero(t, cleanUp(1))
		require.Len(t, keys(), left)
	}
	for _, key := range []string{"a unfinished", "d finished", "e gone"} {
		u.requireNew(t, "a", scheduler.JobData{UniqueKey: key})
	}
	require.Zero(t, cleanUp(1000))
	require.Len(t, keys(), 3)
}

// Somebody is just taking the key: nobody waits, and it stays theirs.
func TestCleanUpLeavesKeysThatAreBeingTaken(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	old := u.requireNew(t, "a", scheduler.JobData{UniqueKey: "k"})
	mustExec(t, u.pool, "DELETE FROM "+u.schema+".jobs WHERE id = $1::text::uuid", old.ID)
	tx, err := u.pool.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }) // it may be over
	job, err := u.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{UniqueKey: "k"})
	require.NoError(t, err)
	mustExec(t, u.otherPool, "SELECT "+u.schema+".clean_up()")
	require.NoError(t, tx.Commit(t.Context()))
	u.requireDuplicate(t, job, scheduler.JobData{UniqueKey: "k"})
	mustExec(t, u.otherPool, "SELECT "+u.schema+".clean_up()")
	u.requireDuplicate(t, job, scheduler.JobData{UniqueKey: "k"})
}

// Somebody has taken the key since it was seen to be free.
func TestCleanUpLooksAgainAtKeys(t *testing.T) {
	t.Parallel()
	u := newUniqueTest(t)
	mustExecAll(t, u.pool, inTestSchema(u.schema, `
		CREATE FUNCTION s.wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			PERFORM pg_advisory_xact_lock(hashtext(TG_TABLE_SCHEMA));
			RETURN NULL;
		END $$;
		CREATE TRIGGER wait BEFORE DELETE ON s.unique_keys FOR EACH STATEMENT EXECUTE FUNCTION s.wait()`))
	old := u.requireNew(t, "a", scheduler.JobData{UniqueKey: "k"})
	mustExec(t, u.pool, "DELETE FROM "+u.schema+".jobs WHERE id = $1::text::uuid", old.ID)
	tx, err := u.pool.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }) // it may be over
	mustExec(t, tx, "SELECT pg_advisory_xact_lock(hashtext($1))", u.schema)
	done := make(chan error, 1)
	go func() {
		_, err := u.otherPool.Exec(t.Context(), "SELECT "+u.schema+".clean_up()")
		done <- err
	}()
	waitBlocked(t, u.pool, u.name)
	job := mustCreate(t, u.Scheduler, "a", scheduler.JobData{UniqueKey: "k"})
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, await(t, done))
	u.requireDuplicate(t, job, scheduler.JobData{UniqueKey: "k"})
}

// A job that a replacement makes due is started at once, wherever it is, and
// one that is kept wakes nobody.
func TestUniqueJobsNotify(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	jobs := make(chan *scheduler.Job, 1)
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.PollInterval, c.JobNames = c.Schema, time.Hour, scheduler.JobNames{"a": telling(jobs)}
	})
	goWork(t, t.Context(), s)
	waitFor(t, func() bool { return listening(t, pool, schema) })
	other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	listener, err := pool.Acquire(t.Context())
	require.NoError(t, err)
	defer listener.Release()
	mustExec(t, listener, "LISTEN "+schema+"_jobs")
	heard := func() string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		notification, err := listener.Conn().WaitForNotification(ctx)
		require.NoError(t, err)
		return notification.Payload
	}

	later := scheduler.JobData{UniqueKey: "k", RunAt: time.Now().Add(time.Hour), OnDuplicate: scheduler.DuplicateReplace}
	now := scheduler.JobData{UniqueKey: "k", OnDuplicate: scheduler.DuplicateReplace}
	inTx := func(data scheduler.JobData) {
		t.Helper()
		tx, err := pool.Begin(t.Context())
		require.NoError(t, err)
		_, err = other.CreateJobTx(t.Context(), tx, "a", data)
		require.NoError(t, err)
		require.NoError(t, tx.Commit(t.Context()))
	}
	for title, create := range map[string]func(data scheduler.JobData){
		"CreateJob":   func(data scheduler.JobData) { mustCreate(t, other, "a", data) },
		"CreateJobs":  func(data scheduler.JobData) { mustCreateMany(t, other, 1, "a", data) },
		"CreateJobTx": inTx,
	} {
		create(later)
		create(now)
		require.Equal(t, "k", await(t, jobs).UniqueKey, title)
		require.Equal(t, "default", heard(), title)
		waitFor(t, func() bool {
			return mustQuery[bool](t, pool, "SELECT bool_and(status = 'succeeded') FROM "+schema+".jobs")
		})
	}

	kept := scheduler.JobData{UniqueKey: "k", UniqueFor: time.Hour}
	inTx(kept)
	mustExec(t, pool, "SELECT "+schema+".create_job('a', unique_key => 'k', unique_for => '1 hour')")
	mustExec(t, pool, "SELECT pg_notify($1, 'nothing before')", schema+"_jobs")
	require.Equal(t, "nothing before", heard())
}

// The same with workers that are woken over HTTP.
func TestUniqueJobsWakeWorkers(t *testing.T) {
	t.Parallel()
	w := newWakeTest(t, nil)
	w.workAwake(t, w.name, w.url())
	later := scheduler.JobData{UniqueKey: "k", RunAt: time.Now().Add(time.Hour)}
	now := scheduler.JobData{UniqueKey: "k", OnDuplicate: scheduler.DuplicateReplace}
	inTx := func(end func(pgx.Tx, context.Context) error) {
		t.Helper()
		tx, err := w.pool.Begin(t.Context())
		require.NoError(t, err)
		_, err = w.CreateJobTx(t.Context(), tx, "work", now)
		require.NoError(t, err)
		require.NoError(t, end(tx, t.Context()))
	}
	createSQL := "SELECT " + w.schema + ".create_job('work', unique_key => 'k')"
	for title, test := range map[string]struct {
		requests int
		there    *scheduler.JobData
		create   func()
	}{
		"CreateJob":           {1, nil, func() { mustCreate(t, w.Scheduler, "work", scheduler.JobData{UniqueKey: "k"}) }},
		"CreateJob, kept":     {0, &now, func() { mustCreate(t, w.Scheduler, "work", scheduler.JobData{UniqueKey: "k"}) }},
		"CreateJob, replaced": {1, &later, func() { mustCreate(t, w.Scheduler, "work", now) }},
		"CreateJobs":          {1, nil, func() { mustCreateMany(t, w.Scheduler, 2, "work", now) }},
		"CreateJobs, kept": {0, &now, func() {
			mustCreateSome(t, w.Scheduler, scheduler.JobData{UniqueKey: "k"}, scheduler.JobData{UniqueKey: "k"})
		}},
		"CreateJobs, replaced":     {1, &later, func() { mustCreateMany(t, w.Scheduler, 2, "work", now) }},
		"CreateJobTx, replaced":    {1, &later, func() { inTx(pgx.Tx.Commit) }},
		"CreateJobTx, rolled back": {0, &later, func() { inTx(pgx.Tx.Rollback) }},
		"create_job":               {1, nil, func() { mustExec(t, w.pool, createSQL) }},
		"create_job, kept":         {0, &now, func() { mustExec(t, w.pool, createSQL) }},
	} {
		mustExec(t, w.pool, "DELETE FROM "+w.schema+".jobs")
		if test.there != nil {
			mustCreate(t, w.Scheduler, "work", *test.there)
		}
		w.forget(t)
		test.create()
		require.Equal(t, test.requests, queued(t, w.pool, w.url()), title)
	}
}
