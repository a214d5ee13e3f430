package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"
)

// HandlerFunc does the work of one job. Its context ends when the job's
// timeout has passed, when somebody cancels the job, when the process has lost
// the job's lease, or when Shutdown does not wait any longer; context.Cause
// tells which. It carries the values of the context given to Run or Work, and
// does not end with that.
//
// The job is a copy that is the handler's own: what it changes in it, nobody
// sees but the handlers that middleware hands it on to.
//
// What it returns is the job's verdict: nil means succeeded, and result, as
// JSON of at most 1 MiB, is kept with the job; an error means that the attempt
// failed, and the job is rerun after the queue's backoff until its attempts are
// used up. Cancel, Snooze and RetryAfter make other verdicts. A panic, a call
// of runtime.Goexit, and a result that can't be stored are failed attempts.
//
// A job may be run again after its process was lost, even if its handler was
// about to return, so a handler should do no harm when it runs twice. What it
// writes to the jobs' own database happens once with CompleteTx. One that takes
// long goes on where it was with Checkpoint.
type HandlerFunc func(ctx context.Context, job *Job) (result any, err error)

// JobNames has the handlers by job name.
type JobNames map[string]HandlerFunc

// Handle makes a HandlerFunc of a function that takes the payload decoded (with
// encoding/json) into an In. A payload that does not fit is a failed attempt.
func Handle[In, Out any](fn func(ctx context.Context, in In) (Out, error)) HandlerFunc {
	return func(ctx context.Context, job *Job) (any, error) {
		var in In
		if err := json.Unmarshal(job.Payload, &in); err != nil {
			return nil, fmt.Errorf("decode the payload into %T: %w", in, err)
		}
		return fn(ctx, in)
	}
}

type cancelError struct{ err error }

func (e *cancelError) Error() string {
	if e.err == nil {
		return "cancelled by its handler"
	}
	return e.err.Error()
}
func (e *cancelError) Unwrap() error { return e.err }

// Cancel makes the error with which a handler says: never retry. The job
// becomes dead, whatever attempts it has left. err is the reason, and may be
// nil.
func Cancel(err error) error { return &cancelError{err} }

type snoozeError struct{ delay time.Duration }

func (e *snoozeError) Error() string { return fmt.Sprintf("snoozed for %s", e.delay) }

// Snooze makes the error with which a handler says: not now, run me again after
// d. The job becomes pending, and the attempt does not count. d must not be
// below zero.
func Snooze(d time.Duration) error { return &snoozeError{d} }

type retryAfterError struct {
	delay time.Duration
	err   error
}

func (e *retryAfterError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("asked to be rerun after %s", e.delay)
	}
	return e.err.Error()
}
func (e *retryAfterError) Unwrap() error { return e.err }

// RetryAfter makes the error with which a handler says: failed, rerun me after
// d in place of the queue's backoff. err is the reason, and may be nil. d must
// not be below zero.
func RetryAfter(d time.Duration, err error) error { return &retryAfterError{d, err} }

// handle runs one claimed job and hands its verdict to the finisher, which calls
// recorded when it is in the database, or dropped because the lease was lost.
func (s *Scheduler) handle(a *attempt) {
	job := a.job
	if job.life.lease.isOver() || job.life.Err() != nil { // before it began
		s.handBack(a)
		return
	}
	job.life.attempt = a
	out := &outcome{job: job, recorded: a.recorded, claim: a.claim, seen: s.tellStarted(job)}
	timeout := job.Timeout
	if timeout == 0 {
		timeout = a.queue.Timeout
	}
	ctx, cancel := context.Context(job.life), context.CancelFunc(func() {})
	if timeout > 0 {
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: %s has passed", ErrJobTimeout, timeout))
	}
	returned := false
	// Deferred, because a handler may end this goroutine by a panic or by
	// runtime.Goexit. This is the one place that catches both.
	defer func() {
		defer job.life.release()
		defer cancel()
		out.seen.returned()
		if !returned {
			err := errors.New("handler called runtime.Goexit")
			if reason := recover(); reason != nil {
				err = fmt.Errorf("handler panicked: %v\n\n%s", reason, debug.Stack())
			}
			s.verdict(a, out, nil, err, false)
		}
		s.record(a, out)
	}()
	if job.life.lease.hasRunOut() { // a last look: what is above may have waited, or the process was stopped
		out.handBack()
		returned = true
		return
	}
	given := *job    // a copy, which the handler may change
	given.life = nil // ours alone, and not to be kept by who keeps the job
	result, err := s.handlers[job.Name](ctx, &given)
	out.seen.returned()
	// Shutdown's doing, not the handler's: the attempt does not count.
	interrupted := err != nil && errors.Is(context.Cause(job.life.lease), ErrShuttingDown)
	if err != nil && context.Cause(ctx) != nil && !strings.Contains(err.Error(), context.Cause(ctx).Error()) {
		err = fmt.Errorf("%w (its context ended: %w)", err, context.Cause(ctx))
	}
	s.verdict(a, out, result, err, interrupted)
	returned = true
}

