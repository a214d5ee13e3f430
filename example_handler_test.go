package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/relay-club/scheduler"
)

// runOne creates a job, runs it once, and returns what became of it.
func runOne(jobs *scheduler.Scheduler, name string, payload any) *scheduler.Job {
	ctx := context.Background()
	created, err := jobs.CreateJob(ctx, name, scheduler.JobData{Payload: payload})
	check(err)
	_, err = jobs.Run(ctx, scheduler.RunFilter{})
	check(err)
	job, err := jobs.GetJob(ctx, created.ID)
	check(err)
	return job
}

func ExampleHandle() {
	type mail struct{ To, Subject string }
	type receipt struct {
		MessageID string `json:"message_id"`
	}
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"send_mail": scheduler.Handle(func(_ context.Context, m mail) (receipt, error) {
			return receipt{"id-of-" + m.Subject}, nil
		}),
	}})
	job := runOne(jobs, "send_mail", mail{"ada@example.com", "hello"})
	fmt.Println(string(job.Result))

	job = runOne(jobs, "send_mail", "no mail at all")
	fmt.Println(job.Status)
	// Output:
	// {"message_id": "id-of-hello"}
	// failed
}

func ExampleHandlerFunc() {
	var report scheduler.HandlerFunc = func(_ context.Context, job *scheduler.Job) (any, error) {
		return fmt.Sprintf("attempt %d of %d in %s", job.Attempt, job.MaxAttempts, job.Queue), nil
	}
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{"monthly_report": report}})
	fmt.Println(string(runOne(jobs, "monthly_report", nil).Result))
	// Output: "attempt 1 of 10 in default"
}

// Jobs of other names are refused here, or wait for a service that has them.
func ExampleJobNames() {
	names := scheduler.JobNames{
		"invoice.send": sendInvoice,
		"invoice.void": scheduler.Handle(func(_ context.Context, number int) (string, error) {
			return fmt.Sprintf("no. %d is void", number), nil
		}),
	}
	jobs := start(scheduler.Config{JobNames: names})
	fmt.Println(string(runOne(jobs, "invoice.void", 17).Result))

	_, err := jobs.CreateJob(context.Background(), "invoice.pay", scheduler.JobData{})
	fmt.Println(err)
	// Output:
	// "no. 17 is void"
	// create job: name: unknown job name "invoice.pay": it has no handler in Config.JobNames
}

func ExampleCancel() {
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"unsubscribe": func(context.Context, *scheduler.Job) (any, error) {
			return nil, scheduler.Cancel(errors.New("there is no such account"))
		},
	}})
	job := runOne(jobs, "unsubscribe", nil)
	fmt.Println(job.Status, "after attempt", job.Attempt, "of", job.MaxAttempts)
	// Output: dead after attempt 1 of 10
}

func ExampleSnooze() {
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"await_payment": func(context.Context, *scheduler.Job) (any, error) {
			return nil, scheduler.Snooze(15 * time.Minute)
		},
	}})
	job := runOne(jobs, "await_payment", nil)
	fmt.Println(job.Status, "again in", job.RunAt.Sub(*job.StartedAt).Round(time.Minute), "with", job.Attempt, "attempts used")
	// Output: pending again in 15m0s with 0 attempts used
}

func ExampleRetryAfter() {
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"call_api": func(context.Context, *scheduler.Job) (any, error) {
			return nil, scheduler.RetryAfter(time.Hour, errors.New("429 Too Many Requests"))
		},
	}})
	job := runOne(jobs, "call_api", nil)
	fmt.Println(job.Status, "again in", job.RunAt.Sub(*job.StartedAt).Round(time.Minute))
	// Output: failed again in 1h0m0s
}
