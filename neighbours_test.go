package scheduler_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// Notifications and advisory locks have no owner in Postgres: every role of the
// database may use those of the library. SECURITY.md says what that amounts to,
// and this that it is no more.
func TestAnotherRoleMayWakeAndHoldUpButNothingElse(t *testing.T) {
	t.Parallel()
	role, schema := unique(), ""
	administer(t, "CREATE ROLE "+role+" LOGIN")
	t.Cleanup(func() { administer(t, "DROP ROLE "+role) })
	results := make(chan *scheduler.Job, 10)
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.PollInterval = c.Schema, 50*time.Millisecond
		c.JobNames = scheduler.JobNames{"tell": telling(results)}
	})
	theirs := dial(t, asRole(t, shared.cluster.URL("postgres"), role))

	// With any payloads, and of jobs that are not there.
	stop := goWork(t, t.Context(), s)
	waitFor(t, func() bool { return listening(t, newPool(t), schema) })
	for _, payload := range []string{"", "default", "blocking", "nowhere", "'; DROP TABLE jobs; --", "\x01\u202e", strings.Repeat("x", 7999)} {
		mustExec(t, theirs, "SELECT pg_notify($1, $2 || CASE WHEN n > 1 AND length($2) < 100 THEN n::text ELSE '' END) FROM generate_series(1, 1000) AS n", schema+"_jobs", payload)
	}
	require.Equal(t, mustCreate(t, s, "tell", scheduler.JobData{}).ID, await(t, results).ID)
	stop()

	// What is held up waits, and goes on.
	for _, lock := range []string{"'" + schema + ".default', 7041974", "'" + schema + "', 7041973"} {
		mustExec(t, theirs, "SELECT pg_advisory_lock(hashtextextended("+lock+"))")
	}
	job := mustCreate(t, s, "tell", scheduler.JobData{})
	require.Zero(t, mustRun(t, s, scheduler.RunFilter{}).Picked)
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, s, job.ID).Status)
	require.NoError(t, theirs.Close(t.Context()))
	waitFor(t, func() bool { return mustRun(t, s, scheduler.RunFilter{}).Succeeded == 1 })
	require.NoError(t, s.Migrate(t.Context()))
}
