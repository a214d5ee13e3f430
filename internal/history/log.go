// Package history has what handlers write down about their own attempts, outside
// of the database, and finds what is wrong with it: limits that were exceeded,
// an order that was broken, jobs that were lost or ran twice at once.
package history

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

// Kind is what an event tells of.
type Kind string

// The kinds of events.
const (
	Begin Kind = "begin" // a handler was called
	End   Kind = "end"   // it is about to return
	Kill  Kind = "kill"  // a process is gone: what it ran has ended by that

	Lost   Kind = "lost"   // the context of a handler has ended: others may have its job from now on
	Stop   Kind = "stop"   // a process was stopped: what it runs is its own for as long as its lease still lasts
	Create Kind = "create" // the creation of a job was acknowledged
	Record Kind = "record" // a process says that an end of a job, of this outcome, is in the database

	Commit    Kind = "commit"    // a handler was told that the transaction is committed in which it completed its job
	Cancel    Kind = "cancel"    // somebody is about to cancel a job; what comes of it may not be known
	Cancelled Kind = "cancelled" // that was acknowledged
	Retry     Kind = "retry"     // somebody is about to retry a job
	Delete    Kind = "delete"    // or to delete it
	Pause     Kind = "pause"     // that a queue is paused was acknowledged
	Resume    Kind = "resume"    // somebody is about to resume it
)

// AllQueues is the queue of a pause, or of its end, that is for all of them.
const AllQueues = "*"

// Outcome is what a handler returns.
type Outcome string

// What handlers return.
const (
	Succeeded   Outcome = "succeeded"
	Failed      Outcome = "failed"      // it is to be run again
	Snoozed     Outcome = "snoozed"     // likewise
	Dead        Outcome = "dead"        // never again
	Interrupted Outcome = "interrupted" // its context has ended, so others may have the job

	CalledOff Outcome = "cancelled" // no handler returns that: it is an end that is recorded
)

// isFinal: the job is finished, if that was recorded.
func (o Outcome) isFinal() bool { return o == Succeeded || o == Dead }

// Event is one line of a log.
type Event struct {
	Kind    Kind      `json:"kind"`
	Process int       `json:"process"`
	At      time.Time `json:"at"` // by the clock of the process; Write sets it
	Job     string    `json:"job,omitempty"`
	Attempt int       `json:"attempt,omitempty"` // a number that no other attempt of the job in this process has
	Outcome Outcome   `json:"outcome,omitempty"` // of an end, or of what is recorded
	Queue   string    `json:"queue,omitempty"`   // of a begin, a pause or its end
	Parents []string  `json:"parents,omitempty"` // of a begin, or of a creation: jobs after which this one is to run

	// Of a begin.
	Key       string    `json:"key,omitempty"`
	Order     int       `json:"order,omitempty"`     // the place of the job among those of its key
	StartedAt time.Time `json:"started_at,omitzero"` // by the database's clock
	Recurring string    `json:"recurring,omitempty"` // which recurring job made it,
	Slot      time.Time `json:"slot,omitzero"`       // and for when

	Until time.Time `json:"until,omitzero"` // of a stop: the end of its lease, by the database's clock
}

// Log is a file that any number of processes append to. Each event is one write,
// so the order of the lines is the order in which things happened, whatever the
// clocks of the processes say.
type Log struct{ file *os.File }

// Open opens a log, or begins it.
func Open(path string) (*Log, error) {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	return &Log{file}, nil
}

// Write adds an event.
func (l *Log) Write(event Event) error {
	event.At = time.Now()
	line, err := json.Marshal(event)
	if err != nil {
		return fmt.Errorf("write an event: %w", err)
	}
	_, err = l.file.Write(append(line, '\n'))
	return err
}

// Close closes the file.
func (l *Log) Close() error { return l.file.Close() }

// Read reads the events of a log.
func Read(path string) ([]Event, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	defer func() { _ = file.Close() }()
	var events []Event
	once := map[string]string{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var event Event
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return nil, fmt.Errorf("line %d of the log: %w", len(events)+1, err)
		}
		event.share(once)
		events = append(events, event)
	}
	return events, lines.Err()
}

// share has equal texts of all events be one in memory: there are millions.
func (e *Event) share(once map[string]string) {
	one := func(text string) string {
		first, ok := once[text]
		if !ok {
			first, once[text] = text, text
		}
		return first
	}
	e.Kind, e.Outcome, e.Job, e.Queue, e.Key = Kind(one(string(e.Kind))), Outcome(one(string(e.Outcome))), one(e.Job), one(e.Queue), one(e.Key)
	for i, parent := range e.Parents {
		e.Parents[i] = one(parent)
	}
}
