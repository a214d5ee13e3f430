package scheduler

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// attempt is a claimed job on its way to its handler.
type attempt struct {
	job      *Job
	queue    *queue
	values   context.Context // the handler's context has its values
	startBy  time.Time       // else it is handed back
	recorded func(*outcome)  // called when its outcome is in the database, or dropped
	claim    *claimed        // what it was claimed with

	s          *Scheduler
	rehearsed  bool                    // by schedulertest: nothing of it is in the database
	completion completion              // whether its handler called CompleteTx
	reports    atomic.Pointer[reports] // what its handler has reported; nil: nothing
}

// slots runs as many handlers at once as Config.Concurrency allows. A goroutine
// that is done with one attempt takes the next that waits, or rests for a moment
// to be given one: its stack has grown to what handlers need.
type slots struct {
	mu      sync.Mutex
	free    int
	waiting []*attempt      // in the order they were claimed
	resting []chan *attempt // goroutines that are done, the latest last
	spare   int             // how many rested all the time since the last look
	looks   bool            // a look is to come
	closed  bool            // none rests any more
}

// restsFor is how often goroutines that were not needed since are ended.
const restsFor = 100 * time.Millisecond

// startWithin is how long a claimed job may wait for its handler's start before
// it is handed back.
const startWithin = time.Second

// start begins the attempts of claimed jobs, as many as there are slots; the
// others wait for one. loop is the one whose claim it was; nil: of none.
func (s *Scheduler) start(values context.Context, jobs []*Job, q *queue, recorded func(*outcome), loop *queueLoop) {
	if len(jobs) == 0 {
		return
	}
	startBy := time.Now().Add(startWithin)
	attempts := make([]attempt, len(jobs))
	claim := &claimed{at: time.Now(), loop: loop}
	claim.left.Store(int32(len(jobs)))
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	for i, job := range jobs {
		a := &attempts[i]
		a.s, a.job, a.queue, a.values, a.startBy, a.recorded, a.claim = s, job, q, values, startBy, recorded, claim
		switch {
		case s.slots.free > 0:
			s.slots.free--
			s.slots.give(s, a)
		case s.open.Err() != nil:
			s.handBack(a)
		default:
			s.slots.waiting = append(s.slots.waiting, a)
		}
	}
	if n := len(s.slots.waiting); n > 0 && s.slots.waiting[n-1] == &attempts[len(attempts)-1] {
		time.AfterFunc(startWithin, func() { s.handBackWaiting(startBy) })
	}
}

// give has a goroutine serve an attempt, in a slot that was free. l.mu is held.
func (l *slots) give(s *Scheduler, a *attempt) {
	n := len(l.resting) - 1
	if n < 0 {
		go s.serve(a)
		return
	}
	l.resting[n] <- a
	l.resting = l.resting[:n]
	l.spare = min(l.spare, n)
}

// serve is what holds one slot.
func (s *Scheduler) serve(a *attempt) {
	defer func() {
		if a != nil { // a handler ended this goroutine by runtime.Goexit
			if next := s.slots.next(nil); next != nil {
				go s.serve(next)
			}
		}
	}()
	rest := make(chan *attempt, 1)
	for a != nil {
		s.handle(a)
		if a = s.slots.next(rest); a == nil {
			a = <-rest
		}
	}
}

// next returns the attempt that has waited longest. If there is none, the slot is
// free, and what comes is sent to rest: nil to end it.
func (l *slots) next(rest chan *attempt) *attempt {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 {
		a := l.waiting[0]
		l.waiting[0] = nil
		l.waiting = l.waiting[1:]
		return a
	}
	l.free++
	switch {
	case rest == nil:
	case l.closed:
		close(rest)
	default:
		l.resting = append(l.resting, rest)
		l.lookLater()
	}
	return nil
}

// lookLater ends, in a while, those that will have rested all the time. l.mu is held.
func (l *slots) lookLater() {
	if l.looks {
		return
	}
	l.looks, l.spare = true, len(l.resting)
	time.AfterFunc(restsFor, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.looks = false
		l.end(l.spare)
		if len(l.resting) > 0 {
			l.lookLater()
		}
	})
}

// end ends the n that have rested longest. l.mu is held.
func (l *slots) end(n int) {
	for _, rest := range l.resting[:n] {
		close(rest)
	}
	l.resting = slices.Delete(l.resting, 0, n)
}

// close ends those that rest, and lets none rest from now on.
func (l *slots) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.spare = 0
	l.end(len(l.resting))
}

// handBackWaiting hands back the jobs that were to start by a time and have
// not: other processes may have slots for them.
func (s *Scheduler) handBackWaiting(startBy time.Time) {
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	kept := s.slots.waiting[:0]
	for _, a := range s.slots.waiting {
		if a.startBy.After(startBy) {
			kept = append(kept, a)
		} else {
			s.handBack(a)
		}
	}
	clear(s.slots.waiting[len(kept):])
	s.slots.waiting = kept
}

// handBack records that an attempt never began.
func (s *Scheduler) handBack(a *attempt) {
	out := &outcome{job: a.job, recorded: a.recorded}
	out.handBack()
	s.finisher.add(s, out)
}
