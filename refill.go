package scheduler

import (
	"sync"
	"time"
)

// refill says when jobs of a limited queue that have ended are worth a claim of
// others in their place: at once when few of those that ran are left, else a
// moment after the first one. Short jobs end in a row, and so one claim replaces
// many.
type refill struct {
	freed   chan struct{} // of one element: there is room
	mu      sync.Mutex
	running int
	most    int  // so many ran after the last claim
	soon    bool // freed is to come
}

const (
	refillWait = 2 * time.Millisecond
	fewAreLeft = 8 // one of so many
)

// count is how many jobs are running.
func (r *refill) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.running
}

func (r *refill) started(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running += n
	r.most = r.running
}

func (r *refill) ended() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running--
	if fewAreLeft*r.running <= r.most {
		wake(r.freed)
		return
	}
	if r.soon {
		return
	}
	r.soon = true
	time.AfterFunc(refillWait, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.soon = false
		wake(r.freed)
	})
}
