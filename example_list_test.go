package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/relay-club/scheduler"
)

// All jobs of a customer, page by page.
func ExampleScheduler_ListJobs() {
	ctx := context.Background()
	jobs := start(scheduler.Config{Schema: "shop_list"})
	for n := range 5 {
		_, err := jobs.CreateJob(ctx, "export", scheduler.JobData{Payload: n, Owner: "ada"})
		check(err)
	}

	filter := scheduler.JobFilter{Owner: "ada", Limit: 2} // Limit left out: 50
	for {
		page, err := jobs.ListJobs(ctx, filter)
		check(err)
		for _, job := range page.Jobs {
			fmt.Println(string(job.Payload))
		}
		if page.Next == "" {
			break
		}
		filter.Cursor = page.Next
	}
	// Output:
	// 4
	// 3
	// 2
	// 1
	// 0
}

// What went wrong since yesterday.
func ExampleJobFilter() {
	ctx := context.Background()
	jobs := start(scheduler.Config{Schema: "shop_filter", JobNames: scheduler.JobNames{
		"charge": func(context.Context, *scheduler.Job) (any, error) { return nil, errors.New("card expired") },
	}})
	_, err := jobs.CreateJob(ctx, "charge", scheduler.JobData{Tags: []string{"billing", "eu"}, MaxAttempts: 1})
	check(err)
	_, err = jobs.Run(ctx, scheduler.RunFilter{})
	check(err)

	page, err := jobs.ListJobs(ctx, scheduler.JobFilter{
		Statuses:     []scheduler.JobStatus{scheduler.JobStatusFailed, scheduler.JobStatusDead},
		Tags:         []string{"billing"},
		CreatedAfter: time.Now().Add(-24 * time.Hour),
	})
	check(err)
	for _, job := range page.Jobs {
		fmt.Println(job.Name, job.Status, job.Errors[0].Error)
	}

	_, err = jobs.ListJobs(ctx, scheduler.JobFilter{Limit: 5000})
	fmt.Println(err)
	// Output:
	// charge dead card expired
	// list jobs: limit: 5000: expected 1 to 1000, or 0 for 50
}

// A page is what GET /api/jobs answers.
func ExampleJobPage() {
	jobs := start(scheduler.Config{Schema: "shop_page", Tokens: []string{"123ABC"}})
	request := httptest.NewRequest(http.MethodGet, "/api/jobs?status=failed&status=dead&limit=20", nil)
	request.Header.Set("Authorization", "Bearer 123ABC")
	answer := httptest.NewRecorder()
	jobs.Handler().ServeHTTP(answer, request)
	fmt.Println(answer.Code, answer.Body)
	// Output: 200 {"jobs":[],"next":""}
}

func ExampleScheduler_QueueStats() {
	ctx := context.Background()
	jobs := start(scheduler.Config{Schema: "shop_stats"})
	_, err := jobs.CreateJobs(ctx, []scheduler.NewJob{
		{Name: "mail"},
		{Name: "mail"},
		{Name: "report", JobData: scheduler.JobData{RunAt: time.Now().Add(time.Hour)}},
	})
	check(err)

	stats, err := jobs.QueueStats(ctx)
	check(err)
	for _, q := range stats {
		fmt.Printf("%s: %d due, %d later\n", q.Queue, q.Pending, q.Scheduled)
	}
	// Output:
	// blocking: 0 due, 0 later
	// default: 2 due, 1 later
}

// How far a queue is behind.
func ExampleQueueStat() {
	behind := func(q scheduler.QueueStat, now time.Time) time.Duration {
		if q.OldestDueAt == nil { // nothing waits
			return 0
		}
		return now.Sub(*q.OldestDueAt)
	}
	noon := time.Date(2030, 1, 31, 12, 0, 0, 0, time.UTC)
	due := noon.Add(-5 * time.Minute)
	fmt.Println(behind(scheduler.QueueStat{Queue: "mails", Pending: 17, OldestDueAt: &due}, noon))
	// Output: 5m0s
}
