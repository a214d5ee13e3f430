package scheduler

import (
	"context"
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

	s          *Scheduler
	rehearsed  bool                    // by schedulertest: nothing of it is in the database
	completion completion              // whether its handler called CompleteTx
	reports    atomic.Pointer[reports] // what its handler has reported; nil: nothing
}

// slots runs as many handlers at once as Config.Concurrency allows. A goroutine
// that is done with one attempt takes the next that waits: its stack has
// grown to what handlers need.
type slots struct {
	mu      sync.Mutex
	free    int
	waiting []*attempt // in the order they were claimed
}

// startWithin is how long a claimed job may wait for its handler's start before
// it is handed back.
const startWithin = time.Second

// start begins the attempts of claimed jobs, as many as there are slots; the
// others wait for one.
func (s *Scheduler) start(values context.Context, jobs []*Job, q *queue, recorded func(*outcome)) {
	if len(jobs) == 0 {
		return
	}
	startBy := time.Now().Add(startWithin)
	attempts := make([]attempt, len(jobs))
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	for i, job := range jobs {
		a := &attempts[i]
		a.s, a.job, a.queue, a.values, a.startBy, a.recorded = s, job, q, values, startBy, recorded
		switch {
		case s.slots.free > 0:
			s.slots.free--
			go s.serve(a)
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

// serve is what holds one slot.
func (s *Scheduler) serve(a *attempt) {
	defer func() {
		if a != nil { // a handler ended this goroutine by runtime.Goexit
			if next := s.slots.next(); next != nil {
				go s.serve(next)
			}
		}
	}()
	for a != nil {
		s.handle(a)
		a = s.slots.next()
	}
}

// next returns the attempt that has waited longest, or nil, and then the slot
// is free.
func (l *slots) next() *attempt {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		l.free++
		return nil
	}
	a := l.waiting[0]
	l.waiting[0] = nil
	l.waiting = l.waiting[1:]
	return a
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
