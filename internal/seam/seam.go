// Package seam is where the root package leaves, for schedulertest alone, what
// it does not export. What stands for a type of the root package is an any,
// because that one imports this one.
package seam

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"
)

// Scheduler is what is behind a *scheduler.Scheduler.
type Scheduler interface {
	// Pool is the pool it was made with.
	Pool() *pgxpool.Pool
	// Schema is the one its jobs are in.
	Schema() string
	// Jobs returns, as a []*scheduler.Job, the jobs of this name (""; of any)
	// that db sees: a *pgxpool.Pool, a pgx.Tx or a scheduler.SQLTx. The oldest
	// come first, and no more than most of them.
	Jobs(ctx context.Context, db any, name string, most int) (jobs any, err error)
	// RunNext runs the job that has been due for longest, in its order of its
	// queue, and returns its id when it is recorded; "" if nothing is due.
	RunNext(ctx context.Context) (id string, err error)
	// RunJob runs this job, which must be due.
	RunJob(ctx context.Context, id string) error
	// Moved says that the times in the database were changed.
	Moved()

	Maker
}

// Maker checks and makes jobs, and calls their handlers, without a database.
type Maker interface {
	// Make returns the *scheduler.Job that CreateJob would with this
	// scheduler.JobData, or its error.
	Make(ctx context.Context, name string, data any) (job any, err error)
	// MakeAll returns the []*scheduler.Job that CreateJobs would create of this
	// []scheduler.NewJob, or its error.
	MakeAll(ctx context.Context, batch any) (jobs any, err error)
	// Call calls the handler of a *scheduler.Job; not handled: there is none.
	Call(ctx context.Context, job any) (handled bool, result any, err error)
}

// Set when the root package is initialized.
var (
	Of       func(scheduler any) Scheduler           // of a *scheduler.Scheduler
	NewMaker func(config any) (maker Maker, _ error) // with a scheduler.Config
)
