package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/relay-club/scheduler/internal/history"
)

// process is one service.
type process struct {
	number   int
	resident bool
	lasts    bool // no fault ends it
	address  string
	cmd      *exec.Cmd
	expected atomic.Bool   // its end
	gone     chan struct{} // closed when it has ended, and the history says so
}

// fleet is the services that are there. A fault takes those that it needs for
// itself.
type fleet struct {
	url, logPath string
	program      string
	kept         time.Duration // how long finished jobs are
	newer        string        // the same, with a newer version of the library; "": there is none
	clocks       bool          // the clock of both can be moved
	stderr       io.Writer
	log          *history.Log

	mu        sync.Mutex
	started   int
	all       map[*process]bool // whether it is free to be taken
	surprises []string          // services that ended unasked
}

const fleetSize = 3

// start starts a service and returns when it takes requests.
func (f *fleet) start(ctx context.Context, program string, resident bool) (*process, error) {
	f.mu.Lock()
	f.started++
	p := &process{number: f.started, resident: resident, gone: make(chan struct{})}
	f.mu.Unlock()
	p.cmd = exec.Command(program)
	p.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", serviceEnv, p.number), "DATABASE_URL="+f.url, "CHAOS_LOG="+f.logPath, "CHAOS_KEPT="+f.kept.String())
	if resident {
		p.cmd.Env = append(p.cmd.Env, "CHAOS_RESIDENT=yes")
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = f.stderr
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(stdout).ReadString('\n')
		line <- strings.TrimSpace(text)
		f.wait(p)
	}()
	select {
	case p.address = <-line:
		if p.address == "" {
			return nil, fmt.Errorf("service %d did not start", p.number)
		}
	case <-ctx.Done():
		p.kill()
		return nil, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all[p] = true
	return p, nil
}

// wait writes down the end of a process.
func (f *fleet) wait(p *process) {
	err := p.cmd.Wait()
	if writeErr := f.log.Write(history.Event{Kind: history.Kill, Process: p.number}); writeErr != nil {
		err = errors.Join(err, writeErr)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, p)
	if !p.expected.Load() {
		f.surprises = append(f.surprises, fmt.Sprintf("service %d ended: %v", p.number, err))
	}
	close(p.gone)
}

// take returns a process that nobody else has taken; nil if there is none.
func (f *fleet) take() *process { return f.takeOne(func(*process) bool { return true }) }

// takeMortal is take for what ends the process.
func (f *fleet) takeMortal() *process { return f.takeOne(func(p *process) bool { return !p.lasts }) }

func (f *fleet) takeOne(fits func(*process) bool) *process {
	f.mu.Lock()
	defer f.mu.Unlock()
	for p, free := range f.all { // in random order
		if free && fits(p) {
			f.all[p] = false
			return p
		}
	}
	return nil
}

// mortals is how many services there are that faults may end.
func (f *fleet) mortals() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for p := range f.all {
		if !p.lasts {
			n++
		}
	}
	return n
}

func (f *fleet) put(p *process) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.all[p]; ok {
		f.all[p] = true
	}
}

// processes are all of them, in the order of their starts.
func (f *fleet) processes() []*process {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.SortedFunc(maps.Keys(f.all), func(a, b *process) int { return a.number - b.number })
}

// addresses are those of all services.
func (f *fleet) addresses() (addresses []string) {
	for _, p := range f.processes() {
		addresses = append(addresses, p.address)
	}
	return addresses
}

// kill ends a process at once, terminate asks it to shut down first. Both wait
// for its end.
func (p *process) kill() {
	p.expected.Store(true)
	_ = p.cmd.Process.Kill()
	<-p.gone
}

func (p *process) terminate() {
	p.expected.Store(true)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.gone:
	case <-time.After(20 * time.Second): // as a platform does
		p.kill()
	}
}

// stopped waits until a process that was sent SIGSTOP has stopped.
func (p *process) stopped() {
	for {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		_, state, _ := bytes.Cut(text, []byte(") "))
		if err != nil || bytes.HasPrefix(state, []byte("T")) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// stopAll shuts all services down.
func (f *fleet) stopAll() {
	var group sync.WaitGroup
	for _, p := range f.processes() {
		group.Go(p.terminate)
	}
	group.Wait()
}