func (o *outcome) handBack() { o.status, o.refund, o.handed = JobStatusPending, 1, true }

// judge turns what a handler returned into what is recorded.
func (o *outcome) judge(s *Scheduler, q *queue, result any, err error, interrupted bool) {
	if err == nil {
		text, encodeErr := encodeJSON(result)
		if encodeErr == nil {
			o.status, o.result = JobStatusSucceeded, &text
			return
		}
		err = fmt.Errorf("the handler's result %w", encodeErr)
	}
	var cancelled *cancelError
	var snoozed *snoozeError
	var later *retryAfterError
	switch {
	case o.job.life.isCalledOff(): // so the database says too
		o.status = JobStatusCancelled
	case errors.As(err, &cancelled):
		o.status = JobStatusDead
	case errors.As(err, &snoozed) && snoozed.delay >= 0:
		o.status, o.refund, o.delay = JobStatusPending, 1, &snoozed.delay
		return
	case interrupted:
		o.handBack()
		o.seen.failed(ErrShuttingDown)
		return
	case o.job.Attempt >= o.job.MaxAttempts:
		o.status = JobStatusDead
	case errors.As(err, &later) && later.delay >= 0:
		o.status, o.delay = JobStatusFailed, &later.delay
	default:
		backoff := s.config.Backoffs[o.job.Name]
		if backoff == nil {
			backoff = q.Backoff
		}
		delay := safeBackoff(backoff, o.job.Attempt)
		o.status, o.delay = JobStatusFailed, &delay
	}
	switch {
	case snoozed != nil:
		err = fmt.Errorf("Snooze(%s): expected a time not below zero", snoozed.delay)
	case later != nil && later.delay < 0:
		err = fmt.Errorf("RetryAfter(%s): expected a time not below zero: %w", later.delay, err)
	}
	o.seen.failed(err)
	message := storableText(err.Error(), mostError)
	o.failure = &message
	s.config.Logger.Warn("scheduler: job "+string(o.status), "job", o.job.ID, "name", o.job.Name, "queue", o.job.Queue,
		"attempt", o.job.Attempt, "max_attempts", o.job.MaxAttempts, "error", message)
}

// mostError bounds one recorded error, in bytes.
const mostError = 8 << 10

// storableText cuts text to a size, and takes out what Postgres refuses.
func storableText(text string, most int) string {
	text = strings.ToValidUTF8(text[:min(len(text), most+utf8.UTFMax)], "\uFFFD")
	text = strings.ReplaceAll(text, "\x00", "\uFFFD")
	if len(text) <= most {
		return text
	}
	end := most - len("…")
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}

// safeBackoff asks a backoff, which is the service's code: neither a panic in it
// nor runtime.Goexit may lose the job.
func safeBackoff(backoff func(attempt int) time.Duration, attempt int) time.Duration {
	answer := make(chan time.Duration, 1)
	go func() {
		defer close(answer)
		defer func() { _ = recover() }()
		answer <- backoff(attempt)
	}()
	delay, ok := <-answer
	if !ok {
		delay = defaultBackoff(attempt)
	}
	return min(max(0, delay), mostBackoff)
}
