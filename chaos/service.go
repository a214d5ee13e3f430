package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/history"
)

// serviceEnv is set in processes that are services.
const serviceEnv = "CHAOS_SERVICE"

const (
	token    = "chaos"
	jobName  = "chaos"
	lease    = 5 * time.Second
	poolSize = 12
)

// Every recurring job has a slot each minute.
var recurringNames = []string{"r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9"}

// queues have every kind of limit and order; verify.go has the checks of them.
func queues() map[scheduler.JobQueue]scheduler.QueueConfig {
	soon := func(int) time.Duration { return 50 * time.Millisecond }
	return map[scheduler.JobQueue]scheduler.QueueConfig{
		scheduler.JobQueueDefault: {Backoff: soon},
		// What has an order must not die of being killed.
		scheduler.JobQueueBlocking: {Backoff: soon, MaxAttempts: 1000},
		"ledger":                   {Extends: scheduler.JobQueueBlocking},
		"lanes":                    {MaxConcurrencyPerKey: 1, MaxAttempts: 1000},
		"singles":                  {MaxAttempts: 1000},
		"wide":                     {MaxConcurrency: 7},
		"keyed":                    {MaxConcurrency: 9, MaxConcurrencyPerKey: 2, KeyRound: 3},
		"rated":                    {Rate: scheduler.Rate{Limit: 30, Per: time.Second}},
	}
}

// config is what all processes say alike.
func config() scheduler.Config {
	c := scheduler.Config{Queues: queues(), Tokens: []string{token}, Lease: lease, Concurrency: 30, PollInterval: 200 * time.Millisecond}
	for _, name := range recurringNames {
		c.Recurring = append(c.Recurring, scheduler.RecurringJob{
			Name: name, Schedule: "* * * * *", Job: jobName, Payload: task{Recurring: name}, Missed: scheduler.MissedAll,
		})
	}
	return c
}

// serve is a service: it works if it is resident, else it waits for calls of its
// Run endpoint. SIGTERM has it shut down.
func serve(number string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	process, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	log, err := history.Open(os.Getenv("CHAOS_LOG"))
	if err != nil {
		return err
	}
	pool, err := newPool(os.Getenv("DATABASE_URL"), "service "+number)
	if err != nil {
		return err
	}
	h := &handlers{process: process, log: log, pool: pool}
	c := config()
	if c.KeepFinished, err = time.ParseDuration(os.Getenv("CHAOS_KEPT")); err != nil {
		return err
	}
	c.KeepDead = c.KeepFinished
	c.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	c.JobNames, c.Observer = scheduler.JobNames{jobName: h.handle}, h.observe
	s, err := scheduler.New(pool, c)
	if err != nil {
		return err
	}
	h.jobs = s
	if err := migrate(ctx, s); err != nil {
		return err
	}

	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/api/jobs", s.Handler())
	mux.Handle("/api/jobs/", s.Handler())
	mux.HandleFunc("POST /exhaust", func(_ http.ResponseWriter, r *http.Request) { exhaust(r.Context(), pool) })
	mux.HandleFunc("POST /clock", serveClock)
	mux.HandleFunc("POST /vitals", serveVitals)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Println(listener.Addr())

	if os.Getenv("CHAOS_RESIDENT") != "" {
		if err := s.Work(ctx); err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
	case err := <-served:
		return err
	}
	patience, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	// Handlers that ignore their contexts are expected.
	if err := s.Shutdown(patience); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return server.Close()
}

// migrate tries until the database is there, as what starts a service would.
func migrate(ctx context.Context, s *scheduler.Scheduler) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := s.Migrate(attempt)
		cancel()
		switch {
		case errors.Is(err, scheduler.ErrNewerSchema): // as in a rolling deploy, or after one was rolled back
			return nil
		case err == nil || ctx.Err() != nil:
			return err
		}
		slog.Warn("can't migrate", "error", err)
		time.Sleep(200 * time.Millisecond)
	}
}

func newPool(url, name string) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	c.MaxConns = poolSize
	c.ConnConfig.ConnectTimeout = 5 * time.Second
	c.ConnConfig.RuntimeParams["application_name"] = name
	return pgxpool.NewWithConfig(context.Background(), c)
}

// exhaust takes all connections of the pool until the caller goes.
func exhaust(ctx context.Context, pool *pgxpool.Pool) {
	for {
		conn, err := pool.Acquire(ctx)
		if ctx.Err() != nil {
			if err == nil {
				conn.Release()
			}
			return
		}
		if err == nil {
			defer conn.Release()
		}
	}
}
