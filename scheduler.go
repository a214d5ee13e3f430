// Package scheduler runs background jobs for services on Postgres.
//
// Jobs are rows. A service registers handler functions by job name, calls
// [Scheduler.CreateJob] from its business code, and mounts
// [Scheduler.Handler] in the router it has. Inside the database, pg_cron fires
// workers; a worker makes one HTTP request to the service, which picks due
// jobs, runs them and records what came of them. No broker and no resident
// process is needed: the service may sleep until it is called. Services that
// stay up call [Scheduler.Work] instead, or as well.
//
// A job's path through the files of this package: created (create.go, row.go), claimed
// (claim.go) by a run (run.go) or by a loop (loop.go) of Work (work.go) under the
// process's lease (lease.go), handled (worker.go) when a slot is free (slots.go),
// finished (finish.go, and replace.go where another job starts in its place)
// unless its handler has done that (complete.go), and seen
// (job.go, list.go, stats.go, handler.go). What its handler tells of it meanwhile
// (progress.go) is written by reporter.go. What else may be done to it is in
// control.go, and to many in bulk.go. Jobs on a schedule (schedule.go) are
// created by the database, as recurring.go has told it.
package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Config says what a Scheduler works with. The zero value is a service that
// only creates jobs, in the base queues.
type Config struct {
	// JobNames has the handlers by job name: 1 to 128 letters, digits or any
	// of _ . : / - beginning with a letter or digit. Only jobs of these names
	// are created and run here. Defaults to nil: jobs of any name can be
	// created, none is run.
	JobNames JobNames
	// Queues declares queues beside the base ones, or gives base ones other
	// settings. Defaults to the base queues with their defaults.
	Queues map[JobQueue]QueueConfig
	// Recurring are jobs to be created on schedules, whoever creates them first:
	// pg_cron, a run, or a resident process. Migrate tells the database of
	// them. One that is taken out of here goes on until remove_recurring_job is
	// called in SQL. Defaults to none.
	Recurring []RecurringJob
	// Backoffs has, by job name, what goes before QueueConfig.Backoff for jobs
	// of that name. Each must be one of JobNames. Defaults to none.
	Backoffs map[string]func(attempt int) time.Duration
	// Middleware is put around every handler, the first outermost. Defaults to
	// none.
	Middleware []Middleware
	// Observer is told what happens to jobs in this process, for metrics above
	// all. It is called in a goroutine of its own, with one event at a time in
	// their order, so jobs never wait for it: 4,096 events wait for it, and
	// what does not fit is dropped, which the log tells. A panic in it is
	// logged. Shutdown waits two seconds for it. Defaults to nil: nothing is
	// told.
	Observer func(Event)
	// Tokens are the verification tokens that the Handler accepts as
	// "Authorization: Bearer <token>"; several, so that they can be rotated.
	// Defaults to none: every call is refused that Authorize does not allow.
	Tokens []string
	// Authorize, if set, decides in place of Tokens who may create, read, cancel
	// and retry jobs over HTTP. Runs always need a token. If it goes by what a
	// browser sends by itself, such as a cookie, it has to refuse what other
	// sites make browsers send, see http.CrossOriginProtection. Defaults to nil.
	Authorize func(*http.Request) bool
	// Schema is the Postgres schema: 1 to 48 lower-case letters, digits or _,
	// not beginning with a digit. Defaults to "scheduler".
	Schema string
	// BasePath is where the host mounts Handler. Defaults to "/api/jobs".
	BasePath string
	// Concurrency is how many handlers this process runs at once, over all
	// runs and queues. Defaults to 100.
	Concurrency int
	// Lease is how long a job is safe from being rescued when the process that
	// runs it has gone silent; it is renewed three times in this time. At
	// least one second. Defaults to 30 seconds.
	Lease time.Duration
	// PollInterval is how often Work looks for due jobs when nothing wakes it
	// earlier. At least 10 milliseconds. Defaults to 2 seconds.
	PollInterval time.Duration
	// RunWait is how long a call of the Run endpoint waits for its jobs before
	// it answers 202; keep it below the caller's timeout. Below zero: not at
	// all. Defaults to 4 seconds.
	RunWait time.Duration
	// KeepFinished is how long succeeded and cancelled jobs are kept. Below
	// zero: for ever. Defaults to 7 days.
	KeepFinished time.Duration
	// KeepDead is how long dead jobs are kept. Below zero: for ever. Defaults
	// to 30 days.
	KeepDead time.Duration
	// Logger takes what no caller is told: failed attempts, lost leases,
	// database errors in the background. Defaults to slog.Default().
	Logger *slog.Logger
}

