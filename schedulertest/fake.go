package schedulertest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/seam"
)

// Fake takes the place of a Scheduler in unit tests of business code, without a
// database: it checks what it is given as a Scheduler with the same Config does,
// with the same errors, keeps it, and runs nothing. Business code declares the
// methods it needs as an interface, which both have. RequireCreated finds the
// jobs; CallHandler calls their handlers. Its methods may be called from many
// goroutines at once.
//
// It knows nothing of transactions, so a job is there at once, also if the
// transaction is nil or rolled back. A UniqueKey is taken for ever, because no
// job is ever finished. A ctx that has ended is an error, as one that could not
// reach the database.
type Fake struct {
	maker seam.Maker
	mu    sync.Mutex
	jobs  []*scheduler.Job
}

// NewFake returns a Fake. A Config that can't be used fails the test.
func NewFake(tb testing.TB, config scheduler.Config) *Fake {
	tb.Helper()
	maker, err := seam.NewMaker(config)
	if err != nil {
		tb.Fatalf("schedulertest: %v", err)
	}
	return &Fake{maker: maker}
}

// CreateJob is that of a Scheduler.
func (f *Fake) CreateJob(ctx context.Context, name string, data scheduler.JobData) (*scheduler.Job, error) {
	made, err := f.maker.Make(ctx, name, data)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("create job: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keep(made.(*scheduler.Job), data), nil
}

// CreateJobTx is that of a Scheduler. tx is not used, and may be nil.
func (f *Fake) CreateJobTx(ctx context.Context, _ pgx.Tx, name string, data scheduler.JobData) (*scheduler.Job, error) {
	return f.CreateJob(ctx, name, data)
}

// CreateJobSQL is that of a Scheduler. tx is not used, and may be nil.
func (f *Fake) CreateJobSQL(ctx context.Context, _ scheduler.SQLTx, name string, data scheduler.JobData) (*scheduler.Job, error) {
	return f.CreateJob(ctx, name, data)
}

// CreateJobs is that of a Scheduler.
func (f *Fake) CreateJobs(ctx context.Context, jobs []scheduler.NewJob) (ids []string, err error) {
	made, err := f.maker.MakeAll(ctx, jobs)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("create jobs: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	ids = []string{}
	for i, job := range made.([]*scheduler.Job) {
		ids = append(ids, f.keep(job, jobs[i].JobData).ID)
	}
	return ids, nil
}

// keep keeps a job, or finds the one that has its key. f.mu is held.
func (f *Fake) keep(job *scheduler.Job, data scheduler.JobData) *scheduler.Job {
	there := slices.IndexFunc(f.jobs, func(other *scheduler.Job) bool {
		return job.UniqueKey != "" && other.UniqueKey == job.UniqueKey && other.Name == job.Name
	})
	if there < 0 {
		f.jobs = append(f.jobs, job)
		return copyOf(job)
	}
	kept := f.jobs[there]
	if data.OnDuplicate == scheduler.DuplicateReplace {
		kept.RunAt, kept.Payload, kept.Owner, kept.Tags, kept.Metadata = job.RunAt, job.Payload, job.Owner, job.Tags, job.Metadata
	}
	duplicate := copyOf(kept)
	duplicate.Duplicate = true
	return duplicate
}

// jobsNamed are the first jobs of this name; "": of any.
func (f *Fake) jobsNamed(name string, most int) []*scheduler.Job {
	f.mu.Lock()
	defer f.mu.Unlock()
	jobs := []*scheduler.Job{}
	for _, job := range f.jobs {
		if (name == "" || job.Name == name) && len(jobs) < most {
			jobs = append(jobs, copyOf(job))
		}
	}
	return jobs
}

// copyOf is a job that the test may change.
func copyOf(job *scheduler.Job) *scheduler.Job {
	c := *job
	c.Payload, c.Metadata, c.Tags = slices.Clone(job.Payload), slices.Clone(job.Metadata), slices.Clone(job.Tags)
	c.Errors = slices.Clone(job.Errors)
	return &c
}
