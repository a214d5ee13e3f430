package scheduler_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// never is a schedule that pg_cron does not come to while tests run: they tick
// themselves.
const never = "0 0 29 2 *"

// endpoint is an HTTP server that notes what it is asked.
type endpoint struct {
	*httptest.Server
	mu    sync.Mutex
	calls []string // such as "POST /api/jobs/run?queue=outreach"
}

func newEndpoint(t *testing.T, handler http.Handler) *endpoint {
	e := &endpoint{}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		e.calls = append(e.calls, r.Method+" "+r.URL.RequestURI())
		e.mu.Unlock()
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(e.Close)
	return e
}

func (e *endpoint) asked() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]string{}, e.calls...)
}

// answer answers every request in this way.
func answer(status int, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	})
}

// workerTest is a service, its schema in a database with pg_cron and http, and
// a name for a worker that no other test has.
type workerTest struct {
	*scheduler.Scheduler
	pool   *pgxpool.Pool
	schema string
	token  string
	name   string
}

func newWorkerTest(t *testing.T, configure func(*scheduler.Config)) *workerTest {
	needsWorkers(t)
	return newWorkerTestOn(t, newPool(t), configure)
}

func newWorkerTestOn(t *testing.T, pool *pgxpool.Pool, configure func(*scheduler.Config)) *workerTest {
	w := &workerTest{pool: pool, token: "token-" + unique(), name: unique()}
	w.Scheduler = newSchedulerOn(t, pool, func(c *scheduler.Config) {
		c.Tokens = []string{w.token}
		c.JobNames = scheduler.JobNames{"work": succeed}
		if configure != nil {
			configure(c)
		}
		w.schema = c.Schema
	})
	return w
}

// work makes the worker, for the Run endpoint of a server or any other URL.
func (w *workerTest) work(t *testing.T, url string, timeoutSeconds int) {
	t.Helper()
	mustExec(t, w.pool, "SELECT "+w.schema+".create_queue_worker($1, $2, $3, $4, $5)", w.name, url, w.token, never, timeoutSeconds)
}

// tick does what pg_cron does.
func (w *workerTest) tick(t *testing.T) (outcome string, err error) {
	command := mustQuery[string](t, w.pool, "SELECT command FROM cron.job WHERE jobname = $1", w.name)
	err = w.pool.QueryRow(t.Context(), command).Scan(&outcome)
	return outcome, err
}

// requirePgError checks the code, and that the message names these.
func requirePgError(t *testing.T, err error, code string, names ...string) {
	t.Helper()
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.Equal(t, code, pg.Code, pg.Message)
	for _, name := range names {
		require.Contains(t, pg.Message+"\n"+pg.Hint, name)
	}
}

