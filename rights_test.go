package scheduler_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
)

// callsSQL makes statements that use everything there is in a schema, and of the
// public entry: they call, read, change and take it. As they are made from the
// catalogue, what is added later is among them.
const callsSQL = `
SELECT format('SELECT %s.%I(%s)', p.pronamespace::regnamespace, p.proname,
    (SELECT string_agg(format('NULL::%s', format_type(t.type, NULL)), ', ' ORDER BY t.place) FROM unnest(p.proargtypes) WITH ORDINALITY AS t (type, place)))
FROM pg_proc p WHERE p.pronamespace = $1::text::regnamespace OR p.pronamespace = 'public'::regnamespace AND p.prosrc LIKE '%' || $1::text || '%'
UNION ALL
SELECT format(s.statement, c.oid::regclass)
FROM pg_class c, unnest(ARRAY['TABLE %s', 'DELETE FROM %s', 'TRUNCATE %s', 'SELECT FROM %s FOR UPDATE', 'INSERT INTO %s DEFAULT VALUES',
    'ALTER TABLE %s DISABLE ROW LEVEL SECURITY', 'DROP TABLE %s', 'COPY %s TO STDOUT',
    'DO $$ BEGIN LOCK TABLE %s IN ACCESS SHARE MODE; END $$', 'CREATE POLICY own ON %s USING (true)', 'CREATE INDEX own ON %s ((1))', 'CREATE RULE own AS ON INSERT TO %s DO NOTHING',
    'GRANT ALL ON %s TO PUBLIC', 'ALTER TABLE %s OWNER TO CURRENT_USER']) AS s (statement)
WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('r', 'p')
UNION ALL
SELECT format('TABLE %s', c.oid::regclass) FROM pg_class c WHERE c.relnamespace = $1::text::regnamespace AND c.relkind IN ('v', 'm', 'f')
UNION ALL
SELECT format('SELECT nextval(%L)', c.oid::regclass) FROM pg_class c WHERE c.relnamespace = $1::text::regnamespace AND c.relkind = 'S'
UNION ALL
SELECT format(s.statement, $1::text) FROM unnest(ARRAY['CREATE TABLE %s.own ()', 'DROP SCHEMA %s CASCADE', 'ALTER SCHEMA %s RENAME TO own',
    'CREATE FUNCTION %s.own() RETURNS integer LANGUAGE sql RETURN 1']) AS s (statement)`

// requireNothingFor checks that none of these sessions may do anything of that.
func requireNothingFor(t *testing.T, admin *pgx.Conn, schema string, sessions map[string]*pgx.Conn) {
	rows, err := admin.Query(t.Context(), callsSQL, schema)
	require.NoError(t, err)
	statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	require.Greater(t, len(statements), 150, "the query finds what there is")
	for name, session := range sessions {
		for _, statement := range statements {
			_, err := session.Exec(t.Context(), statement, pgx.QueryExecModeSimpleProtocol)
			require.Error(t, err, "%s: %s", name, statement)
			requirePgError(t, err, "42501")
		}
	}
}
