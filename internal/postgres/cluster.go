// Package postgres starts throw-away PostgreSQL clusters for the tests, the
// demo and the benchmarks, from the server binaries the machine already has.
//
// A cluster lives in a temporary directory, listens on 127.0.0.1 only and lets
// the user postgres in without a password. It does not outlive the program
// that started it, not even one that is killed (on Linux; elsewhere only Stop
// ends it).
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options says what a cluster needs beyond the defaults. The zero value is a
// plain, durable server with room for 200 connections.
type Options struct {
	// Cron preloads pg_cron, with its jobs kept in the database postgres and
	// run by background workers. Default false.
	Cron bool

	// Settings are further settings for postgresql.conf; they win over this
	// package's own. Default none.
	Settings map[string]string

	// Parent is the directory in which the cluster's own is made; the server's
	// user must have access. Default the usual one for temporary files.
	Parent string

	// Log receives the server's log; writes to it are never concurrent.
	// Default a file postgres.log in the cluster's directory.
	Log io.Writer
}

// Cluster is one PostgreSQL server and its data. Its methods may be called
// concurrently.
type Cluster struct {
	bin     string // where the server's binaries are
	dir     string // everything of this cluster: data, socket, log
	logFile string // "" when Options.Log receives the log
	log     io.Writer
	owner   *owner
	port    int

	mu      sync.Mutex
	server  *server // nil while stopped
	removed bool
}

// stopPatience is how long one way of stopping gets before the next, harsher
// one is tried.
const stopPatience = 10 * time.Second

var errRemoved = errors.New("the cluster was stopped and removed")