// Scheduler creates jobs and runs them. Make one with New and share it: its
// methods may be called from many goroutines at once.
type Scheduler struct {
	pool       *pgxpool.Pool
	config     Config // with its defaults filled in
	queues     map[JobQueue]*queue
	recurring  []newRecurring
	names      []string // the registered job names, sorted
	handlers   JobNames // with the middleware around them
	statements sync.Map // queries with the schema filled in, by their text

	open     context.Context         // picks go on until Shutdown begins
	close    context.CancelFunc      //
	life     context.Context         // what handlers run on, until Shutdown stops waiting
	end      context.CancelCauseFunc //
	gone     context.Context         // what leases and records are kept on, until Shutdown has given up
	leave    context.CancelFunc      //
	openMu   sync.Mutex              // orders the start of work against the begin of Shutdown
	underway sync.WaitGroup          // everything that Shutdown waits for

	slots     slots
	capacity  capacity
	claims    sync.RWMutex // read-locked while a claim is in flight, see reconcile
	suspects  atomic.Int32 // above 0: a claim may have left traces, see reconcile
	lease     lease
	spare     spare
	finisher  finisher
	reporter  reporter
	gatherer  gatherer
	notifier  notifier
	observer  observer
	cleaner   cleaner
	strangers strangers
	resident  resident
}

// New makes a Scheduler. It touches no database; the caller owns the pool and
// closes it after Shutdown. Pools in every query exec mode work, so also those
// that talk to a transaction-mode pooler. The error is an *InputError that
// names the setting.
func New(pool *pgxpool.Pool, config Config) (*Scheduler, error) {
	if pool == nil {
		return nil, fmt.Errorf("new scheduler: %w", badInput("pool", "expected a pool, got nil"))
	}
	return newScheduler(pool, config)
}

// newScheduler is New, also without a pool, for a fake.
func newScheduler(pool *pgxpool.Pool, config Config) (*Scheduler, error) {
	config = config.withDefaults()
	queues, err := declaredQueues(config.Queues)
	if err == nil {
		err = config.check()
	}
	if err != nil {
		return nil, fmt.Errorf("new scheduler: %w", err)
	}

	s := &Scheduler{pool: pool, config: config, queues: queues, names: []string{}} // not nil: in SQL that is any name
	for name := range config.JobNames {
		s.names = append(s.names, name)
	}
	slices.Sort(s.names)
	if s.recurring, err = s.recurringRows(config.Recurring); err != nil {
		return nil, fmt.Errorf("new scheduler: %w", err)
	}
	if s.handlers, err = config.wrapped(s.names); err != nil {
		return nil, fmt.Errorf("new scheduler: %w", err)
	}
	s.open, s.close = context.WithCancel(context.Background())
	s.life, s.end = context.WithCancelCause(context.Background())
	s.gone, s.leave = context.WithCancel(context.Background())
	s.resident.alarm = newAlarm()
	s.reporter.hurry = make(chan struct{}, 1)
	s.slots.free = config.Concurrency
	s.capacity = capacity{slots: config.Concurrency, freed: make(chan struct{})}
	return s, nil
}

func (c Config) withDefaults() Config {
	setDefault(&c.Schema, "scheduler")
	setDefault(&c.BasePath, "/api/jobs")
	setDefault(&c.Concurrency, 100)
	setDefault(&c.Lease, 30*time.Second)
	setDefault(&c.PollInterval, 2*time.Second)
	setDefault(&c.RunWait, 4*time.Second)
	setDefault(&c.KeepFinished, 7*24*time.Hour)
	setDefault(&c.KeepDead, 30*24*time.Hour)
	setDefault(&c.Logger, slog.Default())
	// The caller may go on changing its own map and slice.
	names := make(JobNames, len(c.JobNames))
	for name, handler := range c.JobNames {
		names[name] = handler
	}
	if c.JobNames != nil {
		c.JobNames = names
	}
	c.Tokens = slices.Clone(c.Tokens)
	c.Backoffs = maps.Clone(c.Backoffs)
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

var (
	schemaPattern  = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,47}$`)
	jobNamePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}$`)
	pathPattern    = regexp.MustCompile(`^(/|(/[A-Za-z0-9_.~-]+)+)$`)
)

