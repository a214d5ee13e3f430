package scheduler_test

import (
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/postgres"
)

// pgWarnings are those that the connections of a pool are sent.
type pgWarnings struct {
	mu    sync.Mutex
	texts []string
}

func (w *pgWarnings) note(_ *pgconn.PgConn, notice *pgconn.Notice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.texts = append(w.texts, strings.Join([]string{notice.Severity, notice.Message, notice.Detail, notice.Hint, notice.Where}, " "))
}

// taken returns those since the last call.
func (w *pgWarnings) taken() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	taken := w.texts
	w.texts = nil
	return taken
}

// Whatever is wrong with pg_net, jobs are created, and who may know the reason
// is told once, without the token.
func TestWakeNeverFailsACreation(t *testing.T) {
	t.Parallel()
	if !postgres.HasCron() || !shared.net {
		t.Skip("needs pg_cron and PL/Python: scripts/install-postgres.sh test")
	}
	cluster := newCluster(t, postgres.Options{Cron: true})
	admin := dial(t, cluster.URL("postgres"))
	mustExec(t, admin, `CREATE EXTENSION pg_cron; CREATE ROLE app LOGIN;
		GRANT CREATE ON DATABASE postgres TO app; GRANT CREATE ON SCHEMA public TO app; GRANT USAGE ON SCHEMA cron TO app`, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, postgres.InstallHTTPDouble(t.Context(), admin, extensionSchema))
	mustExec(t, admin, "GRANT USAGE ON SCHEMA "+extensionSchema+" TO app")
	config, err := pgxpool.ParseConfig(asRole(t, cluster.URL("postgres"), "app"))
	require.NoError(t, err)
	var told pgWarnings
	config.ConnConfig.OnNotice = told.note
	pool := newPoolWith(t, config)
	s, err := scheduler.New(pool, scheduler.Config{JobNames: scheduler.JobNames{"work": succeed}})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	const url, token = "http://127.0.0.1:9/run", `the-"token"\`

	createWorker := func() {
		t.Helper()
		told.taken()
		mustExec(t, pool, "SELECT create_queue_worker('a', $1, $2, $3, wake => true)", url, token, never)
	}
	requireWarning := func(warned []string, names ...string) {
		t.Helper()
		require.Len(t, warned, 1)
		for _, name := range append(names, "WARNING", "'a'") {
			require.Contains(t, warned[0], name)
		}
		require.NotContains(t, warned[0], "the-")
	}
	requireCreations := func(names ...string) {
		t.Helper()
		mustExec(t, pool, "UPDATE scheduler.queue_workers SET wake_asked_at = NULL")
		mustCreate(t, s, "work", scheduler.JobData{})
		mustCreateMany(t, s, 2, "work", scheduler.JobData{})
		mustExec(t, pool, "SELECT create_job('work')")
		requireWarning(told.taken(), names...)
		require.Equal(t, 4, mustRun(t, s, scheduler.RunFilter{Limit: 10}).Succeeded)
	}

	createWorker()
	requireWarning(told.taken(), "pg_net is missing", "CREATE EXTENSION pg_net")
	require.True(t, mustQuery[bool](t, pool, "SELECT wake FROM scheduler.workers"), "the wish is kept")
	requireCreations("pg_net is missing", "CREATE EXTENSION pg_net")

	require.NoError(t, postgres.InstallNet(t.Context(), admin))
	told.taken()
	mustCreate(t, s, "work", scheduler.JobData{})
	require.Empty(t, told.taken())
	require.Equal(t, 1, queued(t, admin, url), "the wish takes effect")
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)

	mustExec(t, admin, "REVOKE USAGE ON SCHEMA net FROM PUBLIC")
	createWorker()
	requireWarning(told.taken(), "'app' may not call net.http_post", "GRANT USAGE ON SCHEMA net TO app")
	requireCreations("'app' may not call net.http_post", "GRANT USAGE ON SCHEMA net TO app")
	mustExec(t, admin, "GRANT USAGE ON SCHEMA net TO app; REVOKE EXECUTE ON FUNCTION net.http_post FROM PUBLIC", pgx.QueryExecModeSimpleProtocol)
	requireCreations("'app' may not call net.http_post", "GRANT EXECUTE")
	mustExec(t, admin, "GRANT EXECUTE ON FUNCTION net.http_post TO app")
	createWorker()
	require.Empty(t, told.taken())

	mustExec(t, admin, "ALTER TABLE net.http_request_queue ADD CONSTRAINT nothing_fits CHECK (headers IS NULL) NOT VALID")
	requireCreations("SQLSTATE", url)
	mustExec(t, admin, `CREATE OR REPLACE FUNCTION net.http_post(url text, body jsonb DEFAULT '{}', params jsonb DEFAULT '{}',
			headers jsonb DEFAULT '{}', timeout_milliseconds integer DEFAULT 5000) RETURNS bigint LANGUAGE plpgsql AS
		$$ BEGIN RAISE 'can''t send %', headers USING ERRCODE = 'XX000', DETAIL = headers::text, HINT = headers::text; END $$`)
	requireCreations("SQLSTATE XX000", url)
	mustExec(t, pool, "DELETE FROM scheduler.worker_tokens")
	requireCreations("SQLSTATE 42704", "create_queue_worker")

	// One that is cancelled is no failure of pg_net.
	mustExec(t, admin, `CREATE OR REPLACE FUNCTION net.http_post(url text, body jsonb DEFAULT '{}', params jsonb DEFAULT '{}',
			headers jsonb DEFAULT '{}', timeout_milliseconds integer DEFAULT 5000) RETURNS bigint LANGUAGE sql AS
		$$ SELECT 1::bigint FROM pg_sleep(60) $$`)
	createWorker()
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	mustExec(t, tx, "SET LOCAL statement_timeout = '50ms'")
	_, err = s.CreateJobTx(t.Context(), tx, "work", scheduler.JobData{})
	requirePgError(t, err, "57014")
	require.NoError(t, tx.Rollback(t.Context()))

	log, err := os.ReadFile(cluster.LogFile())
	require.NoError(t, err)
	require.Contains(t, string(log), "it can't be woken")
	require.NotContains(t, string(log), token)
}
