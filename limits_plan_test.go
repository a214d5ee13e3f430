package scheduler_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// limitedOperations are what is done in queues with limits. Each of those has
// 20,000 jobs that are due, the first quarter of them of one key and the others
// of 5,000 keys, and as many that are finished.
var limitedOperations = []struct {
	title        string
	do           func(p *planTest, t *testing.T)
	asks         string
	rows, blocks int
}{
	{"run ten jobs of few at once", (*planTest).runAtOnce, "claim(", 300, 250},
	{"run ten jobs of different keys", (*planTest).runOfAKey, "claim(", 600, 250},
	{"run ten jobs in rounds", (*planTest).runInRounds, "claim(", 600, 250},
	{"run ten jobs at a rate", (*planTest).runRated, "claim(", 1000, 1600},
	{"create a job in a queue with a bound", (*planTest).createBounded, "room_to_create(", 20, 80},
}

// planLimits are those queues.
var planLimits = queueConfigs{
	"at-once": {MaxConcurrency: 20}, "of-a-key": {MaxConcurrencyPerKey: 1}, "in-rounds": {KeyRound: 2},
	"rated":   {Rate: scheduler.Rate{Limit: 1000, Per: time.Hour}, RatePerKey: scheduler.Rate{Limit: 2, Per: time.Hour}},
	"bounded": {MaxPending: 10},
}

func (p *planTest) runAtOnce(t *testing.T) { p.runLimited(t, "at-once") }

func (p *planTest) runOfAKey(t *testing.T) { p.runLimited(t, "of-a-key") }

func (p *planTest) runInRounds(t *testing.T) { p.runLimited(t, "in-rounds") }

func (p *planTest) runRated(t *testing.T) { p.runLimited(t, "rated") }

func (p *planTest) runLimited(t *testing.T, queue scheduler.JobQueue) {
	report := mustRun(t, p.Scheduler, scheduler.RunFilter{Queue: queue, Limit: 10})
	require.Equal(t, 10, report.Succeeded)
	require.NotNil(t, report.NextDueAt)
}

func (p *planTest) createBounded(t *testing.T) {
	mustCreate(t, p.Scheduler, "short", scheduler.JobData{Queue: "bounded"})
	require.Equal(t, 1, mustRun(t, p.Scheduler, scheduler.RunFilter{Queue: "bounded"}).Succeeded)
}

// fillLimited adds the jobs of queues with limits.
func (p *planTest) fillLimited(t *testing.T) {
	mustExec(t, p.aside, `
		INSERT INTO scheduler.jobs (id, name, queue, key, status, lane, finished_at)
		SELECT scheduler.new_job_id(), 'short', q.queue, CASE WHEN i <= 5000 THEN 'many' ELSE 'key ' || i % 5000 END, s.status, s.lane, s.finished_at
		FROM unnest('{at-once,of-a-key,in-rounds,rated}'::text[]) AS q (queue),
			(VALUES ('succeeded', NULL, now()), ('pending', 0, NULL)) AS s (status, lane, finished_at), generate_series(1, 20000) AS i`)
}

// As TestPlansFindJobsByTheirIndexes, of queues with limits.
func TestPlansOfQueuesWithLimits(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	early := newPlanTestOf(t, url, "force_generic_plan", planLimits)
	mustExec(t, early.aside, "ALTER TABLE scheduler.jobs SET (autovacuum_enabled = false)")
	for _, op := range limitedOperations[len(limitedOperations)-1:] { // the others find nothing yet
		op.do(early, t)
	}
	early.record(t, "room_to_create(")
	early.fillLimited(t)
	check := func(title string, p *planTest) {
		for _, op := range limitedOperations {
			t.Run(title+"/"+op.title, func(t *testing.T) {
				p.forget()
				op.do(p, t)
				c := planCheck{title: op.title, indexes: []string{"jobs_live", "jobs_pkey", "jobs_of_keys", "ends_of_queue"}}
				for _, text := range p.record(t, op.asks) {
					c.add(t, text)
				}
				t.Logf("%d rows, %d blocks", c.rows, c.blocks)
				require.LessOrEqual(t, c.rows, op.rows, "rows of jobs that are read to %s:\n%s", op.title, c.texts)
				require.LessOrEqual(t, c.blocks, op.blocks, "blocks that a statement reads to %s:\n%s", op.title, c.texts)
			})
		}
	}
	check("fresh", early)
	check("fresh, custom", newPlanTestOf(t, url, "force_custom_plan", planLimits))
	mustExec(t, early.aside, "VACUUM ANALYZE scheduler.jobs")
	check("analyzed", newPlanTestOf(t, url, "force_custom_plan", planLimits))
	check("analyzed, generic", newPlanTestOf(t, url, "force_generic_plan", planLimits))
}
