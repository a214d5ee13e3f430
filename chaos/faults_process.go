package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/relay-club/scheduler/internal/history"
)

// processFaults are those of services.
func (c *chaos) processFaults() []fault {
	faults := []fault{
		{"service killed (SIGKILL)", kill},
		{"service stopped for longer than its lease (SIGSTOP, SIGCONT)", zombie},
		{"service shut down at work", shutDown},
		{"rolling deploy of all services", deploy},
		{"pool of a service exhausted", exhausted},
	}
	if c.fleet.clocks {
		faults = append(faults, fault{"clock of a service an hour ahead", clockMoved(time.Hour)}, fault{"clock of a service an hour behind", clockMoved(-time.Hour)})
	}
	if c.fleet.newer != "" {
		faults = append(faults, fault{"service of a newer library beside older ones", newerVersion})
	}
	return faults
}

var errNobody = errors.New("no service is free")

func kill(ctx context.Context, c *chaos) error {
	p := c.fleet.takeMortal()
	if p == nil {
		return errNobody
	}
	p.kill()
	return c.fleet.replace(ctx, p)
}

// replace starts a service in place of one that is gone, however long it takes.
func (f *fleet) replace(ctx context.Context, p *process) error {
	_, err := f.start(context.WithoutCancel(ctx), f.program, p.resident)
	return err
}

const expiresSQL = `SELECT coalesce(max(expires_at), $2) FROM scheduler.leases WHERE holder LIKE '%:' || $1::text`

// zombie stops a process until its lease has run out. What it ran is its own
// until then, by the database's clock, and no longer.
func zombie(ctx context.Context, c *chaos) error {
	p := c.fleet.take()
	if p == nil {
		return errNobody
	}
	defer c.fleet.put(p)
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	defer func() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }()
	p.stopped()
	stopped := time.Now()
	// A renewal may have been on its way, so this looks again at the end.
	for until := (time.Time{}); ; {
		now, err := query[time.Time](ctx, c.db, expiresSQL, fmt.Sprint(p.cmd.Process.Pid), stopped)
		if err != nil && until.IsZero() { // how long its lease lasted is not known, so what it ran was nobody's from the beginning
			err = errors.Join(err, c.fleet.log.Write(history.Event{Kind: history.Stop, Process: p.number, Until: stopped}))
		}
		if err != nil {
			return err
		}
		if now.After(until) {
			until = now
			if err := c.fleet.log.Write(history.Event{Kind: history.Stop, Process: p.number, Until: until}); err != nil {
				return err
			}
		}
		if time.Since(until) > time.Second && time.Since(stopped) > lease {
			return nil
		}
		time.Sleep(max(0, time.Until(until)) + 1100*time.Millisecond)
	}
}

func shutDown(ctx context.Context, c *chaos) error {
	p := c.fleet.takeMortal()
	if p == nil {
		return errNobody
	}
	p.terminate()
	return c.fleet.replace(ctx, p)
}

// deploy starts a new service before each old one is shut down, of those that may
// be.
func deploy(ctx context.Context, c *chaos) error {
	for range c.fleet.mortals() {
		p := c.fleet.takeMortal()
		if p == nil {
			return errNobody
		}
		if err := c.fleet.replace(ctx, p); err != nil {
			c.fleet.put(p)
			return err
		}
		p.terminate()
	}
	return nil
}

func exhausted(ctx context.Context, c *chaos) error {
	p := c.fleet.take()
	if p == nil {
		return errNobody
	}
	defer c.fleet.put(p)
	ctx, cancel := context.WithTimeout(ctx, lasts())
	defer cancel()
	response, err := call(ctx, p.address, "/exhaust", nil)
	if err == nil {
		return errors.Join(errors.New("the connections were given back too early"), response.Body.Close())
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}