// Start creates a cluster, starts its server and returns once the server
// accepts connections. ctx bounds the start only. The caller must call Stop.
func Start(ctx context.Context, o Options) (*Cluster, error) {
	c, err := create(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	return c, nil
}

func create(ctx context.Context, o Options) (_ *Cluster, err error) {
	bin, err := BinDir()
	if err != nil {
		return nil, err
	}
	if o.Cron && !hasLibrary(bin, "pg_cron") {
		return nil, fmt.Errorf("pg_cron is not installed for the server in %s: "+
			"install the package postgresql-<major>-cron (scripts/install-postgres.sh test does)", bin)
	}
	owner, err := serverOwner()
	if err != nil {
		return nil, err
	}

	c := &Cluster{bin: bin, owner: owner}
	defer func() {
		if err != nil {
			_ = c.Stop() // the first error is the one to report
		}
	}()
	if o.Parent == "" {
		o.Parent = owner.tempDir()
	}
	if c.dir, err = os.MkdirTemp(o.Parent, "scheduler-pg-"); err != nil {
		return nil, err
	}
	if err := owner.own(c.dir); err != nil {
		return nil, err
	}
	if c.log = o.Log; o.Log == nil {
		c.logFile = filepath.Join(c.dir, "postgres.log")
		c.log = &appendFile{path: c.logFile}
	}
	if err := c.initdb(ctx, o); err != nil {
		return nil, err
	}
	return c, c.startOnFreePort(ctx)
}

// initdb creates the data directory and its configuration.
func (c *Cluster) initdb(ctx context.Context, o Options) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.bin, "initdb"),
		"--pgdata", c.data(), "--username", "postgres", "--auth", "trust",
		"--encoding", "UTF8", "--locale", "C", "--no-sync")
	cmd.Dir = c.dir
	cmd.Env = c.env()
	cmd.SysProcAttr = sysProcAttr(c.owner)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}

	conf, err := os.OpenFile(filepath.Join(c.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString(configuration(c.dir, o))
	return errors.Join(err, conf.Close())
}

// configuration is what this package adds to postgresql.conf. The last of two
// lines for one setting wins there, so the caller's come last.
func configuration(dir string, o Options) string {
	settings := [][2]string{
		{"listen_addresses", "127.0.0.1"},
		{"unix_socket_directories", dir},
		{"max_connections", "200"},
		{"timezone", "UTC"},
		{"log_timezone", "UTC"},
	}
	if o.Cron {
		settings = append(settings, [][2]string{
			{"shared_preload_libraries", "pg_cron"},
			{"cron.database_name", "postgres"},
			{"cron.use_background_workers", "on"},
			// A running cron job takes a background worker; the default of 8
			// would make jobs wait that a production server starts at once.
			{"max_worker_processes", "32"},
		}...)
	}
	for _, name := range slices.Sorted(maps.Keys(o.Settings)) {
		settings = append(settings, [2]string{name, o.Settings[name]})
	}

	var conf strings.Builder
	quote := strings.NewReplacer(`'`, `''`, `\`, `\\`)
	for _, s := range settings {
		fmt.Fprintf(&conf, "%s = '%s'\n", s[0], quote.Replace(s[1]))
	}
	return conf.String()
}

// startOnFreePort starts the server on a port nobody listens on. Somebody else
// may take the port between the look and the server's own bind; then another
// one is tried.
func (c *Cluster) startOnFreePort(ctx context.Context) error {
	const attempts = 10
	var err error
	for range attempts {
		if c.port, err = freePort(); err != nil {
			return err
		}
		c.server, err = startServer(ctx, c)
		if !errors.Is(err, errPortTaken) {
			return err
		}
	}
	return err
}

// freePort picks below the range from which Linux and macOS take the ports of
// outgoing connections, so that a server that is down for a moment does not
// find its port in use when it comes back.
func freePort() (int, error) {
	const low, high, attempts = 15000, 32000, 100
	var err error
	for range attempts {
		port := low + rand.IntN(high-low)
		var l net.Listener
		if l, err = net.Listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port: %w", err)
}

// URL is the connection string for a database of the cluster, as the superuser
// postgres. It stays the same over Crash and Restart.
func (c *Cluster) URL(database string) string {
	return fmt.Sprintf("postgres://postgres@127.0.0.1:%d/%s?sslmode=disable", c.port, url.PathEscape(database))
}

// LogFile is the path of the server's log, or "" when Options.Log receives it.
// Stop removes the file with the cluster.
func (c *Cluster) LogFile() string { return c.logFile }

// BinDir is the directory of the server's binaries, psql among them.
func (c *Cluster) BinDir() string { return c.bin }

// Crash stops the server at once, without the courtesies to its clients and
// its data files of an orderly shutdown: the next start has to recover. The
// data stay. A server that is already down is left alone. When ctx ends first,
// the server is killed.
func (c *Cluster) Crash(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.halt(ctx, syscall.SIGQUIT, syscall.SIGKILL)
}

// Restart starts the server again on the same port and data, after an orderly
// shutdown if it runs. ctx bounds the restart only.
func (c *Cluster) Restart(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed {
		return fmt.Errorf("restart postgres: %w", errRemoved)
	}
	if err := c.halt(ctx, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL); err != nil {
		return err
	}
	server, err := startServer(ctx, c)
	if err != nil {
		return fmt.Errorf("restart postgres: %w", err)
	}
	c.server = server
	return nil
}

// Stop stops the server and removes its directory. Calling it again does
// nothing.
func (c *Cluster) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed {
		return nil
	}
	err := c.halt(context.Background(), syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL)
	if c.dir != "" {
		err = errors.Join(err, os.RemoveAll(c.dir))
	}
	c.removed = err == nil
	return err
}

// halt ends the server with the first of the signals that has an effect.
func (c *Cluster) halt(ctx context.Context, signals ...syscall.Signal) error {
	if c.server == nil {
		return nil
	}
	if err := c.server.stop(ctx, signals...); err != nil {
		return fmt.Errorf("stop postgres: %w", err)
	}
	c.server = nil
	return nil
}

func (c *Cluster) data() string { return filepath.Join(c.dir, "data") }

// env is the caller's environment without what would change the server: the
// PG* variables, another user's home, a locale the machine may not have, and a
// proxy, by which pgsql-http would not reach this machine.
func (c *Cluster) env() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return strings.HasPrefix(name, "PG") || strings.HasPrefix(name, "LC_") || strings.HasPrefix(name, "LANG") ||
			name == "HOME" || strings.HasSuffix(strings.ToLower(name), "_proxy")
	})
	return append(env, "HOME="+c.dir, "LC_ALL=C")
}

// appendFile opens its file for every write, so that nothing has to be closed
// and a file moved away for a test does not keep receiving the log.
type appendFile struct{ path string }

func (f *appendFile) Write(p []byte) (int, error) {
	file, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	n, err := file.Write(p)
	return n, errors.Join(err, file.Close())
}
