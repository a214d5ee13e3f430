package history

import (
	"fmt"
	"slices"
	"time"
)

// History is what a log says, attempt by attempt.
type History struct {
	Attempts []*Attempt            // in the order of their begins
	Jobs     map[string][]*Attempt // by job, likewise
	events   []Event

	asked map[Kind]map[string]int // where something was first asked for a job, as a place in the log
}

// Attempt is one call of a handler.
type Attempt struct {
	Event             // of its begin
	Begun     int     // the place of its begin in the log
	Ended     int     // of its end, or of that of its process; the length of the log if it did not end
	Outcome   Outcome // "": it did not return
	Abandoned bool    // its process was killed before that, or so soon after it that it may not be recorded

	Until time.Time // its process was stopped: its job is another's for starts from then on; zero: it was not
	Late  bool      // it began under a lease that had run out while its process was stopped
}

// String names an attempt in what is found.
func (a *Attempt) String() string {
	return fmt.Sprintf("job %s (queue %q, key %q, order %d; process %d, lines %d to %d, %q)",
		a.Job, a.Queue, a.Key, a.Order, a.Process, a.Begun+1, a.Ended+1, a.Outcome)
}

// recordedWithin is how soon after its return an attempt is recorded, or its
// process was killed.
const recordedWithin = 5 * time.Second

// New makes a history of the events of a log.
func New(events []Event) (*History, error) {
	h := &History{Jobs: map[string][]*Attempt{}, events: events, asked: map[Kind]map[string]int{Cancel: {}, Retry: {}, Delete: {}}}
	type call struct {
		process, attempt int
		job              string
	}
	open := map[call]*Attempt{}
	of := map[int][]*Attempt{}     // by process
	stopped := map[int]time.Time{} // likewise, until when it had its lease
	for i, event := range events {
		id := call{event.Process, event.Attempt, event.Job}
		switch event.Kind {
		case Begin:
			if open[id] != nil {
				return nil, fmt.Errorf("line %d: %s begins twice", i+1, open[id])
			}
			a := &Attempt{Event: event, Begun: i, Ended: len(events)}
			if until := stopped[event.Process]; event.StartedAt.Before(until) {
				a.Until, a.Late = until, event.At.After(until)
			}
			open[id] = a
			h.Attempts = append(h.Attempts, a)
			of[event.Process] = append(of[event.Process], a)
			h.Jobs[event.Job] = append(h.Jobs[event.Job], a)
		case End:
			a := open[id]
			if a == nil {
				return nil, fmt.Errorf("line %d: an attempt of job %s ends that has not begun", i+1, event.Job)
			}
			a.Ended, a.Outcome = min(a.Ended, i), event.Outcome
			delete(open, id)
		case Kill:
			for _, a := range of[event.Process] {
				if a.Ended > i || event.At.Sub(events[a.Ended].At) < recordedWithin {
					a.Ended, a.Abandoned = min(a.Ended, i), true
				}
			}
		case Lost:
			if a := open[id]; a != nil { // else it has returned meanwhile
				a.Ended, a.Abandoned = min(a.Ended, i), true
			}
		case Stop:
			stopped[event.Process] = event.Until
			for _, a := range of[event.Process] {
				if a.Ended > i {
					a.Until = event.Until
				}
			}
		case Cancel, Retry, Delete:
			if !h.Asked(event.Kind, event.Job) {
				h.asked[event.Kind][event.Job] = i
			}
		case Create, Record, Commit, Cancelled, Pause, Resume:
		default:
			return nil, fmt.Errorf("line %d: kind %q: expected one of the kinds of events", i+1, event.Kind)
		}
	}
	return h, nil
}

// Check looks for one kind of fault, and describes each that it finds.
type Check func(h *History) []string

// Faults are what the checks find, at most 100.
func (h *History) Faults(checks ...Check) (faults []string) {
	for _, check := range checks {
		faults = append(faults, check(h)...)
	}
	return faults[:min(len(faults), 100)]
}

// NeverTwiceAtOnce finds jobs of which two attempts ran at once.
func NeverTwiceAtOnce(h *History) (faults []string) {
	for _, attempts := range h.Jobs {
		faults = append(faults, atMost(attempts, 1, "attempts of one job")...)
	}
	return faults
}

// NeverLost finds those of these jobs that did not come to an end, and those
// that began again after one. Only what a process that was killed has returned
// may not count.
func NeverLost(jobs []string) Check {
	return func(h *History) (faults []string) {
		for _, job := range jobs {
			attempts := h.Jobs[job]
			if len(attempts) == 0 {
				faults = append(faults, fmt.Sprintf("job %s never began", job))
				continue
			}
			last := attempts[len(attempts)-1]
			if !last.Outcome.isFinal() {
				faults = append(faults, fmt.Sprintf("it did not come to an end: %s", last))
			}
			for _, a := range attempts[:len(attempts)-1] {
				if a.Outcome.isFinal() && !a.Abandoned {
					faults = append(faults, fmt.Sprintf("it began again after its end: %s", a))
				}
			}
		}
		return faults
	}
}

