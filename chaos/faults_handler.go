package main

import (
	"context"
	"time"

	"github.com/relay-club/scheduler"
)

// handlerFaults are those of handlers: jobs whose handlers do what they should
// not.
func handlerFaults() []fault {
	return []fault{
		{"handlers that panic", bad(panics, 10)},
		{"handlers that call Goexit", bad(exits, 10)},
		{"handlers that hang until their timeout", bad(hangs, 5)},
		{"handlers that ignore the end of their context", bad(ignores, 5)},
		{"handlers that take much memory", bad(eats, 3)},
		{"handlers that create jobs", bad(spawns, 10)},
	}
}

func bad(k kind, n int) func(context.Context, *chaos) error {
	return func(ctx context.Context, c *chaos) error {
		jobs := make([]scheduler.NewJob, n)
		for i := range jobs {
			jobs[i] = scheduler.NewJob{Name: jobName, JobData: scheduler.JobData{MaxAttempts: 3, Timeout: 300 * time.Millisecond, Payload: task{Kind: k}}}
		}
		for {
			attempt, cancel := context.WithTimeout(ctx, patience)
			created, err := c.load.jobs.CreateJobs(attempt, jobs)
			cancel()
			c.load.acknowledge(err, created...)
			if err == nil || ctx.Err() != nil {
				return err
			}
			sleep(ctx, 100*time.Millisecond)
		}
	}
}
