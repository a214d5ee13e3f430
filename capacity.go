package scheduler

import (
	"context"
	"sync"
	"time"
)

// capacity says how many more jobs this process may claim, over all runs and
// queues: as many as handlers may start, and some ahead of them, so that short
// jobs do not wait for the database between one claim and the next. How many is
// measured: what was worked off of late in the time of aheadTime. So what is
// claimed ahead starts that soon, and long jobs are not claimed ahead at all.
type capacity struct {
	mu     sync.Mutex
	slots  int           // handlers at once
	ahead  int           // jobs that may be claimed beyond that
	used   int           // jobs that are claimed and not yet recorded as finished
	freed  chan struct{} // closed and made anew when jobs are recorded
	rate   float64       // recorded jobs a second
	since  time.Time     // when counting began
	worked int           // jobs recorded since
}

const (
	aheadTime = 60 * time.Millisecond
	mostAhead = 4000
	// mostClaimed bounds one claim, so that the next one is under way while the
	// jobs of this one are being recorded.
	mostClaimed = mostFinished
	rateWindow  = 10 * time.Millisecond // the shortest time that a rate is taken over
)

// take claims room for up to most jobs, and no more than mostClaimed: it waits until
// there is enough, or after a while for any, and returns 0 when ctx ends or giveUp
// fires before.
func (c *capacity) take(ctx context.Context, most int, giveUp <-chan time.Time) int {
	var tired <-chan time.Time
	isTired := false // others, that need less, may have taken all the time what was freed
	for {
		c.mu.Lock()
		if time.Since(c.since) > 10*rateWindow {
			c.ahead = 0 // nothing was worked off of late
		}
		room := c.slots + c.ahead - c.used
		// Where many are claimed ahead, a claim of few is not worth its round trip,
		// and one of all would leave nothing to work off until the next one.
		half := min(1+c.ahead/2, most, mostClaimed)
		enough := half
		if isTired {
			enough = 1
		}
		if room >= enough && ctx.Err() == nil {
			n := min(room, most, mostClaimed, max(c.slots, half))
			c.used += n
			c.mu.Unlock()
			return n
		}
		freed := c.freed
		c.mu.Unlock()
		if tired == nil {
			tired = time.After(aheadTime)
		}
		select {
		case <-freed:
		case <-tired:
			isTired = true
		case <-ctx.Done():
			return 0
		case <-giveUp:
			return 0
		}
	}
}

// put gives back room that was taken; worked says how many of the jobs it was
// taken for were worked off.
func (c *capacity) put(n, worked int) {
	if n == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used -= n
	close(c.freed)
	c.freed = make(chan struct{})
	c.worked += worked
	now := time.Now()
	elapsed := now.Sub(c.since)
	if elapsed < rateWindow {
		return
	}
	rate := float64(c.worked) / elapsed.Seconds()
	if c.rate = (c.rate + rate) / 2; rate > c.rate || elapsed > 10*rateWindow {
		c.rate = rate // larger claims have just made it faster, or what was before is long ago
	}
	c.since, c.worked = now, 0
	c.ahead = min(int(c.rate*aheadTime.Seconds()), mostAhead)
	if c.ahead < c.slots { // not so short, then
		c.ahead = 0
	}
}
