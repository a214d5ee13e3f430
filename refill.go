package scheduler

import (
	"sync"
	"time"
)

// refill says when jobs of a limited queue that have ended are worth a claim of
// others in their place: at once when half of those that ran have, else a
// moment after the first one. Short jobs end in a row, and so one claim replaces
// many.
type refill struct {
	queue   *queue
	freed   chan struct{} // of one element: there may be room
	mu      sync.Mutex
	running int
	most    int         // when half of these have ended, there is room for a claim
	timer   *time.Timer // of the moment that has begun; nil: none has
	late    bool        // it is over, so any room is worth a claim
	more    bool        // the last claim brought all it asked for, so more may be due
	apart   time.Time   // until when no record takes along a claim
	along   int         // how many records in a row have
}

const (
	refillWait = 2 * time.Millisecond
	// apartFor is for how long records take along no claim after one that failed.
	apartFor = time.Second
	// mostAlong is how many in a row do: others never see the room that a record makes
	// for the claim that it takes along.
	mostAlong = 15
)

// room is for how many of up to n jobs of the queue there is room, and whether that
// is worth a claim now.
func (r *refill) room(n int) (most int, worth bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	most, enough := r.queue.most(n, r.running)
	return most, r.late || most >= enough
}

// instead is how many jobs a record takes along the claim of, when so many of those
// that run have ended by it; 0: that is none worth it.
func (r *refill) instead(ended int) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	most, enough := r.queue.most(mostClaimed, r.running-ended)
	if !r.more || most < enough || r.along == mostAlong || time.Now().Before(r.apart) {
		return 0
	}
	return most
}

// started counts what a claim has brought. If that was all it asked for, more may
// be due: then another one comes, or soon is called, so what has ended by now needs
// no moment of its own; and half of the limit is worth a claim, however many
// run.
func (r *refill) started(n int, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note(n, all)
}

// note is started, with r.mu held.
func (r *refill) note(n int, all bool) {
	if n > 0 || r.running < r.queue.MaxConcurrency { // else it could bring nothing
		r.more = all
	}
	r.running += n
	r.most = r.running
	if all {
		r.most = max(r.most, r.queue.MaxConcurrency)
	}
	r.late = false
	if all && r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

// replaced counts what a claim has brought that a record of ends took along. If that
// was not all it asked for, it is for the loop to find out why.
func (r *refill) replaced(ended, n int, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.along++
	r.running -= ended
	r.note(n, all)
	switch {
	case !all && r.running < r.queue.MaxConcurrency:
		r.late = true
		wake(r.freed)
	case !r.wakeIfHalf() && r.running < r.queue.MaxConcurrency:
		r.wakeSoon()
	}
}

// failed says that such a record came to nothing.
func (r *refill) failed() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.apart = time.Now().Add(apartFor)
}

func (r *refill) ended() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running--
	r.along = 0 // a record has made room for all
	if !r.wakeIfHalf() {
		r.wakeSoon()
	}
}

// wakeIfHalf says that there is room if half of what ran has ended. r.mu is held.
func (r *refill) wakeIfHalf() bool {
	if r.most-r.running < halfOf(r.most) {
		return false
	}
	wake(r.freed)
	return true
}

// soon begins the moment for room that there is.
func (r *refill) soon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wakeSoon()
}

// wakeSoon begins a moment, unless one has begun. r.mu is held.
func (r *refill) wakeSoon() {
	if r.timer != nil {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(refillWait, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.timer != timer {
			return
		}
		r.timer, r.late = nil, true
		wake(r.freed)
	})
	r.timer = timer
}
