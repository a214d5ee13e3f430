package scheduler_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/postgres"
)

// newCluster starts a cluster for tests of what a whole server has in common.
func newCluster(t *testing.T, options postgres.Options) *postgres.Cluster {
	options.Settings = map[string]string{"fsync": "off"}
	cluster, err := postgres.Start(t.Context(), options)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cluster.Stop()) })
	return cluster
}

func dial(t *testing.T, url string) *pgx.Conn {
	conn, err := pgx.Connect(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// asRole is the URL with another user.
func asRole(t *testing.T, databaseURL, role string) string {
	u, err := url.Parse(databaseURL)
	require.NoError(t, err)
	u.User = url.User(role)
	return u.String()
}

// openedSQL finds what a role other than the owner may do with anything of ours.
const openedSQL = `
WITH other AS (SELECT unnest($1::text[]) AS role), ours AS (
    SELECT p.oid FROM pg_proc p WHERE p.pronamespace::regnamespace::text LIKE 'scheduler%'
        OR p.pronamespace = 'public'::regnamespace AND p.proname IN ('create_job', 'create_queue_worker', 'remove_queue_worker', 'create_recurring_job', 'remove_recurring_job'))
SELECT coalesce(string_agg(found, ', '), '') FROM (
    SELECT role || ' executes ' || ours.oid::regprocedure FROM other, ours WHERE has_function_privilege(role, ours.oid, 'EXECUTE')
    UNION ALL
    SELECT role || ' uses ' || c.oid::regclass FROM other, pg_class c
    WHERE c.relnamespace::regnamespace::text LIKE 'scheduler%' AND c.relkind IN ('r', 'v')
        AND has_table_privilege(role, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
    UNION ALL
    SELECT role || ' uses the schema ' || n.nspname FROM other, pg_namespace n
    WHERE n.nspname LIKE 'scheduler%' AND has_schema_privilege(role, n.oid, 'USAGE, CREATE')
) AS t (found)`

// Supabase's roles get all rights on what its owner creates; nothing of ours is
// for them, nor for any other role.
func TestNothingIsForOthers(t *testing.T) {
	t.Parallel()
	cluster := newCluster(t, postgres.Options{})
	admin := dial(t, cluster.URL("postgres"))
	mustExec(t, admin, "CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE postgres TO app; GRANT CREATE ON SCHEMA public TO app", pgx.QueryExecModeSimpleProtocol)
	pool := newPoolOn(t, asRole(t, cluster.URL("postgres"), "app"))
	migrate := func(schema string) {
		s, err := scheduler.New(pool, scheduler.Config{Schema: schema})
		require.NoError(t, err)
		require.NoError(t, s.Migrate(t.Context()))
	}
	migrate("scheduler_before") // before there are such roles
	mustExec(t, admin, `
		CREATE ROLE anon LOGIN; CREATE ROLE authenticated; CREATE ROLE service_role; CREATE ROLE plain;
		ALTER DEFAULT PRIVILEGES FOR ROLE app GRANT ALL ON SCHEMAS TO anon, authenticated, service_role;
		ALTER DEFAULT PRIVILEGES FOR ROLE app GRANT ALL ON TABLES TO anon, authenticated, service_role;
		ALTER DEFAULT PRIVILEGES FOR ROLE app GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
		ALTER DEFAULT PRIVILEGES FOR ROLE app IN SCHEMA public GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
		GRANT USAGE ON SCHEMA public TO anon`, pgx.QueryExecModeSimpleProtocol)
	migrate("scheduler")
	migrate("scheduler") // which changes nothing
	others := []string{"anon", "authenticated", "service_role", "plain"}
	require.Empty(t, mustQuery[string](t, admin, openedSQL, others))
	require.NotEmpty(t, mustQuery[string](t, admin, openedSQL, []string{"app"}), "the query finds what there is")

	// A role may be the current one by itself, by another one that is a member of
	// it, as PostgREST's is, and by a superuser.
	mustExec(t, admin, "CREATE ROLE authenticator LOGIN NOINHERIT; GRANT anon, authenticated, service_role TO authenticator", pgx.QueryExecModeSimpleProtocol)
	sessions := map[string]*pgx.Conn{"anon": dial(t, asRole(t, cluster.URL("postgres"), "anon"))}
	for _, role := range others {
		through := dial(t, asRole(t, cluster.URL("postgres"), "authenticator"))
		if role == "plain" {
			through = dial(t, cluster.URL("postgres"))
		}
		mustExec(t, through, "SET ROLE "+role)
		sessions["SET ROLE "+role] = through
	}
	for _, schema := range []string{"scheduler", "scheduler_before"} {
		requireNothingFor(t, admin, schema, sessions)
		// Nor would it be for them if they came into the schema.
		mustExec(t, admin, "GRANT USAGE ON SCHEMA "+schema+" TO anon, authenticated, service_role, plain")
		requireNothingFor(t, admin, schema, sessions)
		mustExec(t, admin, "REVOKE USAGE ON SCHEMA "+schema+" FROM anon, authenticated, service_role, plain")
	}

	// What Supabase's linter looks at.
	require.Empty(t, mustQuery[string](t, admin, `
		SELECT coalesce(string_agg(p.oid::regprocedure::text, ', '), '') FROM pg_proc p
		WHERE (p.pronamespace = 'scheduler'::regnamespace OR p.prosrc LIKE '%scheduler%')
			AND (p.prosecdef OR NOT 'search_path=""' = ANY (coalesce(p.proconfig, '{}')))`))
	require.Empty(t, mustQuery[string](t, admin, `
		SELECT coalesce(string_agg(c.oid::regclass::text, ', '), '') FROM pg_class c
		WHERE c.relnamespace = 'scheduler'::regnamespace AND (c.relkind = 'r' AND NOT c.relrowsecurity
			OR c.relkind = 'v' AND NOT 'security_invoker=true' = ANY (coalesce(c.reloptions, '{}'))
				AND current_setting('server_version_num')::integer >= 150000)`))
	require.Zero(t, mustQuery[int](t, admin, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"))
}

func TestPublicEntryTakesNoOthersFunction(t *testing.T) {
	t.Parallel()
	pool := newPoolOn(t, newDatabase(t))
	mustExec(t, pool, "CREATE FUNCTION public.create_job(name text) RETURNS text LANGUAGE sql AS $$ SELECT 'mine' $$")
	s, err := scheduler.New(pool, scheduler.Config{})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	require.Equal(t, "mine", mustQuery[string](t, pool, "SELECT create_job('a')"))
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM pg_proc WHERE proname = 'create_queue_worker' AND pronamespace = 'public'::regnamespace"))
	require.Len(t, mustQuery[string](t, pool, "SELECT scheduler.create_job('a')::text"), 36)
}

// A service's own role may have workers; nobody takes them over.
func TestWorkersOfARoleThatIsNoSuperuser(t *testing.T) {
	t.Parallel()
	needsWorkers(t)
	role := unique()
	administer(t, "CREATE ROLE "+role+" LOGIN; GRANT CREATE ON DATABASE postgres TO "+role)
	t.Cleanup(func() { administer(t, "DROP OWNED BY "+role+" CASCADE; DROP ROLE "+role) })
	pool := newPoolOn(t, asRole(t, shared.cluster.URL("postgres"), role))
	w := newWorkerTestOn(t, pool, nil)
	create := "SELECT " + w.schema + ".create_queue_worker($1, $2, $3, $4)"
	run := newEndpoint(t, w.Handler())
	arguments := []any{w.name, run.URL + "/api/jobs/run", w.token, never}
	_, err := pool.Exec(t.Context(), create, arguments...)
	requirePgError(t, err, "42501", role, "GRANT USAGE ON SCHEMA cron TO "+role)
	mustQuery[int](t, pool, "SELECT "+w.schema+".clean_up()")
	administer(t, "GRANT USAGE ON SCHEMA cron, "+extensionSchema+" TO "+role)

	mustExec(t, pool, create, arguments...)
	mustCreate(t, w.Scheduler, "work", scheduler.JobData{})
	outcome, err := w.tick(t)
	require.NoError(t, err)
	require.Equal(t, "answered 200", outcome)
	require.Equal(t, 1, mustQuery[int](t, pool, "SELECT count(*) FROM "+w.schema+".workers"))

	admin := dial(t, shared.cluster.URL("postgres"))
	_, err = admin.Exec(t.Context(), create, arguments...)
	requirePgError(t, err, "42710", role, "remove_queue_worker")
	mustExec(t, admin, "SELECT "+w.schema+".clean_up()")
	require.Equal(t, 1, mustQuery[int](t, pool, "SELECT count(*) FROM "+w.schema+".workers"))
	require.True(t, mustQuery[bool](t, admin, "SELECT "+w.schema+".remove_queue_worker($1)", w.name))
	require.Zero(t, mustQuery[int](t, admin, "SELECT count(*) FROM cron.job WHERE jobname = $1", w.name))

	// pg_cron would not show the service's role an entry that the superuser made.
	mustExec(t, admin, create, arguments...)
	mustExec(t, pool, "SELECT "+w.schema+".clean_up()")
	require.Equal(t, 1, mustQuery[int](t, admin, "SELECT count(*) FROM "+w.schema+".worker_tokens"))
	_, err = pool.Exec(t.Context(), "SELECT "+w.schema+".remove_queue_worker($1)", w.name)
	requirePgError(t, err, "42501", w.name, "postgres")
}

func TestWorkersNeedPgCronInThisDatabase(t *testing.T) {
	t.Parallel()
	pool := newPoolOn(t, newDatabase(t))
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) { c.Schema = "" })
	_, err := pool.Exec(t.Context(), "SELECT create_queue_worker('a', 'http://127.0.0.1:9', 't', '* * * * *')")
	if shared.cron {
		requirePgError(t, err, "55000", "'postgres'", "Keep the jobs in the database postgres")
	} else {
		requirePgError(t, err, "55000", "pg_cron", "call Work")
	}
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM scheduler.queue_workers"))
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM scheduler.workers"))
	require.False(t, mustQuery[bool](t, pool, "SELECT remove_queue_worker('a')"))
	mustExec(t, pool, "SELECT scheduler.clean_up()")
	id := mustQuery[string](t, pool, "SELECT create_job('a')::text")
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, s, id).Status)
}

