package scheduler_test

import (
	"context"
	"fmt"
	"time"

	"github.com/relay-club/scheduler"
)

// A report at half past three in Berlin, on working days, exactly once over all
// processes. Its handler knows which one it is to make.
func ExampleRecurringJob() {
	ctx := context.Background()
	berlin, err := time.LoadLocation("Europe/Berlin")
	check(err)
	jobs := start(scheduler.Config{
		JobNames: scheduler.JobNames{"nightly_report": func(_ context.Context, job *scheduler.Job) (any, error) {
			fmt.Println("the report of", job.Slot().In(berlin).Format(time.TimeOnly))
			return nil, nil
		}},
		Queues: map[scheduler.JobQueue]scheduler.QueueConfig{"reports": {}},
		Recurring: []scheduler.RecurringJob{
			{Name: "nightly-report", Schedule: "30 3 * * mon-fri", TimeZone: "Europe/Berlin", Job: "nightly_report", Queue: "reports"},
		},
	})

	// Nobody was there for a week: one job makes up for it.
	_, err = connect().Exec(ctx, "UPDATE scheduler.recurring SET next_slot = now() - interval '7 days' WHERE name = 'nightly-report'")
	check(err)
	_, err = jobs.Run(ctx, scheduler.RunFilter{Queue: "reports"})
	check(err)

	// One that is no longer in Config.Recurring goes on until it is removed.
	var removed bool
	check(connect().QueryRow(ctx, "SELECT remove_recurring_job('nightly-report')").Scan(&removed))
	fmt.Println(removed)
	// Output:
	// the report of 03:30:00
	// true
}
