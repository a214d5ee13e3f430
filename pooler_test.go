package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// poolerEnv makes the tests' pools go through a pgbouncer, in this exec mode of
// pgx; see throughPooler.
const poolerEnv = "SCHEDULER_TEST_POOLER"

// poolerModes are the exec modes that prepare no statements.
var poolerModes = map[string]pgx.QueryExecMode{"exec": pgx.QueryExecModeExec, "simple_protocol": pgx.QueryExecModeSimpleProtocol}

// sharedPooler is the pooler of poolerEnv, nil without.
var sharedPooler *pooler

// pooler is a pgbouncer in transaction mode before the shared cluster.
type pooler struct {
	dir  string
	port uint16
	cmd  *exec.Cmd
	hold io.Closer // the program ends with it
}

var errNoPooler = errors.New("needs pgbouncer, in PATH or where Debian's package pgbouncer puts it")

// startPooler starts a pooler whose transactions get any of so many
// connections.
func startPooler(connections int, output io.Writer) (_ *pooler, err error) {
	program, err := exec.LookPath("pgbouncer")
	for _, path := range []string{"/usr/sbin/pgbouncer", "/usr/local/sbin/pgbouncer"} { // in no PATH of users
		if err != nil {
			program, err = exec.LookPath(path)
		}
	}
	if err != nil {
		return nil, errNoPooler
	}
	server, err := pgx.ParseConfig(shared.cluster.URL("postgres"))
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &pooler{port: uint16(listener.Addr().(*net.TCPAddr).Port)}
	if err := listener.Close(); err != nil {
		return nil, err
	}
	if p.dir, err = os.MkdirTemp("", "scheduler-pooler-"); err != nil {
		return nil, err
	}
	config := filepath.Join(p.dir, "pgbouncer.ini")
	if err := os.Chmod(p.dir, 0o755); err != nil { //nolint:gosec // another user than root reads it
		return nil, err
	}
	err = os.WriteFile(config, fmt.Appendf(nil, `
[databases]
* = host=127.0.0.1 port=%d user=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 2000
default_pool_size = %d
`, server.Port, server.User, p.port, connections), 0o644)
	if err != nil {
		return nil, err
	}

	args := []string{"-q", config}
	if me, err := user.Current(); err == nil && me.Uid == "0" {
		args = append([]string{"-u", "postgres"}, args...) // it refuses to be root
	}
	// The shell reads until this process closes the pipe or is gone.
	p.cmd = exec.Command("sh", append([]string{"-c", `"$@" & read -r _; kill $!; wait`, "sh", program}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = output, output
	if p.hold, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return p, p.cmd.Start()
}

// awaitStart returns once the pooler takes connections.
func (p *pooler) awaitStart() error {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p.port)))
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp4", address)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("start pgbouncer: %w", err)
		}
	}
}

func (p *pooler) stop() {
	_ = p.hold.Close()
	_ = p.cmd.Wait() // it was killed
	_ = os.RemoveAll(p.dir)
}

// newPooler starts a pooler with few connections, stopped when the test ends.
func newPooler(t *testing.T) *pooler {
	p, err := startPooler(3, t.Output())
	if errors.Is(err, errNoPooler) {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(p.stop)
	require.NoError(t, p.awaitStart())
	return p
}

// newPool opens a pool on the pooler.
func (p *pooler) newPool(t *testing.T, mode pgx.QueryExecMode) *pgxpool.Pool {
	config, err := pgxpool.ParseConfig(shared.cluster.URL("postgres"))
	require.NoError(t, err)
	config.MaxConns, config.ConnConfig.Port, config.ConnConfig.DefaultQueryExecMode = 20, p.port, mode
	return newPoolWith(t, config)
}

// startSharedPooler starts the pooler that poolerEnv asks for.
func startSharedPooler() (stop func(), err error) {
	mode := os.Getenv(poolerEnv)
	if mode == "" {
		return func() {}, nil
	}
	if _, ok := poolerModes[mode]; !ok {
		return nil, fmt.Errorf("%s is %q: expected exec or simple_protocol", poolerEnv, mode)
	}
	// No shortage of connections: tests hold many transactions open.
	p, err := startPooler(100, os.Stderr)
	if err != nil {
		return nil, err
	}
	sharedPooler = p
	return p.stop, p.awaitStart()
}

// throughPooler leads a pool through the shared pooler, if there is one. Those
// of other servers and roles, and those with settings for their sessions, go to
// the server itself: pgbouncer takes none of them.
func throughPooler(config *pgxpool.Config) {
	if sharedPooler == nil {
		return
	}
	server, c := shared.admin.Config().ConnConfig, config.ConnConfig
	isPooled := c.Port == sharedPooler.port // a copy of another pool's
	if c.Host != server.Host || c.Port != server.Port && !isPooled {
		return
	}
	if c.User != server.User || len(c.RuntimeParams) > 0 || config.AfterConnect != nil {
		if isPooled {
			c.Port, c.DefaultQueryExecMode = server.Port, server.DefaultQueryExecMode
		}
		return
	}
	c.Port = sharedPooler.port
	if c.DefaultQueryExecMode != pgx.QueryExecModeSimpleProtocol {
		c.DefaultQueryExecMode = poolerModes[os.Getenv(poolerEnv)]
	}
}

// needsSession skips a test of what belongs to one session, where a pooler
// gives each transaction any.
func needsSession(t *testing.T) {
	if sharedPooler != nil {
		t.Skip("needs a session of its own, which a pooler in transaction mode does not give")
	}
}

// No state of a session is needed, so everything works through a pooler.
func TestEverythingWorksThroughAPooler(t *testing.T) {
	t.Parallel()
	p := newPooler(t)
	for name, mode := range poolerModes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testThroughPooler(t, p.newPool(t, mode))
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
