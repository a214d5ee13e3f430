package scheduler_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// addLease adds a lease that lasts for so long, of no process.
func addLease(t *testing.T, db database, schema string, lasts time.Duration) {
	mustExec(t, db, "INSERT INTO "+schema+".leases (id, holder, expires_at) VALUES (gen_random_uuid(), '', now() + $1::bigint * interval '1 microsecond')", lasts.Microseconds())
}

// claimSQL claims up to n jobs with the name "a" under the only lease.
func claimSQL(schema, queue string, n int) string {
	return fmt.Sprintf("SELECT c.id FROM %s.leases l, %[1]s.claim('%s', true, true, '{a}', l.id, %d, NULL, NULL, NULL) AS c", schema, queue, n)
}

// A queue that is said to have limits is not worked without them.
func TestAClaimWithoutTheLimitsOfItsQueueFails(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Queues, c.JobNames = c.Schema, queueConfigs{"limited": {MaxConcurrency: 1}}, scheduler.JobNames{"a": succeed}
	})
	mustCreate(t, s, "a", scheduler.JobData{Queue: "limited"})
	mustExec(t, pool, "DELETE FROM "+schema+".queue_limits")
	_, err := s.Run(t.Context(), scheduler.RunFilter{Queue: "limited"})
	require.ErrorContains(t, err, "the limits of queue 'limited' are gone")
	require.NoError(t, s.Migrate(t.Context()))
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Queue: "limited"}).Succeeded)
}

// A session whose first claim was cancelled somewhere in it counts as others do. In
// such a session, expressions of PL/pgSQL may be queries of one row for good.
func TestCountsOfSessionsWhoseFirstClaimWasCancelled(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Queues = c.Schema, queueConfigs{"limited": {MaxConcurrency: 10_000}}
	})
	addLease(t, pool, schema, time.Hour)
	claim := claimSQL(schema, "limited", 3)
	for i := range 150 {
		conn, err := pgx.Connect(t.Context(), shared.cluster.URL("postgres")) // past any pooler: it is a session's matter
		require.NoError(t, err)
		// One transaction. Nothing is due, so all that can come of it is that it is cancelled.
		_, _ = conn.PgConn().Exec(t.Context(), fmt.Sprintf("SET LOCAL statement_timeout = %d; %s", 1+i%8, claim)).ReadAll()
		_ = conn.Ping(t.Context()) // a timeout that comes just when the claim has ended is told to whatever is next
		mustCreateMany(t, s, 3, "a", scheduler.JobData{Queue: "limited"})
		mustExec(t, conn, claim)
		require.NoError(t, conn.Close(t.Context()))
		counted := "SELECT " + schema + ".running_in(q) FROM " + schema + ".queue_limits q"
		require.Equal(t, 3*(i+1), mustQuery[int](t, pool, counted), "the limit of the first claim was %d ms", 1+i%8)
	}
}

// For that reason, how many rows a query had is read right after it.
func TestRowCountsAreReadAtOnce(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("sql/*.sql")
	require.NoError(t, err)
	found := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		last := ""
		for line := range strings.Lines(string(text)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "--") {
				continue
			}
			if strings.Contains(line, "ROW_COUNT") {
				found++
				require.True(t, strings.HasSuffix(last, ";") && !strings.HasPrefix(last, "END"), "%s: %q before %q", file, last, line)
			}
			last = line
		}
	}
	require.Positive(t, found)
}
