// Command supabase is a service with one job, as the README shows it. workers.sql
// is what to run in the project's SQL editor.
package main

import (
	"context"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/relay-club/scheduler"
)

func welcome(ctx context.Context, email string) (string, error) { return "mail sent to " + email, nil }

func main() {
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	check(err)
	jobs, err := scheduler.New(pool, scheduler.Config{Tokens: []string{os.Getenv("SCHEDULER_TOKEN")},
		JobNames: scheduler.JobNames{"welcome": scheduler.Handle(welcome)}})
	check(err)
	check(jobs.Migrate(ctx))
	http.Handle("/api/jobs", jobs.Handler())
	http.Handle("/api/jobs/", jobs.Handler())
	http.HandleFunc("POST /signup", func(w http.ResponseWriter, r *http.Request) {
		if _, err := jobs.CreateJob(r.Context(), "welcome", scheduler.JobData{Payload: r.FormValue("email")}); err != nil {
			http.Error(w, "try again", http.StatusServiceUnavailable)
		}
	})
	context.AfterFunc(ctx, func() { check(jobs.Shutdown(context.Background())); os.Exit(0) })
	check(http.ListenAndServe(":8080", nil))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
