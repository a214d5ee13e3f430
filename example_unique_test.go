package scheduler_test

import (
	"context"
	"fmt"
	"time"

	"github.com/relay-club/scheduler"
)

// A user who presses the button twice gets one export.
func ExampleDuplicatePolicy() {
	ctx := context.Background()
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"export_orders": func(context.Context, *scheduler.Job) (any, error) { return "done", nil },
	}})
	export := func() *scheduler.Job {
		job, err := jobs.CreateJob(ctx, "export_orders", scheduler.JobData{UniqueKey: "ada"}) // DuplicateKeep
		check(err)
		return job
	}
	first, second := export(), export()
	fmt.Println(first.Duplicate, second.Duplicate, first.ID == second.ID)

	_, err := jobs.Run(ctx, scheduler.RunFilter{})
	check(err)
	fmt.Println(export().Duplicate)
	// Output:
	// false true true
	// false
}

// However often a document changes, its index is made once it has been left
// alone for a minute, of its last version.
func ExampleDuplicatePolicy_replace() {
	ctx := context.Background()
	jobs := start(scheduler.Config{})
	var job *scheduler.Job
	for version := 1; version <= 3; version++ {
		var err error
		job, err = jobs.CreateJob(ctx, "index_document", scheduler.JobData{
			UniqueKey:   "document 7",
			OnDuplicate: scheduler.DuplicateReplace,
			RunAt:       time.Now().Add(time.Minute),
			Payload:     version,
		})
		check(err)
	}
	fmt.Println(job.Duplicate, string(job.Payload))
	// Output: true 3
}
