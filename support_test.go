package scheduler_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// patience is how long a test waits for what should have happened at once.
const patience = 30 * time.Second

// newPool opens a pool on the shared cluster, closed when the test ends.
func newPool(tb testing.TB) *pgxpool.Pool {
	return newPoolOn(tb, shared.cluster.URL("postgres"))
}

// newPoolOn is newPool for another database.
func newPoolOn(tb testing.TB, url string) *pgxpool.Pool {
	config, err := pgxpool.ParseConfig(url)
	require.NoError(tb, err)
	config.MaxConns = 10
	throughPooler(config)
	pool, err := pgxpool.NewWithConfig(tb.Context(), config)
	require.NoError(tb, err)
	tb.Cleanup(pool.Close)
	return pool
}

// unique is a name for a schema or a database that no other test has.
func unique() string { return "t_" + strings.ToLower(rand.Text()) }

// newSchema names a schema for this test alone. What is in it when the test
// ends is dropped, the workers in pg_cron that belong to it included.
func newSchema(tb testing.TB) string {
	schema := unique()
	tb.Cleanup(func() {
		if shared.cron {
			administer(tb, "SELECT cron.unschedule(jobid) FROM cron.job WHERE command LIKE '%"+schema+"%'")
		}
		administer(tb, "DROP SCHEMA IF EXISTS "+schema+" CASCADE")
	})
	return schema
}

// newDatabase creates an empty database for tests of what is outside the
// schema: the public entry, extensions and their doubles. It is dropped when
// the test ends.
func newDatabase(t *testing.T) (url string) {
	database := unique()
	administer(t, "CREATE DATABASE "+database)
	t.Cleanup(func() { administer(t, "DROP DATABASE "+database+" WITH (FORCE)") })
	return shared.cluster.URL(database)
}

// administer runs a statement, also when the test's context has ended. Its
// connections are all tests', and stay open.
func administer(tb testing.TB, statement string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), patience)
	defer cancel()
	for {
		_, err := shared.admin.Exec(ctx, statement, pgx.QueryExecModeSimpleProtocol)
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "40P01" {
			continue // with the last statement of a process that was killed
		}
		require.NoError(tb, err)
		return
	}
}

// newScheduler makes a Scheduler in a migrated schema of its own, with the
// test's log. configure, which may be nil, changes or reads the Config before
// it is used. Shutdown is called when the test ends.
func newScheduler(tb testing.TB, configure func(*scheduler.Config)) *scheduler.Scheduler {
	return newSchedulerOn(tb, newPool(tb), configure)
}

// newSchedulerOn is newScheduler with the test's own pool.
func newSchedulerOn(tb testing.TB, pool *pgxpool.Pool, configure func(*scheduler.Config)) *scheduler.Scheduler {
	config := scheduler.Config{
		Schema: newSchema(tb),
		Logger: slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if configure != nil {
		configure(&config)
	}
	s, err := scheduler.New(pool, config)
	require.NoError(tb, err)
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), patience)
		defer cancel()
		require.NoError(tb, s.Shutdown(ctx))
		requireSound(tb, config.Schema)
	})
	require.NoError(tb, s.Migrate(tb.Context()))
	return s
}

// requireSound: every job of a schema is where its status belongs. The table has
// no constraint for that, which each creation would pay for.
func requireSound(tb testing.TB, schema string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(tb.Context()), patience)
	defer cancel()
	var is bool
	require.NoError(tb, shared.admin.QueryRow(ctx, "SELECT to_regclass(format('%I.jobs', $1::text)) IS NOT NULL", schema).Scan(&is))
	if !is {
		return // in another database, or gone
	}
	rows, err := shared.admin.Query(ctx, `SELECT format('%s: %s in lane %s, priority %s, attempt %s', id, status, lane, priority, attempt) FROM `+schema+`.jobs
		WHERE (CASE status
				WHEN 'pending' THEN lane = CASE WHEN waits_for > 0 THEN 303 ELSE 3 * priority END
				WHEN 'failed' THEN lane = 3 * priority + 1
				WHEN 'running' THEN lane BETWEEN 3 * priority AND 3 * priority + 2
				ELSE lane IS NULL AND slot = 0 END
			AND (status = 'running') = (lease_id IS NOT NULL) AND (counted IS NOT TRUE OR status = 'running')
			AND attempt <= max_attempts AND slot BETWEEN CASE status WHEN 'running' THEN -3 ELSE -1 END AND 0) IS NOT TRUE LIMIT 10`)
	require.NoError(tb, err)
	unsound, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(tb, err)
	require.Empty(tb, unsound)
}

