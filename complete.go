package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const completeSQL = `SELECT {{schema}}.complete($1::text::uuid, $2::int, $3::text), pg_catalog.pg_current_xact_id()::text`

// CompleteTx records, inside the handler's own transaction, that its job has
// succeeded with this result (as JSON of at most 1 MiB), so that the success and
// what the handler writes in tx are there together or not at all: the effect of
// a job happens once, whatever becomes of the process. A handler calls it with
// the context that it was given, or one derived from it, and its own job, then
// commits as the last thing it does: from then on the job is finished, and in a
// blocking queue the next one may start.
//
// From the first call on, the attempt has succeeded if, and only if, tx commits.
// What the handler returns after that changes nothing; an error is logged. If tx
// does not commit, the error that the handler returns is the verdict as always,
// and one that returns nil all the same has failed that attempt, because what it
// wrote is not there. After a rollback, to a savepoint too, it may try again in
// the same attempt.
//
// The error is ErrLeaseLost if the job was taken away from this attempt: then
// roll back and return it. It is an *InputError if result can't be stored, if
// job is not the one that ctx is about, if its handler has returned, or if it is
// completed already, or in another transaction that stays open for five seconds.
// Any other error is Postgres's, such as a serialization failure.
func (s *Scheduler) CompleteTx(ctx context.Context, tx pgx.Tx, job *Job, result any) error {
	if err := s.completeTx(ctx, tx, job, result); err != nil {
		return fmt.Errorf("complete job: %w", err)
	}
	return nil
}

func (s *Scheduler) completeTx(ctx context.Context, tx pgx.Tx, job *Job, result any) error {
	a, err := s.completable(ctx, tx, job)
	if err != nil {
		return err
	}
	text, err := encodeJSON(result)
	if err != nil {
		return &InputError{"result", err}
	}
	if errors.Is(context.Cause(a.job.life.lease), ErrLeaseLost) {
		return fmt.Errorf("%w: job %s is another attempt's now", ErrLeaseLost, job.ID)
	}
	if !a.completion.begin() {
		return badInput("job", "%s: its handler has returned: expected a call before that", job.ID)
	}
	var recorded *bool
	record := completed{result: text}
	err = tx.QueryRow(ctx, s.sql(completeSQL), job.ID, a.job.claims, text).Scan(&recorded, &record.transaction)
	switch {
	case sqlState(err) == lockNotAvailable:
		return badInput("job", "%s: completed in another transaction, which is still open: expected that to end first: %w", job.ID, err)
	case err != nil:
		return refusedByPostgres("result", err)
	case recorded == nil:
		return fmt.Errorf("%w: job %s is another attempt's now", ErrLeaseLost, job.ID)
	case !*recorded:
		return badInput("job", "%s: it is completed already: expected one call", job.ID)
	}
	a.completion.last.Store(&record)
	return nil
}

// completable returns the attempt whose handler calls CompleteTx.
func (s *Scheduler) completable(ctx context.Context, tx pgx.Tx, job *Job) (*attempt, error) {
	if isNil(tx) {
		return nil, errNoTx()
	}
	if job == nil {
		return nil, badInput("job", "expected the handler's job, got nil")
	}
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	if a == nil || a.rehearsed {
		return nil, badInput("job", "%s: it is not running here: expected a call by its handler, with the handler's context", shown(job.ID))
	}
	if s.queues[a.queue.name] != a.queue {
		return nil, badInput("job", "%s: it is another Scheduler's: expected the one that runs it", shown(job.ID))
	}
	if own := uuid.UUID(a.job.key.Bytes).String(); job.ID != own {
		return nil, badInput("job", "%s: it is another job: expected %s, which the context is about", shown(job.ID), own)
	}
	return a, nil
}

// completion says whether the handler of an attempt has called CompleteTx, and
// whether it still may.
type completion struct {
	state atomic.Int32
	last  atomic.Pointer[completed] // by the last call that recorded something; nil: none has
}

