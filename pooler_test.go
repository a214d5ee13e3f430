package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// startPooler starts a pgbouncer in transaction mode before the shared cluster
// and returns its URL: each transaction gets any of three connections.
func startPooler(t *testing.T) (url string) {
	program, err := exec.LookPath("pgbouncer")
	for _, path := range []string{"/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer"} { // in no PATH of users
		if err != nil {
			program, err = exec.LookPath(path)
		}
	}
	if err != nil {
		t.Skip("needs pgbouncer, in PATH or where Debian's package pgbouncer puts it")
	}
	server, err := pgx.ParseConfig(shared.cluster.URL("postgres"))
	require.NoError(t, err)
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	port := listener.Addr().(*net.TCPAddr).Port
	require.NoError(t, listener.Close())

	dir, err := os.MkdirTemp("", "scheduler-pooler-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755)) //nolint:gosec // another user than root reads it
	config := filepath.Join(dir, "pgbouncer.ini")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `
[databases]
postgres = host=127.0.0.1 port=%d dbname=postgres user=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
`, server.Port, server.User, port), 0o644))

	args := []string{"-q", config}
	if me, err := user.Current(); err == nil && me.Uid == "0" {
		args = append([]string{"-u", "postgres"}, args...) // it refuses to be root
	}
	// The shell reads until this process closes the pipe or is gone.
	pooler := exec.Command("sh", append([]string{"-c", `"$@" & read -r _; kill $!; wait`, "sh", program}, args...)...)
	pooler.Stdout, pooler.Stderr = t.Output(), t.Output()
	stdin, err := pooler.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, pooler.Start())
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = pooler.Wait() // it was killed
	})
	waitFor(t, func() bool {
		conn, err := net.Dial("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		return err == nil && conn.Close() == nil
	})
	return fmt.Sprintf("postgres://%s@127.0.0.1:%d/postgres?sslmode=disable", server.User, port)
}

// No state of a session is needed, so everything works through a pooler.
func TestEverythingWorksThroughAPooler(t *testing.T) {
	t.Parallel()
	url := startPooler(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config, err := pgxpool.ParseConfig(url)
			require.NoError(t, err)
			config.MaxConns = 20
			config.ConnConfig.DefaultQueryExecMode = mode
			testThroughPooler(t, newPoolWith(t, config))
		})
	}
}

func testThroughPooler(t *testing.T, pool *pgxpool.Pool) {
	var d diary
	results := make(chan *scheduler.Job, 100)
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		c.Lease, c.PollInterval = time.Second, 20*time.Millisecond
		c.Queues = queueConfigs{"own": {MaxAttempts: 3}}
		c.JobNames = scheduler.JobNames{
			"echo":   func(_ context.Context, job *scheduler.Job) (any, error) { return job.Payload, nil },
			"fail":   fail,
			"cancel": func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Cancel(errors.New("no")) },
			"snooze": func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Snooze(time.Hour) },
			"serial": d.handler,
			"tell":   telling(results),
			"long": func(ctx context.Context, _ *scheduler.Job) (any, error) {
				select { // longer than the lease
				case <-time.After(1500 * time.Millisecond):
				case <-ctx.Done():
				}
				return nil, context.Cause(ctx)
			},
		}
	})
	require.NoError(t, s.Migrate(t.Context()))

	at := time.Date(2020, 1, 31, 9, 30, 0, 123456000, time.UTC)
	payload := map[string]any{"text": `é "quoted" \ $1 'single' ` + "\n", "list": []any{1.5, nil, true}}
	job := mustCreate(t, s, "echo", scheduler.JobData{Payload: payload, RunAt: at, MaxAttempts: 7, Timeout: time.Minute})
	got := mustGet(t, s, job.ID)
	require.Equal(t, at, got.RunAt)
	require.Equal(t, 7, got.MaxAttempts)
	require.Equal(t, time.Minute, got.Timeout)
	requireSameJSON(t, payload, got.Payload)
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)
	got = mustGet(t, s, job.ID)
	requireSameJSON(t, payload, got.Result)
	require.Equal(t, 1, got.Attempt)
	_, err := s.CreateJob(t.Context(), "echo", scheduler.JobData{Payload: "\x00"})
	requireInputError(t, err, "payload")

	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = s.CreateJobTx(t.Context(), tx, "fail", scheduler.JobData{})
	require.NoError(t, err)
	require.NoError(t, tx.Rollback(t.Context()))
	ids, err := s.CreateJobs(t.Context(), []scheduler.NewJob{
		{Name: "echo", JobData: scheduler.JobData{Payload: 1, RunAt: at, Timeout: time.Hour}}, {Name: "fail"}, {Name: "cancel"}, {Name: "snooze"}, {Name: "long"},
	})
	require.NoError(t, err)
	require.Len(t, ids, 5)
	report := mustRun(t, s, scheduler.RunFilter{Limit: 10})
	require.Equal(t, 5, report.Picked)
	require.Equal(t, []int{2, 1, 1, 1}, []int{report.Succeeded, report.Failed, report.Dead, report.Snoozed})
	require.Contains(t, mustGet(t, s, ids[1]).Errors[0].Error, "failed as asked")
	require.NotNil(t, report.NextDueAt)

	serial := mustCreateMany(t, s, 10, "serial", scheduler.JobData{Queue: scheduler.JobQueueBlocking})
	one := goRun(t.Context(), s, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking, Limit: 10})
	two := goRun(t.Context(), s, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking, Limit: 10})
	require.NoError(t, await(t, one).err)
	require.NoError(t, await(t, two).err)
	for mustRun(t, s, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking, Limit: 10}).Picked > 0 {
	}
	require.Equal(t, serial, d.ids)
	require.False(t, d.overlapped)

	stop := goWork(t, t.Context(), s)
	for _, queue := range []scheduler.JobQueue{"", "own", scheduler.JobQueueBlocking} {
		for range 20 {
			mustCreate(t, s, "tell", scheduler.JobData{Queue: queue})
		}
		for range 20 {
			await(t, results)
		}
	}
	stop()
}
