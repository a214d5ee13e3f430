package scheduler_test

import (
	"context"
	"database/sql"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// sqlDBs are the drivers of database/sql, in each way they have to send a
// statement.
func sqlDBs(t *testing.T) map[string]*sql.DB {
	url := shared.cluster.URL("postgres")
	dbs := map[string]*sql.DB{}
	for title, mode := range map[string]pgx.QueryExecMode{
		"pgx": pgx.QueryExecModeCacheStatement, "pgx, exec": pgx.QueryExecModeExec, "pgx, simple protocol": pgx.QueryExecModeSimpleProtocol,
	} {
		config, err := pgx.ParseConfig(url)
		require.NoError(t, err)
		config.DefaultQueryExecMode = mode
		dbs[title] = stdlib.OpenDB(*config)
	}
	for title, binary := range map[string]bool{"pq": false, "pq, binary parameters": true} {
		config, err := pq.NewConfig(url)
		require.NoError(t, err)
		config.BinaryParameters = binary
		connector, err := pq.NewConnectorConfig(config)
		require.NoError(t, err)
		dbs[title] = sql.OpenDB(connector)
	}
	for _, db := range dbs {
		t.Cleanup(func() { require.NoError(t, db.Close()) })
	}
	return dbs
}

// beginSQL begins a transaction, which is rolled back if the test does not end it.
func beginSQL(t *testing.T, db *sql.DB) *sql.Tx {
	t.Helper()
	tx, err := db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback() }) // it may be over
	return tx
}

// What is created is what CreateJobTx creates, and there when the transaction
// commits, for the other process too.
func TestCreateJobSQL(t *testing.T) {
	t.Parallel()
	for title, db := range sqlDBs(t) {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			u := newUniqueTest(t)
			data := scheduler.JobData{
				RunAt: time.Date(2091, 1, 31, 10, 30, 0, 123456000, time.FixedZone("", 3600)), Queue: "own",
				Payload:     map[string]any{"text": `{"é", '💌', \ NULL}`, "n": 1},
				MaxAttempts: 7, Timeout: 1500 * time.Millisecond,
				Owner: "o", Tags: []string{`a "b", c`, "NULL"}, Metadata: map[string]any{"m": `\`},
			}
			unique := data
			unique.UniqueKey, unique.UniqueFor, unique.OnDuplicate = `k "{}\,`, time.Hour, scheduler.DuplicateReplace
			ctx := scheduler.WithTraceparent(t.Context(), traceA)
			for _, data := range []scheduler.JobData{{}, data, {UniqueKey: "minimal"}, unique} {
				tx := beginSQL(t, db)
				job, err := u.CreateJobSQL(ctx, tx, "a", data)
				require.NoError(t, err)
				require.False(t, job.Duplicate)
				_, err = u.other.GetJob(t.Context(), job.ID)
				require.ErrorIs(t, err, scheduler.ErrJobNotFound, "before the commit")
				require.NoError(t, tx.Commit())
				got := mustGet(t, u.other, job.ID)
				require.JSONEq(t, string(job.Payload), string(got.Payload))
				got.Payload, got.Metadata = job.Payload, job.Metadata // of which Postgres keeps no spaces
				require.Equal(t, job, got)

				if data.UniqueKey != "" {
					u.requireDuplicate(t, job, data)
					mustExec(t, u.pool, "DELETE FROM "+u.schema+".jobs")
				}
				pgxTx, err := u.pool.Begin(t.Context())
				require.NoError(t, err)
				same, err := u.CreateJobTx(ctx, pgxTx, "a", data)
				require.NoError(t, err)
				require.NoError(t, pgxTx.Commit(t.Context()))
				if data.RunAt.IsZero() {
					require.Equal(t, job.CreatedAt, job.RunAt)
					same.RunAt = job.RunAt
				}
				same.ID, same.CreatedAt = job.ID, job.CreatedAt
				require.EqualExportedValues(t, *same, *job)
			}
			require.Equal(t, traceA, mustQuery[string](t, u.pool,
				"SELECT DISTINCT attributes ->> 'traceparent' FROM "+u.schema+".jobs"), "of all")
		})
	}
}

func TestCreateJobSQLRolledBack(t *testing.T) {
	t.Parallel()
	for title, db := range sqlDBs(t) {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			u := newUniqueTest(t)
			tx := beginSQL(t, db)
			for _, data := range []scheduler.JobData{{}, {UniqueKey: "k"}} {
				_, err := u.CreateJobSQL(t.Context(), tx, "a", data)
				require.NoError(t, err)
			}
			require.NoError(t, tx.Rollback())
			require.Zero(t, u.stored(t))
			u.requireNew(t, "a", scheduler.JobData{UniqueKey: "k"})
		})
	}
}

