package scheduler_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/relay-club/scheduler"
)

// How far a job was when it ended; GetJob shows it while it runs, too.
func ExampleSetProgress() {
	files := []string{"a.csv", "b.csv", "c.csv", "d.csv"}
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"import_files": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			for i, file := range files {
				if err := scheduler.SetProgress(ctx, 100*i/len(files), "importing "+file); err != nil {
					return nil, err
				}
				if file == "c.csv" {
					return nil, errors.New("c.csv is broken")
				}
			}
			return nil, scheduler.SetProgress(ctx, 100, "")
		},
	}})
	job := runOne(jobs, "import_files", nil)
	fmt.Println(job.Status, job.Progress.Percent, job.Progress.Note)
	// Output: failed 50 importing c.csv
}

// An attempt that goes on where the one before it has failed.
func ExampleCheckpoint() {
	ctx := context.Background()
	rows := []string{"ada", "bob", "cleo"}
	outage := errors.New("no connection")
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"send_newsletter": scheduler.Handle(func(ctx context.Context, _ any) (int, error) {
			sent := 0
			if _, err := scheduler.LoadCheckpoint(ctx, &sent); err != nil {
				return 0, err
			}
			for ; sent < len(rows); sent++ {
				if outage != nil && sent == 2 {
					return 0, scheduler.RetryAfter(0, outage)
				}
				fmt.Println("to", rows[sent])
				if err := scheduler.Checkpoint(ctx, sent+1); err != nil {
					return 0, err
				}
			}
			return sent, nil
		}),
	}})
	job := runOne(jobs, "send_newsletter", nil)
	fmt.Println(job.Status, "after", string(job.Progress.Checkpoint))

	outage = nil
	_, err := jobs.Run(ctx, scheduler.RunFilter{Status: scheduler.JobStatusFailed})
	check(err)
	// Output:
	// to ada
	// to bob
	// failed after 2
	// to cleo
}

func ExampleLoadCheckpoint() {
	type place struct{ Page int }
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"crawl": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			at := place{Page: 1}
			resumed, err := scheduler.LoadCheckpoint(ctx, &at)
			return fmt.Sprintf("resumed: %t, page %d", resumed, at.Page), err
		},
	}})
	fmt.Println(string(runOne(jobs, "crawl", nil).Result))
	// Output: "resumed: false, page 1"
}

// What is known of a job while it runs, or after it.
func ExampleJobProgress() {
	jobs := start(scheduler.Config{JobNames: scheduler.JobNames{
		"transcode": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			return nil, errors.Join(
				scheduler.SetProgress(ctx, 80, "second pass"),
				scheduler.Checkpoint(ctx, map[string]int{"frame": 1920}))
		},
	}})
	p := runOne(jobs, "transcode", nil).Progress
	fmt.Println(p.Percent, p.Note, string(p.Checkpoint), p.At.IsZero())
	// Output: 80 second pass {"frame": 1920} false
}