// waitFor waits until the condition holds, where there is no event to wait for.
func waitFor(t require.TestingT, condition func() bool) {
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(patience); !condition(); <-poll.C {
		require.True(t, time.Now().Before(deadline), "still not so after %s", patience)
	}
}

// needsWorkers skips a test where the server can't fire workers.
func needsWorkers(t *testing.T) {
	if !shared.cron || shared.http == "" {
		t.Skip("needs pg_cron and an HTTP extension: scripts/install-postgres.sh test")
	}
}

// needsVersion skips a test where the server is of an older major version.
func needsVersion(t *testing.T, major int) {
	if mustQuery[int](t, newPool(t), "SELECT current_setting('server_version_num')::integer / 10000") < major {
		t.Skipf("needs PostgreSQL %d", major)
	}
}

// roleEnv makes the test binary a child process with this role.
const roleEnv = "SCHEDULER_TEST_ROLE"

// childRoles are the programs that startChild starts. A test file adds its own
// in init, beside the test that starts it.
var childRoles = map[string]func(){}

func runChild(role string) {
	// The parent never writes: the end of stdin is the end of the parent.
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
	run, ok := childRoles[role]
	if !ok {
		fmt.Fprintf(os.Stderr, "no child role %q\n", role)
		os.Exit(1)
	}
	run()
}

// child is a process of this test binary in a role other than testing.
type child struct {
	cmd    *exec.Cmd
	lines  chan string   // what it prints; closed at its end
	killed chan struct{} // nobody will read lines
	kill   sync.Once
	exited chan struct{}
	err    error // how it ended; read after exited
}

// startChild starts a process in this role. DATABASE_URL in its environment is
// the shared cluster's, unless env says otherwise. It is killed when the test
// ends, and its stderr goes to the test's log.
func startChild(t *testing.T, role string, env ...string) *child {
	c := &child{
		cmd:    exec.Command(os.Args[0]),
		lines:  make(chan string),
		killed: make(chan struct{}),
		exited: make(chan struct{}),
	}
	c.cmd.Env = append(os.Environ(), roleEnv+"="+role, "DATABASE_URL="+shared.cluster.URL("postgres"))
	c.cmd.Env = append(c.cmd.Env, env...)
	c.cmd.Stderr = t.Output()
	_, err := c.cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := c.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.cmd.Start())
	t.Cleanup(c.Kill)

	go func() {
		defer close(c.exited)
		defer close(c.lines)
		for output := bufio.NewScanner(stdout); output.Scan(); {
			select {
			case c.lines <- output.Text():
			case <-c.killed:
			}
		}
		c.err = c.cmd.Wait()
	}()
	return c
}

// Kill ends the process with SIGKILL and returns when it is gone. It may be
// called again.
func (c *child) Kill() {
	c.kill.Do(func() {
		_ = c.cmd.Process.Kill() // it may have ended by itself
		close(c.killed)
	})
	<-c.exited
}

// Line is the next line that the process prints.
func (c *child) Line(t *testing.T) string {
	t.Helper()
	select {
	case line, ok := <-c.lines:
		if !ok {
			require.FailNow(t, "the child has ended", "%v", c.err)
		}
		return line
	case <-time.After(patience):
		require.FailNow(t, "the child prints nothing")
		return ""
	}
}

// Wait waits until the process has ended by itself; the error is what became
// of it. Lines that nobody has read are dropped.
func (c *child) Wait(t *testing.T) error {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case <-c.lines:
		case <-c.exited:
			return c.err
		case <-deadline:
			require.FailNow(t, "the child does not end")
		}
	}
}
