package scheduler_test

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// cleanUpTest has jobs that were finished long ago.
type cleanUpTest struct {
	*scheduler.Scheduler
	pool   *pgxpool.Pool
	schema string
}

func newCleanUpTest(t *testing.T, configure func(*scheduler.Config)) *cleanUpTest {
	c := &cleanUpTest{pool: newPool(t)}
	c.Scheduler = newSchedulerOn(t, c.pool, func(config *scheduler.Config) {
		if configure != nil {
			configure(config)
		}
		c.schema = config.Schema
	})
	return c
}

// job stores a job of this status that was created so long ago, such as '8
// days', and finished a second later.
func (c *cleanUpTest) job(t *testing.T, status, age string) (id string) {
	return c.jobs(t, 1, status, age)[0]
}

// jobs stores n of them, in the order of their ids.
func (c *cleanUpTest) jobs(t *testing.T, n int, status, age string) (ids []string) {
	return mustQuery[[]string](t, c.pool, `
		WITH made AS (
			INSERT INTO `+c.schema+`.jobs (id, name, status, lane, created_at, finished_at, lease_id, attempt, claims)
			SELECT (left(`+c.schema+`.first_id_after(now() - $3::text::interval)::text, 14) || '7' || right(gen_random_uuid()::text, 21))::uuid, 'work', $2::text,
				CASE WHEN $2 IN ('pending', 'running') THEN 0 WHEN $2 = 'failed' THEN 1 END,
				now() - $3::text::interval, CASE WHEN $2 IN ('succeeded', 'dead', 'cancelled') THEN now() - $3::text::interval + interval '1 second' END,
				CASE WHEN $2 = 'running' THEN gen_random_uuid() END, 1, 1
			FROM generate_series(1, $1::int) RETURNING id)
		SELECT array_agg(id::text ORDER BY id) FROM made`, n, status, age)
}

func (c *cleanUpTest) cleanUp(t *testing.T, args ...any) (deleted int) {
	sql := map[int]string{0: "()", 2: "($1::text::interval, $2::text::interval)", 3: "($1::text::interval, $2::text::interval, $3)"}[len(args)]
	return mustQuery[int](t, c.pool, "SELECT "+c.schema+".clean_up"+sql, args...)
}

func (c *cleanUpTest) left(t *testing.T) (ids []string) {
	return mustQuery[[]string](t, c.pool, "SELECT coalesce(array_agg(id::text ORDER BY id), '{}') FROM "+c.schema+".jobs")
}

func TestCleanUpDeletesWhatWasKeptLongEnough(t *testing.T) {
	t.Parallel()
	c := newCleanUpTest(t, nil)
	stay := map[string]string{}
	for _, test := range []struct {
		status, age string
		stays       bool
	}{
		{"succeeded", "6 days 23:00", true},
		{"succeeded", "7 days 01:00", false},
		{"cancelled", "6 days 23:00", true},
		{"cancelled", "7 days 01:00", false},
		{"dead", "29 days 23:00", true},
		{"dead", "30 days 01:00", false},
		{"pending", "900 days", true},
		{"failed", "900 days", true},
		{"running", "900 days", true},
	} {
		id := c.job(t, test.status, test.age)
		if test.stays {
			stay[id] = test.status
		}
	}
	long := c.job(t, "succeeded", "60 days") // it took two months
	mustExec(t, c.pool, "UPDATE "+c.schema+".jobs SET finished_at = now() WHERE id = $1::text::uuid", long)
	stay[long] = "succeeded"

	require.Equal(t, 3, c.cleanUp(t))
	left := c.left(t)
	require.Len(t, left, len(stay))
	for _, id := range left {
		require.Contains(t, stay, id)
	}
	require.Zero(t, c.cleanUp(t))
	require.Zero(t, c.cleanUp(t, nil, nil), "kept for ever")
	require.Equal(t, 1, c.cleanUp(t, nil, "1 day"), "the dead one")
	require.Equal(t, 3, c.cleanUp(t, "0", nil), "what has just been finished, too")
	require.Len(t, c.left(t), 3, "what is not finished")
}

