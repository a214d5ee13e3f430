package scheduler_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/postgres"
)

// layTrapsSQL creates, in a schema of everybody's search_path, functions and
// operators with the names of the system's and other types, which would fit
// better than those where something is to be converted. Each fails when it is
// called. To create in public is the right of everybody up to PostgreSQL 14.
const layTrapsSQL = `
DO $traps$
DECLARE
    trap   text := ' RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION ''trapped''; END $$';
    types  text[] := '{smallint,integer,bigint,numeric,double precision,text,varchar,name,uuid,jsonb,timestamptz,interval}';
    others text[] := '{boolean,text[],uuid[],integer[],bigint[],boolean[],timestamptz[],oid,regclass,xid8}';
    a text; b text; f text;
BEGIN
    FOREACH a IN ARRAY types || others LOOP
        FOREACH f IN ARRAY '{unnest,to_regnamespace,to_regclass,pg_advisory_xact_lock,pg_xact_status,min,max,count}'::text[] LOOP
            EXECUTE format('CREATE FUNCTION public.%I(%s)', f, a) || trap;
        END LOOP;
    END LOOP;
    FOREACH a IN ARRAY types LOOP
        FOREACH b IN ARRAY types LOOP
            FOREACH f IN ARRAY '{trap,hashtextextended,pg_notify}'::text[] LOOP
                EXECUTE format('CREATE FUNCTION public.%I(%s, %s)', f, a, b) || trap;
            END LOOP;
            FOREACH f IN ARRAY '{=,<>,<,>,<=,>=,+,-,*,||,->,@>}'::text[] LOOP
                EXECUTE format('CREATE OPERATOR public.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = public.trap)', f, a, b);
            END LOOP;
        END LOOP;
    END LOOP;
    -- Better than VARIADIC "any".
    EXECUTE 'CREATE FUNCTION public.jsonb_build_object(text, smallint, text, text, text, jsonb, text, timestamptz)' || trap;
    EXECUTE 'CREATE FUNCTION public.jsonb_build_object(text, integer, text, text, text, jsonb, text, timestamptz)' || trap;
    EXECUTE 'CREATE FUNCTION public.array_position(text[], text)' || trap;
    EXECUTE 'CREATE FUNCTION public.array_position(uuid[], uuid)' || trap;
END
$traps$`

// Nothing that others create where the service's role looks for names takes the
// place of the system's, neither in what a process asks nor in what a migration
// makes of expressions.
func TestNothingOfOthersIsCalled(t *testing.T) {
	t.Parallel()
	pool := newPoolOn(t, newDatabase(t))
	mustExec(t, pool, layTrapsSQL)
	_, err := pool.Exec(t.Context(), "SELECT 2::numeric * 3")
	requirePgError(t, err, "P0001", "trapped")
	_, err = pool.Exec(t.Context(), "SELECT public.unnest('{a}'::text[])")
	requirePgError(t, err, "P0001", "trapped")
	exercise(t, pool)
}

