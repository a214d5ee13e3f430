package scheduler_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/postgres"
)

// injections would drop a table wherever text is pasted into a statement, in one
// way of quoting or another, or make it no statement at all.
var injections = []string{
	`'; DROP TABLE public.canary; --`, `''; DROP TABLE public.canary; --`, `'); DROP TABLE public.canary; --`, `"; DROP TABLE public.canary; --`,
	`\'; DROP TABLE public.canary; --`, `$$; DROP TABLE public.canary; --`, `$q$; DROP TABLE public.canary; --`, `' "`, `%I %L %s %1$s %`, `$1`, `--`, `/*`,
}

// Text in any argument of any function is a value and nothing else.
func TestNoTextIsTakenForSQL(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	pool, admin := newPoolOn(t, url), dial(t, url)
	require.NoError(t, installDoubles(t, admin)) // what some functions look for before they use their text
	s, err := scheduler.New(pool, scheduler.Config{})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	mustExec(t, admin, "CREATE TABLE public.canary ()")

	rows, err := admin.Query(t.Context(), `
		SELECT p.pronamespace::regnamespace::text || '.' || quote_ident(p.proname),
			ARRAY(SELECT format_type(a.type, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, place) ORDER BY a.place)
		FROM pg_proc p WHERE p.pronamespace = 'scheduler'::regnamespace OR p.pronamespace = 'public'::regnamespace AND p.prosrc LIKE '%scheduler%'`)
	require.NoError(t, err)
	functions, err := pgx.CollectRows(rows, pgx.RowToStructByPos[attacked])
	require.NoError(t, err)
	mustExec(t, admin, "SET statement_timeout = '5s'") // some wait for others
	tried := 0
	seen := map[string]bool{}
	for _, f := range functions {
		f.seen = seen
		for at := range f.Types {
			for _, text := range injections {
				statement := f.call(at, text)
				if statement == "" {
					continue
				}
				tried++
				_, err := admin.Exec(t.Context(), "BEGIN; "+statement+"; ROLLBACK", pgx.QueryExecModeSimpleProtocol)
				var pg *pgconn.PgError
				if errors.As(err, &pg) {
					require.NotContains(t, []string{"42601", "42P01", "42703", "42702", "42883"}, pg.Code, "%s: %s", statement, pg.Message)
					mustExec(t, admin, "ROLLBACK")
				}
			}
		}
	}
	require.Greater(t, tried, 500)
	mustExec(t, admin, "TABLE public.canary")
	for kind := range seen {
		require.Contains(t, textless, strings.TrimSuffix(kind, "[]"), "an argument of this type may have text in it")
	}
}

// textless are the types of arguments that no text can be in.
var textless = []string{"bigint", "boolean", "date", "integer", "interval", "scheduler.schedule", "tid", "timestamp with time zone", "timestamp without time zone", "uuid"}

func installDoubles(t *testing.T, admin *pgx.Conn) error {
	if shared.http == "" {
		return nil // with PL/Python only
	}
	return errors.Join(postgres.InstallHTTPDouble(t.Context(), admin, "extensions"), postgres.InstallNet(t.Context(), admin), postgres.InstallVault(t.Context(), admin))
}

// attacked is a function and the types of its arguments.
type attacked struct {
	Name  string
	Types []string
	seen  map[string]bool // types that were passed over
}

// call is a call with the text in one argument, and in the others what is taken
// as far as possible; "" if that argument takes no text.
func (a attacked) call(at int, text string) string {
	values := make([]string, len(a.Types))
	for i, kind := range a.Types {
		values[i] = harmless(kind)
	}
	switch kind := a.Types[at]; kind {
	case "text", "character varying", "name", "scheduler.job_name", "scheduler.job_key", "scheduler.job_queue":
		values[at] = "$canary$" + text + "$canary$::text"
	case "text[]":
		values[at] = "ARRAY[$canary$" + text + "$canary$]"
	case "jsonb":
		values[at] = "to_jsonb($canary$" + text + "$canary$::text)"
	case "scheduler.jobs", "scheduler.queues", "scheduler.queue_workers", "scheduler.queue_limits", "scheduler.recurring":
		values[at] = fmt.Sprintf("jsonb_populate_record(NULL::%s, (SELECT jsonb_object_agg(c.name, $canary$%s$canary$::text)"+
			" FROM unnest('{name,queue,endpoint,key,status,base,http_extension,scheduled_by,schedule,time_zone,job,missed,last_key}'::text[]) AS c (name)))", kind, text)
	default:
		a.seen[kind] = true
		return ""
	}
	return "SELECT " + a.Name + "(" + strings.Join(values, ", ") + ")"
}

func harmless(kind string) string {
	switch kind {
	case "text":
		return "'default'::text"
	case "text[]":
		return "'{default}'::text[]"
	case "uuid[]":
		return "'{0190a5b2-0000-7000-8000-000000000000}'::uuid[]"
	case "uuid":
		return "'0190a5b2-0000-7000-8000-000000000000'::uuid"
	case "integer", "bigint", "smallint":
		return "1::" + kind
	case "timestamp with time zone":
		return "now()"
	case "interval":
		return "'1 day'::interval"
	case "boolean":
		return "true"
	case "jsonb":
		return "'{}'::jsonb"
	}
	return "NULL::" + kind
}
