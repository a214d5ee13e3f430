package postgres

import (
	"context"
	_ "embed"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// The doubles need PL/Python and a superuser. CREATE EXTENSION takes its files
// from directories that belong to the system, so their rows in pg_extension
// are written by hand; from there on they are extensions like others, down to
// DROP EXTENSION … CASCADE, and found by whoever looks for the real ones.
var (
	//go:embed httpdouble.sql
	httpDouble string
	//go:embed netdouble.sql
	netDouble string
	//go:embed vaultdouble.sql
	vaultDouble string
)

// InstallHTTP installs the extension http (pgsql-http) into the schema, which
// it creates if need be: the real one where the server has it, else the double.
// It says which.
func InstallHTTP(ctx context.Context, conn *pgx.Conn, schema string) (isReal bool, err error) {
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'http')").Scan(&isReal)
	if err != nil {
		return false, fmt.Errorf("install http: %w", err)
	}
	if !isReal {
		return false, InstallHTTPDouble(ctx, conn, schema)
	}
	name := pgx.Identifier{schema}.Sanitize()
	_, err = conn.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+name+"; CREATE EXTENSION http SCHEMA "+name, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return false, fmt.Errorf("install http: %w", err)
	}
	return true, nil
}

// InstallHTTPDouble installs a double of the extension http (pgsql-http) that
// makes real requests with PL/Python into the schema, which it creates if need
// be.
func InstallHTTPDouble(ctx context.Context, conn *pgx.Conn, schema string) error {
	return installDouble(ctx, conn, "http", "1.6", schema, httpDouble)
}

// InstallNet installs a double of the extension pg_net. It has no background
// process: SELECT net.deliver() sends what is queued, once that is committed,
// and with the beginning of a URL only what is for such.
func InstallNet(ctx context.Context, conn *pgx.Conn) error {
	return installDouble(ctx, conn, "pg_net", "0.19.5", "net", netDouble)
}

// InstallVault installs a double of the extension supabase_vault. It encrypts
// nothing.
func InstallVault(ctx context.Context, conn *pgx.Conn) error {
	return installDouble(ctx, conn, "supabase_vault", "0.3.1", "vault", vaultDouble)
}

const registerSQL = `
WITH extension AS (
    INSERT INTO pg_catalog.pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
    SELECT pg_catalog.pg_nextoid('pg_catalog.pg_extension', 'oid', 'pg_catalog.pg_extension_oid_index'),
        $1::name, r.oid, n.oid, false, $2::text
    FROM pg_catalog.pg_roles r, pg_catalog.pg_namespace n
    WHERE r.rolname = current_user AND n.nspname = $3::name
    RETURNING oid, extnamespace
)
INSERT INTO pg_catalog.pg_depend (classid, objid, objsubid, refclassid, refobjid, refobjsubid, deptype)
SELECT 'pg_catalog.pg_extension'::regclass, oid, 0, 'pg_catalog.pg_namespace'::regclass, extnamespace, 0, 'n'
FROM extension`

func installDouble(ctx context.Context, conn *pgx.Conn, extension, version, schema, text string) error {
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		name := pgx.Identifier{schema}.Sanitize()
		if _, err := tx.Exec(ctx, "CREATE SCHEMA IF NOT EXISTS "+name); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, registerSQL, extension, version, schema); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, strings.ReplaceAll(text, "{{schema}}", name), pgx.QueryExecModeSimpleProtocol)
		return err
	})
	if err != nil {
		return fmt.Errorf("install the double of %s (it needs PL/Python: scripts/install-postgres.sh test): %w", extension, err)
	}
	return nil
}