func TestCleanUpInput(t *testing.T) {
	t.Parallel()
	c := newCleanUpTest(t, nil)
	id := c.job(t, "succeeded", "99 days")
	for arguments, name := range map[string]string{
		"'-1 s', '1 day'":          "keep -00:00:01",
		"'1 day', '-1 s'":          "keep_dead -00:00:01",
		"'1 day', '1 day', 0":      "batch 0",
		"'1 day', '1 day', 100001": "batch 100001",
		"'1 day', '1 day', NULL":   "batch <NULL>",
		"'1 day', batch => -1":     "batch -1",
		"keep_dead => '-1 day'":    "keep_dead -1 days",
		"'-1 year', NULL":          "keep -1 years",
	} {
		_, err := c.pool.Exec(t.Context(), "SELECT "+c.schema+".clean_up("+arguments+")")
		requirePgError(t, err, "22023", name, "expected times not below zero, and a batch of 1 to 100000")
	}
	require.Equal(t, []string{id}, c.left(t))
}

func TestCleanUpIsBounded(t *testing.T) {
	t.Parallel()
	c := newCleanUpTest(t, nil)
	ids := c.jobs(t, 25, "succeeded", "8 days")
	young := c.job(t, "succeeded", "1 day")
	for _, deleted := range []int{10, 10, 5, 0} {
		require.Equal(t, deleted, c.cleanUp(t, "7 days", "30 days", 10))
		ids = ids[deleted:]
		require.Equal(t, append(append([]string{}, ids...), young), c.left(t), "the oldest go first")
	}
}

// A call looks at 100,000 jobs; the next one goes on behind those that stay.
func TestCleanUpGoesOnBehindWhatStays(t *testing.T) {
	t.Parallel()
	c := newCleanUpTest(t, nil)
	c.jobs(t, 100_000, "dead", "29 days")
	behind := c.job(t, "succeeded", "8 days")
	require.Zero(t, c.cleanUp(t))
	require.Contains(t, c.left(t), behind)
	require.Equal(t, 1, c.cleanUp(t))
	require.NotContains(t, c.left(t), behind)
	first := c.job(t, "succeeded", "40 days")
	require.Equal(t, 1, c.cleanUp(t), "from the beginning again")
	require.NotContains(t, c.left(t), first)
}

// What a foreign key or a trigger of the application keeps does not stop the
// rest, at whichever moment that is checked.
func TestCleanUpPassesWhatIsReferenced(t *testing.T) {
	t.Parallel()
	const deferred = " DEFERRABLE INITIALLY DEFERRED"
	for title, test := range map[string]struct {
		tables string // "s." is the schema; the referring table is s.notes
		goes   bool
	}{
		"no action":               {tables: "CREATE TABLE s.notes (job uuid REFERENCES s.jobs)"},
		"no action, deferred":     {tables: "CREATE TABLE s.notes (job uuid REFERENCES s.jobs" + deferred + ")"},
		"restrict":                {tables: "CREATE TABLE s.notes (job uuid REFERENCES s.jobs ON DELETE RESTRICT)"},
		"restrict, odd names":     {tables: `CREATE TABLE s."Odd Notes" (n int, "Job's" uuid REFERENCES s.jobs ON DELETE RESTRICT); CREATE VIEW s.notes AS SELECT "Job's" AS job FROM s."Odd Notes"`},
		"set null where not null": {tables: "CREATE TABLE s.notes (job uuid NOT NULL REFERENCES s.jobs ON DELETE SET NULL)"},
		"cascade":                 {tables: "CREATE TABLE s.notes (job uuid REFERENCES s.jobs ON DELETE CASCADE)", goes: true},
		"set null":                {tables: "CREATE TABLE s.notes (job uuid REFERENCES s.jobs ON DELETE SET NULL)", goes: true},
		"partitioned":             {tables: "CREATE TABLE s.notes (job uuid REFERENCES s.jobs) PARTITION BY HASH (job); CREATE TABLE s.p PARTITION OF s.notes FOR VALUES WITH (MODULUS 1, REMAINDER 0)"},
		"cascade to what is kept": {tables: "CREATE TABLE s.notes (job uuid PRIMARY KEY REFERENCES s.jobs ON DELETE CASCADE); CREATE TABLE s.further (job uuid REFERENCES s.notes); " + furtherRule},
		"cascade to what is kept, deferred": {
			tables: "CREATE TABLE s.notes (job uuid PRIMARY KEY REFERENCES s.jobs ON DELETE CASCADE); CREATE TABLE s.further (job uuid REFERENCES s.notes" + deferred + "); " + furtherRule,
		},
		"trigger": {
			tables: "CREATE TABLE s.notes (job uuid REFERENCES s.jobs ON DELETE CASCADE);" +
				"CREATE FUNCTION s.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'notes stay'; END $$;" +
				"CREATE TRIGGER refuse BEFORE DELETE ON s.notes FOR EACH ROW EXECUTE FUNCTION s.refuse()",
		},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			c := newCleanUpTest(t, nil)
			mustExecAll(t, c.pool, inTestSchema(c.schema, test.tables))
			ids := c.jobs(t, 40, "succeeded", "8 days")
			var stay []string
			for _, i := range []int{0, 1, 7, 20, 39} {
				mustExecAll(t, c.pool, inTestSchema(c.schema, "INSERT INTO s.notes (job) VALUES ('"+ids[i]+"')"))
				if !test.goes {
					stay = append(stay, ids[i])
				}
			}
			require.Equal(t, 40-len(stay), c.cleanUp(t))
			if test.goes {
				require.Empty(t, c.left(t))
				return
			}
			require.Equal(t, stay, c.left(t))
			require.Zero(t, c.cleanUp(t))
			mustExecAll(t, c.pool, inTestSchema(c.schema, `DROP TABLE IF EXISTS s.further, s."Odd Notes" CASCADE; DROP TABLE IF EXISTS s.notes CASCADE`))
			require.Equal(t, len(stay), c.cleanUp(t), "once nothing refers to them")
		})
	}
}

