package scheduler_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/relay-club/scheduler"
)

// The provider is down: mails wait, and nothing else does.
func ExampleScheduler_PauseQueue() {
	ctx := context.Background()
	jobs := start(scheduler.Config{
		JobNames: scheduler.JobNames{"mail_to": sendInvoice},
		Queues:   map[scheduler.JobQueue]scheduler.QueueConfig{"mailing": {}},
	})
	check(jobs.PauseQueue(ctx, "mailing"))

	job, err := jobs.CreateJob(ctx, "mail_to", scheduler.JobData{Queue: "mailing"})
	check(err)
	report, err := jobs.Run(ctx, scheduler.RunFilter{Queue: "mailing"})
	check(err)
	fmt.Println(job.Status, report.Picked)

	check(jobs.ResumeQueue(ctx, "mailing"))
	report, err = jobs.Run(ctx, scheduler.RunFilter{Queue: "mailing"})
	check(err)
	fmt.Println(report.Succeeded)

	err = jobs.PauseQueue(ctx, "mialing")
	fmt.Println(errors.Is(err, scheduler.ErrUnknownQueue))
	// Output:
	// pending 0
	// 1
	// true
}

// During a migration of the business's tables, no job is to start.
func ExampleScheduler_ResumeQueue() {
	ctx := context.Background()
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{"index": sendInvoice}})
	check(jobs.PauseQueue(ctx, scheduler.JobQueueAll))
	_, err := jobs.CreateJob(ctx, "index", scheduler.JobData{})
	check(err)

	check(jobs.ResumeQueue(ctx, scheduler.JobQueueAll))
	report, err := jobs.Run(ctx, scheduler.RunFilter{})
	check(err)
	fmt.Println(report.Succeeded)
	// Output: 1
}

// Lower goes first, as with nice.
func ExampleJobData_priority() {
	ctx := context.Background()
	jobs := start(scheduler.Config{
		JobNames: scheduler.JobNames{"render": scheduler.Handle(func(_ context.Context, what string) (any, error) {
			fmt.Println(what)
			return nil, nil
		})},
		Queues:      map[scheduler.JobQueue]scheduler.QueueConfig{"renders": {}},
		Concurrency: 1, // so that they print one after another
	})
	for what, priority := range map[string]int{"a newsletter": 10, "a page": 0, "an invoice": -10} {
		_, err := jobs.CreateJob(ctx, "render", scheduler.JobData{Queue: "renders", Priority: priority, Payload: what})
		check(err)
	}
	_, err := jobs.Run(ctx, scheduler.RunFilter{Queue: "renders", Limit: 10})
	check(err)
	// Output:
	// an invoice
	// a page
	// a newsletter
}
