package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/relay-club/scheduler"
)

func ExampleScheduler_CancelJobs() {
	ctx := context.Background()
	jobs := start(scheduler.Config{})
	for range 3 {
		_, err := jobs.CreateJob(ctx, "remind", scheduler.JobData{Owner: "ada", RunAt: time.Now().Add(time.Hour)})
		check(err)
	}
	n, err := jobs.CancelJobs(ctx, scheduler.JobFilter{Owner: "ada", Names: []string{"remind"}})
	check(err)
	fmt.Println(n, "cancelled")

	_, err = jobs.CancelJobs(ctx, scheduler.JobFilter{})
	fmt.Println("refused:", errors.Is(err, scheduler.ErrInvalidInput))
	// Output:
	// 3 cancelled
	// refused: true
}

// What has died is redriven once the reason is gone.
func ExampleScheduler_RetryJobs() {
	ctx, working := context.Background(), false
	jobs := start(scheduler.Config{
		JobNames: scheduler.JobNames{
			"sync": func(context.Context, *scheduler.Job) (any, error) {
				if !working {
					return nil, errors.New("the other side is down")
				}
				return nil, nil
			},
		},
		Queues: map[scheduler.JobQueue]scheduler.QueueConfig{"syncs": {MaxAttempts: 1}},
	})
	for range 5 {
		_, err := jobs.CreateJob(ctx, "sync", scheduler.JobData{Queue: "syncs"})
		check(err)
	}
	report, err := jobs.Run(ctx, scheduler.RunFilter{Queue: "syncs", Limit: 10})
	check(err)
	fmt.Println(report.Dead, "dead")

	working = true
	filter := scheduler.JobFilter{
		Statuses: []scheduler.JobStatus{scheduler.JobStatusDead},
		Queues:   []scheduler.JobQueue{"syncs"},
		Limit:    2, // of 1,000 by default
	}
	for n := -1; n != 0; {
		n, err = jobs.RetryJobs(ctx, filter)
		check(err)
		fmt.Println(n, "redriven")
	}
	report, err = jobs.Run(ctx, scheduler.RunFilter{Queue: "syncs", Limit: 10})
	check(err)
	fmt.Println(report.Succeeded, "succeeded")
	// Output:
	// 5 dead
	// 2 redriven
	// 2 redriven
	// 1 redriven
	// 0 redriven
	// 5 succeeded
}

func ExampleScheduler_RescheduleJobs() {
	ctx := context.Background()
	jobs := start(scheduler.Config{})
	for range 2 {
		_, err := jobs.CreateJob(ctx, "announce", scheduler.JobData{Tags: []string{"spring"}, RunAt: time.Now().Add(time.Hour)})
		check(err)
	}
	n, err := jobs.RescheduleJobs(ctx, scheduler.JobFilter{Tags: []string{"spring"}}, time.Date(2050, 3, 20, 9, 0, 0, 0, time.UTC))
	check(err)
	fmt.Println(n, "put off")
	// Output: 2 put off
}

func ExampleScheduler_DeleteJobs() {
	ctx := context.Background()
	jobs := start(scheduler.Config{})
	_, err := jobs.CreateJob(ctx, "greet", scheduler.JobData{Owner: "bob"})
	check(err)

	bobs := scheduler.JobFilter{Owner: "bob"}
	n, err := jobs.DeleteJobs(ctx, bobs)
	check(err)
	page, err := jobs.ListJobs(ctx, bobs)
	check(err)
	fmt.Println(n, "deleted,", len(page.Jobs), "left")
	// Output: 1 deleted, 0 left
}
