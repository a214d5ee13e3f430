package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/relay-club/scheduler"
)

func ExampleScheduler_CreateJob() {
	jobs := start(scheduler.Config{})

	job, err := jobs.CreateJob(context.Background(), "remind", scheduler.JobData{
		RunAt:   time.Date(2050, 1, 31, 9, 0, 0, 0, time.UTC), // left out: now
		Payload: map[string]string{"to": "ada@example.com"},
	})
	check(err)
	fmt.Println(job.Status, job.RunAt, string(job.Payload))
	// Output: pending 2050-01-31 09:00:00 +0000 UTC {"to":"ada@example.com"}
}

// The job is created if, and only if, the user is.
func ExampleScheduler_CreateJobTx() {
	ctx, pool := context.Background(), connect()
	jobs := start(scheduler.Config{})
	_, err := pool.Exec(ctx, "CREATE TABLE users (email text PRIMARY KEY)")
	check(err)

	signUp := func(email string) (id string, err error) {
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			job, err := jobs.CreateJobTx(ctx, tx, "welcome", scheduler.JobData{Payload: email})
			if err != nil {
				return err
			}
			id = job.ID
			_, err = tx.Exec(ctx, "INSERT INTO users (email) VALUES ($1)", email)
			return err
		})
		return id, err
	}
	for range 2 { // the second time, the INSERT fails
		id, _ := signUp("ada@example.com")
		_, err := jobs.GetJob(ctx, id)
		fmt.Println("no job:", errors.Is(err, scheduler.ErrJobNotFound))
	}
	// Output:
	// no job: false
	// no job: true
}

func ExampleScheduler_CreateJobs() {
	jobs := start(scheduler.Config{})

	var batch []scheduler.NewJob
	for n := range 3 {
		batch = append(batch, scheduler.NewJob{Name: "resize", JobData: scheduler.JobData{Payload: n}})
	}
	ids, err := jobs.CreateJobs(context.Background(), batch)
	check(err)
	fmt.Println(len(ids), "jobs")

	batch[2].Queue = "nowhere"
	_, err = jobs.CreateJobs(context.Background(), batch)
	fmt.Println(err)
	// Output:
	// 3 jobs
	// create jobs: jobs[2].queue: unknown queue "nowhere": declared are blocking, default
}

func ExampleScheduler_GetJob() {
	jobs := start(scheduler.Config{})
	created, err := jobs.CreateJob(context.Background(), "export", scheduler.JobData{})
	check(err)

	job, err := jobs.GetJob(context.Background(), created.ID)
	check(err)
	fmt.Println(job.Name, job.Status)

	_, err = jobs.GetJob(context.Background(), "0190a5b2-0000-7000-8000-000000000000")
	fmt.Println(errors.Is(err, scheduler.ErrJobNotFound))
	// Output:
	// export pending
	// true
}

func ExampleJobData() {
	jobs := start(scheduler.Config{})
	job, err := jobs.CreateJob(context.Background(), "sync", scheduler.JobData{
		RunAt:       time.Now().Add(time.Hour),
		Queue:       scheduler.JobQueueBlocking,
		Payload:     json.RawMessage(`{"full": true}`), // JSON already
		MaxAttempts: 3,
		Timeout:     30 * time.Second,
	})
	check(err)
	fmt.Println(job.Queue, job.MaxAttempts, job.Timeout)
	// Output: blocking 3 30s
}

func ExampleNewJob() {
	jobs := start(scheduler.Config{})
	_, err := jobs.CreateJobs(context.Background(), []scheduler.NewJob{
		{Name: "clean"},
		{Name: "report", JobData: scheduler.JobData{RunAt: time.Now().Add(time.Hour)}},
	})
	fmt.Println(err)
	// Output: <nil>
}

// What is known of a job that failed.
func ExampleJobError() {
	ctx := context.Background()
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"fetch": func(context.Context, *scheduler.Job) (any, error) { return nil, errors.New("connection refused") },
	}})
	job, err := jobs.CreateJob(ctx, "fetch", scheduler.JobData{MaxAttempts: 1})
	check(err)
	_, err = jobs.Run(ctx, scheduler.RunFilter{})
	check(err)

	job, err = jobs.GetJob(ctx, job.ID)
	check(err)
	for _, failure := range job.Errors {
		fmt.Printf("attempt %d of %d: %s\n", failure.Attempt, job.MaxAttempts, failure.Error)
	}
	// Output: attempt 1 of 1: connection refused
}

// The statuses that a job goes through when its first attempt fails.
func ExampleJobStatus() {
	ctx := context.Background()
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"charge": func(_ context.Context, job *scheduler.Job) (any, error) {
			fmt.Println(job.Status)
			if job.Attempt == 1 {
				return nil, scheduler.RetryAfter(0, errors.New("no answer"))
			}
			return "paid", nil
		},
	}})
	job, err := jobs.CreateJob(ctx, "charge", scheduler.JobData{})
	check(err)
	fmt.Println(job.Status)

	for _, status := range []scheduler.JobStatus{scheduler.JobStatusPending, scheduler.JobStatusFailed} {
		_, err := jobs.Run(ctx, scheduler.RunFilter{Status: status})
		check(err)
		job, err = jobs.GetJob(ctx, job.ID)
		check(err)
		fmt.Println(job.Status)
	}
	// Output:
	// pending
	// running
	// failed
	// running
	// succeeded
}

// What was wrong with the input, for those who handed it in.
func ExampleInputError() {
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{"known": sendInvoice}})
	_, err := jobs.CreateJob(context.Background(), "unknown", scheduler.JobData{})

	var input *scheduler.InputError
	if errors.As(err, &input) {
		fmt.Println("field:", input.Field)
	}
	fmt.Println(errors.Is(err, scheduler.ErrInvalidInput), errors.Is(err, scheduler.ErrUnknownJobName))
	// Output:
	// field: name
	// true true
}