// A server without pgsql-http, with Supabase Vault: the token goes into the
// vault, and pg_net makes the request.
func TestWorkersWithPgNetAndVault(t *testing.T) {
	t.Parallel()
	if !postgres.HasCron() || shared.http == "" { // the doubles need PL/Python too
		t.Skip("needs pg_cron and PL/Python: scripts/install-postgres.sh test")
	}
	cluster := newCluster(t, postgres.Options{Cron: true})
	pool := newPoolOn(t, cluster.URL("postgres"))
	admin := dial(t, cluster.URL("postgres"))
	mustExec(t, admin, "CREATE EXTENSION pg_cron")
	s, err := scheduler.New(pool, scheduler.Config{})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	create := "SELECT create_queue_worker('a', $1, $2, '" + never + "')"
	calls := newEndpoint(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer the-token" {
			http.Error(rw, "not "+r.Header.Get("Authorization"), http.StatusUnauthorized)
		}
	}))
	_, err = pool.Exec(t.Context(), create, calls.URL, "a-token")
	requirePgError(t, err, "55000", "http (pgsql-http)", "CREATE EXTENSION http", "pg_net")

	require.NoError(t, postgres.InstallNet(t.Context(), admin))
	_, err = pool.Exec(t.Context(), strings.Replace(create, "')", "', 10, 'http')", 1), calls.URL, "a-token")
	requirePgError(t, err, "55000", "http")
	mustExec(t, pool, create, calls.URL, "a-token") // before there is a vault
	require.NoError(t, postgres.InstallVault(t.Context(), admin))
	mustExec(t, pool, create, calls.URL, "b-token")
	require.Equal(t, "b-token", mustQuery[string](t, pool, "SELECT string_agg(decrypted_secret, ' ') FROM vault.decrypted_secrets"))
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM scheduler.worker_tokens"))

	tick := func() string {
		outcome := mustQuery[string](t, pool, "SELECT scheduler.run_worker('a')")
		// What pg_cron would have noted.
		mustExec(t, pool, `INSERT INTO cron.job_run_details (jobid, command, status, return_message, start_time, end_time)
			SELECT jobid, command, 'succeeded', 'SELECT 1', coalesce((SELECT called_at FROM scheduler.queue_workers), now()), clock_timestamp() FROM cron.job`)
		return outcome
	}
	last := func() string {
		return mustQuery[string](t, pool, "SELECT concat_ws(' ', http_extension, last_outcome, last_message) FROM scheduler.workers")
	}
	require.Equal(t, "nothing due", tick())
	require.Equal(t, "pg_net succeeded SELECT 1", last())
	mustCreate(t, s, "work", scheduler.JobData{})
	require.Equal(t, "queued", tick())
	require.Equal(t, "pg_net queued SELECT 1", last())
	mustQuery[int](t, admin, "SELECT net.deliver()")
	require.Regexp(t, "(?s)^pg_net failed 401 not Bearer …", last())

	mustExec(t, pool, create, calls.URL, "the-token")
	require.Equal(t, 1, mustQuery[int](t, pool, "SELECT count(*) FROM vault.secrets"), "replaced")
	require.Equal(t, "queued", tick())
	mustQuery[int](t, admin, "SELECT net.deliver()")
	require.Equal(t, "pg_net succeeded 200 ", last())
	require.Equal(t, []string{"POST /", "POST /"}, calls.asked())
	mustExec(t, pool, "UPDATE cron.job_run_details SET status = 'failed', return_message = 'ERROR: this'")
	require.Equal(t, "pg_net failed ERROR: this", last())

	mustExec(t, pool, "DELETE FROM vault.secrets")
	_, err = pool.Exec(t.Context(), "SELECT scheduler.run_worker('a')")
	requirePgError(t, err, "42704", "'a'", "token is gone", "create_queue_worker")
	mustExec(t, pool, create, calls.URL, "the-token")
	require.True(t, mustQuery[bool](t, pool, "SELECT remove_queue_worker('a')"))
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM vault.secrets"), "so is its secret")
}
