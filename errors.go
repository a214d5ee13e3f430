package scheduler

import (
	"errors"
	"fmt"
)

// Errors that a caller can act on. Every function wraps them with what it was
// doing and the value that was wrong; test for them with errors.Is.
var (
	// ErrJobNotFound says that there is no job with this id (any more).
	ErrJobNotFound = errors.New("job not found")
	// ErrJobState says that a job's status does not allow what was asked for:
	// only some can be retried, rescheduled or deleted. Nothing was changed.
	ErrJobState = errors.New("wrong job state")
	// ErrJobLocked says that another transaction, such as that of its handler after
	// CompleteTx, holds the job for more than three seconds. Nothing was changed:
	// try again.
	ErrJobLocked = errors.New("job locked")
	// ErrInvalidInput says that something handed in can't be used. Nothing was
	// stored. The error is an *InputError, which names the field.
	ErrInvalidInput = errors.New("invalid input")
	// ErrUnknownJobName says that Config.JobNames has no handler of this name.
	// It is an ErrInvalidInput too.
	ErrUnknownJobName = errors.New("unknown job name")
	// ErrUnknownQueue says that nobody declared this queue. It is an
	// ErrInvalidInput too.
	ErrUnknownQueue = errors.New("unknown queue")
	// ErrQueueFull says that a queue has as many pending jobs as may be, see
	// QueueConfig.MaxPending. Nothing was stored; try again later.
	ErrQueueFull = errors.New("queue is full")
	// ErrShuttingDown says that Shutdown has begun: nothing new is started. It
	// is also the cause (context.Cause) with which a handler's context ends
	// when Shutdown does not wait any longer.
	ErrShuttingDown = errors.New("scheduler is shutting down")
	// ErrLeaseLost is the cause with which a handler's context ends when the
	// process could not renew its lease in time. The job is or will be run
	// again elsewhere, and what this attempt returns is dropped.
	ErrLeaseLost = errors.New("lease lost")
	// ErrJobTimeout is the cause with which a handler's context ends when the
	// job's timeout has passed.
	ErrJobTimeout = errors.New("job timeout")
	// ErrJobCancelled is the cause with which a handler's context ends when the
	// job was called off, see CancelJob.
	ErrJobCancelled = errors.New("job cancelled")
	// ErrNewerSchema says that the schema was migrated by a newer version of
	// this library. One that was deployed before may go on with it, see Migrate.
	ErrNewerSchema = errors.New("database schema is newer than this library")
)

// InputError tells which part of the input was refused, and why.
// errors.Is(err, ErrInvalidInput) holds for it, and errors.Is also finds
// ErrUnknownJobName or ErrUnknownQueue where they are the reason.
type InputError struct {
	Field string // as in JSON: "name", "queue", "run_at"; "jobs[3].queue" in a batch
	Err   error  // names the value and what was expected
}

func (e *InputError) Error() string { return e.Field + ": " + e.Err.Error() }

// Unwrap makes both the kind of the error and its reason visible to errors.Is.
func (e *InputError) Unwrap() []error { return []error{ErrInvalidInput, e.Err} }

func badInput(field, format string, args ...any) *InputError {
	return &InputError{Field: field, Err: fmt.Errorf(format, args...)}
}

// shown quotes a value from outside for an error message, cut to a readable length.
func shown(value string) string {
	const most = 64
	if len(value) > most {
		return fmt.Sprintf("%q… (%d bytes)", value[:most], len(value))
	}
	return fmt.Sprintf("%q", value)
}
