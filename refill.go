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
	freed   chan struct{} // of one element: there may be room
	mu      sync.Mutex
	running int
	most    int         // when half of these have ended, there is room for a claim
	timer   *time.Timer // of the moment that has begun; nil: none has
	late    bool        // it is over, so any room is worth a claim
}

const refillWait = 2 * time.Millisecond

// room is for how many of up to n jobs of the queue there is room, and whether that
// is worth a claim now.
func (r *refill) room(q *queue, n int) (most int, worth bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	most, enough := q.most(n, r.running)
	return most, r.late || most >= enough
}

// started counts what a claim has brought. If that was all it asked for, more may
// be due: then another one comes, or soon is called, so what has ended by now needs
// no moment of its own; and half of the limit is worth a claim, however many
// run.
func (r *refill) started(q *queue, n int, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running += n
	r.most = r.running
	if all {
		r.most = max(r.most, q.MaxConcurrency)
	}
	r.late = false
	if all && r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

func (r *refill) ended() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running--
	if r.most-r.running >= halfOf(r.most) {
		wake(r.freed)
		return
	}
	r.wakeSoon()
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
