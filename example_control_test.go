package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/relay-club/scheduler"
)

func ExampleScheduler_CancelJob() {
	ctx := context.Background()
	jobs := start(scheduler.Config{})
	job, err := jobs.CreateJob(ctx, "newsletter", scheduler.JobData{RunAt: time.Now().Add(time.Hour)})
	check(err)

	job, err = jobs.CancelJob(ctx, job.ID)
	check(err)
	fmt.Println(job.Status)
	// Output: cancelled
}

// A handler that heeds its context stops when its job is called off.
func ExampleScheduler_CancelJob_running() {
	ctx, begun := context.Background(), make(chan struct{})
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"transcode": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			close(begun)
			select {
			case <-time.After(time.Hour): // work
				return "done", nil
			case <-ctx.Done():
				fmt.Println("stopped:", errors.Is(context.Cause(ctx), scheduler.ErrJobCancelled))
				return nil, context.Cause(ctx)
			}
		},
	}})
	job, err := jobs.CreateJob(ctx, "transcode", scheduler.JobData{})
	check(err)
	go func() {
		<-begun
		job, err := jobs.CancelJob(ctx, job.ID) // also from any other process
		check(err)
		fmt.Println(job.Status)
	}()
	report, err := jobs.Run(ctx, scheduler.RunFilter{})
	check(err)
	fmt.Println("cancelled:", report.Cancelled)
	// Output:
	// running
	// stopped: true
	// cancelled: 1
}

func ExampleScheduler_RetryJob() {
	ctx, working := context.Background(), false
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"deliver": func(context.Context, *scheduler.Job) (any, error) {
			if !working {
				return nil, errors.New("the mail server is down")
			}
			return "delivered", nil
		},
	}})
	created, err := jobs.CreateJob(ctx, "deliver", scheduler.JobData{MaxAttempts: 1})
	check(err)
	_, err = jobs.Run(ctx, scheduler.RunFilter{})
	check(err)

	working = true
	job, err := jobs.RetryJob(ctx, created.ID) // it was dead
	check(err)
	fmt.Println(job.Status, "with", job.MaxAttempts, "attempts")
	_, err = jobs.Run(ctx, scheduler.RunFilter{})
	check(err)

	_, err = jobs.RetryJob(ctx, created.ID)
	fmt.Println("refused:", errors.Is(err, scheduler.ErrJobState))
	// Output:
	// pending with 2 attempts
	// refused: true
}

func ExampleScheduler_RescheduleJob() {
	ctx := context.Background()
	jobs := start(scheduler.Config{})
	job, err := jobs.CreateJob(ctx, "renew", scheduler.JobData{RunAt: time.Now().Add(time.Hour)})
	check(err)

	job, err = jobs.RescheduleJob(ctx, job.ID, time.Date(2050, 1, 31, 9, 0, 0, 0, time.UTC))
	check(err)
	fmt.Println(job.Status, job.RunAt)
	// Output: pending 2050-01-31 09:00:00 +0000 UTC
}

func ExampleScheduler_DeleteJob() {
	ctx := context.Background()
	jobs := start(scheduler.Config{})
	job, err := jobs.CreateJob(ctx, "forget", scheduler.JobData{})
	check(err)

	check(jobs.DeleteJob(ctx, job.ID))
	_, err = jobs.GetJob(ctx, job.ID)
	fmt.Println(errors.Is(err, scheduler.ErrJobNotFound))
	// Output: true
}