// furtherRule has every note referred to.
const furtherRule = "CREATE RULE further AS ON INSERT TO s.notes DO ALSO INSERT INTO s.further VALUES (new.job)"

// Many referenced jobs are passed by a look-up: the batch is full of others.
func TestCleanUpFillsItsBatchWithWhatCanGo(t *testing.T) {
	t.Parallel()
	c := newCleanUpTest(t, nil)
	mustExecAll(t, c.pool, inTestSchema(c.schema, "CREATE TABLE s.notes (job uuid REFERENCES s.jobs)"))
	c.jobs(t, 500, "succeeded", "9 days")
	mustExecAll(t, c.pool, inTestSchema(c.schema, "INSERT INTO s.notes SELECT id FROM s.jobs"))
	c.jobs(t, 30, "succeeded", "8 days")
	require.Equal(t, 20, c.cleanUp(t, "7 days", "30 days", 20))
	require.Equal(t, 10, c.cleanUp(t, "7 days", "30 days", 20))
	require.Len(t, c.left(t), 500)
}

// A row that somebody is about to refer to is left alone, and nobody waits.
func TestCleanUpWaitsForNobody(t *testing.T) {
	t.Parallel()
	c := newCleanUpTest(t, nil)
	ids := c.jobs(t, 3, "succeeded", "8 days")
	tx, err := c.pool.Begin(t.Context())
	require.NoError(t, err)
	mustExec(t, tx, "SELECT FROM "+c.schema+".jobs WHERE id = $1::text::uuid FOR KEY SHARE", ids[1])
	require.Equal(t, 2, c.cleanUp(t))
	require.Equal(t, ids[1:2], c.left(t))
	require.NoError(t, tx.Rollback(t.Context()))

	tx, err = c.pool.Begin(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, mustQuery[int](t, tx, "SELECT "+c.schema+".clean_up()"))
	require.Zero(t, c.cleanUp(t), "another one is at it")
	require.NoError(t, tx.Commit(t.Context()))
	require.Empty(t, c.left(t))
}

