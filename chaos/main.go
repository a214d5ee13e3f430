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

// options are what the command is told.
type options struct {
	duration      time.Duration
	soak          int // how many jobs are created in place of that; 0: no soak
	rate          int
	seed          uint64
	fence         string // which is removed; "": none
	keep, verbose bool
}

func main() {
	if number, ok := os.LookupEnv(serviceEnv); ok {
		exitOn(serve(number))
		return
	}
	var o options
	flag.DurationVar(&o.duration, "for", 10*time.Minute, "inject faults for this `time`")
	flag.IntVar(&o.soak, "soak", 0, "inject fewer of them, until this `number` of jobs is created, and look whether all stays level")
	flag.IntVar(&o.rate, "rate", 500, "create this `number` of jobs a second")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "choose faults by this `number`; when they happen is left to chance")
	flag.StringVar(&o.fence, "without", "", "remove this `fence` first, so that harm must be found: "+fenceNames())
	flag.BoolVar(&o.keep, "keep", false, "keep the history and the log of the services")
	flag.BoolVar(&o.verbose, "v", false, "print each fault when it is over")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	all, err := run(ctx, o)
	exitOn(err)
	harm := 0
	for _, f := range all {
		harm += f.n
	}
	if harm > 0 {
		exitOn(fmt.Errorf("harm was done %d times, with -seed %d", harm, o.seed))
	}
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

// run does it all, and returns what it has found.
func run(ctx context.Context, o options) (all []found, err error) {
	directory, err := os.MkdirTemp("", "chaos-")
	if err != nil {
		return nil, err
	}
	if o.keep {
		fmt.Fprintln(os.Stderr, "history and log are in", directory)
	} else {
		defer func() { _ = os.RemoveAll(directory) }()
	}
	c, stop, err := start(ctx, directory, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()

	first := time.Now().Truncate(time.Minute).Add(time.Minute)
	var moments []moment
	if o.soak > 0 {
		moments, err = c.soak(ctx, o.soak)
	} else {
		c.round(ctx, func(ctx context.Context) { sleep(ctx, o.duration) })
	}
	if err != nil {
		return nil, err
	}
	last := time.Now().Truncate(time.Minute)
	stuck, err := c.settle(ctx, last)
	if err != nil {
		return nil, err
	}
	c.fleet.stopAll()
	all, attempts, err := c.verify(ctx, stuck, first, last)
	if err != nil {
		return nil, err
	}
	if len(moments) > 0 {
		printLevel(os.Stdout, moments)
		all = append(all, count("not level", notLevel(moments)))
	}
	c.print(os.Stdout, all, attempts)
	return all, nil
}

// start starts everything.
func start(ctx context.Context, directory string, o options) (_ *chaos, _ func() error, err error) {
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
	c := &chaos{injected: map[string]int{}, verbose: o.verbose, calm: 1}
	kept := time.Minute
	if o.soak > 0 {
		// A tenth of the jobs is there at a time.
		c.calm, kept = soakCalm, max(5*time.Second, time.Duration(o.soak/soakMoments/o.rate)*time.Second)
	}
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
		program: os.Args[0], url: c.db.serviceURL(c.proxy.Listen), logPath: filepath.Join(directory, "history"), kept: kept,
		stderr: stderr, log: log, all: map[*process]bool{},
	}
	if err := c.fleet.build(ctx, directory, o); err != nil {
		return nil, nil, err
	}
	undo = append(undo, func() error { c.fleet.stopAll(); return nil })
	for i := range fleetSize {
		p, err := c.fleet.start(ctx, c.fleet.program, i > 0)
		if err != nil {
			return nil, nil, err
		}
		p.lasts = o.soak > 0 && i == fleetSize-1
	}
	if err := c.db.exec(ctx, deletedSQL); err != nil {
		return nil, nil, err
	}
	if o.fence != "" {
		if err := c.db.removeFence(ctx, o.fence); err != nil {
			return nil, nil, err
		}
	}
	pool, err := newPool(c.fleet.url, "creator")
	if err != nil {
		return nil, nil, err
	}
	undo = append(undo, func() error { pool.Close(); return nil })
	observer := (&handlers{log: log}).observe
	jobs, err := scheduler.New(pool, scheduler.Config{Queues: queues(), Observer: observer, Logger: slog.New(slog.DiscardHandler)})
	for i := range c.sides() {
		c.random = append(c.random, rand.New(rand.NewPCG(o.seed, uint64(i))))
	}
	c.load = &load{jobs: jobs, pool: pool, log: log, fleet: c.fleet, db: c.db, rate: o.rate}
	c.load.ways = waysOf(c.load)
	return c, stop, err
}

// round creates jobs and injects faults until it is over. Then all is healed.
func (c *chaos) round(ctx context.Context, over func(context.Context)) {
	harm, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	group.Go(func() { c.load.run(harm) })
	group.Go(func() { c.triggers(harm) })
	group.Go(func() { c.watchCounts(harm) })
	for i, side := range c.sides() {
		group.Go(func() { c.injectAll(harm, c.random[i], side) })
	}
	over(harm)
	cancel()
	group.Wait()
	fmt.Fprintf(os.Stderr, "%s %d jobs are created, all is healed, and what is left is worked off\n", time.Now().Format(time.TimeOnly), c.load.acknowledged.Load())
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
		c.lookAtCounts(ctx)
		sleep(ctx, 200*time.Millisecond)
	}
}
