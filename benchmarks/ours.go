package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/relay-club/scheduler"
)

// library is this library, with its default Config.
type library struct {
	*scheduler.Scheduler
	pool  *pgxpool.Pool
	queue scheduler.JobQueue // in which jobs are created
	keys  int                // over how many keys they are spread; 0: they have none

	mu    sync.Mutex
	first string // the id of the first job that is counted
}

const (
	jobName  = "noop"
	token    = "benchmark"
	basePath = "/api/jobs"
)

func openOurs(ctx context.Context, pool *pgxpool.Pool, handle func(n int)) (engine, error) {
	return openLibrary(ctx, pool, scheduler.Config{}, func(_ context.Context, in numbered) (any, error) {
		handle(in.N)
		return nil, nil
	})
}

// openLibrary sets in config only what the figure needs.
func openLibrary(
	ctx context.Context, pool *pgxpool.Pool, config scheduler.Config, handler func(context.Context, numbered) (any, error),
) (*library, error) {
	config.JobNames = scheduler.JobNames{jobName: scheduler.Handle(handler)}
	config.Tokens = []string{token}
	config.Logger = logger
	s, err := scheduler.New(pool, config)
	if err != nil {
		return nil, err
	}
	return &library{Scheduler: s, pool: pool}, s.Migrate(ctx)
}

func (l *library) create(ctx context.Context, n int) error {
	_, err := l.CreateJob(ctx, jobName, scheduler.JobData{Payload: numbered{n}})
	return err
}

func (l *library) creator(pool *pgxpool.Pool) (func(ctx context.Context, n int) error, error) {
	s, err := scheduler.New(pool, scheduler.Config{Logger: logger})
	return (&library{Scheduler: s}).create, err
}

func (l *library) createBatch(ctx context.Context, from, count int) error {
	ids, err := l.CreateJobs(ctx, l.newJobs(from, count, time.Time{}))
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.first == "" {
		l.first = ids[0]
	}
	return nil
}

func (l *library) newJobs(from, count int, runAt time.Time) []scheduler.NewJob {
	jobs := make([]scheduler.NewJob, count)
	for i := range jobs {
		jobs[i] = scheduler.NewJob{Name: jobName, JobData: scheduler.JobData{Queue: l.queue, Payload: numbered{from + i}, RunAt: runAt}}
		if l.keys > 0 {
			jobs[i].Key = strconv.Itoa((from + i) % l.keys)
		}
	}
	return jobs
}

func (l *library) work(ctx context.Context) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- l.Work(ctx) }()
	return func() error {
		cancel()
		return errors.Join(<-ended, l.shutdown())
	}, nil
}

func (l *library) shutdown() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return l.Shutdown(ctx)
}

// finishedSQL finds the benchmark's own jobs by their ids, which are in the
// order of creation, so that other rows in the table cost nothing.
const finishedSQL = `SELECT count(*) FROM scheduler.jobs WHERE id >= $1::text::uuid AND status = 'succeeded'`

func (l *library) finished(ctx context.Context, watch *pgxpool.Pool) (n int, err error) {
	err = watch.QueryRow(ctx, finishedSQL, pgx.QueryExecModeExec, l.first).Scan(&n)
	return n, err
}

// fillPending adds jobs that are due tomorrow, in the same queue.
func (l *library) fillPending(ctx context.Context, n int) error {
	tomorrow := time.Now().Add(24 * time.Hour)
	for from := 0; from < n; from += batchSize {
		if _, err := l.CreateJobs(ctx, l.newJobs(from, min(batchSize, n-from), tomorrow)); err != nil {
			return err
		}
	}
	return nil
}

const otherColumnsSQL = `
SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
WHERE attrelid = 'scheduler.jobs'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' AND attname <> 'id'`

const copyRowsSQL = `
INSERT INTO scheduler.jobs (id, %[1]s)
SELECT ('01900000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, %[1]s
FROM scheduler.jobs, generate_series(1, $2) AS n WHERE id = $1::text::uuid`

// fillFinished runs one job and copies its row n times.
func (l *library) fillFinished(ctx context.Context, n int) error {
	job, err := l.CreateJob(ctx, jobName, scheduler.JobData{Payload: numbered{0}})
	if err != nil {
		return err
	}
	report, err := l.Run(ctx, scheduler.RunFilter{})
	if err != nil {
		return err
	}
	if report.Succeeded != 1 {
		return fmt.Errorf("the job to be copied did not succeed: %+v", report)
	}
	var columns string
	if err := l.pool.QueryRow(ctx, otherColumnsSQL).Scan(&columns); err != nil {
		return err
	}
	_, err = l.pool.Exec(ctx, fmt.Sprintf(strings.TrimSpace(copyRowsSQL), columns), job.ID, n)
	return err
}
