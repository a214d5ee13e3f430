package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// clientFaults are those of callers of the Run endpoint.
func clientFaults() []fault {
	return []fault{
		{"clients that hang up at once", hangUp},
		{"clients that send half a request", halfARequest},
		{"200 calls of Run at once", flood},
		{"triggers lost", lost},
		{"triggers doubled", func(ctx context.Context, c *chaos) error { return c.trigger(ctx, 2, 0) }},
		{"triggers replayed", func(ctx context.Context, c *chaos) error { return c.trigger(ctx, 5, 100*time.Millisecond) }},
	}
}

// runPath is a trigger of some queue, as its worker would send it.
func runPath() string {
	return "/api/jobs/run?status=any&limit=20&queue=" + someQueue()
}

func someQueue() string {
	names := []string{"default", "blocking", "ledger", "wide", "lanes", "keyed", "rated", "singles"}
	return names[rand.N(len(names))]
}

// trigger calls the Run endpoint of a service several times with the same.
func (c *chaos) trigger(ctx context.Context, times int, apart time.Duration) error {
	address, err := c.anyAddress()
	if err != nil {
		return err
	}
	path := runPath()
	var group sync.WaitGroup
	for range times {
		group.Go(func() { ring(ctx, address, path) })
		sleep(ctx, apart)
	}
	group.Wait()
	return nil
}

// ring is a trigger: what comes of it is nobody's matter.
func ring(ctx context.Context, address, path string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if response, err := call(ctx, address, path, nil); err == nil {
		_ = response.Body.Close()
	}
}

func (c *chaos) anyAddress() (string, error) {
	addresses := c.fleet.addresses()
	if len(addresses) == 0 {
		return "", errors.New("no service is there")
	}
	return addresses[rand.N(len(addresses))], nil
}

// triggers are the ticks of pg_cron, for the services that are not resident.
func (c *chaos) triggers(ctx context.Context) {
	for ctx.Err() == nil {
		if !c.triggersLost.Load() {
			if err := c.trigger(ctx, 1, 0); err != nil {
				sleep(ctx, 100*time.Millisecond)
			}
		}
		sleep(ctx, 50*time.Millisecond)
	}
}

func lost(ctx context.Context, c *chaos) error {
	c.triggersLost.Store(true)
	defer c.triggersLost.Store(false)
	sleep(ctx, lasts())
	return nil
}

// say opens a connection, writes a text and closes it.
func (c *chaos) say(ctx context.Context, text string, stay time.Duration) error {
	address, err := c.anyAddress()
	if err != nil {
		return err
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil //nolint:nilerr // it is just being killed: that is another fault
	}
	_, _ = conn.Write([]byte(text))
	sleep(ctx, stay)
	return conn.Close()
}

func hangUp(ctx context.Context, c *chaos) error {
	for range 10 {
		err := c.say(ctx, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nContent-Length: 0\r\n\r\n", runPath(), token), 0)
		if err != nil {
			return err
		}
	}
	return nil
}

func halfARequest(ctx context.Context, c *chaos) error {
	for range 10 {
		err := c.say(ctx, fmt.Sprintf("POST /api/jobs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\n{\"name\": ", token), 20*time.Millisecond)
		if err != nil {
			return err
		}
	}
	return nil
}

func flood(ctx context.Context, c *chaos) error {
	return c.trigger(ctx, 200, 0)
}
