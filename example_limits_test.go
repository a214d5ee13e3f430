package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/relay-club/scheduler"
)

// Each account's imports run in order, one after another, whichever processes
// run them; those of other accounts go on beside them.
func ExampleQueueConfig_perKey() {
	ctx := context.Background()
	jobs := start(scheduler.Config{
		JobNames: scheduler.JobNames{
			"import": func(_ context.Context, job *scheduler.Job) (any, error) {
				if job.Key == "ada" && job.Attempt == 1 && string(job.Payload) == "1" {
					return nil, scheduler.RetryAfter(time.Hour, errors.New("the file is locked"))
				}
				return nil, nil
			},
		},
		Queues: map[scheduler.JobQueue]scheduler.QueueConfig{"imports": {
			MaxConcurrency:       20, // over all accounts and processes
			MaxConcurrencyPerKey: 1,
		}},
	})
	for _, account := range []string{"ada", "bob"} {
		for n := 1; n <= 3; n++ {
			_, err := jobs.CreateJob(ctx, "import", scheduler.JobData{Queue: "imports", Key: account, Payload: n})
			check(err)
		}
	}
	report, err := jobs.Run(ctx, scheduler.RunFilter{Queue: "imports", Limit: 10})
	check(err)
	fmt.Println(report.Succeeded, "succeeded,", report.Failed, "failed, and holds the others of its key")
	// Output: 3 succeeded, 1 failed, and holds the others of its key
}

// A mail service that takes a hundred mails an hour gets no more than that.
func ExampleRate() {
	ctx := context.Background()
	jobs := start(scheduler.Config{
		JobNames: scheduler.JobNames{"send_mail": func(context.Context, *scheduler.Job) (any, error) { return nil, nil }},
		Queues: map[scheduler.JobQueue]scheduler.QueueConfig{"mails": {
			Rate: scheduler.Rate{Limit: 100, Per: time.Hour},
		}},
	})
	mails := make([]scheduler.NewJob, 130)
	for i := range mails {
		mails[i] = scheduler.NewJob{Name: "send_mail", JobData: scheduler.JobData{Queue: "mails"}}
	}
	_, err := jobs.CreateJobs(ctx, mails)
	check(err)
	report, err := jobs.Run(ctx, scheduler.RunFilter{Queue: "mails", Limit: 1000})
	check(err)
	fmt.Println(report.Succeeded, "sent; the next one in", time.Until(*report.RateLimitedUntil).Round(time.Hour))
	// Output: 100 sent; the next one in 1h0m0s
}

// One customer's thousand jobs do not keep the others waiting.
func ExampleQueueConfig_rounds() {
	ctx := context.Background()
	jobs := start(scheduler.Config{
		Concurrency: 1,
		JobNames: scheduler.JobNames{"resize": func(_ context.Context, job *scheduler.Job) (any, error) {
			fmt.Print(job.Key, " ")
			return nil, nil
		}},
		Queues: map[scheduler.JobQueue]scheduler.QueueConfig{"images": {KeyRound: 2}},
	})
	for _, customer := range []struct {
		name   string
		images int
	}{{"ada", 1000}, {"bob", 3}, {"eve", 1}} {
		images := make([]scheduler.NewJob, customer.images)
		for i := range images {
			images[i] = scheduler.NewJob{Name: "resize", JobData: scheduler.JobData{Queue: "images", Key: customer.name}}
		}
		_, err := jobs.CreateJobs(ctx, images)
		check(err)
	}
	for range 8 {
		_, err := jobs.Run(ctx, scheduler.RunFilter{Queue: "images"})
		check(err)
	}
	// Output: ada ada bob bob eve ada ada bob
}

// A queue with a bound tells its creators to slow down.
func ExampleQueueConfig_bound() {
	ctx := context.Background()
	jobs := start(scheduler.Config{Queues: map[scheduler.JobQueue]scheduler.QueueConfig{"crawl": {MaxPending: 2}}})
	for page := 1; page <= 3; page++ {
		_, err := jobs.CreateJob(ctx, "fetch_page", scheduler.JobData{Queue: "crawl", Payload: page})
		if errors.Is(err, scheduler.ErrQueueFull) {
			fmt.Println(err)
			continue
		}
		check(err)
	}
	// Output: create job: queue is full: queue 'crawl' has 2 pending jobs, as many as may be
}

// What holds a blocking queue is the first thing to look at when it stands still.
func ExampleQueueHolder() {
	ctx := context.Background()
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"post": func(context.Context, *scheduler.Job) (any, error) { return nil, errors.New("the ledger is closed") },
	}})
	for range 2 {
		_, err := jobs.CreateJob(ctx, "post", scheduler.JobData{Queue: scheduler.JobQueueBlocking})
		check(err)
	}
	_, err := jobs.Run(ctx, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking})
	check(err)
	stats, err := jobs.QueueStats(ctx)
	check(err)
	holder := stats[0].HeldBy
	fmt.Println(holder.Name, holder.Status, "after attempt", holder.Attempt)
	// Output: post failed after attempt 1
}
