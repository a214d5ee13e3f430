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
	awaits int           // how many wait for room
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
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
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
			return n
		}
		if tired == nil {
			tired = time.After(aheadTime)
		}
		gaveUp := false
		freed := c.freed
		c.awaits++
		c.mu.Unlock()
		select {
		case <-freed:
		case <-tired:
			isTired = true
		case <-ctx.Done():
			gaveUp = true
		case <-giveUp:
			gaveUp = true
		}
		c.mu.Lock()
		c.awaits--
		if gaveUp {
			return 0
		}
	}
}

// retake claims room for n jobs in place of others, for which put is to come: not
// if somebody waits for that.
func (c *capacity) retake(n, others int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.awaits > 0 || c.used-others+n > c.slots+c.ahead {
		return false
	}
	c.used += n
	return true
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