func TestCreateJobSQLFindsDuplicates(t *testing.T) {
	t.Parallel()
	for title, db := range sqlDBs(t) {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			u := newUniqueTest(t)
			first := u.requireNew(t, "a", scheduler.JobData{UniqueKey: "k", Payload: 1})
			tx := beginSQL(t, db)
			again, err := u.CreateJobSQL(t.Context(), tx, "a", scheduler.JobData{UniqueKey: "k", Payload: 2})
			require.NoError(t, err)
			require.Equal(t, first.ID, again.ID)
			require.True(t, again.Duplicate)
			require.JSONEq(t, "1", string(again.Payload))
			replaced, err := u.CreateJobSQL(t.Context(), tx, "a", scheduler.JobData{UniqueKey: "k", Payload: 3, OnDuplicate: scheduler.DuplicateReplace})
			require.NoError(t, err)
			require.Equal(t, first.ID, replaced.ID)
			require.JSONEq(t, "3", string(replaced.Payload))
			require.NoError(t, tx.Commit())
			require.JSONEq(t, "3", string(mustGet(t, u.other, first.ID).Payload))

			// The key is held until the transaction ends: the other one waits.
			tx = beginSQL(t, db)
			held, err := u.CreateJobSQL(t.Context(), tx, "b", scheduler.JobData{UniqueKey: "k"})
			require.NoError(t, err)
			waiter := make(chan *scheduler.Job, 1)
			go func() {
				job, _ := u.other.CreateJob(context.WithoutCancel(t.Context()), "b", scheduler.JobData{UniqueKey: "k"})
				waiter <- job
			}()
			waitFor(t, func() bool {
				return mustQuery[bool](t, u.pool, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock')`, u.name)
			})
			require.NoError(t, tx.Commit())
			found := await(t, waiter)
			require.NotNil(t, found)
			require.Equal(t, held.ID, found.ID)
			require.True(t, found.Duplicate)
		})
	}
}

// A resident process is told at the commit, by nothing else than that.
func TestCreateJobSQLNotifies(t *testing.T) {
	t.Parallel()
	for title, db := range sqlDBs(t) {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			jobs := make(chan *scheduler.Job, 10)
			var schema string
			s := newScheduler(t, func(c *scheduler.Config) {
				schema, c.PollInterval = c.Schema, time.Hour
				c.JobNames = scheduler.JobNames{"a": telling(jobs)}
			})
			pool := newPool(t)
			goWork(t, t.Context(), s)
			waitFor(t, func() bool { return listening(t, pool, schema) })
			other, err := scheduler.New(pool, scheduler.Config{Schema: schema})
			require.NoError(t, err)
			for _, creator := range []*scheduler.Scheduler{other, s} {
				for _, data := range []scheduler.JobData{{}, {UniqueKey: unique()}} {
					tx := beginSQL(t, db)
					job, err := creator.CreateJobSQL(t.Context(), tx, "a", data)
					require.NoError(t, err)
					require.NoError(t, tx.Commit())
					require.Equal(t, job.ID, await(t, jobs).ID)
				}
			}
		})
	}
}

func TestCreateJobSQLOutsideOfATransaction(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, nil)
	for title, db := range sqlDBs(t) {
		conn, err := db.Conn(t.Context())
		require.NoError(t, err)
		for _, tx := range []scheduler.SQLTx{db, conn} {
			job, err := s.CreateJobSQL(t.Context(), tx, "a", scheduler.JobData{UniqueKey: title, UniqueFor: time.Second})
			require.NoError(t, err)
			require.Equal(t, job.ID, mustGet(t, s, job.ID).ID)
		}
		require.NoError(t, conn.Close())
	}
}

// Input is checked before the database is asked, so the transaction goes on.
func TestCreateJobSQLRefusesBadInput(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) { c.JobNames = scheduler.JobNames{"a": succeed} })
	for title, db := range sqlDBs(t) {
		tx := beginSQL(t, db)
		for field, bad := range map[string]struct {
			name string
			data scheduler.JobData
		}{
			"name":         {"", scheduler.JobData{}},
			"queue":        {"a", scheduler.JobData{Queue: "nowhere"}},
			"payload":      {"a", scheduler.JobData{Payload: "\x00"}},
			"run_at":       {"a", scheduler.JobData{RunAt: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}},
			"max_attempts": {"a", scheduler.JobData{MaxAttempts: -1}},
			"tags":         {"a", scheduler.JobData{Tags: []string{""}}},
			"unique_for":   {"a", scheduler.JobData{UniqueFor: time.Second}},
		} {
			_, err := s.CreateJobSQL(t.Context(), tx, bad.name, bad.data)
			requireInputError(t, err, field)
			_, same := s.CreateJob(t.Context(), bad.name, bad.data)
			require.EqualError(t, err, same.Error())
		}
		_, err := s.CreateJobSQL(t.Context(), tx, "b", scheduler.JobData{})
		require.ErrorIs(t, err, scheduler.ErrUnknownJobName)
		_, err = s.CreateJobSQL(t.Context(), tx, "a", scheduler.JobData{})
		require.NoError(t, err, title)
		require.NoError(t, tx.Rollback())
	}
	_, err := s.CreateJobSQL(t.Context(), nil, "a", scheduler.JobData{})
	requireInputError(t, err, "tx", "expected a transaction")
}

