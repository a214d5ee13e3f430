package scheduler

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

//go:embed sql/*.sql
var sqlFiles embed.FS

// inSchema fills the schema's name, which New has checked, into SQL text.
func inSchema(schema, text string) string {
	return strings.NewReplacer("{{schema}}", `"`+schema+`"`, "{{schema_name}}", schema).Replace(text)
}

const createMigrationsSQL = `
CREATE TABLE {{schema}}.schema_migrations (
    version    integer     CONSTRAINT schema_migrations_pkey PRIMARY KEY,
    name       text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)`

// Migrate installs or updates everything in the schema, declares this
// process's queues and recurring jobs in the database, and installs the public
// entry (create_job, create_queue_worker and the like in the schema public) if the
// schema is the default one. It is one transaction, may be called by
// many processes at once, and changes nothing where nothing is to do, so call
// it when the service starts. Where the role may not create in public, it
// succeeds without the entry and says so in the log.
//
// The error is ErrNewerSchema if a newer version of the library has migrated
// the schema, as in the middle of a rolling deploy or after one was rolled back:
// nothing is changed or declared then. Processes of the version before that one go
// on beside it, also those that start with what was declared before: a migration
// leaves in place what they call.
func (s *Scheduler) Migrate(ctx context.Context) error {
	// Each statement has to see what others have migrated until we got the lock.
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted}, func(tx pgx.Tx) error {
		// What expressions of tables and views mean is settled when they are made:
		// by the system's functions and operators, whatever others create where the
		// role looks for names.
		if _, err := tx.Exec(ctx, "SELECT pg_catalog.set_config('search_path', '', true)"); err != nil {
			return err
		}
		// The lock belongs to the transaction, so that it works through a
		// transaction-mode pooler; its number is any that nobody else uses.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended($1::text, 7041973))", s.config.Schema); err != nil {
			return err
		}
		if err := s.applyMigrations(ctx, tx); err != nil {
			return err
		}
		if err := s.declareQueues(ctx, tx); err != nil {
			return err
		}
		if err := s.declareRecurring(ctx, tx); err != nil {
			return err
		}
		if s.config.Schema == "scheduler" {
			s.installPublicEntry(ctx, tx)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("migrate schema %q: %w", s.config.Schema, err)
	}
	return nil
}

func (s *Scheduler) applyMigrations(ctx context.Context, tx pgx.Tx) error {
	// Asked first, because CREATE … IF NOT EXISTS needs the right to create
	// even where there is nothing to do.
	var schemaExists, tableExists bool
	err := tx.QueryRow(ctx, "SELECT to_regnamespace($1::text) IS NOT NULL, to_regclass($1::text || '.schema_migrations') IS NOT NULL",
		`"`+s.config.Schema+`"`).Scan(&schemaExists, &tableExists)
	if err != nil {
		return err
	}
	if err := s.refuseOthersSchema(ctx, tx); err != nil {
		return err
	}
	if !schemaExists {
		if _, err := tx.Exec(ctx, s.sql("CREATE SCHEMA {{schema}}")); err != nil {
			return err
		}
	}
	if !tableExists {
		if _, err := tx.Exec(ctx, s.sql(createMigrationsSQL)); err != nil {
			return err
		}
	}
	var current int
	if err := tx.QueryRow(ctx, s.sql("SELECT coalesce(max(version), 0) FROM {{schema}}.schema_migrations")).Scan(&current); err != nil {
		return err
	}
	files, err := fs.Glob(sqlFiles, "sql/0*.sql")
	if err != nil {
		return err
	}
	slices.Sort(files)
	if current > len(files) {
		return fmt.Errorf("%w: it is at version %d, this library knows %d: update the library", ErrNewerSchema, current, len(files))
	}
	if current == len(files) {
		return nil
	}
	for i, file := range files[current:] {
		if err := s.execFile(ctx, tx, file); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, s.sql("INSERT INTO {{schema}}.schema_migrations (version, name) VALUES ($1::int, $2::text)"), current+i+1, file)
		if err != nil {
			return err
		}
	}
	return s.execFile(ctx, tx, "sql/rights.sql")
}

const othersSchemaSQL = `
SELECT r.rolname::text FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
WHERE n.nspname = $1::text AND NOT r.rolsuper AND NOT pg_has_role(r.oid, 'USAGE')
    AND r.oid <> (SELECT d.datdba FROM pg_catalog.pg_database d WHERE d.datname = current_database())`

