package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/relay-club/scheduler"
)

// Each name may have a backoff of its own, whatever its queue says.
func ExampleConfig_backoffs() {
	jobs := start(scheduler.Config{
		JobNames: scheduler.JobNames{
			"poll_bank": func(context.Context, *scheduler.Job) (any, error) { return nil, errors.New("closed") },
		},
		Backoffs: map[string]func(attempt int) time.Duration{
			"poll_bank": func(attempt int) time.Duration { return time.Duration(attempt) * time.Hour },
		},
	})
	job := runOne(jobs, "poll_bank", nil)
	fmt.Println(job.Status, "again in", job.RunAt.Sub(job.Errors[0].At))
	// Output: failed again in 1h0m0s
}

// What happens around every job, whatever its handler does.
func ExampleMiddleware() {
	timed := func(name string, next scheduler.HandlerFunc) scheduler.HandlerFunc {
		return func(ctx context.Context, job *scheduler.Job) (any, error) {
			began := time.Now()
			result, err := next(ctx, job)
			fmt.Println(name, "took less than a minute:", time.Since(began) < time.Minute, "and came to", result, err)
			return result, err
		}
	}
	jobs := start(scheduler.Config{
		JobNames:   scheduler.JobNames{"greet": scheduler.Handle(func(_ context.Context, name string) (string, error) { return "hello " + name, nil })},
		Middleware: []scheduler.Middleware{timed},
	})
	runOne(jobs, "greet", "Ada")
	// Output: greet took less than a minute: true and came to hello Ada <nil>
}

// Metrics hang on events: here how many of each kind there were for each job
// name. Wait and Ran are what histograms are made of.
func ExampleEvent() {
	var mu sync.Mutex // who reads the counts does so elsewhere
	counts := map[string]int{}
	jobs := start(scheduler.Config{
		JobNames: scheduler.JobNames{
			"import": func(_ context.Context, job *scheduler.Job) (any, error) {
				if string(job.Payload) == "2" {
					return nil, errors.New("no such file")
				}
				return nil, nil
			},
		},
		Observer: func(e scheduler.Event) {
			mu.Lock()
			defer mu.Unlock()
			counts[e.Job.Name+" "+string(e.Kind)]++
		},
	})
	for n := range 3 {
		runOne(jobs, "import", n)
	}
	check(jobs.Shutdown(context.Background())) // all are told of by then
	fmt.Println(counts)
	// Output: map[import created:3 import failed:1 import started:3 import succeeded:2]
}

func ExampleEventKind() {
	jobs := start(scheduler.Config{
		JobNames: scheduler.JobNames{"ping": func(context.Context, *scheduler.Job) (any, error) { return nil, nil }},
		Observer: func(e scheduler.Event) { fmt.Println(e.Kind, e.Job.Name) },
	})
	runOne(jobs, "ping", nil)
	check(jobs.Shutdown(context.Background()))
	// Output:
	// created ping
	// started ping
	// succeeded ping
}

// A job belongs to the trace of what created it.
func ExampleWithTraceparent() {
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"index": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			fmt.Println("handled in", scheduler.Traceparent(ctx))
			return nil, nil
		},
	}})
	// Of the span that is under way; over HTTP the header traceparent does it.
	ctx := scheduler.WithTraceparent(context.Background(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	_, err := jobs.CreateJob(ctx, "index", scheduler.JobData{})
	check(err)

	_, err = jobs.Run(context.Background(), scheduler.RunFilter{})
	check(err)
	// Output: handled in 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
}

// A middleware that begins a span for each job gets its parent here.
func ExampleTraceparent() {
	ctx := context.Background()
	fmt.Printf("%q\n", scheduler.Traceparent(ctx))
	ctx = scheduler.WithTraceparent(ctx, "malformed")
	fmt.Printf("%q\n", scheduler.Traceparent(ctx))
	ctx = scheduler.WithTraceparent(ctx, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	fmt.Printf("%q\n", scheduler.Traceparent(ctx))
	// Output:
	// ""
	// ""
	// "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
}

// Somebody is told when nothing more will be tried.
func ExampleJob_LastAttempt() {
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"sync_stock": func(_ context.Context, job *scheduler.Job) (any, error) {
			err := errors.New("the warehouse does not answer")
			if job.LastAttempt() {
				fmt.Println("please look at it:", err)
			} else {
				fmt.Println("will be tried again")
			}
			return nil, scheduler.RetryAfter(0, err)
		},
	}})
	ctx := context.Background()
	_, err := jobs.CreateJob(ctx, "sync_stock", scheduler.JobData{MaxAttempts: 2})
	check(err)
	for range 2 {
		_, err := jobs.Run(ctx, scheduler.RunFilter{Status: scheduler.JobStatusAny})
		check(err)
	}
	// Output:
	// will be tried again
	// please look at it: the warehouse does not answer
}

// The payment is booked once, however often the process is killed: that it is
// booked and that the job has succeeded are one commit.
func ExampleScheduler_CompleteTx() {
	ctx, pool := context.Background(), connect()
	_, err := pool.Exec(ctx, "CREATE TABLE payments (amount integer)")
	check(err)
	var jobs *scheduler.Scheduler
	jobs = start(scheduler.Config{JobNames: scheduler.JobNames{
		"book_payment": func(ctx context.Context, job *scheduler.Job) (any, error) {
			return nil, pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				if _, err := tx.Exec(ctx, "INSERT INTO payments VALUES (($1::jsonb)::integer)", string(job.Payload)); err != nil {
					return err
				}
				return jobs.CompleteTx(ctx, tx, job, "booked")
			})
		},
	}})
	job := runOne(jobs, "book_payment", 120)
	fmt.Println(job.Status, string(job.Result))

	var booked int
	check(pool.QueryRow(ctx, "SELECT sum(amount) FROM payments").Scan(&booked))
	fmt.Println(booked)
	// Output:
	// succeeded "booked"
	// 120
}
