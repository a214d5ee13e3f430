package schedulertest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/schedulertest"
)

// connect is pgxpool.New(ctx, os.Getenv("TEST_DATABASE_URL")) in a service's
// tests.
var connect = sync.OnceValue(func() *pgxpool.Pool {
	pool, err := pgxpool.New(context.Background(), cluster.URL("postgres"))
	check(err)
	return pool
})

// check is how an example handles an error: not at all.
func check(err error) {
	if err != nil {
		panic(err)
	}
}

// example is the *testing.T of an example.
type example struct {
	testing.TB
	cleanups []func()
}

// failed is how an example ends where a test would.
type failed struct{}

func (t *example) Helper()                           {}
func (t *example) Context() context.Context          { return context.Background() }
func (t *example) Output() io.Writer                 { return io.Discard }
func (t *example) Cleanup(end func())                { t.cleanups = append(t.cleanups, end) }
func (t *example) Errorf(format string, args ...any) { fmt.Printf(format+"\n", args...) }
func (t *example) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	panic(failed{})
}

// end is what a test does by itself.
func (t *example) end() {
	reason := recover()
	for i := range t.cleanups {
		t.cleanups[len(t.cleanups)-1-i]()
	}
	if reason != nil && reason != any(failed{}) {
		panic(reason)
	}
}

// creates is what the business code below needs of a Scheduler.
type creates interface {
	CreateJob(ctx context.Context, name string, data scheduler.JobData) (*scheduler.Job, error)
}

// shop is the business code under test.
type shop struct{ jobs creates }

// Order reminds the customer tomorrow.
func (s shop) Order(ctx context.Context, item string) error {
	_, err := s.jobs.CreateJob(ctx, "remind", scheduler.JobData{
		RunAt:   time.Now().Add(24 * time.Hour),
		Payload: map[string]any{"item": item, "channel": "mail"},
	})
	return err
}

// remind fails at its first attempt.
func remind(_ context.Context, job *scheduler.Job) (any, error) {
	if job.Attempt == 1 {
		return nil, scheduler.RetryAfter(time.Hour, errors.New("mail server is down"))
	}
	return "sent", nil
}

var handlers = scheduler.JobNames{"remind": remind}

// A test of business code with the database, from the order to the mail that is
// sent a day and an hour later.
func Example() {
	t := new(example) // the test's own *testing.T
	defer t.end()

	jobs := schedulertest.New(t, connect(), scheduler.Config{JobNames: handlers})
	check(shop{jobs}.Order(t.Context(), "book"))

	job := schedulertest.RequireCreated(t, jobs, "remind", scheduler.JobData{
		RunAt:   time.Now().Add(24 * time.Hour),
		Payload: map[string]any{"item": "book"}, // whatever else is in it
	})
	fmt.Println(job.Status, len(schedulertest.Drain(t, jobs)), "due")

	schedulertest.Advance(t, jobs, 24*time.Hour)
	for _, job := range schedulertest.Drain(t, jobs) {
		fmt.Println(job.Status, job.Errors[0].Error)
	}
	schedulertest.Advance(t, jobs, time.Hour)
	for _, job := range schedulertest.Drain(t, jobs) {
		fmt.Println(job.Status, string(job.Result))
	}
	// Output:
	// pending 0 due
	// failed mail server is down
	// succeeded "sent"
}

func ExampleNew() {
	t := new(example) // the test's own *testing.T
	defer t.end()

	jobs := schedulertest.New(t, connect(), scheduler.Config{JobNames: handlers})
	_, err := jobs.CreateJob(t.Context(), "remind", scheduler.JobData{})
	check(err)
	page, err := jobs.ListJobs(t.Context(), scheduler.JobFilter{})
	check(err)
	fmt.Println(len(page.Jobs), "in this test's schema")
	// Output: 1 in this test's schema
}

// The job is seen in the transaction, which is rolled back in the end.
func ExampleInTx() {
	t := new(example) // the test's own *testing.T
	defer t.end()

	jobs := schedulertest.New(t, connect(), scheduler.Config{JobNames: handlers})
	tx, err := connect().Begin(t.Context())
	check(err)
	defer func() { check(tx.Rollback(t.Context())) }()

	_, err = jobs.CreateJobTx(t.Context(), tx, "remind", scheduler.JobData{})
	check(err)
	job := schedulertest.RequireCreated(t, schedulertest.InTx(jobs, tx), "remind", scheduler.JobData{})
	schedulertest.RequireNotCreated(t, jobs, "remind", scheduler.JobData{})

	_, err = schedulertest.CallHandler(t, jobs, job) // without storing anything
	fmt.Println(err)
	// Output: mail server is down
}

// As with InTx, where business code has an *sql.Tx.
func ExampleInSQL() {
	t := new(example) // the test's own *testing.T
	defer t.end()

	jobs := schedulertest.New(t, connect(), scheduler.Config{JobNames: handlers})
	tx, err := stdlib.OpenDBFromPool(connect()).BeginTx(t.Context(), nil)
	check(err)
	defer func() { check(tx.Rollback()) }()

	_, err = jobs.CreateJobSQL(t.Context(), tx, "remind", scheduler.JobData{})
	check(err)
	job := schedulertest.RequireCreated(t, schedulertest.InSQL(jobs, tx), "remind", scheduler.JobData{})
	fmt.Println(job.Status)
	// Output: pending
}