// The errors of Postgres are told as those of pgx are, whatever the driver.
func TestCreateJobSQLTranslatesErrors(t *testing.T) {
	t.Parallel()
	for title, db := range sqlDBs(t) {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			u := newUniqueTest(t)
			mustExec(t, u.pool, `CREATE FUNCTION `+u.schema+`.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
				BEGIN RAISE EXCEPTION 'not today' USING ERRCODE = coalesce(NEW.attributes ->> 'owner', '22023'); END $$`)
			mustExec(t, u.pool, "CREATE TRIGGER refuse BEFORE INSERT ON "+u.schema+".jobs FOR EACH ROW EXECUTE FUNCTION "+u.schema+".refuse()")
			for _, key := range []string{"", "k"} {
				tx := beginSQL(t, db)
				_, err := u.CreateJobSQL(t.Context(), tx, "a", scheduler.JobData{UniqueKey: key})
				requireInputError(t, err, "payload", "not today", "SQLSTATE 22023")
				_, err = u.CreateJobSQL(t.Context(), tx, "a", scheduler.JobData{})
				require.Error(t, err, "the transaction is aborted")
				require.NoError(t, tx.Rollback())

				tx = beginSQL(t, db)
				_, err = u.CreateJobSQL(t.Context(), tx, "a", scheduler.JobData{UniqueKey: key, Owner: "40001"})
				var postgres interface{ SQLState() string }
				require.ErrorAs(t, err, &postgres)
				require.Equal(t, "40001", postgres.SQLState())
				require.NotErrorIs(t, err, scheduler.ErrInvalidInput)
				require.NoError(t, tx.Rollback())
			}
			require.Zero(t, u.stored(t))

			missing, err := scheduler.New(u.pool, scheduler.Config{Schema: unique(), Logger: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			_, err = missing.CreateJobSQL(t.Context(), db, "a", scheduler.JobData{})
			require.ErrorContains(t, err, "call Migrate first")

			ended, cancel := context.WithCancel(t.Context())
			cancel()
			_, err = u.CreateJobSQL(ended, db, "a", scheduler.JobData{})
			require.ErrorIs(t, err, context.Canceled)
			tx := beginSQL(t, db)
			require.NoError(t, tx.Commit())
			_, err = u.CreateJobSQL(t.Context(), tx, "a", scheduler.JobData{})
			require.ErrorIs(t, err, sql.ErrTxDone)
		})
	}
}

func TestCreateJobSQLTellsTheObserver(t *testing.T) {
	t.Parallel()
	events := make(chan scheduler.Event, 10)
	s := newScheduler(t, func(c *scheduler.Config) { c.Observer = func(e scheduler.Event) { events <- e } })
	for _, db := range sqlDBs(t) {
		tx := beginSQL(t, db)
		job, err := s.CreateJobSQL(t.Context(), tx, "a", scheduler.JobData{Payload: 1})
		require.NoError(t, err)
		event := await(t, events)
		require.Equal(t, scheduler.EventCreated, event.Kind)
		require.Equal(t, job, event.Job)
		require.NoError(t, tx.Rollback())
	}
}

// emptySQL answers with no row, as no Postgres does.
type emptySQL struct{ *sql.DB }

func (db emptySQL) QueryContext(ctx context.Context, _ string, _ ...any) (*sql.Rows, error) {
	return db.DB.QueryContext(ctx, "SELECT WHERE false")
}

func TestCreateJobSQLWithoutAnAnswer(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, nil)
	_, err := s.CreateJobSQL(t.Context(), emptySQL{sqlDBs(t)["pq"]}, "a", scheduler.JobData{})
	require.ErrorIs(t, err, sql.ErrNoRows)
}

// A transaction that nobody has begun is told of, not dereferenced.
func TestNilTransactionsAreRefused(t *testing.T) {
	t.Parallel()
	completed := make(chan error, 2)
	var s *scheduler.Scheduler
	s = newScheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, job *scheduler.Job) (any, error) {
			completed <- s.CompleteTx(ctx, nil, job, nil)
			completed <- s.CompleteTx(ctx, (*pgxpool.Tx)(nil), job, nil)
			return nil, nil
		}}
	})
	create := func(tx pgx.Tx) error {
		_, err := s.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{})
		return err
	}
	createSQL := func(tx scheduler.SQLTx) error {
		_, err := s.CreateJobSQL(t.Context(), tx, "a", scheduler.JobData{})
		return err
	}
	for _, err := range []error{create(nil), create((*pgxpool.Tx)(nil)), createSQL(nil), createSQL((*sql.Tx)(nil))} {
		var input *scheduler.InputError
		require.ErrorAs(t, err, &input)
		require.Equal(t, "create job: tx: expected a transaction, got nil", err.Error())
	}
	mustCreate(t, s, "a", scheduler.JobData{})
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)
	for range 2 {
		require.EqualError(t, <-completed, "complete job: tx: expected a transaction, got nil")
	}
}
