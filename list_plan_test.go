package scheduler_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

const (
	deadJobs = 30
	rareJobs = finishedJobs / 1000 // of the owner ada
	looked   = 100 * 51            // how many of the newest jobs are looked through for a page of 50
	onPage   = 51                  // a page, and one more
)

// lookups are what people look at. Jobs on the page are read by their ids.
var lookups = []struct {
	title   string
	do      func(t *testing.T, p *planTest) (found int)
	asks    string
	indexes []string // the first of them is used, and no others are
	rows    int
	found   int
}{
	{"list", listing(scheduler.JobFilter{}), "list_jobs(", byID, 2 * onPage, 50},
	{"list what succeeded", listing(scheduler.JobFilter{Statuses: []scheduler.JobStatus{"succeeded"}, Names: []string{"short"}}), "list_jobs(", byID, 2 * onPage, 50},
	{"list what is dead", listing(scheduler.JobFilter{Statuses: []scheduler.JobStatus{"dead"}}), "list_jobs(",
		[]string{"jobs_without_result", "jobs_pkey"}, 2 * deadJobs, deadJobs},
	{"list what is pending", listing(scheduler.JobFilter{Statuses: []scheduler.JobStatus{"pending"}}), "list_jobs(", either, looked + live + onPage, 50},
	{"list what has failed", listing(scheduler.JobFilter{Statuses: []scheduler.JobStatus{"failed"}}), "list_jobs(", either, looked + failedJobs + onPage, 50},
	{"list what went wrong", listing(scheduler.JobFilter{Statuses: []scheduler.JobStatus{"failed", "dead"}}), "list_jobs(",
		[]string{"jobs_without_result", "jobs_live", "jobs_pkey"}, looked + failedJobs + deadJobs + onPage, 50},
	{"list a rare tag", listing(scheduler.JobFilter{Tags: []string{"rare"}}), "list_jobs(", []string{"jobs_attributes", "jobs_pkey"}, looked + rareJobs + onPage, 50},
	{"list a rare owner's", listing(scheduler.JobFilter{Owner: "ada", Statuses: []scheduler.JobStatus{"pending"}}), "list_jobs(",
		[]string{"jobs_attributes", "jobs_live", "jobs_pkey"}, looked + rareJobs + onPage, 0},
	{"list a rare owner's dead", listing(scheduler.JobFilter{Owner: "ada", Statuses: []scheduler.JobStatus{"dead"}}), "list_jobs(",
		[]string{"jobs_without_result", "jobs_attributes", "jobs_pkey"}, looked + deadJobs + onPage, 0},
	{"list a frequent tag", listing(scheduler.JobFilter{Tags: []string{"frequent"}}), "list_jobs(", byID, looked + onPage, 50},
	{"list of a time", func(t *testing.T, p *planTest) int {
		at := time.Now().Add(-72 * time.Hour)
		return listing(scheduler.JobFilter{CreatedAfter: at.Add(-time.Hour), CreatedBefore: at})(t, p)
	}, "list_jobs(", byID, 86400*2/5 + 2*onPage, 50}, // of the day after, by the ids
	{"list an unknown queue", func(t *testing.T, p *planTest) int {
		_, err := p.ListJobs(t.Context(), scheduler.JobFilter{Queues: []scheduler.JobQueue{"unknown"}})
		require.ErrorIs(t, err, scheduler.ErrUnknownQueue)
		return 0
	}, "known_queues(", byLive, 0, 0},
	{"stats", func(t *testing.T, p *planTest) int {
		stats, err := p.QueueStats(t.Context())
		require.NoError(t, err)
		n := 0
		for _, q := range stats {
			n += q.Pending + q.Scheduled + q.Failed + q.Running
		}
		return n
	}, "queue_stats(", byLive, live, pendingJobs + failedJobs + runningJobs},
}

func listing(filter scheduler.JobFilter) func(t *testing.T, p *planTest) int {
	return func(t *testing.T, p *planTest) int { return len(mustList(t, p.Scheduler, filter).Jobs) }
}

