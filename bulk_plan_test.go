package scheduler_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// What is done to many jobs does not read what they are to do.
func TestBulkReadsNoPayloads(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) { schema = c.Schema })
	for _, owner := range []string{"ada", ""} {
		mustCreateMany(t, s, 10, "a", scheduler.JobData{Owner: owner, RunAt: time.Now().Add(time.Hour)})
	}
	// Of what can't be compressed, so it is in a table of its own.
	mustExec(t, pool, "UPDATE "+schema+`.jobs SET payload = to_jsonb(p.text) FROM (
		SELECT string_agg(gen_random_uuid()::text, '') AS text FROM generate_series(1, 1000)) AS p`)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	reads := func() int {
		return mustQuery[int](t, tx, `SELECT coalesce(sum(x.idx_scan), 0)::int FROM pg_stat_xact_sys_tables x
			JOIN pg_class c ON c.reltoastrelid = x.relid WHERE c.oid = ($1::text || '.jobs')::regclass`, schema)
	}
	fresh := reads()
	mustExec(t, tx, "SELECT payload::text FROM "+schema+".jobs LIMIT 1")
	before := reads()
	require.Greater(t, before, fresh, "it can be seen")
	for _, step := range []struct{ action, statuses, attributes string }{
		{"reschedule", "{pending}", `{"owner": "ada"}`}, {"reschedule", "{pending}", ""},
		{"cancel", "{pending,running,failed}", `{"owner": "ada"}`}, {"cancel", "{pending,running,failed}", ""},
		{"retry", "{cancelled}", `{"owner": "ada"}`}, {"retry", "{cancelled}", ""},
	} {
		for { // page by page
			n := mustQuery[int](t, tx, "SELECT count(*) FROM "+schema+`.control_jobs($1, $2::timestamptz, $3::text::text[], NULL, '{a}', nullif($4, '')::jsonb, NULL, NULL, 4)`,
				step.action, farOff, step.statuses, step.attributes)
			if n == 0 {
				break
			}
		}
		require.Equal(t, before, reads(), step)
	}
	require.Equal(t, 20, mustQuery[int](t, tx, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'pending' AND run_at < now() + interval '1 minute'"))
}

// ownedJobs wait for one owner, and a hundred times as many for all.
const ownedJobs = 200

// Many finished jobs cost what is done to others nothing but a look at the newest,
// however it is planned.
func TestPlansOfBulks(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	early := newPlanTest(t, url, "force_generic_plan")
	mustExec(t, early.aside, "ALTER TABLE scheduler.jobs SET (autovacuum_enabled = false)")
	bulk := func(p *planTest, action string, statuses []string, filter string) int {
		return mustQuery[int](t, p.pool, "SELECT count(*) FROM scheduler.control_jobs($1::text, $2::timestamptz, $3::text[], NULL, NULL, "+filter+", NULL, NULL, 20)",
			action, farOff, statuses)
	}
	const adas, everybodys = `'{"owner": "ada"}'::jsonb`, `NULL::jsonb`
	const newest, waiting = 100 * 20, 100*ownedJobs + failedJobs
	steps := []struct {
		action   string
		statuses []string
		filter   string
		rows     int
	}{
		// Some of the newest, all that waits or has no result, and what is changed, several times.
		{"reschedule", []string{"pending", "failed"}, adas, newest + waiting + 300},
		{"cancel", []string{"pending", "running", "failed"}, adas, newest + waiting + 300},
		{"retry", []string{"dead", "cancelled"}, adas, newest + 500},
		{"cancel", []string{"failed"}, everybodys, newest + failedJobs + 300},
		{"retry", []string{"cancelled"}, everybodys, 300},
		{"cancel", []string{"pending"}, adas, newest + waiting + 300},
	}
	for range 6 { // a plan is kept after some
		for _, step := range steps {
			require.Zero(t, bulk(early, step.action, step.statuses, step.filter))
		}
	}
	early.insert(t, `(200000, '6 days', '2.5 seconds', 'short', 'succeeded', NULL, '0', '1 second', 3, NULL),
		(500, '8 days', '1 second', 'failing', 'failed', 1, '30 days', NULL, 3, NULL)`)
	mustExec(t, early.aside, `
		INSERT INTO scheduler.jobs (id, name, status, lane, run_at, created_at, attempt, claims, attributes)
		SELECT (left(scheduler.first_id_after(created_at)::text, 14) || '7' || right(gen_random_uuid()::text, 21))::uuid, 'short',
			'pending', 0, now() + interval '1 day', created_at, 1, 1, jsonb_build_object('owner', CASE WHEN i % 100 = 0 THEN 'ada' ELSE 'o' || i % 50 END)
		FROM generate_series(1, 100 * $1::int) AS i, LATERAL (SELECT now() - interval '8 days' + i * interval '1 second' AS created_at) AS c`, ownedJobs)
	mustExec(t, early.aside, "UPDATE scheduler.jobs SET result = '1' WHERE status = 'succeeded'")
	check := func(title string, p *planTest) {
		for _, step := range steps {
			p.forget()
			changed := bulk(p, step.action, step.statuses, step.filter)
			require.Equal(t, 20, changed, "%s: %v", title, step)
			c := planCheck{title: step.action, indexes: []string{"jobs_pkey", "jobs_live", "jobs_without_result", "jobs_attributes"}}
			for _, text := range p.record(t, "control_jobs(") {
				c.addAny(t, text)
			}
			require.LessOrEqual(t, c.rows, step.rows, "%s: %v:\n%s", title, step, c.texts)
		}
	}
	check("planned when empty", early)
	check("fresh", newPlanTest(t, url, "force_custom_plan"))
	mustExec(t, early.aside, "VACUUM ANALYZE scheduler.jobs")
	check("analyzed", newPlanTest(t, url, "force_custom_plan"))
	check("analyzed, generic", newPlanTest(t, url, "force_generic_plan"))
}

// addAny is add for what may go by bitmaps.
func (c *planCheck) addAny(t *testing.T, text string) {
	scans := planOf(t, text).scans()
	for _, scan := range scans {
		for _, index := range indexesOf(scan) {
			require.Contains(t, c.indexes, index, "the index of a %s to %s:\n%s", scan.Type, c.title, text)
		}
		c.rows += scan.read()
		c.blocks += scan.Hit + scan.Read
	}
	if len(scans) > 0 {
		c.texts += text + "\n"
	}
}
