package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/relay-club/scheduler"
)

func ExampleScheduler_Run() {
	ctx := context.Background()
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"index": scheduler.Handle(func(_ context.Context, page int) (int, error) { return page * 100, nil }),
	}})
	for page := range 3 {
		_, err := jobs.CreateJob(ctx, "index", scheduler.JobData{Payload: page})
		check(err)
	}
	report, err := jobs.Run(ctx, scheduler.RunFilter{Limit: 2})
	check(err)
	fmt.Println(report.Picked, report.Succeeded)
	// Output: 2 2
}

func ExampleRunFilter() {
	jobs := start(scheduler.Config{})
	for _, filter := range []scheduler.RunFilter{
		{}, // one pending job of the default queue
		{Status: scheduler.JobStatusFailed, Limit: 100},                                    // failed ones whose backoff has passed
		{Queue: scheduler.JobQueueBlocking, Status: scheduler.JobStatusAny, Limit: 10_000}, // the blocking queue
	} {
		report, err := jobs.Run(context.Background(), filter)
		check(err)
		fmt.Println(report.Queue, report.Status, report.Picked)
	}

	_, err := jobs.Run(context.Background(), scheduler.RunFilter{Limit: 10_001})
	fmt.Println(err)
	// Output:
	// default pending 0
	// default failed 0
	// blocking any 0
	// run: limit: 10001: expected 1 to 10000
}

// A report tells whether to call again, and when.
func ExampleRunReport() {
	ctx := context.Background()
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"poll": func(context.Context, *scheduler.Job) (any, error) { return nil, scheduler.Snooze(time.Hour) },
	}})
	_, err := jobs.CreateJob(ctx, "poll", scheduler.JobData{})
	check(err)

	report, err := jobs.Run(ctx, scheduler.RunFilter{})
	check(err)
	fmt.Println("snoozed:", report.Snoozed)
	fmt.Println("next one in", time.Until(*report.NextDueAt).Round(time.Minute))
	// Output:
	// snoozed: 1
	// next one in 1h0m0s
}

// A service that stays up works by itself, without workers in the database.
func ExampleScheduler_Work() {
	resized := make(chan string)
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"thumbnail": scheduler.Handle(func(_ context.Context, file string) (any, error) {
			resized <- file
			return nil, nil
		}),
	}})
	ctx, stop := context.WithCancel(context.Background())
	worked := make(chan error)
	go func() { worked <- jobs.Work(ctx) }()

	_, err := jobs.CreateJob(ctx, "thumbnail", scheduler.JobData{Payload: "cat.jpg"})
	check(err)
	fmt.Println(<-resized)

	stop()
	fmt.Println(<-worked)
	check(jobs.Shutdown(context.Background())) // waits for what still runs
	// Output:
	// cat.jpg
	// <nil>
}

func ExampleScheduler_Shutdown() {
	jobs := start(scheduler.Config{})

	// On SIGTERM, before http.Server.Shutdown. The deadline is one below the
	// time that the platform gives.
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Second)
	defer cancel()
	check(jobs.Shutdown(ctx))

	_, err := jobs.Run(context.Background(), scheduler.RunFilter{})
	fmt.Println(errors.Is(err, scheduler.ErrShuttingDown))
	// Output: true
}

func ExampleScheduler_Handler() {
	jobs := start(scheduler.Config{
		JobNames: scheduler.JobNames{"greet": scheduler.Handle(func(_ context.Context, name string) (string, error) {
			return "Hello, " + name, nil
		})},
		Tokens: []string{"123ABC"},
	})
	mux := http.NewServeMux()
	mux.Handle("/api/jobs", jobs.Handler())
	mux.Handle("/api/jobs/", jobs.Handler())
	server := httptest.NewServer(mux)
	defer server.Close()

	call := func(method, path, body string) (location string) {
		request, err := http.NewRequest(method, server.URL+path, strings.NewReader(body))
		check(err)
		request.Header.Set("Authorization", "Bearer 123ABC")
		response, err := http.DefaultClient.Do(request)
		check(err)
		defer func() { _ = response.Body.Close() }()
		answer, err := io.ReadAll(response.Body)
		check(err)
		fmt.Println(response.Status, strings.Contains(string(answer), "Hello, Ada"))
		return response.Header.Get("Location")
	}
	location := call("POST", "/api/jobs", `{"name": "greet", "payload": "Ada"}`)
	call("POST", "/api/jobs/run", "") // what a worker sends
	call("GET", location, "")
	// Output:
	// 201 Created false
	// 200 OK false
	// 200 OK true
}
