// Command quickstart shows the whole life of some jobs: created from business
// code and over HTTP, fired by Postgres, run by a service, looked up again. It
// ends by itself, with an error if a job did not end as it should.
//
// It works on the database of DATABASE_URL, in the schema scheduler_demo, which
// it drops at the end; without, on a throw-away Postgres that it starts.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/relay-club/scheduler"
)

// longest is what the whole demo may take.
const longest = 5 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	err := run(ctx)
	if errors.Is(err, context.Canceled) {
		err = errors.New("called off")
	}
	if err != nil {
		say("\nquickstart: %v", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	say("")
	database, err := openDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.close()) }()
	service, err := startService(ctx, database)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, service.stop()) }()
	say("  database   %s", database.about)
	say("  service    %s, with the Handler mounted at /api/jobs", service.url)

	heading("Two jobs that will fail are created, and run once by hand, as curl or any cron could do it.")
	if err := service.createJobsThatFail(ctx); err != nil {
		return err
	}
	if err := service.runByHand(ctx, "limit=2"); err != nil {
		return err
	}

	heading("Four more jobs are created, for those who fire them.")
	if err := service.createOtherJobs(ctx); err != nil {
		return err
	}

	fired, missing, err := createWorkers(ctx, service)
	if err != nil {
		return err
	}
	if fired != nil {
		defer func() { err = errors.Join(err, fired.remove()) }()
		heading("From here on Postgres fires them: %s calls the service, by %s, when something is due.", fired.cron, fired.http)
		err = fired.wait(ctx)
	} else {
		heading("From here on the service runs resident (Work), without workers in Postgres: %s.", missing)
		err = service.work(ctx)
	}
	if err != nil {
		return err
	}

	heading("What became of the jobs.")
	wrong, err := service.printLives(ctx)
	if err != nil {
		return err
	}
	if fired != nil {
		heading("What pg_cron recorded of its workers.")
		failed, err := fired.printRuns(ctx)
		if err != nil {
			return err
		}
		wrong = append(wrong, failed...)
	}
	heading("And one job as the service shows it to a caller.")
	if err := service.get(ctx, service.created[0].ID); err != nil {
		return err
	}
	if len(wrong) > 0 {
		return fmt.Errorf("not as it should be:\n%w", errors.Join(wrong...))
	}
	say("\nAll %d jobs ended as they should, after %s.", len(service.created), sinceStart(time.Now()))
	return nil
}

// unfinished tells how many of the jobs will still be run.
func unfinished(ctx context.Context, s *scheduler.Scheduler, jobs []*scheduler.Job) (n int, err error) {
	for _, job := range jobs {
		now, err := s.GetJob(ctx, job.ID)
		if err != nil {
			return 0, err
		}
		if now.FinishedAt == nil {
			n++
		}
	}
	return n, nil
}
