package scheduler

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// JobQueueAll is no queue but stands for all of them, where queues are paused
// and resumed.
const JobQueueAll JobQueue = "*"

const (
	pauseQueueSQL  = `SELECT {{schema}}.pause_queue($1::text)`
	resumeQueueSQL = `SELECT {{schema}}.resume_queue($1::text)`
	awaitClaimsSQL = `SELECT {{schema}}.await_claims($1::text)`
)

// PauseQueue lets nobody start jobs of a queue until ResumeQueue is called: no
// run, no resident process, no worker, whichever process they belong to. Running
// jobs go on, those included that were claimed and wait for a handler's slot,
// for a second at most. Jobs are created as before; they wait. A restart does
// not end the pause. "" is the default queue; JobQueueAll is every queue that is
// declared, and those that will be until it is resumed. Pausing twice is as good
// as once.
//
// When it has returned, no claim is under way that could still start a job of
// the queue. It waits for that as long as ctx and at most 30 seconds; the error
// when that was too short tells that the queue is paused all the same.
//
// The queue has to be declared in the database, so by a Migrate of any process;
// if not, the error is an *InputError and ErrUnknownQueue, as it is for
// JobQueueFailed: what failed in the default queue is paused with that.
func (s *Scheduler) PauseQueue(ctx context.Context, queue JobQueue) error {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	if err := s.setPaused(ctx, pauseQueueSQL, &queue); err != nil {
		return fmt.Errorf("pause queue: %w", err)
	}
	if _, err := s.pool.Exec(ctx, s.sql(awaitClaimsSQL), string(queue)); err != nil {
		return fmt.Errorf("pause queue: %s is paused, but claims that began before may still start jobs: %w", shown(string(queue)), err)
	}
	return nil
}

// ResumeQueue ends the pause of a queue: resident processes and workers with
// wake look for its due jobs at once, other workers at their next tick. "" is the
// default queue; JobQueueAll is every queue, also those that were paused one by
// one. Resuming what is not paused does nothing. The error is that of
// PauseQueue.
func (s *Scheduler) ResumeQueue(ctx context.Context, queue JobQueue) error {
	if err := s.setPaused(ctx, resumeQueueSQL, &queue); err != nil {
		return fmt.Errorf("resume queue: %w", err)
	}
	s.resident.alarm.in(0) // it may be one that does not listen
	return nil
}

// setPaused fills in the default queue.
func (s *Scheduler) setPaused(ctx context.Context, sql string, queue *JobQueue) error {
	setDefault(queue, JobQueueDefault)
	if *queue == JobQueueFailed {
		return &InputError{"queue", fmt.Errorf("%w %q as a place: it is a view of the failed jobs of %q, expected that", ErrUnknownQueue, *queue, JobQueueDefault)}
	}
	if err := checkText(string(*queue), len(*queue)); err != nil {
		return &InputError{"queue", err}
	}
	_, err := s.pool.Exec(ctx, s.sql(sql), string(*queue))
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "42704" { // undefined_object; the message has the known ones
		_, known, _ := strings.Cut(pg.Message, "; ")
		return &InputError{"queue", fmt.Errorf("%w %s: %s", ErrUnknownQueue, shown(string(*queue)), known)}
	}
	if err != nil {
		return refusedByPostgres("queue", err)
	}
	return nil
}
