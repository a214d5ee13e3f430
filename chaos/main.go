// Chaos works jobs with several processes and a real Postgres, does all kinds of
// harm to them meanwhile, and counts what came of it: see docs/reliability.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/history"
)

// clocksFrom is how long a run has to be for clocks to be moved too: to build
// what can do that takes longer than the others.
const clocksFrom = 5 * time.Minute

func main() {
	if number, ok := os.LookupEnv(serviceEnv); ok {
		exitOn(serve(number))
		return
	}
	duration := flag.Duration("for", 10*time.Minute, "inject faults for this `time`")
	rate := flag.Int("rate", 400, "create this `number` of jobs a second")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "choose faults by this `number`; when they happen is left to chance")
	keep := flag.Bool("keep", false, "keep the history and the log of the services")
	verbose := flag.Bool("v", false, "print each fault when it is over")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	harm, err := run(ctx, *duration, *rate, *seed, *keep, *verbose)
	exitOn(err)
	if harm > 0 {
		exitOn(fmt.Errorf("harm was done %d times, with -seed %d", harm, *seed))
	}
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, duration time.Duration, rate int, seed uint64, keep, verbose bool) (harm int, err error) {
	directory, err := os.MkdirTemp("", "chaos-")
	if err != nil {
		return 0, err
	}
	if keep {
		fmt.Fprintln(os.Stderr, "history and log are in", directory)
	} else {
		defer func() { _ = os.RemoveAll(directory) }()
	}
	c, stop, err := start(ctx, directory, rate, duration >= clocksFrom)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stop()) }()

	c.verbose = verbose
	first := time.Now().Truncate(time.Minute).Add(time.Minute)
	c.injectFor(ctx, duration, seed)
	last := time.Now().Truncate(time.Minute)
	fmt.Fprintln(os.Stderr, "all is healed, and what is left is worked off")
	stuck, err := c.settle(ctx, last)
	if err != nil {
		return 0, err
	}
	c.fleet.stopAll()
	all, attempts, err := c.verify(ctx, stuck, first, last)
	if err != nil {
		return 0, err
	}
	return c.print(os.Stdout, all, attempts), nil
}

// start starts everything.
func start(ctx context.Context, directory string, rate int, movable bool) (_ *chaos, _ func() error, err error) {
	var undo []func() error
	stop := func() (err error) {
		for _, f := range slices.Backward(undo) {
			err = errors.Join(err, f())
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stop())
		}
	}()
	c := &chaos{injected: map[string]int{}}
	if c.db, err = startDatabase(ctx); err != nil {
		return nil, nil, err
	}
	undo = append(undo, c.db.stop)
	if c.proxy, err = startProxy(c.db.address()); err != nil {
		return nil, nil, err
	}
	log, err := history.Open(filepath.Join(directory, "history"))
	if err != nil {
		return nil, nil, err
	}
	undo = append(undo, log.Close)
	stderr, err := os.Create(filepath.Join(directory, "services.log"))
	if err != nil {
		return nil, nil, err
	}
	undo = append(undo, stderr.Close)
	c.fleet = &fleet{
		program: os.Args[0], url: c.db.serviceURL(c.proxy.Listen), logPath: filepath.Join(directory, "history"), stderr: stderr, log: log, all: map[*process]bool{},
	}
	if movable {
		if c.fleet.program, err = buildService(ctx, directory); err != nil {
			return nil, nil, err
		}
		c.fleet.clocks = true
	}
	undo = append(undo, func() error { c.fleet.stopAll(); return nil })
	for i := range fleetSize {
		if _, err := c.fleet.start(ctx, i > 0); err != nil {
			return nil, nil, err
		}
	}
	pool, err := newPool(c.fleet.url, "creator")
	if err != nil {
		return nil, nil, err
	}
	undo = append(undo, func() error { pool.Close(); return nil })
	jobs, err := scheduler.New(pool, scheduler.Config{Queues: queues(), Logger: slog.New(slog.DiscardHandler)})
	c.load = &load{jobs: jobs, pool: pool, log: log, fleet: c.fleet, db: c.db, rate: rate}
	return c, stop, err
}

// injectFor creates jobs and injects faults for a time.
func (c *chaos) injectFor(ctx context.Context, duration time.Duration, seed uint64) {
	ctx, cancel := context.WithTimeout(ctx, duration)
	defer cancel()
	var group sync.WaitGroup
	group.Go(func() { c.load.run(ctx) })
	group.Go(func() { c.triggers(ctx) })
	for i, side := range c.sides() {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		group.Go(func() { c.injectAll(ctx, random, side) })
	}
	group.Wait()
}

const unfinishedSQL = `
SELECT (SELECT count(*) FROM scheduler.jobs WHERE lane IS NOT NULL) + (SELECT count(*) FROM scheduler.recurring WHERE next_slot <= $1)`

// settle waits until all jobs are finished, and returns how many are not when no
// more come to an end.
func (c *chaos) settle(ctx context.Context, last time.Time) (stuck int, err error) {
	const patience = time.Minute
	least, since := -1, time.Now()
	for {
		if stuck, err = query[int](ctx, c.db, unfinishedSQL, last); err != nil || stuck == 0 {
			return stuck, err
		}
		if least < 0 || stuck < least {
			least, since = stuck, time.Now()
		}
		if time.Since(since) > patience {
			return stuck, nil
		}
		sleep(ctx, 200*time.Millisecond)
	}
}
