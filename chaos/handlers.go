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
)

// handlers are those of one process. They write down what they do.
type handlers struct {
	process  int
	log      *history.Log
	jobs     *scheduler.Scheduler
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
	if event.Kind == scheduler.EventSucceeded || event.Kind == scheduler.EventDead {
		h.write(history.Event{Kind: history.Record, Job: event.Job.ID})
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
	returns := context.AfterFunc(ctx, func() { h.write(history.Event{Kind: history.Lost, Job: job.ID, Attempt: attempt}) })
	end := func(outcome history.Outcome) {
		returns()
		h.write(history.Event{Kind: history.End, Job: job.ID, Attempt: attempt, Outcome: outcome})
	}
	outcome, err := h.do(ctx, in, end)
	end(outcome)
	return nil, err
}

// do may also end its goroutine, having said so.
func (h *handlers) do(ctx context.Context, in task, end func(history.Outcome)) (history.Outcome, error) {
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
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return history.Interrupted, ctx.Err()
	}
	if rand.N(once) > 0 {
		return history.Succeeded, nil
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
