package schedulertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/seam"
)

// Fake takes the place of a Scheduler in unit tests of business code that creates
// jobs, without a database: it checks what it is given as a Scheduler with the same
// Config does, with the same errors, keeps it, and runs nothing. Business code
// declares the methods it needs as an interface, which both have. RequireCreated finds the
// jobs; CallHandler calls their handlers. Its methods may be called from many
// goroutines at once.
//
// It knows nothing of transactions, so a job is there at once, also if the
// transaction is nil or rolled back. A UniqueKey is taken for ever, because no
// job is ever finished; and for the same reason a job that is to run after others
// waits for ever. A ctx that has ended is an error, as one that could not
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
	job := made.(*scheduler.Job)
	if f.holder(job) < 0 {
		if i, err := f.checkParents(scheduler.NewJob{JobData: data}); i >= 0 {
			return nil, fmt.Errorf("create job: %w", err)
		}
	}
	return f.keep(job, data), nil
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
	if i, err := f.checkParents(jobs...); i >= 0 {
		err.Field = fmt.Sprintf("jobs[%d].%s", i, err.Field)
		return nil, fmt.Errorf("create jobs: %w", err)
	}
	ids = []string{}
	for i, job := range made.([]*scheduler.Job) {
		ids = append(ids, f.keep(job, jobs[i].JobData).ID)
	}
	return ids, nil
}

// holder is the place of the job that has this one's key; below 0: none. f.mu is
// held.
func (f *Fake) holder(job *scheduler.Job) int {
	return slices.IndexFunc(f.jobs, func(other *scheduler.Job) bool {
		return job.UniqueKey != "" && other.UniqueKey == job.UniqueKey && other.Name == job.Name
	})
}

// checkParents looks for jobs that are to be waited for and are not there. It
// returns the first job that waits for the lowest of them, as a Scheduler does;
// below 0: all are there. f.mu is held.
func (f *Fake) checkParents(batch ...scheduler.NewJob) (int, *scheduler.InputError) {
	place, lowest := -1, ""
	for i, job := range batch {
		for _, parent := range job.After {
			id := strings.ToLower(parent)
			isLabel := slices.ContainsFunc(batch, func(other scheduler.NewJob) bool { return other.Label == parent })
			isThere := slices.ContainsFunc(f.jobs, func(other *scheduler.Job) bool { return other.ID == id })
			if !isLabel && !isThere && (place < 0 || id < lowest) {
				place, lowest = i, id
			}
		}
	}
	return place, &scheduler.InputError{Field: "after", Err: fmt.Errorf("there is no job %s", lowest)}
}

// keep keeps a job, or finds the one that has its key. f.mu is held.
func (f *Fake) keep(job *scheduler.Job, data scheduler.JobData) *scheduler.Job {
	there := f.holder(job)
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
