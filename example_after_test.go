package scheduler_test

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/relay-club/scheduler"
)

// A graph of jobs: two measure texts, and the third reads what they have found.
func ExampleScheduler_Parents() {
	ctx := context.Background()
	var jobs *scheduler.Scheduler
	jobs = start(scheduler.Config{JobNames: scheduler.JobNames{
		"measure": scheduler.Handle(func(_ context.Context, text string) (int, error) { return len(text), nil }),
		"total": func(ctx context.Context, job *scheduler.Job) (any, error) {
			total := 0
			for parent, err := range jobs.Parents(ctx, job.ID) {
				if err != nil {
					return nil, err
				}
				var length int
				if err := json.Unmarshal(parent.Result, &length); err != nil {
					return nil, err
				}
				total += length
			}
			return total, nil
		},
	}})
	ids, err := jobs.CreateJobs(ctx, []scheduler.NewJob{
		{Name: "measure", Label: "first", JobData: scheduler.JobData{Payload: "all"}},
		{Name: "measure", Label: "second", JobData: scheduler.JobData{Payload: "in one"}},
		{Name: "total", JobData: scheduler.JobData{After: []string{"first", "second"}}},
	})
	check(err)

	total, err := jobs.GetJob(ctx, ids[2])
	check(err)
	fmt.Println(total.Status, "for", total.WaitsFor)
	for range 3 {
		_, err = jobs.Run(ctx, scheduler.RunFilter{})
		check(err)
	}
	total, err = jobs.GetJob(ctx, ids[2])
	check(err)
	fmt.Println(total.Status, string(total.Result))
	// Output:
	// pending for 2
	// succeeded 9
}

// What comes after a job that fails for good is called off, unless it says AfterAny.
func ExampleJobData_after() {
	ctx := context.Background()
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"deploy": func(context.Context, *scheduler.Job) (any, error) {
			return nil, scheduler.Cancel(fmt.Errorf("no such version"))
		},
		"celebrate": func(context.Context, *scheduler.Job) (any, error) { return nil, nil },
		"report":    func(context.Context, *scheduler.Job) (any, error) { return nil, nil },
	}})
	deploy, err := jobs.CreateJob(ctx, "deploy", scheduler.JobData{})
	check(err)
	celebrate, err := jobs.CreateJob(ctx, "celebrate", scheduler.JobData{After: []string{deploy.ID}})
	check(err)
	report, err := jobs.CreateJob(ctx, "report", scheduler.JobData{After: []string{deploy.ID}, AfterAny: true})
	check(err)
	for range 2 {
		_, err = jobs.Run(ctx, scheduler.RunFilter{})
		check(err)
	}
	for _, id := range []string{deploy.ID, celebrate.ID, report.ID} {
		job, err := jobs.GetJob(ctx, id)
		check(err)
		fmt.Println(job.Name, "is", job.Status)
	}
	// Output:
	// deploy is dead
	// celebrate is cancelled
	// report is succeeded
}
