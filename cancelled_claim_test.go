package scheduler_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// A session whose first claim was cancelled somewhere in it counts as others do. In
// such a session, expressions of PL/pgSQL may be queries of one row for good.
func TestCountsOfSessionsWhoseFirstClaimWasCancelled(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Queues = c.Schema, queueConfigs{"limited": {MaxConcurrency: 10_000}}
	})
	mustExec(t, pool, "INSERT INTO "+schema+".leases (id, holder, expires_at) VALUES (gen_random_uuid(), '', now() + interval '1 hour')")
	claim := "SELECT c.id FROM " + schema + ".leases l, " + schema + ".claim('limited', true, true, '{a}', l.id, 3, NULL, NULL, NULL) AS c"
	for i := range 150 {
		conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
		require.NoError(t, err)
		mustExec(t, conn, fmt.Sprintf("SET statement_timeout = %d", 1+i%8))
		_, _ = conn.Exec(t.Context(), claim) // mostly nothing is due
		mustExec(t, conn, "SET statement_timeout = 0")
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