// What a job creates is run too.
func ExampleDrain() {
	t := new(example) // the test's own *testing.T
	defer t.end()

	var jobs *scheduler.Scheduler
	jobs = schedulertest.New(t, connect(), scheduler.Config{JobNames: scheduler.JobNames{
		"export": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			_, err := jobs.CreateJob(ctx, "upload", scheduler.JobData{})
			return nil, err
		},
		"upload": func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Cancel(nil) },
	}})
	_, err := jobs.CreateJob(t.Context(), "export", scheduler.JobData{})
	check(err)
	for _, job := range schedulertest.Drain(t, jobs) {
		fmt.Println(job.Name, job.Status)
	}
	// Output:
	// export succeeded
	// upload dead
}

func ExampleAdvance() {
	t := new(example) // the test's own *testing.T
	defer t.end()

	jobs := schedulertest.New(t, connect(), scheduler.Config{JobNames: handlers})
	_, err := jobs.CreateJob(t.Context(), "remind", scheduler.JobData{RunAt: time.Now().AddDate(0, 1, 0)})
	check(err)
	for range 33 { // days
		schedulertest.Advance(t, jobs, 24*time.Hour)
		for _, job := range schedulertest.Drain(t, jobs) {
			fmt.Println(job.Attempt, job.Status)
		}
	}
	// Output:
	// 1 failed
	// 2 succeeded
}

// What a handler answers to a payload, without a database.
func ExampleCallHandler() {
	t := new(example) // the test's own *testing.T
	defer t.end()

	fake := schedulertest.NewFake(t, scheduler.Config{JobNames: scheduler.JobNames{
		"double": scheduler.Handle(func(_ context.Context, n int) (int, error) { return 2 * n, nil }),
	}})
	for _, payload := range []any{21, "many"} {
		job, err := fake.CreateJob(t.Context(), "double", scheduler.JobData{Payload: payload})
		check(err)
		result, err := schedulertest.CallHandler(t, fake, job)
		fmt.Println(result, err != nil)
	}
	// Output:
	// 42 false
	// <nil> true
}

// A failure shows what there is.
func ExampleRequireCreated() {
	t := new(example) // the test's own *testing.T
	defer t.end()

	fake := schedulertest.NewFake(t, scheduler.Config{})
	schedulertest.RequireCreated(t, fake, "remind", scheduler.JobData{Payload: map[string]any{"item": "book"}})
	// Output:
	// schedulertest: 0 jobs were created as "remind", Payload {"item":"book"}: expected one
	// no job was created at all
}

func ExampleRequireNotCreated() {
	t := new(example) // the test's own *testing.T
	defer t.end()

	fake := schedulertest.NewFake(t, scheduler.Config{})
	check(shop{fake}.Order(t.Context(), "book"))
	schedulertest.RequireNotCreated(t, fake, "remind", scheduler.JobData{Payload: map[string]any{"item": "pen"}})
	fmt.Println("none for a pen")
	// Output: none for a pen
}

func ExampleCreated() {
	t := new(example) // the test's own *testing.T
	defer t.end()

	fake := schedulertest.NewFake(t, scheduler.Config{})
	for _, item := range []string{"book", "pen"} {
		check(shop{fake}.Order(t.Context(), item))
	}
	for _, job := range schedulertest.Created(t, fake, "remind", scheduler.JobData{}) {
		fmt.Println(string(job.Payload))
	}
	// Output:
	// {"channel":"mail","item":"book"}
	// {"channel":"mail","item":"pen"}
}

func ExampleRunJob() {
	t := new(example) // the test's own *testing.T
	defer t.end()

	jobs := schedulertest.New(t, connect(), scheduler.Config{JobNames: handlers})
	job, err := jobs.CreateJob(t.Context(), "remind", scheduler.JobData{})
	check(err)
	for range 2 {
		job = schedulertest.RunJob(t, jobs, job.ID)
		fmt.Println(job.Attempt, job.Status)
		schedulertest.Advance(t, jobs, time.Hour) // its backoff
	}
	// Output:
	// 1 failed
	// 2 succeeded
}

// A unit test without a database.
func ExampleFake() {
	t := new(example) // the test's own *testing.T
	defer t.end()

	fake := schedulertest.NewFake(t, scheduler.Config{JobNames: handlers})
	check(shop{fake}.Order(t.Context(), "book"))
	job := schedulertest.RequireCreated(t, fake, "remind", scheduler.JobData{})
	fmt.Println(job.Name, string(job.Payload))

	_, err := fake.CreateJob(t.Context(), "remind_me", scheduler.JobData{})
	fmt.Println(err)
	// Output:
	// remind {"channel":"mail","item":"book"}
	// create job: name: unknown job name "remind_me": it has no handler in Config.JobNames
}
