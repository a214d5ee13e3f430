package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// resident is the state of Work.
type resident struct {
	working atomic.Bool
	alarm   *alarm                                     // rings when the database is to be asked what is due
	wakes   atomic.Pointer[map[JobQueue]chan struct{}] // one for each queue; nil while there is no Work
}

var errWorking = errors.New("already working: one Work serves all queues")

// Work is the resident mode: it runs due jobs of every declared queue, pending
// and failed ones, until ctx ends or Shutdown begins. Then it stops picking and
// returns nil; jobs may still be running, and Shutdown waits for them.
//
// An idle Work asks the database every Config.PollInterval, one query for all
// queues. Where the pool talks to Postgres itself (its query exec mode is not
// one of those for poolers, pgx.QueryExecModeExec and
// pgx.QueryExecModeSimpleProtocol), it also listens for created jobs, on one
// connection beside the pool, and starts them within milliseconds.
//
// A database that is away is no error: Work logs it and tries again. The error
// is ErrShuttingDown if Shutdown had begun before, or tells that another call
// of Work is under way.
func (s *Scheduler) Work(ctx context.Context) error {
	done, err := s.begin()
	if err != nil {
		return fmt.Errorf("work: %w", err)
	}
	defer done()
	if !s.resident.working.CompareAndSwap(false, true) {
		return fmt.Errorf("work: %w", errWorking)
	}
	defer s.resident.working.Store(false)
	values := ctx
	ctx, cancel := s.whileOpen(ctx)
	defer cancel()
	s.lease.use(s)
	defer s.lease.unuse()

	var group sync.WaitGroup
	defer group.Wait()
	wakes := make(map[JobQueue]chan struct{}, len(s.queues))
	names := make([]string, 0, len(s.queues))
	for name, q := range s.queues {
		wake := make(chan struct{}, 1)
		wakes[name] = wake
		wake <- struct{}{} // what is due by now does not wait for the first poll
		names = append(names, string(name))
		loop := &queueLoop{
			s: s, queue: q, ctx: ctx, values: values, free: make(chan struct{}, 1),
			refill: refill{queue: q, freed: wake},
		}
		group.Go(loop.work)
	}
	s.resident.wakes.Store(&wakes)
	defer s.resident.wakes.Store(nil)
	if s.canListen() {
		group.Go(func() { s.keepListening(ctx, wakes) })
	}
	s.resident.alarm.in(0)
	begun := time.Now()
	for {
		select {
		case <-s.resident.alarm.timer.C:
			s.resident.alarm.rung()
			s.poll(ctx, wakes)
			s.warnOfStrangers(ctx, names...)
			if time.Since(begun) >= s.config.PollInterval { // what has come together until now goes first
				s.cleanUpSometimes()
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// wake tells a queue's loop to look for jobs. One that is looking already will
// look once more.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

const pollSQL = `
SELECT q.name, (extract(epoch FROM {{schema}}.next_due(q.name, 'any', $2::text[]) - now()) * 1000000::numeric)::bigint AS due_in_us, lost,
    (extract(epoch FROM slot - now()) * 1000000::numeric)::bigint AS slot_in_us
FROM (SELECT EXISTS (SELECT FROM {{schema}}.leases l WHERE l.expires_at <= now()) AS lost,
    (SELECT min(r.next_slot) FROM {{schema}}.recurring r WHERE r.next_slot < 'infinity') AS slot) AS all_queues
LEFT JOIN pg_catalog.unnest($1::text[]) AS q (name) ON true`

// poll asks what is due, wakes those queues, and sets the alarm for the time
// when the next job becomes due. Jobs of lost leases are taken back, and
// recurring jobs fired.
func (s *Scheduler) poll(ctx context.Context, wakes map[JobQueue]chan struct{}) {
	next, lost, slot, err := s.askWhatIsDue(ctx, wakes)
	if err == nil && lost {
		var rescued int
		if rescued, err = s.rescue(ctx); rescued > 0 {
			next = 0
		}
	}
	if err == nil && slot {
		var fired int
		if fired, err = s.fireRecurring(ctx); fired > 0 {
			next = 0
		} else {
			next = min(next, time.Second) // somebody else is at it: ask for the slot after that
		}
	}
	if err != nil && ctx.Err() == nil {
		s.config.Logger.Warn("scheduler: can't look for due jobs", "error", explained(err))
	}
	s.resident.alarm.in(next)
}

// askWhatIsDue also tells whether a lease is lost and whether a slot of a
// recurring job has come.
func (s *Scheduler) askWhatIsDue(ctx context.Context, wakes map[JobQueue]chan struct{}) (next time.Duration, lost, slot bool, err error) {
	next = s.config.PollInterval
	names := make([]string, 0, len(wakes))
	for name := range wakes {
		if q := s.queues[name]; q.draining.Load() {
			q.unpolled.Store(true) // it is being looked at all the time
		} else {
			names = append(names, string(name))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	rows, err := s.pool.Query(ctx, s.sql(pollSQL), names, s.names)
	if err != nil {
		return next, false, false, err
	}
	var name *JobQueue
	var dueIn, slotIn *int64
	_, err = pgx.ForEachRow(rows, []any{&name, &dueIn, &lost, &slotIn}, func() error {
		switch {
		case name == nil || dueIn == nil:
		case *dueIn <= 0:
			wake(wakes[*name])
		default:
			next = min(next, time.Duration(*dueIn)*time.Microsecond)
		}
		return nil
	})
	if slotIn != nil {
		slot = *slotIn <= 0
		if !slot {
			next = min(next, time.Duration(*slotIn)*time.Microsecond)
		}
	}
	return next, lost, slot, err
}

// canListen: notifications need a session, which a transaction-mode pooler does
// not give; the exec mode tells whether the pool talks to one.
func (s *Scheduler) canListen() bool {
	switch s.pool.Config().ConnConfig.DefaultQueryExecMode {
	case pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol:
		return false
	}
	return true
}

// keepListening wakes queues in which jobs are created. What it misses is found
// by polling.
func (s *Scheduler) keepListening(ctx context.Context, wakes map[JobQueue]chan struct{}) {
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		began := time.Now()
		err := s.listen(ctx, wakes)
		s.lease.listen(false)
		if ctx.Err() != nil {
			return
		}
		s.config.Logger.Warn("scheduler: can't listen for created jobs, polling goes on", "error", err)
		if time.Since(began) > time.Minute {
			pause = time.Second
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (s *Scheduler) listen(ctx context.Context, wakes map[JobQueue]chan struct{}) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{s.channel()}.Sanitize()); err != nil {
		return err
	}
	s.lease.listen(true)
	if err := s.lease.tell(ctx, s); err != nil {
		return err
	}
	s.resident.alarm.in(0) // for what was created before
	for {
		notification, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		if c := wakes[JobQueue(notification.Payload)]; c != nil {
			wake(c)
		} else {
			s.resident.alarm.in(0) // "": a job that is due soon
		}
	}
}

// alarm rings at the earliest of the times it was set to.
type alarm struct {
	mu    sync.Mutex
	at    time.Time // zero: not set
	timer *time.Timer
}

func newAlarm() *alarm {
	timer := time.NewTimer(0)
	timer.Stop()
	return &alarm{timer: timer}
}

func (a *alarm) in(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := time.Now().Add(d); a.at.IsZero() || at.Before(a.at) {
		a.at = at
		a.timer.Reset(d)
	}
}

// rung says that the alarm was heard: any new time counts.
func (a *alarm) rung() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at = time.Time{}
}
