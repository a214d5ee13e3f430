package scheduler_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/relay-club/scheduler"
)

// The examples share a database. Each has job names of its own, and a
// Scheduler runs only jobs of its names, so they don't meet.

// connect is pgxpool.New(ctx, os.Getenv("DATABASE_URL")) in a service.
var connect = sync.OnceValue(func() *pgxpool.Pool {
	ctx := context.Background()
	admin, err := pgxpool.New(ctx, shared.cluster.URL("postgres"))
	check(err)
	defer admin.Close()
	_, err = admin.Exec(ctx, "CREATE DATABASE examples")
	check(err)
	pool, err := pgxpool.New(ctx, shared.cluster.URL("examples"))
	check(err)
	return pool
})

// start is New and Migrate, without a log.
func start(config scheduler.Config) *scheduler.Scheduler {
	config.Logger = slog.New(slog.DiscardHandler)
	jobs, err := scheduler.New(connect(), config)
	check(err)
	check(jobs.Migrate(context.Background()))
	return jobs
}

// check is how an example handles an error: not at all.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

// The whole life of a job: created, run, looked up.
func Example() {
	ctx := context.Background()
	pool := connect() // pgxpool.New(ctx, os.Getenv("DATABASE_URL"))

	type order struct{ Item string }
	jobs, err := scheduler.New(pool, scheduler.Config{
		JobNames: scheduler.JobNames{
			"ship": scheduler.Handle(func(_ context.Context, o order) (string, error) {
				return o.Item + " is on its way", nil
			}),
		},
	})
	check(err)
	check(jobs.Migrate(ctx))

	job, err := jobs.CreateJob(ctx, "ship", scheduler.JobData{Payload: order{"book"}})
	check(err)
	fmt.Println(job.Status)

	// What a worker's call of the Handler does, and Work does by itself.
	_, err = jobs.Run(ctx, scheduler.RunFilter{})
	check(err)

	job, err = jobs.GetJob(ctx, job.ID)
	check(err)
	fmt.Println(job.Status, string(job.Result))
	// Output:
	// pending
	// succeeded "book is on its way"
}

func ExampleNew() {
	jobs, err := scheduler.New(connect(), scheduler.Config{})
	check(err)
	check(jobs.Migrate(context.Background()))

	// A service that only creates jobs needs no handlers.
	job, err := jobs.CreateJob(context.Background(), "made_elsewhere", scheduler.JobData{})
	check(err)
	fmt.Println(job.Name, job.Queue, job.Status)
	// Output: made_elsewhere default pending
}

func ExampleConfig() {
	config := scheduler.Config{
		JobNames: scheduler.JobNames{"send_invoice": sendInvoice},
		Queues: map[scheduler.JobQueue]scheduler.QueueConfig{
			"invoices": {Extends: scheduler.JobQueueBlocking, MaxAttempts: 5},
		},
		Tokens:   []string{"the-new-token", "the-old-token"},
		BasePath: "/internal/jobs",
	}
	jobs, err := scheduler.New(connect(), config)
	check(err)
	check(jobs.Migrate(context.Background()))

	job, err := jobs.CreateJob(context.Background(), "send_invoice", scheduler.JobData{Queue: "invoices"})
	check(err)
	fmt.Println(job.Queue, job.MaxAttempts)
	// Output: invoices 5
}

func sendInvoice(_ context.Context, _ *scheduler.Job) (any, error) { return nil, nil }

func ExampleScheduler_Migrate() {
	jobs, err := scheduler.New(connect(), scheduler.Config{Schema: "shop_jobs"})
	check(err)
	for range 2 { // it does nothing where nothing is to do
		check(jobs.Migrate(context.Background()))
	}

	var installed bool
	check(connect().QueryRow(context.Background(), "SELECT to_regclass('shop_jobs.jobs') IS NOT NULL").Scan(&installed))
	fmt.Println(installed)
	// Output: true
}
