package scheduler_test

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// Where there are many recurring jobs and none of them is due, it takes one look
// at an index to know that.
func TestALookForSlotsReadsOneRow(t *testing.T) {
	t.Parallel()
	p := newPlanTest(t, newDatabase(t), "force_generic_plan")
	mustExec(t, p.aside, `INSERT INTO scheduler.recurring (name, schedule, fields, time_zone, job, payload, queue, missed, next_slot)
		SELECT 'r' || i, '@yearly', scheduler.parse_schedule('@yearly'), 'UTC', 'short', 'null', 'default', 'once', now() + i * interval '1 hour'
		FROM generate_series(1, 2000) AS i`)
	for _, op := range []struct {
		title string
		do    func(t *testing.T)
		asks  string
	}{
		{"run", func(t *testing.T) { mustRun(t, p.Scheduler, scheduler.RunFilter{}) }, "begin_run("},
		{"tick", func(t *testing.T) { p.tick(t, "quiet") }, "run_worker("},
		{"poll", func(t *testing.T) {
			stop := goWork(t, t.Context(), p.Scheduler)
			p.waitAsked(t, "slot_in_us")
			stop()
		}, "slot_in_us"},
		{"fire", func(t *testing.T) { mustExec(t, p.pool, "SELECT scheduler.fire_recurring_jobs()") }, "SELECT scheduler.fire_recurring_jobs"},
	} {
		for _, analyzed := range []bool{false, true} {
			if analyzed {
				mustExec(t, p.aside, "VACUUM ANALYZE scheduler.recurring")
			}
			p.forget()
			op.do(t)
			looks := 0
			for _, text := range p.record(t, op.asks) {
				var statement struct{ Plan planNode }
				require.NoError(t, json.Unmarshal([]byte(text), &statement))
				statement.Plan.each(func(n planNode) {
					if n.Relation == "recurring" && n.Loops > 0 {
						looks++
						require.Contains(t, []string{"Index Scan", "Index Only Scan"}, n.Type, "to %s:\n%s", op.title, text)
						require.Equal(t, "recurring_next", n.Index, "to %s:\n%s", op.title, text)
						require.LessOrEqual(t, n.read(), 1, "to %s:\n%s", op.title, text)
					}
				})
			}
			require.Positive(t, looks, op.title)
		}
	}
}

// each calls do with each node of a plan.
func (n planNode) each(do func(planNode)) {
	do(n)
	for _, child := range n.Plans {
		child.each(do)
	}
}
