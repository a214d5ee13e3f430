package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// fault is one kind of harm that is done to the services. inject does it, waits,
// and undoes it.
type fault struct {
	name   string
	inject func(ctx context.Context, c *chaos) error
}

// side is from where faults come one after another, with a pause between them:
// all sides do harm at once.
type side struct {
	faults []fault
	pause  time.Duration // at most
}

func (c *chaos) sides() []side {
	return []side{
		{c.processFaults(), time.Second}, {c.databaseFaults(), 6 * time.Second}, {networkFaults(), 4 * time.Second}, {sessionFaults(), 4 * time.Second},
		{clientFaults(), time.Second}, {handlerFaults(), time.Second},
	}
}

// chaos is all that faults can lay hands on.
type chaos struct {
	db    *database
	proxy proxy
	fleet *fleet
	load  *load

	random []*rand.Rand  // of each side
	calm   time.Duration // by how much the pauses between faults are longer

	mu       sync.Mutex
	injected map[string]int
	verbose  bool

	triggersLost atomic.Bool
	miscounted   []string // read when nobody watches any more
	lastFound    string   // of what is miscounted
}

// undoing bounds what has to be undone, also when time is up.
const undoing = 30 * time.Second

// injectAll injects faults of one side until ctx ends: each of them in turn, in
// another order each time.
func (c *chaos) injectAll(ctx context.Context, random *rand.Rand, s side) {
	for ctx.Err() == nil {
		for _, i := range random.Perm(len(s.faults)) {
			pause := time.Duration(random.Int64N(int64(c.calm * s.pause)))
			if ctx.Err() != nil {
				return
			}
			c.inject(ctx, s.faults[i])
			sleep(ctx, pause)
		}
	}
}

func (c *chaos) inject(ctx context.Context, f fault) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*undoing)
	defer cancel()
	err := f.inject(ctx, c)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.injected[f.name]++
	}
	// Mostly it is because of another fault that this one could not be injected.
	if c.verbose {
		fmt.Fprintf(os.Stderr, "%s %s (%v)\n", time.Now().Format("15:04:05"), f.name, err)
	}
}

// lasts is how long a fault goes on: mostly shorter, sometimes longer than what
// anybody waits for.
func lasts() time.Duration {
	if rand.N(5) == 0 {
		return lease + rand.N(2*time.Second)
	}
	return rand.N(2 * time.Second)
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