// With many finished jobs, lists and stats read what they are about and not the
// table: without statistics and with them, and with plans made when it was empty.
func TestPlansOfLists(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	early := newPlanTest(t, url, "force_generic_plan")
	mustExec(t, early.aside, "ALTER TABLE scheduler.jobs SET (autovacuum_enabled = false)")
	mustExec(t, early.aside, `INSERT INTO scheduler.leases (id, holder, expires_at) VALUES (gen_random_uuid(), 'another', now() + interval '1 hour')`)
	for range 6 { // a plan is kept after some
		for _, look := range lookups {
			require.Zero(t, look.do(t, early))
			early.record(t, look.asks)
		}
	}
	// What is not finished is older than what is.
	early.insert(t, fmt.Sprintf(`
		(%d, '8 days', '1 second', 'short',   'pending', 0,    '30 days', NULL,       3, NULL),
		(%d, '8 days', '1 second', 'failing', 'failed',  1,    '0',     NULL,       3, NULL),
		(%d, '8 days', '1 second', 'long',    'running', 2,    '0',     NULL,       1, 'another'),
		(%d, '5 days', '1 hour',   'short',   'dead',    NULL, '0',     '1 second', 3, NULL)`, pendingJobs, failedJobs, runningJobs, deadJobs))
	mustExec(t, early.aside, `
		INSERT INTO scheduler.jobs (id, name, status, lane, run_at, created_at, finished_at, result, attempt, claims, attributes)
		SELECT (left(scheduler.first_id_after(created_at)::text, 14) || '7' || right(gen_random_uuid()::text, 21))::uuid, 'short',
			'succeeded', NULL, created_at, created_at, created_at, '1', 1, 1,
			CASE WHEN i % 1000 = 0 THEN '{"owner": "ada", "tags": ["rare", "frequent"]}'::jsonb WHEN i % 20 = 0 THEN '{"tags": ["frequent"]}' END
		FROM generate_series(1, $1::int) AS i, LATERAL (SELECT now() - interval '6 days' + i * interval '2.5 seconds' AS created_at) AS c`, finishedJobs)
	check := func(title string, p *planTest) {
		for _, look := range lookups {
			t.Run(title+"/"+look.title, func(t *testing.T) {
				p.forget()
				require.Equal(t, look.found, look.do(t, p))
				used, rows, texts := map[string]bool{}, 0, p.record(t, look.asks)
				for _, text := range texts {
					for _, scan := range planOf(t, text).scans() {
						for _, index := range indexesOf(scan) {
							require.Contains(t, look.indexes, index, "the index of a %s:\n%s", scan.Type, text)
							used[index] = true
						}
						rows += scan.read()
					}
				}
				require.True(t, used[look.indexes[0]], strings.Join(texts, "\n"))
				require.LessOrEqual(t, rows, look.rows, strings.Join(texts, "\n"))
			})
		}
	}
	check("planned when empty", early)
	check("fresh", newPlanTest(t, url, "force_custom_plan"))
	mustExec(t, early.aside, "VACUUM ANALYZE scheduler.jobs")
	check("analyzed", newPlanTest(t, url, "force_generic_plan"))
}

func planOf(t *testing.T, text string) planNode {
	var statement struct{ Plan planNode }
	require.NoError(t, json.Unmarshal([]byte(text), &statement))
	return statement.Plan
}

// indexesOf are those by which a scan goes: several, if their bitmaps are put
// together; "" if by none.
func indexesOf(scan planNode) (indexes []string) {
	if scan.Index != "" || len(scan.Plans) == 0 {
		return []string{scan.Index}
	}
	for _, part := range scan.Plans {
		indexes = append(indexes, indexesOf(part)...)
	}
	return indexes
}

// What jobs are looked up by costs a claim no index entry.
func TestAClaimWritesNoIndexEntries(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) { schema = c.Schema })
	mustCreateMany(t, s, 10, "a", scheduler.JobData{Owner: "ada"})
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	lease := mustQuery[string](t, tx, "INSERT INTO "+schema+".leases (id, holder, expires_at) VALUES (gen_random_uuid(), 'test', now() + interval '1 hour') RETURNING id::text")
	require.Equal(t, 10, mustQuery[int](t, tx, "SELECT count(*) FROM "+schema+".claim('default', true, true, ARRAY['a'], $1::text::uuid, 10, NULL, NULL, interval '10 minutes')", lease))
	for _, updated := range []string{"pg_stat_get_xact_tuples_updated", "pg_stat_get_xact_tuples_hot_updated"} {
		require.Equal(t, 10, mustQuery[int](t, tx, "SELECT "+updated+"(($1::text || '.jobs')::regclass)", schema), updated)
	}
}