// What pg_cron has recorded of workers goes with their jobs, and so does what
// it never recorded an end of. Not parallel: that is deleted by whoever comes
// first, also by a clean-up in another test that keeps things for less long.
func TestCleanUpOfPgCronsRuns(t *testing.T) {
	if !shared.cron {
		t.Skip("needs pg_cron: scripts/install-postgres.sh test")
	}
	c := newCleanUpTest(t, nil)
	ours, others := "SELECT "+c.schema+".run_worker('a')", "SELECT '"+c.schema+"'"
	t.Cleanup(func() { administer(t, "DELETE FROM cron.job_run_details WHERE command LIKE '%"+c.schema+"%'") })
	run := func(title, command, start, end, pid string) {
		mustExecAll(t, c.pool, "INSERT INTO cron.job_run_details (command, return_message, status, start_time, end_time, job_pid) VALUES ("+
			quote(command)+", "+quote(title)+", 'failed', "+start+", "+end+", "+pid+")")
	}
	const old, young = "now() - interval '8 days'", "now() - interval '6 days'"
	tx, err := c.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(t.Context()) }()
	alive := mustQuery[string](t, tx, "SELECT pg_backend_pid()::text")

	run("old", ours, old, old, "0")
	run("never ended", others, old, "NULL", "0")
	run("never started", others, "NULL", "NULL", "NULL")
	run("somebody else's", others, old, old, "0")
	run("still running", others, old, "NULL", alive)
	run("began long ago", ours, old, young, "0")
	run("young", ours, young, young, "0")
	run("young, never ended", others, young, "NULL", "0")
	run("young, never started", others, "NULL", "NULL", "NULL")
	run("last", ours, young, young, "0")
	c.cleanUp(t, nil, nil)
	left := func() []string {
		return mustQuery[[]string](t, c.pool, "SELECT array_agg(return_message ORDER BY runid) FROM cron.job_run_details WHERE command LIKE $1", "%"+c.schema+"%")
	}
	require.Contains(t, left(), "old", "kept for ever")
	require.Zero(t, c.cleanUp(t))
	require.Equal(t, []string{"somebody else's", "still running", "began long ago", "young", "young, never ended", "young, never started", "last"}, left())
}

// A service deletes what its Config does not keep, beside its runs.
func TestServiceCleansUp(t *testing.T) {
	t.Parallel()
	c := newCleanUpTest(t, func(config *scheduler.Config) {
		config.KeepFinished, config.KeepDead = time.Hour, -1
		config.JobNames = scheduler.JobNames{"work": succeed}
	})
	c.jobs(t, 1500, "succeeded", "2 hours")
	kept := c.job(t, "dead", "900 days")
	mustRun(t, c.Scheduler, scheduler.RunFilter{})
	waitFor(t, func() bool { return len(c.left(t)) == 1 })
	require.Equal(t, []string{kept}, c.left(t))
}

// A job that is retried while a clean-up looks at it is unfinished from then on.
func TestCleanUpSparesAJobThatIsRetriedMeanwhile(t *testing.T) {
	t.Parallel()
	c := newCleanUpTest(t, nil)
	ids := c.jobs(t, 2, "dead", "60 days")
	mustExecAll(t, c.pool, inTestSchema(c.schema, `CREATE OR REPLACE FUNCTION s.unreferenced() RETURNS text LANGUAGE sql AS
		$$ SELECT 'AND pg_advisory_xact_lock(hashtext(''`+c.schema+`'')) IS NOT NULL' $$`)) // it looks, and waits
	tx, err := c.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	mustExec(t, tx, "SELECT pg_advisory_xact_lock(hashtext($1))", c.schema)
	done := make(chan error, 1)
	go func() {
		_, err := c.pool.Exec(t.Context(), "SELECT "+c.schema+".clean_up()")
		done <- err
	}()
	waitFor(t, func() bool {
		return mustQuery[bool](t, c.pool, "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE $1)",
			"%"+c.schema+".clean_up%")
	})
	mustRetry(t, c.Scheduler, ids[0])
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, await(t, done))
	require.Equal(t, ids[:1], c.left(t))
}

// inTestSchema puts a schema in place of "s.".
func inTestSchema(schema, sql string) string {
	return regexp.MustCompile(`\bs\.`).ReplaceAllString(sql, schema+".")
}

// mustExecAll runs several statements.
func mustExecAll(t *testing.T, pool *pgxpool.Pool, sql string) {
	mustExec(t, pool, sql, pgx.QueryExecModeSimpleProtocol)
}

func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
