package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/relay-club/scheduler"
)

func ExampleJobQueue() {
	jobs := start(scheduler.Config{Queues: map[scheduler.JobQueue]scheduler.QueueConfig{"outreach": {}}})
	for _, queue := range []scheduler.JobQueue{"", scheduler.JobQueueDefault, scheduler.JobQueueBlocking, "outreach"} {
		job, err := jobs.CreateJob(context.Background(), "call", scheduler.JobData{Queue: queue, RunAt: time.Now().Add(time.Hour)})
		check(err)
		fmt.Println(job.Queue)
	}
	_, err := jobs.CreateJob(context.Background(), "call", scheduler.JobData{Queue: "outreahc"})
	fmt.Println(errors.Is(err, scheduler.ErrUnknownQueue))
	// Output:
	// default
	// default
	// blocking
	// outreach
	// true
}

// One at a time, in order, over all processes that run the queue.
func ExampleJobQueue_blocking() {
	ctx := context.Background()
	jobs := start(scheduler.Config{
		JobNames: scheduler.JobNames{
			"post": scheduler.Handle(func(_ context.Context, entry string) (any, error) {
				fmt.Println("posted", entry)
				return nil, nil
			}),
		},
		Queues: map[scheduler.JobQueue]scheduler.QueueConfig{"ledger": {Extends: scheduler.JobQueueBlocking}},
	})
	for _, entry := range []string{"first", "second", "third"} {
		_, err := jobs.CreateJob(ctx, "post", scheduler.JobData{Queue: "ledger", Payload: entry})
		check(err)
	}
	_, err := jobs.Run(ctx, scheduler.RunFilter{Queue: "ledger", Limit: 10})
	check(err)
	// Output:
	// posted first
	// posted second
	// posted third
}

// The failed queue is a view of what failed in the default one.
func ExampleJobQueue_failed() {
	ctx := context.Background()
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"upload": func(_ context.Context, job *scheduler.Job) (any, error) {
			if job.Attempt == 1 {
				return nil, scheduler.RetryAfter(0, errors.New("no space left"))
			}
			return nil, nil
		},
	}})
	_, err := jobs.CreateJob(ctx, "upload", scheduler.JobData{})
	check(err)
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueFailed} {
		report, err := jobs.Run(ctx, scheduler.RunFilter{Queue: queue})
		check(err)
		fmt.Printf("%s: %d failed, %d succeeded\n", queue, report.Failed, report.Succeeded)
	}

	_, err = jobs.CreateJob(ctx, "upload", scheduler.JobData{Queue: scheduler.JobQueueFailed})
	fmt.Println(err)
	// Output:
	// default: 1 failed, 0 succeeded
	// failed: 0 failed, 1 succeeded
	// create job: queue: unknown queue "failed" as a place: it is a view of the failed jobs of "default", create the job there
}

func ExampleQueueConfig() {
	jobs := start(scheduler.Config{Queues: map[scheduler.JobQueue]scheduler.QueueConfig{
		"mails": {
			MaxAttempts: 4,
			Backoff:     func(attempt int) time.Duration { return time.Duration(attempt) * time.Minute },
			Timeout:     10 * time.Second,
		},
		// In order, but an account that can't be billed does not stop the others.
		"bills":                   {Extends: scheduler.JobQueueBlocking, SkipFailed: true},
		scheduler.JobQueueDefault: {MaxAttempts: 20}, // base queues have settings too
	}})
	for _, queue := range []scheduler.JobQueue{"mails", "bills", scheduler.JobQueueDefault} {
		job, err := jobs.CreateJob(context.Background(), "notify", scheduler.JobData{Queue: queue, RunAt: time.Now().Add(time.Hour)})
		check(err)
		fmt.Println(job.Queue, job.MaxAttempts)
	}
	// Output:
	// mails 4
	// bills 10
	// default 20
}

// A job of its own is told of every job of a queue that has died.
func ExampleQueueConfig_onDead() {
	ctx := context.Background()
	jobs := start(scheduler.Config{
		JobNames: scheduler.JobNames{
			"charge": func(context.Context, *scheduler.Job) (any, error) {
				return nil, scheduler.Cancel(errors.New("the card has expired"))
			},
			"ask-for-another-card": scheduler.Handle(func(_ context.Context, dead scheduler.Job) (any, error) {
				fmt.Printf("%s: %s for %s: %s\n", dead.Status, dead.Name, dead.Owner, dead.Errors[0].Error)
				return nil, nil
			}),
		},
		Queues: map[scheduler.JobQueue]scheduler.QueueConfig{"payments": {OnDead: "ask-for-another-card"}},
	})
	_, err := jobs.CreateJob(ctx, "charge", scheduler.JobData{Queue: "payments", Owner: "ada"})
	check(err)
	_, err = jobs.Run(ctx, scheduler.RunFilter{Queue: "payments"})
	check(err)
	_, err = jobs.Run(ctx, scheduler.RunFilter{}) // it is in the default queue
	check(err)
	// Output: dead: charge for ada: the card has expired
}
