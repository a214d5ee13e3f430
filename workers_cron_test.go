package scheduler_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

const everyMinute = "* * * * *"

// waitForTick waits for what pg_cron does within a minute. Where it has no
// background worker free, it takes a while longer.
func waitForTick(t *testing.T, condition func() bool) {
	poll := time.NewTicker(100 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(time.Minute + patience); !condition(); <-poll.C {
		require.True(t, time.Now().Before(deadline), "pg_cron has not done so in a minute")
	}
}

// The whole of it, with pg_cron's own clock: it fires a worker, which posts to
// the mounted Handler, which runs the job. Other workers tick in the same
// minute: one that has nothing to do, and some to which bad things happen.
func TestPgCronFiresWorkers(t *testing.T) {
	t.Parallel()
	w := newWorkerTest(t, func(c *scheduler.Config) {
		c.Queues = map[scheduler.JobQueue]scheduler.QueueConfig{"idle": {}, "cursed": {}}
		c.JobNames = scheduler.JobNames{"greet": scheduler.Handle(func(_ context.Context, name string) (string, error) {
			return "hello " + name, nil
		})}
	})
	t.Logf("http: %q", shared.http)
	host := http.NewServeMux()
	host.Handle("/api/jobs/", w.Handler())
	service := newEndpoint(t, host)
	broken := newEndpoint(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		http.Error(rw, "out of order: "+r.Header.Get("Authorization"), http.StatusInternalServerError)
	}))
	hanging := newEndpoint(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then is a client that hangs up noticed
		<-r.Context().Done()
	}))
	id := mustCreate(t, w.Scheduler, "greet", scheduler.JobData{Payload: "world"}).ID
	mustCreate(t, w.Scheduler, "greet", scheduler.JobData{Queue: "cursed"})
	// Typed as a person types it.
	conn, err := pgx.Connect(t.Context(), shared.cluster.URL("postgres"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	for suffix, rest := range map[string]string{
		"-due":     "'" + service.URL + "/api/jobs/run', '" + w.token + "', '" + everyMinute + "'",
		"-idle":    "'" + service.URL + "/api/jobs/run?queue=idle', '" + w.token + "', '" + everyMinute + "'",
		"-broken":  "'" + broken.URL + "?queue=cursed', '" + w.token + "', '" + everyMinute + "'",
		"-hanging": "'" + hanging.URL + "?queue=cursed', '" + w.token + "', '" + everyMinute + "', 2",
	} {
		_, err := conn.Exec(t.Context(), "SELECT "+w.schema+".create_queue_worker('"+w.name+suffix+"', "+rest+")", pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
	}
	// So do those that are refused: the log has the statement of an error.
	_, err = conn.Exec(t.Context(), "SELECT "+w.schema+".create_queue_worker('"+w.name+"', 'http://a/?limit=x', '"+w.token+"', '"+everyMinute+"')", pgx.QueryExecModeSimpleProtocol)
	requirePgError(t, err, "22023", "limit='x'")
	mustExec(t, w.pool, "SELECT cron.schedule($1, $2, $3)", w.name+"-clean-up", everyMinute, "SELECT "+w.schema+".clean_up()")

	outcomes := func() map[string]string {
		rows, err := w.pool.Query(t.Context(), `
			SELECT DISTINCT ON (j.jobname) j.jobname, d.status || ': ' || d.return_message
			FROM cron.job_run_details d JOIN cron.job j USING (jobid)
			WHERE j.jobname LIKE $1 || '%' AND d.end_time IS NOT NULL ORDER BY j.jobname, d.runid`, w.name)
		require.NoError(t, err)
		found := map[string]string{}
		var name, outcome string
		_, err = pgx.ForEachRow(rows, []any{&name, &outcome}, func() error {
			found[strings.TrimPrefix(name, w.name)] = outcome
			return nil
		})
		require.NoError(t, err)
		return found
	}
	waitForTick(t, func() bool { return len(outcomes()) == 5 })
	came := outcomes()
	require.Regexp(t, "^succeeded: ", came["-due"])
	require.Regexp(t, "^succeeded: ", came["-idle"])
	require.Regexp(t, "^succeeded: ", came["-clean-up"])
	require.Regexp(t, `(?s)^failed: .*'`+w.name+`-broken'.* 500: out of order: Bearer …`, came["-broken"])
	require.Regexp(t, "(?s)^failed: .*timed out", came["-hanging"])
	for _, call := range service.asked() {
		require.Equal(t, "POST /api/jobs/run", call, "the idle worker makes no request at all")
	}

	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, service.URL+"/api/jobs/"+id, http.NoBody)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+w.token)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	t.Cleanup(func() { _ = response.Body.Close() })
	var job scheduler.Job
	require.NoError(t, json.NewDecoder(response.Body).Decode(&job))
	require.Equal(t, scheduler.JobStatusSucceeded, job.Status)
	require.JSONEq(t, `"hello world"`, string(job.Result))
	require.Equal(t, 1, job.Attempt)

	requireInspectable(t, w, service.URL)
	requireTokenNowhere(t, w)
}

