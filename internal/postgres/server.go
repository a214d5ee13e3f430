package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// server is one run of the postgres program.
type server struct {
	cmd    *exec.Cmd
	output *output
	exited chan struct{} // closed once the process is gone and exitErr is set
	err    error         // how it ended; read after exited
}

var errPortTaken = errors.New("address already in use")

// startServer runs postgres on the cluster's data and port and returns once it
// accepts connections. A server that fails to get there is gone on return.
func startServer(ctx context.Context, c *Cluster) (*server, error) {
	s := &server{
		cmd: exec.Command(filepath.Join(c.bin, "postgres"),
			"-D", c.data(), "-p", strconv.Itoa(c.port)),
		output: &output{to: c.log},
		exited: make(chan struct{}),
	}
	s.cmd.Dir = c.dir
	s.cmd.Env = c.env()
	s.cmd.SysProcAttr = sysProcAttr(c.owner)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	// Backends hold the log's pipe too; they follow a killed postmaster by
	// themselves, and Wait shall not hang on one that does not.
	s.cmd.WaitDelay = stopPatience

	started := make(chan error)
	go s.run(started)
	if err := <-started; err != nil {
		return nil, err
	}
	if err := s.waitReady(ctx, filepath.Join(c.data(), "postmaster.pid")); err != nil {
		stopped := s.stop(context.Background(), syscall.SIGQUIT, syscall.SIGKILL)
		return nil, errors.Join(err, stopped)
	}
	s.output.forget()
	return s, nil
}

// run starts the process and waits for its end. It holds its OS thread
// throughout, because Linux delivers the death signal asked for in sysProcAttr
// when the thread that started the child ends, not when the program does.
func (s *server) run(started chan<- error) {
	runtime.LockOSThread()
	err := s.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	s.err = s.cmd.Wait()
	close(s.exited)
}

// waitReady waits until the server says in its pid file that it is ready.
func (s *server) waitReady(ctx context.Context, pidFile string) error {
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for !s.ready(pidFile) {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("%w before the server was ready\n%s", ctx.Err(), s.output.beginning())
		case <-s.exited:
			log := s.output.beginning()
			if strings.Contains(strings.ToLower(log), errPortTaken.Error()) {
				return fmt.Errorf("%w\n%s", errPortTaken, log)
			}
			return fmt.Errorf("the server ended before it was ready: %w\n%s", s.err, log)
		}
	}
	return nil
}

// ready reports whether the pid file is this server's and says so. A crashed
// server leaves its file behind, so the pid has to match.
func (s *server) ready(pidFile string) bool {
	const pidLine, statusLine = 0, 7
	content, err := os.ReadFile(pidFile)
	if err != nil {
		return false
	}
	lines := strings.Split(string(content), "\n")
	return len(lines) > statusLine &&
		strings.TrimSpace(lines[pidLine]) == strconv.Itoa(s.cmd.Process.Pid) &&
		strings.TrimSpace(lines[statusLine]) == "ready"
}

// stop sends the signals one after the other, each when the one before has had
// its time, until the process is gone. Once ctx has ended, only the last counts.
func (s *server) stop(ctx context.Context, signals ...syscall.Signal) error {
	last := len(signals) - 1
	for i, signal := range signals {
		if i < last && ctx.Err() != nil {
			continue
		}
		if err := s.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		done := ctx.Done()
		if i == last {
			done = nil
		}
		select {
		case <-s.exited:
			return nil
		case <-done:
		case <-time.After(stopPatience):
		}
	}
	<-s.exited // killed, and Wait gives up on the log's pipe after stopPatience
	return nil
}

// output passes the server's log on and remembers its beginning, which says
// why a start failed.
type output struct {
	to io.Writer

	mu   sync.Mutex
	head []byte
	full bool
}

func (o *output) Write(p []byte) (int, error) {
	const limit = 16 << 10
	o.mu.Lock()
	if !o.full {
		o.head = append(o.head, p...)
		o.full = len(o.head) > limit
	}
	o.mu.Unlock()
	// A log that cannot be written is no reason to stop reading: the server
	// would block on its pipe.
	_, _ = o.to.Write(p)
	return len(p), nil
}

func (o *output) beginning() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.head)
}

func (o *output) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.head, o.full = nil, true
}
