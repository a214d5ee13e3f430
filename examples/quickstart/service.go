package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/relay-club/scheduler"
)

// service is what a user of the library writes: handlers, a server with the
// Handler mounted in it, and business code that creates jobs.
type service struct {
	database *database
	jobs     *scheduler.Scheduler
	server   *http.Server
	url      string
	token    string
	created  []*scheduler.Job
	skew     time.Duration // of the database's clock against this one's
}

func startService(ctx context.Context, database *database) (*service, error) {
	s := &service{database: database, token: rand.Text()}
	var err error
	s.jobs, err = scheduler.New(database.pool, scheduler.Config{
		JobNames: handlers,
		Tokens:   []string{s.token},
		Schema:   database.schema,
		// The attempts that fail here are the story, and told by the handlers.
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		return nil, err
	}
	if err := s.jobs.Migrate(ctx); err != nil {
		return nil, err
	}
	var now time.Time
	if err := database.pool.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&now); err != nil {
		return nil, err
	}
	s.skew = time.Until(now)

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s.url = "http://" + listener.Addr().String()
	mux := http.NewServeMux()
	mux.Handle("/api/jobs", s.jobs.Handler())
	mux.Handle("/api/jobs/", s.jobs.Handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	s.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = s.server.Serve(listener) }() // until stop closes it
	return s, nil
}

func (s *service) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanUpTime)
	defer cancel()
	if err := s.jobs.Shutdown(ctx); err != nil {
		return err
	}
	return s.server.Shutdown(ctx)
}

// createJobsThatFail is business code, and a call over HTTP.
func (s *service) createJobsThatFail(ctx context.Context) error {
	job, err := s.jobs.CreateJob(ctx, "charge_card", scheduler.JobData{Payload: charge{"ada@example.com", 1250}})
	if err != nil {
		return err
	}
	s.note(job, "in Go: fails once, is rerun")
	job, err = s.jobs.CreateJob(ctx, "import_orders", scheduler.JobData{Payload: "orders.csv", MaxAttempts: 2})
	if err != nil {
		return err
	}
	s.note(job, "in Go: has two attempts, fails twice")
	return nil
}

func (s *service) createOtherJobs(ctx context.Context) error {
	// A job that exists if, and only if, the business's own writes do.
	err := pgx.BeginFunc(ctx, s.database.pool, func(tx pgx.Tx) error {
		job, err := s.jobs.CreateJobTx(ctx, tx, "welcome_mail", scheduler.JobData{Payload: "ada@example.com"})
		if err == nil {
			s.note(job, "in Go, in a transaction: for now")
		}
		return err
	})
	if err != nil {
		return err
	}

	var job *scheduler.Job
	body := fmt.Sprintf(`{"name": "reminder", "run_at": %q, "payload": "ada@example.com"}`, time.Now().Add(s.skew+2*time.Second).UTC().Format(time.RFC3339Nano))
	if err := s.call(ctx, http.MethodPost, "/api/jobs", body, http.StatusCreated, &job); err != nil {
		return err
	}
	s.note(job, "over HTTP: for in two seconds")

	ids, err := s.jobs.CreateJobs(ctx, []scheduler.NewJob{
		{Name: "close_books", JobData: scheduler.JobData{Payload: "January", Queue: scheduler.JobQueueBlocking}},
		{Name: "close_books", JobData: scheduler.JobData{Payload: "February", Queue: scheduler.JobQueueBlocking}},
	})
	if err != nil {
		return err
	}
	for _, id := range ids {
		job, err := s.jobs.GetJob(ctx, id)
		if err != nil {
			return err
		}
		s.note(job, "in Go, as a batch: one at a time, in order")
	}
	return nil
}

func (s *service) note(job *scheduler.Job, how string) {
	s.created = append(s.created, job)
	tell(title(job), "created %s", how)
}

func (s *service) runByHand(ctx context.Context, query string) error {
	var report scheduler.RunReport
	if err := s.call(ctx, http.MethodPost, "/api/jobs/run?"+query, "", http.StatusOK, &report); err != nil {
		return err
	}
	tell("", "the run is over: %d picked, %d failed", report.Picked, report.Failed)
	return nil
}

// work runs the jobs in this process until all are finished.
func (s *service) work(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	worked := make(chan error, 1)
	go func() { worked <- s.jobs.Work(ctx) }()
	poll := time.NewTicker(200 * time.Millisecond)
	defer poll.Stop()
	for {
		select {
		case err := <-worked:
			if err == nil {
				err = ctx.Err()
			}
			return err
		case <-poll.C:
		}
		n, err := unfinished(ctx, s.jobs, s.created)
		if err != nil || n == 0 {
			cancel()
			return errors.Join(err, <-worked)
		}
	}
}

func (s *service) get(ctx context.Context, id string) error {
	var job json.RawMessage
	path := "/api/jobs/" + id
	say("  GET %s", path)
	if err := s.call(ctx, http.MethodGet, path, "", http.StatusOK, &job); err != nil {
		return err
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, job, "  ", "  "); err != nil {
		return err
	}
	say("  %s", indented.String())
	return nil
}

// call makes a request as a caller would.
func (s *service) call(ctx context.Context, method, path, body string, want int, answer any) error {
	request, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+s.token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != want {
		return fmt.Errorf("%s %s: answered %s: %s", method, path, response.Status, text)
	}
	return json.Unmarshal(text, answer)
}
