package scheduler_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// With priorities too, what is not due costs a claim nothing, however much of it
// there is: neither is it walked through, nor what lies behind it in the index.
func TestPlansOfAPrioritizedQueue(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	early := newPlanTest(t, url, "force_generic_plan")
	mustExec(t, early.aside, "ALTER TABLE scheduler.jobs SET (autovacuum_enabled = false)")
	mustExec(t, early.aside, "SELECT scheduler.prioritize('{default}')")
	// The bounds are about twice what was measured.
	operations := func(p *planTest, check func(title, asks string, rows, blocks int)) {
		require.Zero(t, mustRun(t, p.Scheduler, scheduler.RunFilter{Status: scheduler.JobStatusAny, Limit: 10}).Picked)
		check("run with nothing due", "claim(", 120, 800)
		p.tick(t, "default")
		check("tick", "run_worker(", 60, 250)
		var jobs []scheduler.NewJob
		for i := range 10 {
			jobs = append(jobs, scheduler.NewJob{Name: "short", JobData: scheduler.JobData{Priority: 5 - i}})
		}
		_, err := p.CreateJobs(t.Context(), jobs)
		require.NoError(t, err)
		require.Equal(t, 10, mustRun(t, p.Scheduler, scheduler.RunFilter{Limit: 10}).Succeeded)
		check("run ten of ten priorities", "finish(", 150, 750)
	}
	operations(early, func(_, asks string, _, _ int) { early.record(t, asks) })
	// In ten priorities: due tomorrow, and failed ones; and finished.
	mustExec(t, early.aside, `
		INSERT INTO scheduler.jobs (id, name, status, priority, lane, run_at, created_at, finished_at, attempt, claims)
		SELECT gen_random_uuid(), 'short', k.status, i % 10 - 5, 3 * (i % 10 - 5) + k.lane,
			now() + interval '1 day', now(), now() + k.done, 1, 1
		FROM (VALUES ('pending', 0, NULL::interval), ('failed', 1, NULL), ('succeeded', NULL, '0')) AS k (status, lane, done), generate_series(1, 8000) AS i`)
	check := func(title string, p *planTest) {
		p.forget()
		operations(p, func(operation, asks string, rows, blocks int) {
			c := planCheck{title: operation, indexes: either}
			for _, text := range p.record(t, asks) {
				c.add(t, text)
			}
			require.NotEmpty(t, c.texts)
			require.LessOrEqual(t, c.rows, rows, "rows of jobs that are read to %s, %s:\n%s", operation, title, c.texts)
			require.LessOrEqual(t, c.blocks, blocks, "blocks that are read to %s, %s:\n%s", operation, title, c.texts)
		})
	}
	check("planned when empty", early)
	check("fresh", newPlanTest(t, url, "force_custom_plan"))
	mustExec(t, early.aside, "VACUUM ANALYZE scheduler.jobs")
	check("analyzed", newPlanTest(t, url, "force_custom_plan"))
	check("analyzed, generic", newPlanTest(t, url, "force_generic_plan"))

	// Nor is what is overdue, but for as many of each priority as are asked for.
	at := time.Now().Add(-time.Hour)
	mustExec(t, early.aside, "UPDATE scheduler.jobs SET run_at = $1 WHERE priority = 3 AND status = 'pending'", at)
	p := newPlanTest(t, url, "force_generic_plan")
	require.Equal(t, 10, mustRun(t, p.Scheduler, scheduler.RunFilter{Limit: 10}).Succeeded)
	c := planCheck{title: "run ten that are overdue", indexes: either}
	for _, text := range p.record(t, "finish(") {
		c.add(t, text)
	}
	require.LessOrEqual(t, c.rows, 150, c.texts)
	require.LessOrEqual(t, c.blocks, 800, c.texts)
}

// A list of many queues looks into the lanes that there are, not into those that
// there may be.
func TestPlansOfListsWithPriorities(t *testing.T) {
	t.Parallel()
	p := newPlanTest(t, newDatabase(t), "force_custom_plan")
	queues := make([]scheduler.JobQueue, 100)
	for i := range queues {
		queues[i] = scheduler.JobQueue(fmt.Sprint("q", i))
	}
	mustExec(t, p.aside, `
		INSERT INTO scheduler.queues (name, prioritized) SELECT 'q' || i, i < 50 FROM generate_series(0, 99) AS i`)
	mustExec(t, p.aside, `
		INSERT INTO scheduler.jobs (id, name, queue, status, priority, lane, run_at)
		SELECT scheduler.new_job_id(), 'short', 'q' || i % 100, 'pending', k.priority, 3 * k.priority, now() + interval '1 day'
		FROM generate_series(0, 999) AS i, LATERAL (SELECT CASE WHEN i % 100 < 50 THEN i / 100 - 5 ELSE 0 END AS priority) AS k`)
	for title, prepare := range map[string]string{"fresh": "SELECT", "analyzed": "VACUUM ANALYZE scheduler.jobs"} {
		mustExec(t, p.aside, prepare)
		p.forget()
		filter := scheduler.JobFilter{Queues: queues, Statuses: []scheduler.JobStatus{"pending", "running"}, Names: []string{"other"}}
		require.Empty(t, mustList(t, p.Scheduler, filter).Jobs)
		filter.Names = []string{"short"}
		require.Len(t, mustList(t, p.Scheduler, filter).Jobs, 50)
		c := planCheck{title: "list many queues", indexes: either}
		for _, text := range p.record(t, "list_jobs(") {
			c.addAny(t, text)
		}
		require.LessOrEqual(t, c.blocks, 20_000, "%s:\n%s", title, c.texts)
	}
}
