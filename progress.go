package scheduler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/jackc/pgx/v5"
)

// JobProgress is what a job's handler has reported, in this attempt or those
// before it.
type JobProgress struct {
	Percent    int             `json:"percent"`    // 0 to 100; 0 as long as there was no SetProgress
	Note       string          `json:"note"`       // of the same call
	Checkpoint json.RawMessage `json:"checkpoint"` // nil: none
	At         time.Time       `json:"at"`         // when the newest of these was reported
}

const (
	mostNote       = 1 << 10
	mostCheckpoint = 64 << 10
)

// SetProgress tells how far the job has come that ctx is about: the context of
// its handler, or one derived from it. percent is 0 to 100 and may go back, note
// is any text of at most 1 KiB, and "" leaves none. Job.Progress shows it to all
// processes, and goes on showing it in later attempts until those report.
//
// It is cheap enough for every step of a loop: it only notes what is then
// written about once a second, in one statement for all jobs of the process.
// What was reported last is written before the attempt's outcome is recorded (or
// right after the commit, with CompleteTx). A database that is away is no error:
// it is written when it is back.
//
// The error is an *InputError if percent or note can't be used, if ctx is no
// handler's, or if that has returned; ErrLeaseLost if it is known by now that the
// job was taken away from this attempt, whose reports then change nothing; and
// ErrShuttingDown if Shutdown has given up waiting for the handler.
func SetProgress(ctx context.Context, percent int, note string) error {
	if err := setProgress(ctx, percent, note); err != nil {
		return fmt.Errorf("set progress: %w", err)
	}
	return nil
}

func setProgress(ctx context.Context, percent int, note string) error {
	a, err := handling(ctx)
	if err != nil {
		return err
	}
	if percent < 0 || percent > 100 {
		return badInput("percent", "%d: expected 0 to 100", percent)
	}
	if err := checkText(note, mostNote); err != nil {
		return &InputError{"note", err}
	}
	whole := int32(percent)
	return a.report(news{percent: &whole, note: &note})
}

// Checkpoint keeps a value, as JSON of at most 64 KiB, from which the job's next
// attempt can go on: LoadCheckpoint reads it there. It replaces the one before,
// and nil leaves none. Like SetProgress it is called by the handler, at every
// step if need be, it is shown by Job.Progress, and it has the same errors.
//
// It is written as SetProgress is: within about a second, and before the
// attempt's outcome is recorded, so that an attempt which fails, is snoozed or is
// interrupted by Shutdown hands on its last one. A process that is killed may
// lose those of its last second, so its job may repeat what it did after the
// last one that was written; what must not happen twice belongs in a
// transaction, see CompleteTx.
func Checkpoint(ctx context.Context, value any) error {
	if err := checkpoint(ctx, value); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

func checkpoint(ctx context.Context, value any) error {
	a, err := handling(ctx)
	if err != nil {
		return err
	}
	text, err := encodeJSON(value)
	if err != nil {
		return &InputError{"checkpoint", err}
	}
	if len(text) > mostCheckpoint {
		return badInput("checkpoint", "has %d bytes: expected at most %d", len(text), mostCheckpoint)
	}
	return a.report(news{checkpoint: &text})
}

// LoadCheckpoint decodes the job's last checkpoint, of this attempt or one
// before it, into value (with encoding/json), and says whether there is one; if
// not, value stays as it is. A handler calls it with its context. That makes one
// query, and none if the job was never started before.
//
// The error is an *InputError if value is no pointer, if ctx is no handler's or
// if that has returned; else it tells that the checkpoint does not fit into
// value, or is one of the database or of ctx.
func LoadCheckpoint(ctx context.Context, value any) (found bool, err error) {
	if found, err = loadCheckpoint(ctx, value); err != nil {
		return false, fmt.Errorf("load checkpoint: %w", err)
	}
	return found, nil
}

func loadCheckpoint(ctx context.Context, value any) (bool, error) {
	a, err := handling(ctx)
	if err != nil {
		return false, err
	}
	if v := reflect.ValueOf(value); v.Kind() != reflect.Pointer || v.IsNil() {
		return false, badInput("value", "%T: expected a pointer that is not nil", value)
	}
	text, err := a.checkpoint(ctx)
	if err != nil || text == nil || string(text) == "null" {
		return false, err
	}
	if err := json.Unmarshal(text, value); err != nil {
		return false, fmt.Errorf("decode it into %T: %w", value, err)
	}
	return true, nil
}

// handling returns the attempt whose handler has this context.
func handling(ctx context.Context) (*attempt, error) {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	if a == nil {
		return nil, badInput("ctx", "it is about no job: expected the context of a handler, or one derived from it")
	}
	return a, nil
}

func (a *attempt) hasReturned() error {
	return badInput("ctx", "the handler of job %s has returned: expected a call before that", a.job.key)
}

const loadCheckpointSQL = `SELECT checkpoint FROM {{schema}}.job_progress WHERE job_id = $1::text::uuid`

// checkpoint is the last one, as JSON; nil if there is none. What this attempt
// has made may not be written yet.
func (a *attempt) checkpoint(ctx context.Context) (text []byte, err error) {
	if r := a.reports.Load(); r != nil {
		own, ended := a.s.reporter.checkpointOf(r)
		switch {
		case ended:
			return nil, a.hasReturned()
		case own != nil:
			return []byte(*own), nil
		}
	}
	switch {
	case a.rehearsed && a.job.Progress != nil:
		return a.job.Progress.Checkpoint, nil
	case a.rehearsed || a.job.claims == 1:
		return nil, nil
	}
	err = a.s.pool.QueryRow(ctx, a.s.sql(loadCheckpointSQL), a.job.key.String()).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return text, explained(err)
}

// progressColumn has the progress of the job that a query is about, as JSON.
const progressColumn = `(SELECT pg_catalog.jsonb_build_object('percent', coalesce(p.percent, 0), 'note', coalesce(p.note, ''),
        'checkpoint', nullif(p.checkpoint, 'null'), 'at', p.reported_at) FROM {{schema}}.job_progress p WHERE p.job_id = id)`

// setProgress reads progressColumn.
func (j *Job) setProgress(text []byte) error {
	if text == nil {
		return nil
	}
	j.Progress = &JobProgress{}
	if err := json.Unmarshal(text, j.Progress); err != nil {
		return fmt.Errorf("progress of job %s: %w", j.ID, err)
	}
	j.Progress.At = j.Progress.At.UTC()
	if string(j.Progress.Checkpoint) == "null" {
		j.Progress.Checkpoint = nil
	}
	return nil
}