// The lines of the contract, as they stand there, in a session that knows
// nothing of the schema. This test alone uses the default schema of the
// database that pg_cron schedules into.
func TestWorkersAsTheContractSays(t *testing.T) {
	t.Parallel()
	needsWorkers(t)
	t.Cleanup(func() {
		administer(t, "DROP FUNCTION IF EXISTS public.create_job, public.create_queue_worker, public.remove_queue_worker")
		administer(t, "DROP SCHEMA IF EXISTS scheduler CASCADE")
		administer(t, "SELECT cron.unschedule(jobid) FROM cron.job WHERE command LIKE '%scheduler.run_worker%' OR jobname = 'cleanup-cron-details'")
	})
	w := newWorkerTest(t, func(c *scheduler.Config) {
		c.Schema = "" // the default
		c.Queues = map[scheduler.JobQueue]scheduler.QueueConfig{"outreach": {}}
	})
	conn, err := pgx.Connect(t.Context(), shared.cluster.URL("postgres"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	run := func(statement string) {
		t.Helper()
		_, err := conn.Exec(t.Context(), statement, pgx.QueryExecModeSimpleProtocol)
		require.NoError(t, err)
	}
	workers := func() string {
		return mustQuery[string](t, conn, "SELECT coalesce(string_agg(concat_ws(' ', name, queue, status, schedule, active), ', ' ORDER BY name), '') FROM scheduler.workers")
	}

	run(`SELECT create_queue_worker('worker-default-1', 'https://app.example.com/api/jobs/run', '123ABC', '* * * * *');`)
	run(`SELECT create_queue_worker('worker-failed-1',  'https://app.example.com/api/jobs/run?status=failed', '123ABC', '* * * * *');`)
	run(`SELECT create_queue_worker('worker-outreach-1','https://app.example.com/api/jobs/run?queue=outreach', '123ABC', '* * * * *');`)
	run(`SELECT cron.schedule('cleanup-cron-details', '0 0 * * *', $$ DELETE FROM cron.job_run_details WHERE end_time < now() - interval '7 days' $$);`)
	require.Equal(t, "worker-default-1 default pending * * * * * t, worker-failed-1 default failed * * * * * t, "+
		"worker-outreach-1 outreach pending * * * * * t", workers())
	require.Equal(t, "SELECT scheduler.run_worker('worker-failed-1')",
		mustQuery[string](t, conn, "SELECT command FROM cron.job WHERE jobname = 'worker-failed-1'"))

	run(`SELECT cron.unschedule('worker-default-1');            -- removes a worker; so does remove_queue_worker('worker-default-1')`)
	require.True(t, strings.HasPrefix(workers(), "worker-failed-1"))
	require.Equal(t, 1, mustQuery[int](t, conn, "SELECT count(*) FROM scheduler.worker_tokens WHERE worker = 'worker-default-1'"))
	run(`SELECT scheduler.clean_up()`)
	require.Equal(t, 2, mustQuery[int](t, conn, "SELECT count(*) FROM scheduler.worker_tokens"), "what cron.unschedule left is cleaned up")

	run(`SELECT create_queue_worker('worker-default-1', 'https://app.example.com/api/jobs/run', '123ABC', '* * * * *');`)
	require.True(t, mustQuery[bool](t, conn, `SELECT remove_queue_worker('worker-default-1')`))
	require.False(t, mustQuery[bool](t, conn, `SELECT remove_queue_worker('worker-default-1')`))
	require.True(t, mustQuery[bool](t, conn, `SELECT remove_queue_worker('worker-failed-1')`))
	require.True(t, mustQuery[bool](t, conn, `SELECT remove_queue_worker('worker-outreach-1')`))
	require.Empty(t, workers())
	require.Zero(t, mustQuery[int](t, conn, "SELECT count(*) FROM cron.job WHERE jobname LIKE 'worker-%-1'"))

	id := mustQuery[string](t, conn, `SELECT create_job('work', now(), '{"a": 1}', 'outreach')`)
	require.JSONEq(t, `{"a": 1}`, string(mustGet(t, w.Scheduler, id).Payload))
}

func TestWorkerIsReplaced(t *testing.T) {
	t.Parallel()
	w := newWorkerTest(t, nil)
	before, after := newEndpoint(t, w.Handler()), newEndpoint(t, w.Handler())
	create := "SELECT " + w.schema + ".create_queue_worker($1, $2, $3, $4, $5)"
	first := mustQuery[int](t, w.pool, create, w.name, before.URL+"/api/jobs/run?limit=2", "an-old-token", never, 300)
	mustCreateMany(t, w.Scheduler, 3, "work", scheduler.JobData{})
	_, err := w.tick(t)
	requirePgError(t, err, "P0001", w.name, "401")

	second := mustQuery[int](t, w.pool, create, w.name, after.URL+"/api/jobs/run?status=any", w.token, "0 0 30 2 *", 7)
	require.Equal(t, first, second, "its runs stay together")
	outcome, err := w.tick(t)
	require.NoError(t, err)
	require.Equal(t, "answered 200", outcome)
	require.Equal(t, []string{"POST /api/jobs/run?limit=2"}, before.asked())
	require.Equal(t, []string{"POST /api/jobs/run?status=any"}, after.asked())
	require.Equal(t, "0 0 30 2 * t any 7", mustQuery[string](t, w.pool,
		"SELECT concat_ws(' ', schedule, active, status, timeout_seconds) FROM "+w.schema+".workers WHERE name = $1 AND called_at IS NOT NULL", w.name))

	mustExec(t, w.pool, "UPDATE cron.job SET active = false WHERE jobname = $1", w.name)
	mustExec(t, w.pool, create, w.name, after.URL, w.token, never, 10)
	require.Equal(t, 1, mustQuery[int](t, w.pool, "SELECT count(*) FROM cron.job WHERE jobname = $1", w.name))
	require.True(t, mustQuery[bool](t, w.pool, "SELECT active FROM "+w.schema+".workers WHERE name = $1", w.name), "switched on again")
	require.Equal(t, 1, mustQuery[int](t, w.pool, "SELECT count(*) FROM "+w.schema+".worker_tokens"))
}

func TestWorkerInput(t *testing.T) {
	t.Parallel()
	w := newWorkerTest(t, nil)
	const url, token = "http://127.0.0.1:9/api/jobs/run", "s3cret"
	bad := map[string]struct {
		args  []any // name, endpoint, token, schedule, timeout_seconds, http_extension, wake
		names []string
	}{
		"no name":             {[]any{nil, url, token, never}, []string{"name NULL", "1 to 63 letters"}},
		"long name":           {[]any{strings.Repeat("n", 10_000), url, token, never}, []string{"name 'nnn", "1 to 63 letters"}},
		"line in the name":    {[]any{"a\nb", url, token, never}, []string{"name 'a?b'"}},
		"no endpoint":         {[]any{w.name, nil, token, never}, []string{"endpoint NULL", "http or https URL"}},
		"other scheme":        {[]any{w.name, "ftp://a.example.com/x", token, never}, []string{"'ftp://a.example.com/x'", "http or https URL"}},
		"no host":             {[]any{w.name, "http:///x", token, never}, []string{"'http:///x'"}},
		"port 0":              {[]any{w.name, "http://a:0/x", token, never}, []string{"'http://a:0/x'"}},
		"port 65536":          {[]any{w.name, "http://a:65536/x", token, never}, []string{"'http://a:65536/x'"}},
		"password":            {[]any{w.name, "http://user:s3cret@a/x", token, never}, []string{"without user, password"}},
		"password with slash": {[]any{w.name, "http://user:s3cret/@a/x", token, never}, []string{"without user, password"}},
		"fragment":            {[]any{w.name, url + "#queue=a", token, never}, []string{"fragment"}},
		"space":               {[]any{w.name, url + "?a=b c", token, never}, []string{"http or https URL"}},
		"header in the URL":   {[]any{w.name, url + "\r\nX: y", token, never}, []string{"run??X: y'"}},
		"not ASCII":           {[]any{w.name, url + "/é", token, never}, []string{"http or https URL"}},
		"backslash":           {[]any{w.name, `http://a\.example.com/x`, token, never}, []string{"http or https URL"}},
		"token as endpoint":   {[]any{w.name, token, url, never}, []string{"endpoint (not shown)"}},
		"parameter twice":     {[]any{w.name, url + "?queue=a&queue=b", token, never}, []string{"'queue'", "each once"}},
		"empty and again":     {[]any{w.name, url + "?queue&queue=b", token, never}, []string{"'queue'", "each once"}},
		"encoded parameter":   {[]any{w.name, url + "?q%75eue=a", token, never}, []string{"'q%75eue'"}},
		"encoded queue":       {[]any{w.name, url + "?queue=a%20b", token, never}, []string{"queue='a%20b'"}},
		"failed and pending":  {[]any{w.name, url + "?queue=failed&status=pending", token, never}, []string{"status='pending'", "takes only failed"}},
		"unknown status":      {[]any{w.name, url + "?status=dead", token, never}, []string{"status='dead'", "pending, failed or any"}},
		"limit 0":             {[]any{w.name, url + "?limit=0", token, never}, []string{"limit='0'", "1 to 10000"}},
		"limit 10001":         {[]any{w.name, url + "?limit=10001", token, never}, []string{"limit='10001'"}},
		"no token":            {[]any{w.name, url, nil, never}, []string{"token: expected"}},
		"empty token":         {[]any{w.name, url, "", never}, []string{"token: expected"}},
		"token with a space":  {[]any{w.name, url, "Bearer s3cret", never}, []string{"token: expected"}},
		"header in the token": {[]any{w.name, url, "s3cret\r\nX: y", never}, []string{"token: expected"}},
		"no schedule":         {[]any{w.name, url, token, nil}, []string{"schedule NULL", "five fields"}},
		"words as schedule":   {[]any{w.name, url, token, "every minute"}, []string{"'every minute'", "five fields"}},
		"token as schedule":   {[]any{w.name, url, never, token}, []string{"token: expected"}},
		"one word":            {[]any{w.name, url, "other", token}, []string{"schedule (not shown)", "five fields"}},
		"0 seconds":           {[]any{w.name, url, token, "0 seconds"}, []string{"'0 seconds'"}},
		"60 seconds":          {[]any{w.name, url, token, "60 seconds"}, []string{"'60 seconds'"}},
		"timeout 0":           {[]any{w.name, url, token, never, 0}, []string{"timeout_seconds 0", "1 to 300"}},
		"timeout 301":         {[]any{w.name, url, token, never, 301}, []string{"timeout_seconds 301"}},
		"no timeout":          {[]any{w.name, url, token, never, nil}, []string{"timeout_seconds NULL"}},
		"failed and wake":     {[]any{w.name, url + "?status=failed", token, never, 10, nil, true}, []string{"wake with status=failed", "is pending"}},
		"view and wake":       {[]any{w.name, url + "?queue=failed", token, never, 10, nil, true}, []string{"wake with status=failed"}},
		"unknown extension":   {[]any{w.name, url, token, never, 10, "curl"}, []string{"http_extension 'curl'", "'http' or 'pg_net'"}},
	}
	for title, test := range bad {
		_, err := w.pool.Exec(t.Context(), "SELECT "+w.schema+".create_queue_worker("+
			strings.Join([]string{"$1", "$2", "$3", "$4", "$5", "$6", "$7"}[:len(test.args)], ", ")+")", test.args...)
		require.Error(t, err, title)
		requirePgError(t, err, "22023", test.names...)
		require.NotContains(t, err.Error(), token, title)
		require.Less(t, len(err.Error()), 500, title)
	}
	_, err := w.pool.Exec(t.Context(), "SELECT "+w.schema+".create_queue_worker($1, $2, $3, '61 * * * *')", w.name, url, token)
	require.ErrorContains(t, err, "61 * * * *", "pg_cron's own check")

	require.Zero(t, mustQuery[int](t, w.pool, "SELECT count(*) FROM cron.job WHERE jobname = $1", w.name))
	require.Zero(t, mustQuery[int](t, w.pool, "SELECT (SELECT count(*) FROM "+w.schema+".queue_workers) + (SELECT count(*) FROM "+w.schema+".worker_tokens)"))
}

func TestWorkerScheduleInSeconds(t *testing.T) {
	t.Parallel()
	w := newWorkerTest(t, nil)
	_, err := w.pool.Exec(t.Context(), "SELECT "+w.schema+".create_queue_worker($1, 'http://127.0.0.1:9', 't', '59 seconds')", w.name)
	if mustQuery[bool](t, w.pool, "SELECT string_to_array(split_part(extversion, '-', 1), '.')::int[] >= '{1,5}' FROM pg_extension WHERE extname = 'pg_cron'") {
		require.NoError(t, err)
		return
	}
	requirePgError(t, err, "22023", "'59 seconds'", "1.5", "* * * * *")
}

// Also for versions of pg_cron other than the one that is installed.
func TestWorkerScheduleInSecondsByVersion(t *testing.T) {
	t.Parallel()
	pool := newPoolOn(t, newDatabase(t))
	var schema string
	newSchedulerOn(t, pool, func(c *scheduler.Config) { schema = c.Schema })
	check := "SELECT " + schema + ".check_schedule($1)"
	mustExec(t, pool, `INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
		SELECT 1, 'pg_cron', 10, 'pg_catalog'::regnamespace, false, '1.4-1'`) // as far as that function sees
	for version, has := range map[string]bool{"1.4-1": false, "1.3": false, "1.5": true, "1.6": true, "1.10": true, "2.0": true} {
		mustExec(t, pool, "UPDATE pg_extension SET extversion = $1 WHERE extname = 'pg_cron'", version)
		for _, schedule := range []string{"1 second", " 59 seconds "} {
			_, err := pool.Exec(t.Context(), check, schedule)
			if has {
				require.NoError(t, err, version)
			} else {
				requirePgError(t, err, "22023", schedule, version, "1.5 was the first", "* * * * *")
			}
		}
		mustExec(t, pool, check, everyMinute)
	}
}

// What a URL says is understood as the service understands it.
func TestWorkerEndpoints(t *testing.T) {
	t.Parallel()
	w := newWorkerTest(t, nil)
	for url, filter := range map[string]string{
		"http://a":                                               "default pending",
		"HTTPS://A.b-c.example.com/x/":                           "default pending",
		"http://127.0.0.1:65535?":                                "default pending",
		"http://[::1]:80/x?queue=":                               "default pending",
		"http://a/x?queue=failed":                                "default failed",
		"http://a?status=failed&wait=1":                          "default failed",
		"http://a/@x?queue=out.reach-1_B&status=any&limit=10000": "out.reach-1_B any",
		"http://a/x?b=1?queue=c&d=%20":                           "default pending",
	} {
		require.Equal(t, filter, mustQuery[string](t, w.pool, "SELECT concat_ws(' ', queue, status) FROM "+w.schema+".endpoint_filter($1)", url), url)
	}
}

func TestWorkerTakesNoOthersEntry(t *testing.T) {
	t.Parallel()
	w := newWorkerTest(t, nil)
	mustExec(t, w.pool, "SELECT cron.schedule($1, $2, 'SELECT ''"+w.schema+"''')", w.name, never)
	_, err := w.pool.Exec(t.Context(), "SELECT "+w.schema+".create_queue_worker($1, 'http://127.0.0.1:9', 't', $2)", w.name, never)
	requirePgError(t, err, "42710", w.name, "another name", "cron.unschedule")
	require.False(t, mustQuery[bool](t, w.pool, "SELECT "+w.schema+".remove_queue_worker($1)", w.name))
	require.Equal(t, "SELECT '"+w.schema+"'", mustQuery[string](t, w.pool, "SELECT command FROM cron.job WHERE jobname = $1", w.name))
}