// refuseOthersSchema refuses a schema whose owner this role has no reason to
// trust: what is in it could be replaced, and is called with the rights of this
// role.
func (s *Scheduler) refuseOthersSchema(ctx context.Context, tx pgx.Tx) error {
	var owner string
	switch err := tx.QueryRow(ctx, othersSchemaSQL, s.config.Schema).Scan(&owner); {
	case errors.Is(err, pgx.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("the schema belongs to the role %q: expected one of the service's own role, or of one that it is a member of", owner)
}

// execFile runs a file of several statements, for which the protocol is the
// simple one, in every exec mode of the pool.
func (s *Scheduler) execFile(ctx context.Context, tx pgx.Tx, file string) error {
	text, err := fs.ReadFile(sqlFiles, file)
	if err != nil {
		return err
	}
	if err := execText(ctx, tx.Conn().PgConn(), inSchema(s.config.Schema, string(text))); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

func execText(ctx context.Context, conn *pgconn.PgConn, text string) error {
	_, err := conn.Exec(ctx, text).ReadAll()
	return err
}

const declareQueuesSQL = `
WITH declared AS (
    SELECT n.*, a.paused FROM unnest($1::text[], $2::text[], $3::bool[], $4::int[], $5::text[], $6::int[])
        AS n (name, base, skip_failed, max_attempts, on_dead, max_pending), {{schema}}.all_queues a
)
INSERT INTO {{schema}}.queues AS q (name, base, skip_failed, max_attempts, on_dead, max_pending, paused)
SELECT d.name, d.base, d.skip_failed, d.max_attempts, d.on_dead,
    nullif(coalesce(d.max_pending, (SELECT o.max_pending FROM {{schema}}.queues o WHERE o.name = d.name)), 0), d.paused
FROM declared d ORDER BY d.name COLLATE "C"
ON CONFLICT (name) DO UPDATE
SET base = excluded.base, skip_failed = excluded.skip_failed, max_attempts = excluded.max_attempts,
    on_dead = coalesce(excluded.on_dead, q.on_dead), max_pending = excluded.max_pending
WHERE (q.base, q.skip_failed, q.max_attempts, q.on_dead, q.max_pending) IS DISTINCT FROM
    (excluded.base, excluded.skip_failed, excluded.max_attempts, coalesce(excluded.on_dead, q.on_dead), excluded.max_pending)`

const declaredOtherwiseSQL = `
SELECT q.name, o.setting, o.now, o.before FROM unnest($1::text[], $2::text[], $3::text[]) AS n (name, base, on_dead)
JOIN {{schema}}.queues q ON q.name = n.name,
LATERAL (VALUES ('extends', n.base, q.base), ('on_dead', n.on_dead, q.on_dead)) AS o (setting, now, before)
WHERE o.before <> o.now AND o.before <> ''`

// declareQueues tells the database of the queues, for jobs created in SQL and
// for workers. Queues that another service declared stay.
func (s *Scheduler) declareQueues(ctx context.Context, tx pgx.Tx) error {
	queues := slices.SortedFunc(maps.Values(s.queues), func(a, b *queue) int { return cmp.Compare(a.name, b.name) })
	var names, bases []string
	var skipFailed []bool
	var maxAttempts []int32
	var onDead []*string // nil: says nothing about it
	var maxPending []*int32
	for _, q := range queues {
		names, bases = append(names, string(q.name)), append(bases, string(q.Extends))
		skipFailed, maxAttempts = append(skipFailed, q.SkipFailed), append(maxAttempts, int32(q.MaxAttempts))
		onDead, maxPending = append(onDead, nil), append(maxPending, nil)
		if s.says(q.OnDead != "") {
			onDead[len(onDead)-1] = &q.OnDead
		}
		if bound := int32(q.MaxPending); s.says(bound != 0) {
			maxPending[len(maxPending)-1] = &bound
		}
	}
	rows, err := tx.Query(ctx, s.sql(declaredOtherwiseSQL), names, bases, onDead)
	if err != nil {
		return err
	}
	var name, setting, now, before string
	_, err = pgx.ForEachRow(rows, []any{&name, &setting, &now, &before}, func() error {
		s.config.Logger.WarnContext(ctx, "scheduler: a queue was declared otherwise before: every process that works on it must say the same",
			"queue", name, setting, now, "before", before)
		return nil
	})
	if err != nil {
		return err
	}
	if _, err = tx.Exec(ctx, s.sql(declareQueuesSQL), names, bases, skipFailed, maxAttempts, onDead, maxPending); err != nil {
		return err
	}
	return s.declareLimits(ctx, tx, queues)
}

// says: this service has a say in how jobs are run, as it has something to say
// or runs jobs itself. One that only creates jobs has none.
func (s *Scheduler) says(something bool) bool { return something || len(s.names) > 0 }

const publicEntrySQL = `
SELECT count(*) FROM pg_catalog.pg_proc p
WHERE p.pronamespace = 'public'::regnamespace
    AND p.proname IN ('create_job', 'create_queue_worker', 'remove_queue_worker', 'create_recurring_job', 'remove_recurring_job')
    AND p.prosrc LIKE '%{{schema}}.%' AND p.proowner IN (current_user::regrole,
        (SELECT c.relowner FROM pg_catalog.pg_class c WHERE c.oid = '{{schema}}.jobs'::regclass))`

// installPublicEntry is a convenience: that it fails (no schema public, no
// right to create there, a function of that name by somebody else) is no
// reason to fail.
func (s *Scheduler) installPublicEntry(ctx context.Context, tx pgx.Tx) {
	err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
		var installed int
		if err := tx.QueryRow(ctx, s.sql(publicEntrySQL)).Scan(&installed); err != nil || installed == 5 {
			return err
		}
		return s.execFile(ctx, tx, "sql/public.sql")
	})
	if err != nil {
		s.config.Logger.WarnContext(ctx, "scheduler: no public entry: call the SQL functions with the schema before their names", "error", err)
	}
}
