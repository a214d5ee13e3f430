package scheduler_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// firings counts the entries of pg_cron that fire the recurring jobs of a schema.
func firings(t *testing.T, db database, schema string) int {
	return mustQuery[int](t, db, "SELECT count(*) FROM cron.job WHERE command = 'SELECT ' || $1 || '.fire_recurring_jobs()' AND schedule = '* * * * *' AND active", schema)
}

// Every service sleeps, there is no worker: pg_cron creates the job at its slot.
func TestPgCronFiresRecurringJobs(t *testing.T) {
	t.Parallel()
	needsWorkers(t)
	pool, schema := newPool(t), ""
	s := newScheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.Recurring = []scheduler.RecurringJob{{Name: "minutely", Schedule: "* * * * *", Job: "report"}}
	})
	require.NoError(t, s.Shutdown(t.Context()))
	require.Equal(t, 1, firings(t, pool, schema))
	next := mustQuery[time.Time](t, pool, "SELECT next_slot FROM "+schema+".recurring_jobs").UTC()
	waitForTick(t, func() bool { return mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs") > 0 })
	job := mustGet(t, s, mustQuery[string](t, pool, "SELECT id::text FROM "+schema+".jobs ORDER BY id LIMIT 1"))
	require.Equal(t, next, job.Slot())
	require.Less(t, job.CreatedAt.Sub(next), time.Minute)
}

// pg_cron has its entry for as long as there are recurring jobs.
func TestPgCronHasAnEntryWhileThereAreRecurringJobs(t *testing.T) {
	t.Parallel()
	needsWorkers(t)
	pool, schema := newPool(t), ""
	s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	require.Zero(t, firings(t, pool, schema))
	create := "SELECT " + schema + ".create_recurring_job($1, '@yearly', 'report')"
	mustExec(t, pool, create, "a")
	mustExec(t, pool, create, "b")
	require.NoError(t, s.Migrate(t.Context()))
	require.Equal(t, 1, firings(t, pool, schema))
	mustExec(t, pool, "SELECT cron.unschedule($1)", schema+"-recurring-jobs")
	require.NoError(t, s.Migrate(t.Context()))
	require.Equal(t, 1, firings(t, pool, schema), "it is put back")

	remove := "SELECT " + schema + ".remove_recurring_job($1)"
	require.True(t, mustQuery[bool](t, pool, remove, "a"))
	require.Equal(t, 1, firings(t, pool, schema))
	require.True(t, mustQuery[bool](t, pool, remove, "b"))
	require.Zero(t, firings(t, pool, schema))

	// Somebody else's entry is left alone.
	mustExec(t, pool, "SELECT cron.schedule($1, $2, $3)", schema+"-recurring-jobs", never, "SELECT '"+schema+"'")
	mustExec(t, pool, create, "a")
	require.Zero(t, firings(t, pool, schema))
	require.NoError(t, s.Migrate(t.Context()))
	require.Equal(t, "SELECT '"+schema+"'", mustQuery[string](t, pool, "SELECT command FROM cron.job WHERE jobname = $1", schema+"-recurring-jobs"))
}

// A role that may not use pg_cron has recurring jobs all the same.
func TestRecurringJobsWithoutPgCron(t *testing.T) {
	t.Parallel()
	needsWorkers(t)
	role := unique()
	administer(t, "CREATE ROLE "+role+" LOGIN; GRANT CREATE ON DATABASE postgres TO "+role)
	t.Cleanup(func() { administer(t, "DROP OWNED BY "+role+" CASCADE; DROP ROLE "+role) })
	pool, schema := newPoolOn(t, asRole(t, shared.cluster.URL("postgres"), role)), ""
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"report": succeed}
		c.Recurring = []scheduler.RecurringJob{hourly("a", "")}
	})
	mustExec(t, pool, "SELECT "+schema+".create_recurring_job('b', '@hourly', 'report')")
	mustExec(t, pool, "UPDATE "+schema+".recurring SET next_slot = date_trunc('hour', now())")
	require.Equal(t, 2, mustRun(t, s, scheduler.RunFilter{Limit: 10}).Succeeded, "a run fires them")
	require.True(t, mustQuery[bool](t, pool, "SELECT "+schema+".remove_recurring_job('a') AND "+schema+".remove_recurring_job('b')"))
}

// A worker's tick calls the service for a slot that has come: the run fires it.
func TestTickCallsForASlot(t *testing.T) {
	t.Parallel()
	w := newWorkerTest(t, func(c *scheduler.Config) {
		c.Queues = queueConfigs{"own": {}}
		c.Recurring = []scheduler.RecurringJob{{Name: "a", Schedule: "@yearly", Job: "work", Queue: "own"}}
	})
	host := http.NewServeMux()
	host.Handle("/api/jobs/", w.Handler())
	service := newEndpoint(t, host)
	tick := func(query string) string {
		w.work(t, service.URL+"/api/jobs/run"+query, 10)
		return mustQuery[string](t, w.pool, "SELECT "+w.schema+".run_worker($1)", w.name)
	}
	require.Equal(t, "nothing due", tick("?queue=own"))
	come := "UPDATE " + w.schema + ".recurring SET last_slot = NULL, next_slot = now()"
	mustExec(t, w.pool, come)
	require.NoError(t, w.PauseQueue(t.Context(), "own"))
	require.Equal(t, "nothing due", tick("?queue=own"), "but it fires them")
	require.NoError(t, w.ResumeQueue(t.Context(), "own"))
	require.Equal(t, "nothing due", tick("?queue=own&status=failed"))
	require.Equal(t, "answered 200", tick("?queue=own"))
	mustExec(t, w.pool, come)
	require.Equal(t, "answered 200", tick("?queue=own"))
	require.Equal(t, 2, mustQuery[int](t, w.pool, "SELECT count(*) FROM "+w.schema+".jobs WHERE status = 'succeeded'"))
}
