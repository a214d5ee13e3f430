package scheduler_test

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/postgres"
)

// On a server that logs and counts every statement, a worker's token is nowhere
// but where it is kept: not from its ticks, be they answered or not, and of the
// statement that it was typed into only where that is logged itself.
func TestWorkerTokenIsInNoLogAndNoStatistics(t *testing.T) {
	t.Parallel()
	needsWorkers(t)
	cluster, err := postgres.Start(t.Context(), postgres.Options{Cron: true, Settings: map[string]string{
		"fsync": "off", "shared_preload_libraries": "pg_cron,pg_stat_statements,auto_explain", "pg_stat_statements.track": "all",
		"log_statement": "all", "log_min_error_statement": "error", "log_min_messages": "debug1", "log_error_verbosity": "verbose",
		"auto_explain.log_nested_statements": "on", "auto_explain.log_verbose": "on",
	}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cluster.Stop()) })
	admin := dial(t, cluster.URL("postgres"))
	mustExec(t, admin, "CREATE EXTENSION pg_cron")
	mustExec(t, admin, "CREATE EXTENSION pg_stat_statements")
	require.NoError(t, postgres.InstallHTTPDouble(t.Context(), admin, extensionSchema))
	require.NoError(t, postgres.InstallNet(t.Context(), admin))
	s, err := scheduler.New(newPoolOn(t, cluster.URL("postgres")), scheduler.Config{})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))

	const hidden = "never-to-be-seen-7041973"
	calls := newEndpoint(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "you sent "+r.Header.Get("Authorization"), http.StatusTeapot) // as some error pages do
	}))
	mustExec(t, admin, "SET log_statement = 'none'")
	for _, extension := range []string{"http", "pg_net"} {
		mustExec(t, admin, "SELECT create_queue_worker('"+extension+"', '"+calls.URL+"', '"+hidden+"', '"+never+"', 5, '"+extension+"', true)")
		// It is refused after everything was looked at, and logged without the statement.
		_, err := admin.Exec(t.Context(), "SELECT create_queue_worker('"+extension+"', '"+calls.URL+"', '"+hidden+"', '60 * * * *', 5, '"+extension+"')")
		require.Error(t, err)
		require.NotContains(t, err.Error(), hidden)
	}
	mustExec(t, admin, "SET log_statement = 'all'")
	mustCreate(t, s, "work", scheduler.JobData{})
	mustExec(t, admin, "SET auto_explain.log_min_duration = 0") // of pg_net's own statements, it shows tokens
	_, err = admin.Exec(t.Context(), "SELECT scheduler.run_worker('http')")
	requirePgError(t, err, "P0001", "418")
	require.NotContains(t, err.Error(), hidden)
	mustExec(t, admin, "RESET auto_explain.log_min_duration")
	mustExec(t, admin, "SELECT scheduler.run_worker('pg_net')")
	require.NotEmpty(t, calls.asked())

	var log []byte
	waitFor(t, func() bool {
		log, err = os.ReadFile(cluster.LogFile())
		return err == nil && strings.Contains(string(log), "run_worker('pg_net')")
	})
	require.Contains(t, string(log), "418")
	require.Contains(t, string(log), "Query Text: ")
	for _, line := range strings.Split(string(log), "\n") {
		require.NotContains(t, line, hidden)
	}

	for _, table := range []string{"pg_stat_statements", "cron.job", "cron.job_run_details", "scheduler.workers", "scheduler.queue_workers", "scheduler.jobs"} {
		require.Zero(t, mustQuery[int](t, admin, "SELECT count(*) FROM "+table+" AS r WHERE strpos(r::text, $1) > 0", hidden), table)
	}
	require.Positive(t, mustQuery[int](t, admin, "SELECT count(*) FROM pg_stat_statements WHERE query LIKE '%create_queue_worker%'"))
	requireDumpsCanLeaveOut(t, cluster, hidden)
}

// requireDumpsCanLeaveOut is about the option that SECURITY.md names.
func requireDumpsCanLeaveOut(t *testing.T, cluster *postgres.Cluster, hidden string) {
	for leaveOut, has := range map[string]bool{"--encoding=UTF8": true, "--exclude-table-data=scheduler.worker_tokens": false} {
		dump, err := exec.Command(filepath.Join(cluster.BinDir(), "pg_dump"), "--dbname", cluster.URL("postgres"), "--schema=scheduler", leaveOut).Output()
		require.NoError(t, err)
		require.Contains(t, string(dump), "worker_tokens")
		require.Equal(t, has, strings.Contains(string(dump), hidden), leaveOut)
	}
}

// The way to restrict hosts that SECURITY.md shows.
func TestWorkersCanBeRestrictedToHosts(t *testing.T) {
	t.Parallel()
	needsWorkers(t)
	w := newWorkerTest(t, nil)
	mustExec(t, w.pool, "ALTER TABLE "+w.schema+`.queue_workers ADD CONSTRAINT own_hosts_only CHECK (endpoint ~ '^https://app\.example\.com/')`)
	create := "SELECT " + w.schema + ".create_queue_worker($1, $2, $3, '" + never + "')"
	for _, endpoint := range []string{
		"http://app.example.com/api/jobs/run", "https://app.example.com.evil.org/", "https://evil.org/app.example.com/", "https://app.example.com:8443/",
		"https://app-example.com/", "https://evil.org/?to=https://app.example.com/", "https://app.example.com?x=@evil.org/", "http://169.254.169.254/",
	} {
		_, err := w.pool.Exec(t.Context(), create, w.name, endpoint, w.token)
		requirePgError(t, err, "23514", "own_hosts_only")
		require.NotContains(t, err.Error(), w.token)
	}
	require.Zero(t, mustQuery[int](t, w.pool, "SELECT count(*) FROM "+w.schema+".worker_tokens"))
	mustExec(t, w.pool, create, w.name, "https://app.example.com/api/jobs/run", w.token)
}