// requireInspectable looks at the workers with plain SQL.
func requireInspectable(t *testing.T, w *workerTest, url string) {
	var schedule, endpoint, outcome string
	var active, called bool
	var lastRun, ended time.Time
	var age time.Duration
	view := "SELECT schedule, active, endpoint, last_run_at, last_run_ended_at, last_outcome, age, called_at IS NOT NULL FROM " + w.schema + ".workers WHERE name = $1"
	require.NoError(t, w.pool.QueryRow(t.Context(), view, w.name+"-due").Scan(&schedule, &active, &endpoint, &lastRun, &ended, &outcome, &age, &called))
	require.Equal(t, everyMinute, schedule)
	require.True(t, active)
	require.Equal(t, url+"/api/jobs/run", endpoint)
	require.Equal(t, "succeeded", outcome)
	require.False(t, ended.Before(lastRun))
	require.Positive(t, age)
	require.Less(t, age, 2*time.Minute)
	require.True(t, called)
	require.Equal(t, "broken failed t, due succeeded f, hanging failed t, idle succeeded f", mustQuery[string](t, w.pool,
		"SELECT string_agg(concat_ws(' ', split_part(name, '-', 2), last_outcome, last_message LIKE 'ERROR%'), ', ' ORDER BY name) FROM "+w.schema+".workers"))
}

func requireTokenNowhere(t *testing.T, w *workerTest) {
	for _, table := range []string{"cron.job", "cron.job_run_details", w.schema + ".workers", w.schema + ".queue_workers"} {
		require.Zero(t, mustQuery[int](t, w.pool, "SELECT count(*) FROM "+table+" AS r WHERE strpos(r::text, $1) > 0", w.token), table)
	}
	log, err := os.ReadFile(shared.cluster.LogFile())
	require.NoError(t, err)
	require.Contains(t, string(log), w.name+"-broken")
	require.NotContains(t, string(log), w.token)
}

// pgsql-http writes headers to the messages of this level. Where those go into
// the server's log, a worker sends none.
func TestWorkerKeepsItsTokenOutOfDebugMessages(t *testing.T) {
	t.Parallel()
	w := newWorkerTest(t, nil)
	calls := newEndpoint(t, answer(http.StatusOK, ""))
	mustCreate(t, w.Scheduler, "work", scheduler.JobData{})
	w.work(t, calls.URL, 10)

	config, err := pgx.ParseConfig(shared.cluster.URL("postgres"))
	require.NoError(t, err)
	var messages strings.Builder
	config.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) { messages.WriteString(notice.Message + "\n") }
	conn, err := pgx.ConnectConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	mustExec(t, conn, "SET client_min_messages = debug5")
	run := "SELECT " + w.schema + ".run_worker($1)"
	require.Equal(t, "answered 200", mustQuery[string](t, conn, run, w.name))
	require.NotEmpty(t, messages.String())
	require.NotContains(t, messages.String(), w.token)

	mustExec(t, conn, "SET log_min_messages = debug2")
	_, err = conn.Exec(t.Context(), run, w.name)
	mustExec(t, conn, "RESET log_min_messages")
	requirePgError(t, err, "55000", "log_min_messages", "debug2")
	require.Len(t, calls.asked(), 1)
}
