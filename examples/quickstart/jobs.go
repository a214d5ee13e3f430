package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/relay-club/scheduler"
)

type charge struct {
	Customer string `json:"customer"`
	Cents    int    `json:"cents"`
}

// handlers is what the demo's service can do.
var handlers = scheduler.JobNames{
	"welcome_mail": told(scheduler.Handle(func(_ context.Context, to string) (string, error) {
		return "welcome mail sent to " + to, nil
	})),
	"reminder": told(scheduler.Handle(func(_ context.Context, to string) (string, error) {
		return "reminder sent to " + to, nil
	})),
	"close_books": told(scheduler.Handle(func(_ context.Context, month string) (string, error) {
		time.Sleep(300 * time.Millisecond) // the work
		return month + " is closed", nil
	})),
	"charge_card": told(func(_ context.Context, job *scheduler.Job) (any, error) {
		var c charge
		if err := json.Unmarshal(job.Payload, &c); err != nil {
			return nil, scheduler.Cancel(err)
		}
		if job.Attempt == 1 {
			// In place of the backoff, which would be a second here too.
			return nil, scheduler.RetryAfter(500*time.Millisecond, errors.New("the card network does not answer"))
		}
		return fmt.Sprintf("%d.%02d charged to %s", c.Cents/100, c.Cents%100, c.Customer), nil
	}),
	"import_orders": told(func(_ context.Context, job *scheduler.Job) (any, error) {
		return nil, scheduler.RetryAfter(500*time.Millisecond, fmt.Errorf("%s: no such file", job.Payload))
	}),
}

// told prints what a handler does.
func told(handler scheduler.HandlerFunc) scheduler.HandlerFunc {
	return func(ctx context.Context, job *scheduler.Job) (any, error) {
		tell(title(job), "attempt %d begins", job.Attempt)
		result, err := handler(ctx, job)
		switch {
		case err == nil:
			tell(title(job), "attempt %d succeeds: %v", job.Attempt, result)
		case job.Attempt == job.MaxAttempts:
			tell(title(job), "attempt %d fails, the last one: %v", job.Attempt, err)
		default:
			tell(title(job), "attempt %d fails, to be rerun: %v", job.Attempt, err)
		}
		return result, err
	}
}

// title tells the two jobs of one name apart.
func title(job *scheduler.Job) string {
	var month string
	if job.Name != "close_books" || json.Unmarshal(job.Payload, &month) != nil {
		return job.Name
	}
	return job.Name + " " + month
}

// printLives prints how each job went, and returns what is not as it should be.
func (s *service) printLives(ctx context.Context) (wrong []error, err error) {
	rows := [][]string{{"JOB", "QUEUE", "CREATED", "DUE", "ATTEMPT", "STARTED", "ENDED", "STATUS", "WHAT CAME OF IT"}}
	var before *scheduler.Job // in the blocking queue
	for _, created := range s.created {
		job, err := s.jobs.GetJob(ctx, created.ID)
		if err != nil {
			return nil, err
		}
		wrong = append(wrong, check(job, created, before)...)
		if job.Queue == scheduler.JobQueueBlocking {
			before = job
		}
		rows = append(rows, s.lifeOf(job)...)
	}
	for i := len(rows) - 1; i > 1; i-- {
		if rows[i][0] == rows[i-1][0] { // said in the row above
			rows[i][0], rows[i][1], rows[i][2], rows[i][3] = "", "", "", ""
		}
	}
	table(rows)
	return wrong, nil
}

// lifeOf has a row for each attempt whose end is known.
func (s *service) lifeOf(job *scheduler.Job) (rows [][]string) {
	local := func(at *time.Time) string {
		if at == nil {
			return ""
		}
		return sinceStart(at.Add(-s.skew))
	}
	due := "at once"
	if job.Name == "reminder" {
		due = local(&job.RunAt)
	}
	row := func(attempt int, ended *time.Time, status, what string) {
		var started *time.Time // which is known of the last attempt
		if attempt == job.Attempt {
			started = job.StartedAt
		}
		rows = append(rows, []string{title(job), string(job.Queue), local(&job.CreatedAt), due,
			strconv.Itoa(attempt), local(started), local(ended), status, what})
	}
	for _, failure := range job.Errors {
		status := "failed"
		if job.Status == scheduler.JobStatusDead && failure.Attempt == job.Attempt {
			status = "dead"
		}
		row(failure.Attempt, &failure.At, status, failure.Error)
	}
	if job.Status != scheduler.JobStatusDead && job.Status != scheduler.JobStatusFailed {
		var result string
		_ = json.Unmarshal(job.Result, &result) // there is none before the end
		row(job.Attempt, job.FinishedAt, string(job.Status), result)
	}
	return rows
}

// check returns what is not as it should be.
func check(job, created, before *scheduler.Job) (wrong []error) {
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Errorf("  "+title(job)+": "+format, args...))
		}
	}
	status, attempts, failures := scheduler.JobStatusSucceeded, 1, 0
	switch job.Name {
	case "charge_card":
		attempts, failures = 2, 1
	case "import_orders":
		status, attempts, failures = scheduler.JobStatusDead, 2, 2
	}
	expect(job.Status == status, "is %s, expected %s", job.Status, status)
	expect(job.Attempt == attempts, "took %d attempts, expected %d", job.Attempt, attempts)
	expect(len(job.Errors) == failures, "failed %d times, expected %d", len(job.Errors), failures)
	if job.StartedAt != nil {
		expect(!job.StartedAt.Before(created.RunAt), "was started at %s, before it was due at %s", job.StartedAt, created.RunAt)
		if before != nil && before.FinishedAt != nil && job.Queue == before.Queue {
			expect(!job.StartedAt.Before(*before.FinishedAt), "was started before %s was finished", title(before))
		}
	}
	return wrong
}