// exercise does what there is to do through Go once.
func exercise(t *testing.T, pool *pgxpool.Pool) {
	results := make(chan *scheduler.Job, 100)
	ctx := t.Context()
	var s *scheduler.Scheduler
	s = newSchedulerOn(t, pool, func(c *scheduler.Config) {
		c.PollInterval, c.Tokens = 20*time.Millisecond, []string{webToken}
		c.Queues = queueConfigs{
			"limited": {MaxConcurrency: 2, MaxConcurrencyPerKey: 1, Rate: scheduler.Rate{Limit: 100, Per: time.Second}, MaxPending: 1000},
			"own":     {OnDead: "tell", PriorityAge: time.Hour, MaxAttempts: 1},
		}
		c.Recurring = []scheduler.RecurringJob{{Name: "often", Schedule: "* * * * *", Job: "tell"}}
		c.JobNames = scheduler.JobNames{
			"tell": telling(results), "fail": fail,
			"report": func(ctx context.Context, _ *scheduler.Job) (any, error) {
				if err := scheduler.SetProgress(ctx, 50, "half"); err != nil {
					return nil, err
				}
				if err := scheduler.Checkpoint(ctx, 1); err != nil {
					return nil, err
				}
				var at int
				_, err := scheduler.LoadCheckpoint(ctx, &at)
				return at, err
			},
			"complete": func(ctx context.Context, job *scheduler.Job) (any, error) {
				return nil, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return s.CompleteTx(ctx, tx, job, 1) })
			},
		}
	})
	create := func(name string, data scheduler.JobData) *scheduler.Job { return mustCreate(t, s, name, data) }

	later := time.Now().Add(time.Hour)
	first := create("tell", scheduler.JobData{Payload: 1, Owner: "ada", Tags: []string{"a"}, Timeout: time.Minute})
	create("tell", scheduler.JobData{Queue: "limited", Key: "k", UniqueKey: "u", UniqueFor: time.Hour, OnDuplicate: scheduler.DuplicateReplace})
	create("tell", scheduler.JobData{Queue: "limited", Key: "k", UniqueKey: "u", UniqueFor: time.Hour, OnDuplicate: scheduler.DuplicateReplace})
	create("tell", scheduler.JobData{After: []string{first.ID}})
	create("fail", scheduler.JobData{Queue: "own", Priority: 5})
	create("tell", scheduler.JobData{Queue: scheduler.JobQueueBlocking})
	create("report", scheduler.JobData{})
	create("complete", scheduler.JobData{})
	_, err := s.CreateJobs(ctx, []scheduler.NewJob{{Name: "tell"}, {Name: "fail", JobData: scheduler.JobData{Priority: 3}}})
	require.NoError(t, err)
	require.NoError(t, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		_, err := s.CreateJobTx(ctx, tx, "tell", scheduler.JobData{})
		return err
	}))

	for _, do := range []func(context.Context, string) (*scheduler.Job, error){
		s.CancelJob, s.RetryJob, func(ctx context.Context, id string) (*scheduler.Job, error) { return s.RescheduleJob(ctx, id, later) }, s.CancelJob,
	} {
		_, err := do(ctx, create("tell", scheduler.JobData{RunAt: later}).ID)
		if err != nil {
			require.ErrorIs(t, err, scheduler.ErrJobState)
		}
	}
	require.NoError(t, s.DeleteJob(ctx, create("tell", scheduler.JobData{RunAt: later}).ID))
	for _, do := range []func(context.Context, scheduler.JobFilter) (int, error){
		s.CancelJobs, s.RetryJobs, func(ctx context.Context, f scheduler.JobFilter) (int, error) { return s.RescheduleJobs(ctx, f, later) }, s.DeleteJobs,
	} {
		_, err := do(ctx, scheduler.JobFilter{Owner: "nobody", Tags: []string{"a"}, CreatedBefore: later})
		require.NoError(t, err)
	}
	require.NoError(t, s.PauseQueue(ctx, "own"))
	require.NoError(t, s.ResumeQueue(ctx, "own"))

	for _, queue := range []scheduler.JobQueue{"", "limited", "own", scheduler.JobQueueBlocking} {
		report := mustRun(t, s, scheduler.RunFilter{Queue: queue, Status: scheduler.JobStatusAny, Limit: 100})
		require.Positive(t, report.Picked, queue)
		require.Zero(t, report.HandedBack+report.Lost)
	}
	page, err := s.ListJobs(ctx, scheduler.JobFilter{Names: []string{"tell", "report"}, Limit: 2})
	require.NoError(t, err)
	_, err = s.ListJobs(ctx, scheduler.JobFilter{Cursor: page.Next, Queues: []scheduler.JobQueue{"own"}, CreatedBefore: later})
	require.NoError(t, err)
	_, err = s.QueueStats(ctx)
	require.NoError(t, err)
	mustGet(t, s, first.ID)
	for len(results) > 0 {
		<-results
	}

	stop := goWork(t, ctx, s)
	for range 5 {
		create("tell", scheduler.JobData{})
		await(t, results)
	}
	stop()
	require.NoError(t, s.Migrate(ctx))
}

