package scheduler

import (
	"context"
	"slices"
	"sync"
	"time"
)

// notifier tells resident processes of created jobs. A notification holds a
// lock over its commit that all notifying transactions share, so few creations
// carry one in their own transaction, which is the quickest; all others are told
// of after they have committed, and those that come together while one is being
// sent share the next. One that is never sent costs time only: the jobs are
// found by polling.
type notifier struct {
	mu      sync.Mutex
	waiting []string // queues in which jobs are due; "": one is due soon
	sending bool
	heard   bool      // somebody listened to the last creation
	rests   time.Time // until then, no creation carries a notification
}

// A creation that carries a notification is followed by restFor times as long
// without one, so that any number of processes share the lock well.
const restFor = 4

// carry says whether a creation is to notify by itself. If so, its end is told
// by carried.
func (n *notifier) carry() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	if !n.heard || now.Before(n.rests) {
		return false
	}
	n.rests = now.Add(claimTimeout)
	return true
}

func (n *notifier) carried(took time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rests = time.Now().Add(restFor * took)
}

// created makes that jobs which were just created are looked at: by this
// process if it is resident, and by others if heard says that there are some
// and they were not notified by the creation itself.
func (s *Scheduler) created(queue JobQueue, dueIn time.Duration, heard, notified bool) {
	if wakes := s.resident.wakes.Load(); wakes != nil {
		if dueIn > 0 {
			s.resident.alarm.in(dueIn)
		} else {
			wake((*wakes)[queue])
		}
	}
	n := &s.notifier
	n.mu.Lock()
	defer n.mu.Unlock()
	n.heard = heard
	const soon = time.Minute // a poll comes earlier than that
	if !heard || notified || dueIn > soon {
		return
	}
	if dueIn > 0 {
		queue = ""
	}
	if !slices.Contains(n.waiting, string(queue)) {
		n.waiting = append(n.waiting, string(queue))
	}
	if n.sending {
		return
	}
	if done, err := s.begin(); err == nil {
		n.sending = true
		go n.send(s, done)
	}
}

const notifySQL = `SELECT pg_catalog.pg_notify($1::text, q.name) FROM pg_catalog.unnest($2::text[]) AS q (name)`

func (n *notifier) send(s *Scheduler, done func()) {
	defer done()
	for {
		n.mu.Lock()
		queues := n.waiting
		n.waiting, n.sending = nil, len(queues) > 0
		n.mu.Unlock()
		if len(queues) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(s.life, claimTimeout)
		_, err := s.pool.Exec(ctx, notifySQL, s.channel(), queues)
		cancel()
		if err != nil && s.life.Err() == nil {
			s.config.Logger.Warn("scheduler: can't notify of created jobs", "error", err)
		}
	}
}

// channel is what resident processes listen to.
func (s *Scheduler) channel() string { return s.config.Schema + "_jobs" }