func (c Config) check() error {
	for name, handler := range c.JobNames {
		if err := checkJobName(name); err != nil {
			return &InputError{"job_names", err.Err}
		}
		if handler == nil {
			return badInput("job_names", "%q: expected a handler, got nil", name)
		}
	}
	for name, backoff := range c.Backoffs {
		if c.JobNames[name] == nil {
			return badInput("backoffs", "%s: expected a name that has a handler in Config.JobNames", shown(name))
		}
		if backoff == nil {
			return badInput("backoffs", "%q: expected a function, got nil", name)
		}
	}
	for queue, config := range c.Queues {
		if err := c.checkOnDead(config.OnDead); err != nil {
			return &InputError{"queues", fmt.Errorf("queue %q: on dead: %w", queue, err)}
		}
	}
	for i, token := range c.Tokens {
		if token == "" {
			return badInput("tokens", "token %d is empty: is the variable that it comes from set?", i)
		}
		// Not shown: it may be a secret with one wrong character.
		if len(token) > mostToken || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return badInput("tokens", "token %d: expected at most %d visible ASCII characters without spaces", i, mostToken)
		}
	}
	switch {
	case !schemaPattern.MatchString(c.Schema):
		return badInput("schema", "%s: expected 1 to 48 lower-case letters, digits or _, not beginning with a digit", shown(c.Schema))
	case strings.HasPrefix(c.Schema, "pg_"):
		return badInput("schema", "%q: names that begin with pg_ belong to Postgres", c.Schema)
	case !pathPattern.MatchString(c.BasePath) || path.Clean(c.BasePath) != c.BasePath:
		return badInput("base_path", "%s: expected a path such as /api/jobs, without a slash at its end", shown(c.BasePath))
	case c.Concurrency < 1 || c.Concurrency > 1_000_000:
		return badInput("concurrency", "%d: expected 1 to 1,000,000", c.Concurrency)
	case c.Lease < time.Second || c.Lease > time.Hour:
		return badInput("lease", "%s: expected 1s to 1h", c.Lease)
	case c.PollInterval < 10*time.Millisecond:
		return badInput("poll_interval", "%s: expected at least 10ms", c.PollInterval)
	}
	return nil
}

func checkJobName(name string) *InputError {
	if !jobNamePattern.MatchString(name) {
		return badInput("name", "%s: expected 1 to 128 letters, digits or _ . : / -, beginning with a letter or digit", shown(name))
	}
	return nil
}

// sql fills the schema into a query. The result is kept, so that the driver
// sees the same string (and has its prepared statement) every time.
func (s *Scheduler) sql(query string) string {
	if statement, ok := s.statements.Load(query); ok {
		return statement.(string)
	}
	statement := inSchema(s.config.Schema, query)
	s.statements.Store(query, statement)
	return statement
}

// begin counts the caller among the work that Shutdown waits for, unless
// Shutdown has begun. The caller calls done at its end.
func (s *Scheduler) begin() (done func(), err error) {
	s.openMu.Lock()
	defer s.openMu.Unlock()
	if s.open.Err() != nil {
		return nil, ErrShuttingDown
	}
	s.underway.Add(1)
	return s.underway.Done, nil
}

// whileOpen returns a context that ends with ctx, or when Shutdown begins.
func (s *Scheduler) whileOpen(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.open, func() { cancel(ErrShuttingDown) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// graceAfterCancel is how long Shutdown waits for handlers to heed the end of
// their context.
const graceAfterCancel = 2 * time.Second

// Shutdown stops picking jobs, waits for those that run, and hands back those
// that were picked but not started. When ctx ends first, it ends the handlers'
// contexts (the cause is ErrShuttingDown) and gives them two more seconds; a
// job whose handler then returns an error goes back without losing an attempt.
// The error wraps the one of ctx if handlers were still running at the end:
// their jobs stay theirs until the lease has run out, and are then rescued. What
// Config.Observer has not been told by then, it is told for two more seconds at
// most.
//
// Give ctx a deadline some seconds shorter than the platform's before it kills
// the process, and call Shutdown before http.Server.Shutdown: requests are
// answered 503 from now on.
func (s *Scheduler) Shutdown(ctx context.Context) error {
	s.openMu.Lock()
	s.close()
	s.openMu.Unlock()
	s.handBackWaiting(time.Now().Add(startWithin))
	s.slots.close()

	drained := make(chan struct{})
	go func() {
		s.underway.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-ctx.Done():
	}
	s.end(ErrShuttingDown)
	grace := time.NewTimer(graceAfterCancel)
	defer grace.Stop()
	var err error
	select {
	case <-drained:
	case <-grace.C:
		err = fmt.Errorf("shutdown: handlers are still running: %w", ctx.Err())
	}
	// The lease was renewed until here, so that nobody took the jobs over while
	// their handlers were coming to an end.
	s.leave()
	s.lease.beating.Wait()
	s.spare.close(ctx, 0)
	s.reporter.stop()
	if err == nil {
		s.lease.giveUp(context.WithoutCancel(ctx), s)
	}
	s.observer.end(s)
	return err
}
