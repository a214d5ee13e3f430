package scheduler

import (
	"context"
	"database/sql"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// SQLTx is a transaction of database/sql: an *sql.Tx, and what the ORMs have in
// its place, as far as it takes $1, $2 for parameters. An *sql.Conn in which a
// transaction was begun does too; an *sql.DB stores the job at once.
type SQLTx interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// CreateJobSQL is CreateJobTx for a transaction of database/sql, with any driver
// for Postgres: the job exists when, and only when, that commits. Errors of
// Postgres are the driver's, such as a *pgconn.PgError or a *pq.Error.
func (s *Scheduler) CreateJobSQL(ctx context.Context, tx SQLTx, name string, data JobData) (*Job, error) {
	if isNil(tx) {
		return nil, fmt.Errorf("create job: %w", errNoTx())
	}
	return s.createIn(ctx, sqlQuerier{tx}, name, data)
}

// isNil: a nil pointer in an interface, such as an *sql.Tx that nobody has begun,
// is no transaction either.
func isNil(tx any) bool {
	value := reflect.ValueOf(tx)
	return !value.IsValid() || value.Kind() == reflect.Pointer && value.IsNil()
}

func errNoTx() *InputError { return badInput("tx", "expected a transaction, got nil") }

// sqlQuerier gives the statements of this package to a driver that knows neither
// arrays nor UUIDs: these go as text, for which every parameter has a cast.
type sqlQuerier struct{ tx SQLTx }

func (q sqlQuerier) QueryRow(ctx context.Context, query string, args ...any) pgx.Row {
	plain := make([]any, len(args))
	for i, arg := range args {
		plain[i] = plainSQL(arg)
	}
	rows, err := q.tx.QueryContext(ctx, query, plain...) //nolint:rowserrcheck // Scan does
	return sqlRow{rows, err}
}

// sqlRow is the first row of a result, and its end.
type sqlRow struct {
	rows *sql.Rows
	err  error
}

// Scan is that of pgx, where nil stands for a column that nobody reads.
func (r sqlRow) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer func() { _ = r.rows.Close() }() // what goes wrong is told by Err
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return sql.ErrNoRows
	}
	for i := range dest {
		if dest[i] == nil {
			dest[i] = new(any)
		}
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	for r.rows.Next() { // to the end: an error may come after the row
	}
	return r.rows.Err()
}

// plainSQL makes what every driver takes of a parameter.
func plainSQL(arg any) any {
	switch arg := arg.(type) {
	case []byte:
		return arg
	case pgtype.UUID:
		return uuid.UUID(arg.Bytes).String()
	}
	if value := reflect.ValueOf(arg); value.Kind() == reflect.Slice {
		return arraySQL(value)
	}
	return arg
}

var quoteInArray = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

// arraySQL is the text of an array.
func arraySQL(values reflect.Value) string {
	elements := make([]string, values.Len())
	for i := range elements {
		element := values.Index(i)
		if element.Kind() == reflect.Pointer {
			if element.IsNil() {
				elements[i] = "NULL"
				continue
			}
			element = element.Elem()
		}
		text := fmt.Sprint(plainSQL(element.Interface()))
		if at, ok := element.Interface().(time.Time); ok {
			text = at.Format(time.RFC3339Nano)
		}
		elements[i] = `"` + quoteInArray.Replace(text) + `"`
	}
	return "{" + strings.Join(elements, ",") + "}"
}
