package scheduler

import (
	"context"
	"sync"
	"time"
)

// queueLoop is the part of Work that serves one queue.
type queueLoop struct {
	s      *Scheduler
	queue  *queue
	ctx    context.Context // ends the picking
	values context.Context // the handlers' contexts have its values
	free   chan struct{}   // in a blocking queue: the job that holds it is recorded
	refill refill          // its freed also tells that jobs may be due

	flights sync.RWMutex // read-locked while a record takes along a claim, locked when the loop has ended
}

// work claims jobs as handlers may start, for as long as some are due, whenever
// it is woken.
func (l *queueLoop) work() {
	s, q := l.s, l.queue
	for {
		select {
		case <-l.refill.freed:
		case <-l.ctx.Done():
			l.flights.Lock() // for good: nothing is claimed any more
			return
		}
		q.draining.Store(true)
		err := l.drain()
		q.draining.Store(false)
		if q.unpolled.Swap(false) || q.rated() { // when a rate lets the next one start has to be asked
			s.resident.alarm.in(0)
		}
		if err != nil && l.ctx.Err() == nil {
			s.config.Logger.Warn("scheduler: can't claim jobs", "queue", q.name, "error", err)
			s.resident.alarm.in(min(time.Second, s.config.PollInterval))
		}
	}
}

func (l *queueLoop) drain() error {
	s, q := l.s, l.queue
	for woken := true; ; woken = false {
		most, worth := l.refill.room(mostLimit)
		if !worth {
			if most > 0 || woken {
				l.refill.soon()
			}
			return nil
		}
		most = max(most, 1) // woken, for the database to decide: it may know that some of these are lost
		room := s.capacity.take(l.ctx, most, nil)
		if room == 0 {
			return nil
		}
		jobs, err := s.claim(l.ctx, q, JobStatusAny, room)
		s.capacity.put(room-len(jobs), 0)
		if err != nil {
			return err
		}
		s.underway.Add(len(jobs)) // Work is still counted, so Shutdown has not stopped waiting
		if q.limited() {
			l.refill.started(len(jobs), len(jobs) == room)
		}
		l.start(jobs)
		if len(jobs) < room {
			return nil
		}
		if q.blocking() {
			select {
			case <-l.free:
			case <-l.ctx.Done():
				return nil
			}
		}
	}
}

func (l *queueLoop) start(jobs []*Job) {
	l.s.start(l.values, jobs, l.queue, l.recorded, l)
}

// recorded is told of each outcome that is in the database, or dropped.
func (l *queueLoop) recorded(o *outcome) {
	s := l.s
	switch {
	case o.dropped:
	case o.handed:
		s.resident.alarm.in(0)
	case o.delay != nil:
		s.resident.alarm.in(*o.delay)
	case o.status == JobStatusDead && l.queue.OnDead != "":
		s.resident.alarm.in(0)
	}
	s.underway.Done()
	wake(l.free)
	if l.queue.limited() && !o.replaced { // another one may start in its place
		l.refill.ended()
	}
}