// The extensions' functions are often in a schema that others may create in.
func TestWorkersCallNoFunctionsOfOthersBesideTheExtensions(t *testing.T) {
	t.Parallel()
	needsWorkers(t)
	pool := newPoolOn(t, newDatabase(t))
	admin := dial(t, pool.Config().ConnString())
	require.NoError(t, postgres.InstallHTTPDouble(t.Context(), admin, "public"))
	for _, types := range []string{"text, text", "text, varchar", "varchar, text"} {
		mustExec(t, admin, "CREATE FUNCTION public.http_set_curlopt("+types+") RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$")
	}
	mustExec(t, admin, "CREATE FUNCTION public.http(record) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$")
	schema := ""
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) { schema = c.Schema })
	calls := newEndpoint(t, answer(http.StatusOK, ""))
	mustExec(t, admin, "INSERT INTO "+schema+`.queue_workers (name, endpoint, queue, status, http_extension, timeout_seconds)
		VALUES ('a', $1, 'default', 'pending', 'http', 5)`, calls.URL)
	mustExec(t, admin, "INSERT INTO "+schema+".worker_tokens VALUES ('a', 'token')")
	mustCreate(t, s, "work", scheduler.JobData{})
	require.Equal(t, "answered 200", mustQuery[string](t, admin, "SELECT "+schema+".run_worker('a')"))
}

// A function or a schema that somebody else had there first would be called in
// place of the library's, with the rights of whoever calls it.
func TestNothingOfOthersIsTakenOver(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	admin := dial(t, url)
	eve, app := unique(), unique()
	mustExec(t, admin, "CREATE ROLE "+eve+" LOGIN; CREATE ROLE "+app+" LOGIN", pgx.QueryExecModeSimpleProtocol)
	t.Cleanup(func() { administer(t, "DROP ROLE "+eve+"; DROP ROLE "+app) })
	t.Cleanup(func() { mustExecAsLast(t, url, "DROP OWNED BY "+eve+" CASCADE; DROP OWNED BY "+app+" CASCADE") })
	mustExec(t, admin, "GRANT CREATE ON SCHEMA public TO "+eve)
	mustExec(t, admin, "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO "+eve+", "+app+"', current_database()); END $$")
	theirs := dial(t, asRole(t, url, eve))

	mustExec(t, theirs, "CREATE FUNCTION public.remove_recurring_job(name text) RETURNS boolean LANGUAGE sql AS $$ SELECT true /* \"scheduler\". */ $$")
	s, err := scheduler.New(newPoolOn(t, url), scheduler.Config{}) // a superuser's
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	require.NoError(t, s.Migrate(t.Context()))
	require.Equal(t, 1, mustQuery[int](t, admin, "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"), "no public entry")
	mustExec(t, theirs, "DROP FUNCTION public.remove_recurring_job")
	require.NoError(t, s.Migrate(t.Context()))
	require.Equal(t, 5, mustQuery[int](t, admin, "SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace"))

	mustExec(t, theirs, "CREATE SCHEMA first; GRANT ALL ON SCHEMA first TO "+app, pgx.QueryExecModeSimpleProtocol)
	s, err = scheduler.New(newPoolOn(t, asRole(t, url, app)), scheduler.Config{Schema: "first"})
	require.NoError(t, err)
	require.ErrorContains(t, s.Migrate(t.Context()), eve)
	require.Zero(t, mustQuery[int](t, admin, "SELECT count(*) FROM pg_class WHERE relnamespace = 'first'::regnamespace"))
	mustExec(t, admin, "ALTER SCHEMA first OWNER TO "+app)
	require.NoError(t, s.Migrate(t.Context()))
}

// mustExecAsLast runs statements at the end of a test on a database that is
// about to be dropped.
func mustExecAsLast(t *testing.T, url, statements string) {
	ctx := context.WithoutCancel(t.Context())
	conn, err := pgx.Connect(ctx, url)
	require.NoError(t, err)
	_, err = conn.Exec(ctx, statements, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err)
	require.NoError(t, conn.Close(ctx))
}
