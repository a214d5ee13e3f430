package main

import (
	"context"
	"path/filepath"
	"time"
)

// newerSQL is what a newer version of the library might bring: columns and an index,
// and every function made anew, which older processes go on to call. The tables are
// locked in the order in which claims lock them.
const newerSQL = `
ALTER TABLE {{schema}}.leases ADD COLUMN of_newer integer NOT NULL DEFAULT 1;
ALTER TABLE {{schema}}.queues ADD COLUMN of_newer text;
ALTER TABLE {{schema}}.queue_limits ADD COLUMN of_newer text;
ALTER TABLE {{schema}}.jobs ADD COLUMN of_newer text;
CREATE INDEX jobs_of_newer ON {{schema}}.jobs (of_newer) WHERE of_newer IS NOT NULL;
DO $$
DECLARE
    v_function text;
BEGIN
    FOR v_function IN
        SELECT pg_get_functiondef(p.oid) FROM pg_proc p WHERE p.pronamespace = '{{schema}}'::regnamespace AND p.prokind = 'f'
    LOOP
        EXECUTE v_function;
    END LOOP;
END
$$;
`

// withNewerLibrary adds that to the library of a service.
func withNewerLibrary(ctx context.Context, files map[string]string) error {
	library, err := output(ctx, "list", "-m", "-f", "{{.Dir}}", "github.com/relay-club/scheduler")
	if err != nil {
		return err
	}
	files[filepath.Join(library, "sql", "099_newer.sql")] = newerSQL
	return nil
}

// newerVersion has a service with a newer library take the place of another one.
// From the first one on, the schema is newer than the library of the others.
func newerVersion(ctx context.Context, c *chaos) error {
	p := c.fleet.takeMortal()
	if p == nil {
		return errNobody
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute) // for its migration
	defer cancel()
	if _, err := c.fleet.start(patience, c.fleet.newer, p.resident); err != nil {
		c.fleet.put(p)
		return err
	}
	p.terminate()
	return nil
}
