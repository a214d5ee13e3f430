//go:build unix

package scheduler_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func init() { childRoles["work"] = workAlone }

// workAlone is resident, and has no handler.
func workAlone() {
	s := childScheduler(scheduler.Config{PollInterval: 10 * time.Millisecond})
	fmt.Println("begun")
	exitOn(s.Work(context.Background()))
}

// A process is killed in the middle of a firing: what it had created by then goes
// with it, and the next one that comes fires those slots.
func TestAKilledProcessLeavesItsSlotsToOthers(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	pool, schema := newPoolOn(t, url), ""
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		schema = c.Schema
		c.Recurring = []scheduler.RecurringJob{hourly("a", scheduler.MissedAll), hourly("b", scheduler.MissedAll)}
	})
	const gate = 7041999 // the number of any lock
	mustExecAll(t, pool, fmt.Sprintf(`
		CREATE FUNCTION wait_at_the_gate() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(%d); RETURN NEW; END';
		CREATE TRIGGER gate BEFORE INSERT ON %s.jobs FOR EACH ROW EXECUTE FUNCTION wait_at_the_gate();
		UPDATE %s.recurring SET next_slot = date_trunc('hour', now()) - interval '5 hours'`, gate, schema, schema))
	holder := dial(t, url)
	mustExec(t, holder, "SELECT pg_advisory_lock($1)", gate)
	name := unique()
	c := startChild(t, "work", "SCHEMA="+schema, "PGAPPNAME="+name, "DATABASE_URL="+url)
	const waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'"
	waitFor(t, func() bool { return mustQuery[int](t, pool, waits, name) > 0 })
	// Nobody waits for it, and nobody fires its slots.
	require.Zero(t, mustQuery[int](t, pool, "SELECT "+schema+".fire_recurring_jobs()"))
	c.Kill()
	mustExec(t, pool, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", name)
	waitGone(t, pool, name)
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs"))
	mustExec(t, holder, "SELECT pg_advisory_unlock($1)", gate)
	mustRun(t, s, scheduler.RunFilter{})
	requireEachSlotOnce(t, pool, schema, time.Hour, 12)
}

// Three processes make up for a day, and are killed at any time.
func TestKilledProcessesFireEachSlotOnce(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	pool, schema := newPoolOn(t, url), ""
	newSchedulerOn(t, pool, func(c *scheduler.Config) {
		schema = c.Schema
		for _, name := range []string{"a", "b", "c"} {
			c.Recurring = append(c.Recurring, scheduler.RecurringJob{Name: name, Schedule: "* * * * *", Job: "report", Missed: scheduler.MissedAll})
		}
	})
	mustExec(t, pool, "UPDATE "+schema+".recurring SET next_slot = date_trunc('minute', now()) - interval '1 day'")
	start := func() *child { return startChild(t, "work", "SCHEMA="+schema, "DATABASE_URL="+url) }
	children := []*child{start(), start(), start()}
	for i := 0; !mustQuery[bool](t, pool, "SELECT bool_and(next_slot > now()) FROM "+schema+".recurring"); i = (i + 1) % len(children) {
		require.Equal(t, "begun", children[i].Line(t))
		<-time.After(time.Duration(rand.IntN(200)) * time.Millisecond) // of its firing
		children[i].Kill()
		children[i] = start()
	}
	for _, c := range children {
		c.Kill()
	}
	waitFor(t, func() bool { // what they had sent is done
		return mustQuery[int](t, pool, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query LIKE '%fire_recurring%' AND pid <> pg_backend_pid()") == 0
	})
	requireEachSlotOnce(t, pool, schema, time.Minute, 3*24*60)
}

// requireEachSlotOnce: every recurring job has had one job for each slot of so
// long a time, and no other, from the first one until its next slot.
func requireEachSlotOnce(t *testing.T, pool *pgxpool.Pool, schema string, step time.Duration, atLeast int) {
	t.Helper()
	rows, err := pool.Query(t.Context(), `
		SELECT r.name, array_agg((j.attributes ->> 'slot')::timestamptz ORDER BY (j.attributes ->> 'slot')::timestamptz), r.next_slot,
			r.next_slot > now()
		FROM `+schema+`.recurring r JOIN `+schema+`.jobs j ON j.attributes ->> 'recurring' = r.name GROUP BY r.name ORDER BY r.name`)
	require.NoError(t, err)
	var name string
	var slots []time.Time
	var next time.Time
	var isAhead bool
	fired := 0
	_, err = pgx.ForEachRow(rows, []any{&name, &slots, &next, &isAhead}, func() error {
		require.True(t, isAhead)
		for i, slot := range append(slots[1:len(slots):len(slots)], next) {
			require.Equal(t, step, slot.Sub(slots[i]), "%s: %s", name, slot)
		}
		fired += len(slots)
		return nil
	})
	require.NoError(t, err)
	require.GreaterOrEqual(t, fired, atLeast)
}