// AtMost finds where more than n jobs of a queue ran at once.
func AtMost(n int, queue string) Check {
	return func(h *History) []string {
		return atMost(h.in(queue), n, fmt.Sprintf("jobs of queue %q", queue))
	}
}

// AtMostOfAKey finds where more than n jobs of a queue with the same key ran at
// once. Jobs without a key are not limited.
func AtMostOfAKey(n int, queue string) Check {
	return func(h *History) (faults []string) {
		for key, attempts := range h.byKey(queue) {
			faults = append(faults, atMost(attempts, n, fmt.Sprintf("jobs of queue %q and key %q", queue, key))...)
		}
		return faults
	}
}

// InOrder finds where a job of a queue began before those of the same key with a
// lower order had come to their end. The first order is 1.
func InOrder(queue string) Check {
	return func(h *History) (faults []string) {
		for _, attempts := range h.byKey(queue) {
			faults = append(faults, inOrder(attempts, func(a, last *Attempt) bool {
				return a.Order == last.Order+1 && last.Outcome.isFinal() && last.Ended < a.Begun
			})...)
		}
		return faults
	}
}

// inOrder finds attempts that neither are of the same job as the one before nor
// may follow it.
func inOrder(attempts []*Attempt, mayFollow func(a, last *Attempt) bool) (faults []string) {
	last := &Attempt{Ended: -1, Outcome: Succeeded}
	for _, a := range attempts {
		if follows := a.Order == last.Order || mayFollow(a, last); !follows {
			faults = append(faults, fmt.Sprintf("out of order: %s\n  began after %s", a, last))
		}
		last = a
	}
	return faults
}

// RateAtMost finds where more than n jobs of a queue started in a time.
func RateAtMost(n int, per time.Duration, queue string) Check {
	return func(h *History) []string {
		return rateAtMost(h.in(queue), n, per, fmt.Sprintf("queue %q", queue))
	}
}

// RateOfAKeyAtMost finds where more than n jobs of a queue with the same key
// started in a time.
func RateOfAKeyAtMost(n int, per time.Duration, queue string) Check {
	return func(h *History) (faults []string) {
		for key, attempts := range h.byKey(queue) {
			faults = append(faults, rateAtMost(attempts, n, per, fmt.Sprintf("queue %q and key %q", queue, key))...)
		}
		return faults
	}
}

// in are the attempts of a queue.
func (h *History) in(queue string) []*Attempt {
	return slices.DeleteFunc(slices.Clone(h.Attempts), func(a *Attempt) bool { return a.Queue != queue })
}

// byKey are the attempts of a queue that have a key.
func (h *History) byKey(queue string) map[string][]*Attempt {
	keys := map[string][]*Attempt{}
	for _, a := range h.in(queue) {
		if a.Key != "" {
			keys[a.Key] = append(keys[a.Key], a)
		}
	}
	return keys
}

// atMost finds where more than n attempts, which are in the order of their
// begins, ran at once.
func atMost(attempts []*Attempt, n int, of string) (faults []string) {
	var running []*Attempt
	for _, a := range attempts {
		if a.Late {
			continue // has been nobody's from the beginning
		}
		running = slices.DeleteFunc(running, func(other *Attempt) bool { return other.Ended < a.Begun || other.lostTo(a) })
		if running = append(running, a); len(running) > n {
			fault := fmt.Sprintf("%d %s at once, not %d:", len(running), of, n)
			for _, other := range running {
				fault += "\n  " + other.String()
			}
			faults = append(faults, fault)
		}
	}
	return faults
}

// lostTo says whether an attempt had lost its lease, because its process was
// stopped, when another one was started.
func (a *Attempt) lostTo(other *Attempt) bool {
	return !a.Until.IsZero() && !other.StartedAt.Before(a.Until)
}

// rateAtMost finds where more than n attempts started in a time.
func rateAtMost(attempts []*Attempt, n int, per time.Duration, of string) (faults []string) {
	attempts = slices.Clone(attempts)
	slices.SortFunc(attempts, func(a, b *Attempt) int { return a.StartedAt.Compare(b.StartedAt) })
	for i := n; i < len(attempts); i++ {
		if took := attempts[i].StartedAt.Sub(attempts[i-n].StartedAt); took < per {
			faults = append(faults, fmt.Sprintf("%d starts of %s within %s, not %d in %s: from %s\n  to %s", n+1, of, took, n, per, attempts[i-n], attempts[i]))
		}
	}
	return faults
}