// completed is what a call of CompleteTx has recorded, if its transaction commits.
type completed struct {
	transaction string // its id, as the database knows it
	result      string // JSON
}

const (
	completionNone  = iota // not called
	completionBegun        // called: the database knows what came of it
	completionEnded        // the handler has returned
)

// begin notes a call, unless the handler has returned.
func (c *completion) begin() bool {
	return c.state.CompareAndSwap(completionNone, completionBegun) || c.state.Load() == completionBegun
}

// end notes that the handler has returned, and says whether there was a call.
func (c *completion) end() bool {
	return c.state.Swap(completionEnded) == completionBegun
}

// errNotCommitted is the verdict over a handler that returned nil without having
// committed what it was to do.
var errNotCommitted = errors.New("CompleteTx was called, but its transaction was not committed")

// verdict judges an attempt. What CompleteTx has recorded goes before all that
// the handler returns.
func (s *Scheduler) verdict(a *attempt, out *outcome, result any, err error, interrupted bool) {
	if a.completion.end() {
		out.completes = true
	}
	if out.completes {
		if s.isCompleted(a, out) {
			if err != nil {
				s.config.Logger.Warn("scheduler: a handler returned an error after its job was completed by CompleteTx",
					"job", a.job.ID, "name", a.job.Name, "error", err)
			}
			return
		}
		if err == nil {
			err = errNotCommitted
		}
	}
	out.judge(s, a.queue, result, err, interrupted)
}

// record hands an outcome to the finisher, after what its handler has reported
// last. One that its handler's transaction may still have locked is recorded
// aside first, lest it hold up others.
func (s *Scheduler) record(a *attempt, out *outcome) {
	reported := s.endReports(a)
	if reported == nil && (!out.completes || out.written) {
		s.finisher.add(s, out)
		return
	}
	// The outcome keeps Shutdown waiting, and so does this.
	go func() {
		if reported != nil {
			<-reported
		}
		if !out.completes || out.written {
			s.finisher.add(s, out)
			return
		}
		s.finisher.writeAside(s, out, a)
	}()
}

// completedSQL: a job that has succeeded may be deleted. Then it is enough that the
// transaction has committed, as nobody can delete one that is running.
const completedSQL = `
SELECT coalesce(
    (SELECT j.result::text FROM {{schema}}.jobs j WHERE j.id = $1::text::uuid AND j.claims = $2::int AND j.status = 'succeeded'),
    CASE WHEN NOT EXISTS (SELECT FROM {{schema}}.jobs j WHERE j.id = $1::text::uuid) AND pg_catalog.pg_xact_status(nullif($3::text, '')::xid8) = 'committed'
        THEN $4::text END)`

// isCompleted says whether CompleteTx has recorded that this attempt succeeded,
// and if so it is the outcome. It asks for as long as it takes, as finish does.
func (s *Scheduler) isCompleted(a *attempt, out *outcome) bool {
	wait := 50 * time.Millisecond
	for {
		result, err := s.completedResult(a)
		if err == nil {
			if result == nil {
				return false
			}
			*out = outcome{job: out.job, recorded: out.recorded, seen: out.seen, completes: true, written: true,
				status: JobStatusSucceeded, result: result}
			return true
		}
		s.config.Logger.Warn("scheduler: can't look up yet whether a job is completed", "job", out.job.ID, "error", err)
		select {
		case <-time.After(wait):
		case <-s.gone.Done():
			return false
		}
		wait = min(2*wait, 2*time.Second)
	}
}

// completedResult is the result with which CompleteTx has recorded the attempt;
// nil if it has not.
func (s *Scheduler) completedResult(a *attempt) (result *string, err error) {
	var last completed
	if p := a.completion.last.Load(); p != nil {
		last = *p
	}
	ctx, cancel := context.WithTimeout(s.gone, claimTimeout)
	defer cancel()
	err = s.pool.QueryRow(ctx, s.sql(completedSQL), uuid.UUID(a.job.key.Bytes).String(), a.job.claims, last.transaction, last.result).Scan(&result)
	return result, err
}
