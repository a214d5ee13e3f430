package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/history"
)

// task is a job's payload.
type task struct {
	Kind      kind     `json:"kind,omitempty"`
	Key       string   `json:"key,omitempty"`       // among which jobs the order counts
	Order     int      `json:"order,omitempty"`     //
	Parents   []string `json:"parents,omitempty"`   // those it is to run after
	Recurring string   `json:"recurring,omitempty"` // which recurring job made it
}

// kind is what the handler does.
type kind string

const (
	plain   kind = ""        // takes a while, and mostly succeeds
	brittle kind = "brittle" // likewise, but fails, snoozes or dies more often
	panics  kind = "panics"
	exits   kind = "exits"   // calls runtime.Goexit
	hangs   kind = "hangs"   // until its context ends
	ignores kind = "ignores" // goes on after its context has ended
	eats    kind = "eats"    // takes much memory
	spawns  kind = "spawns"  // creates a job

	completes kind = "completes" // records its end in a transaction of its own, with an effect
	lingers   kind = "lingers"   // takes up to a second
)

// handlers are those of one process. They write down what they do.
type handlers struct {
	process  int
	log      *history.Log
	jobs     *scheduler.Scheduler
	pool     *pgxpool.Pool
	attempts atomic.Int64
}

func (h *handlers) write(event history.Event) {
	event.Process = h.process
	if err := h.log.Write(event); err != nil {
		fmt.Fprintln(os.Stderr, "can't write the history:", err)
		os.Exit(1)
	}
}

// observe writes down which ends are in the database.
func (h *handlers) observe(event scheduler.Event) {
	switch event.Kind {
	case scheduler.EventSucceeded, scheduler.EventDead, scheduler.EventCancelled:
		h.write(history.Event{Kind: history.Record, Job: event.Job.ID, Outcome: history.Outcome(event.Kind)})
	}
}

func (h *handlers) handle(ctx context.Context, job *scheduler.Job) (any, error) {
	var in task
	if err := json.Unmarshal(job.Payload, &in); err != nil {
		return nil, scheduler.Cancel(err)
	}
	attempt := int(h.attempts.Add(1))
	h.write(history.Event{
		Kind: history.Begin, Job: job.ID, Attempt: attempt, Queue: string(job.Queue), Key: in.Key, Order: in.Order,
		StartedAt: *job.StartedAt, Parents: in.Parents, Recurring: in.Recurring, Slot: job.Slot(),
	})
	returns := context.AfterFunc(ctx, func() {
		// A job that is called off, or out of time, is its handler's until that returns.
		if cause := context.Cause(ctx); !errors.Is(cause, scheduler.ErrJobCancelled) && !errors.Is(cause, scheduler.ErrJobTimeout) {
			h.write(history.Event{Kind: history.Lost, Job: job.ID, Attempt: attempt})
		}
	})
	ended := false
	end := func(outcome history.Outcome) {
		if !ended {
			ended = true
			returns()
			h.write(history.Event{Kind: history.End, Job: job.ID, Attempt: attempt, Outcome: outcome})
		}
	}
	outcome, err := h.do(ctx, job, in, end)
	end(outcome)
	return nil, err
}

// do may also say itself how it is about to end.
func (h *handlers) do(ctx context.Context, job *scheduler.Job, in task, end func(history.Outcome)) (history.Outcome, error) {
	switch in.Kind {
	case panics:
		end(history.Failed)
		panic("as asked")
	case exits:
		end(history.Failed)
		runtime.Goexit()
	case hangs:
		<-ctx.Done()
		return history.Interrupted, ctx.Err()
	case ignores:
		time.Sleep(time.Second + rand.N(time.Second))
		return history.Succeeded, nil
	case eats:
		memory := make([]byte, 32<<20)
		for i := 0; i < len(memory); i += 4096 {
			memory[i] = 1
		}
		time.Sleep(100 * time.Millisecond)
		runtime.KeepAlive(memory)
	case spawns:
		job, err := h.jobs.CreateJob(ctx, jobName, scheduler.JobData{Payload: task{Kind: brittle}})
		if err != nil {
			return history.Failed, err
		}
		h.write(history.Event{Kind: history.Create, Job: job.ID})
	case completes:
		return h.complete(ctx, job, end)
	case lingers:
		return wait(ctx, rand.N(time.Second))
	case brittle:
		return h.work(ctx, 10)
	}
	return h.work(ctx, 200)
}

// work takes a while, mostly a short one, and comes to another end than success
// once in so many times.
func (h *handlers) work(ctx context.Context, once int) (history.Outcome, error) {
	takes := rand.N(3 * time.Millisecond)
	if rand.N(300) == 0 {
		takes = rand.N(2 * time.Second)
	}
	if outcome, err := wait(ctx, takes); err != nil || rand.N(once) > 0 {
		return outcome, err
	}
	soon := rand.N(100 * time.Millisecond)
	switch rand.N(3) {
	case 0:
		return history.Failed, scheduler.RetryAfter(soon, errors.New("as asked"))
	case 1:
		return history.Snoozed, scheduler.Snooze(soon)
	default:
		return history.Dead, scheduler.Cancel(errors.New("as asked"))
	}
}

func wait(ctx context.Context, d time.Duration) (history.Outcome, error) {
	select {
	case <-time.After(d):
		return history.Succeeded, nil
	case <-ctx.Done():
		return history.Interrupted, ctx.Err()
	}
}

// complete leaves an effect in the database together with the end of its job. It
// says that it ends before the commit, from which on others may go on.
func (h *handlers) complete(ctx context.Context, job *scheduler.Job, end func(history.Outcome)) (history.Outcome, error) {
	tx, err := h.pool.Begin(ctx)
	if err != nil {
		return history.Failed, err
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		defer cancel()
		_ = tx.Rollback(undo)
	}()
	if _, err := tx.Exec(ctx, "INSERT INTO effects (job) VALUES ($1::text::uuid)", job.ID); err != nil {
		return history.Failed, err
	}
	if err := h.jobs.CompleteTx(ctx, tx, job, nil); err != nil {
		return history.Failed, err
	}
	if rand.N(50) == 0 {
		if outcome, err := wait(ctx, rand.N(time.Second)); err != nil {
			return outcome, err
		}
	}
	if rand.N(10) == 0 {
		return history.Failed, scheduler.RetryAfter(0, errRollback)
	}
	end(history.Succeeded)
	if err := tx.Commit(ctx); err != nil {
		return history.Failed, err // it may have been committed all the same
	}
	h.write(history.Event{Kind: history.Commit, Job: job.ID})
	return history.Succeeded, nil
}
