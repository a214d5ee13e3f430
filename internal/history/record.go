package history

import (
	"fmt"
	"slices"
	"time"
)

// Created are the jobs whose creation was acknowledged.
func (h *History) Created() (jobs []string) {
	for _, event := range h.events {
		if event.Kind == Create {
			jobs = append(jobs, event.Job)
		}
	}
	return jobs
}

// Children are those of them that run after others.
func (h *History) Children() map[string]bool {
	children := map[string]bool{}
	for _, event := range h.events {
		if event.Kind == Create && len(event.Parents) > 0 {
			children[event.Job] = true
		}
	}
	return children
}

// Success says whether a handler has succeeded with a job. If its process was
// stopped meanwhile, that counts only where nobody else has had the job since.
func (h *History) Success(job string) bool {
	attempts := h.Jobs[job]
	for i, a := range attempts {
		if a.Outcome == Succeeded && (a.Until.IsZero() || i == len(attempts)-1) {
			return true
		}
	}
	return false
}

// atOnce is how soon after its begin an attempt that is late has to be told.
const atOnce = 50 * time.Millisecond

// NeverLate finds attempts that began under a lease that had run out while their
// process was stopped. Other checks leave them out. Nobody can keep a process from
// being stopped just before the first line of a handler; but then the context must
// have ended at once.
func NeverLate(h *History) (faults []string) {
	for _, a := range h.Attempts {
		told := (a.Abandoned || a.Outcome == Interrupted) && a.Ended < len(h.events) && h.events[a.Ended].At.Sub(a.At) < atOnce
		if a.Late && !told {
			faults = append(faults, fmt.Sprintf("it began after its lease had run out at %s: %s", a.Until.Format(time.RFC3339Nano), a))
		}
	}
	return faults
}

// FinishedOnce finds jobs that began, or came to an end, after a process had
// said that their last end is in the database. What was dead or cancelled may be
// retried: then an end does not count, once for each time that somebody asked.
// What has succeeded can't be.
func FinishedOnce(h *History) (faults []string) {
	type ends struct{ records, retries, line, success int } // lines from 1 on
	jobs, begun := map[string]ends{}, 0
	for i, event := range h.events {
		of := jobs[event.Job]
		switch event.Kind {
		case Retry:
			of.retries++
		case Record:
			if of.records++; of.records > 1+of.retries {
				faults = append(faults, fmt.Sprintf("job %s finished twice: lines %d and %d", event.Job, of.line, i+1))
			}
			if of.line = i + 1; event.Outcome == Succeeded {
				of.success = i + 1
			}
		case Commit:
			of.success = i + 1
		case Begin:
			a := h.Attempts[begun]
			begun++
			switch {
			case a.Late:
			case of.success > 0:
				faults = append(faults, fmt.Sprintf("it began after its success was recorded in line %d: %s", of.success, a))
			case of.records > of.retries:
				faults = append(faults, fmt.Sprintf("it began after its end was recorded in line %d: %s", of.line, a))
			}
			continue
		default:
			continue
		}
		jobs[event.Job] = of
	}
	return faults
}

// Ascending finds where a job of a queue began before one of the same key with a
// lower order that had begun was finished, or after one with a higher order. Jobs
// without an order may be anywhere, orders may be left out, and one that was
// retried has another place. One that somebody has called off is finished by any
// end.
func Ascending(queue string) Check {
	return func(h *History) (faults []string) {
		for _, attempts := range h.byKey(queue) {
			attempts = slices.DeleteFunc(attempts, func(a *Attempt) bool { return a.Order == 0 || a.Late || h.Asked(Retry, a.Job) })
			faults = append(faults, inOrder(attempts, func(a, last *Attempt) bool {
				return a.Order > last.Order && (last.Outcome.isFinal() || h.calledOff(last.Job, a.Begun)) && (last.Ended < a.Begun || last.lostTo(a))
			})...)
		}
		return faults
	}
}

// AfterParents finds jobs that began before those they are to run after had
// succeeded.
func AfterParents(h *History) (faults []string) {
	for _, a := range h.Attempts {
		for _, parent := range a.Parents {
			if !slices.ContainsFunc(h.Jobs[parent], func(p *Attempt) bool { return p.Outcome == Succeeded && p.Ended < a.Begun }) {
				faults = append(faults, fmt.Sprintf("it began before job %s had succeeded: %s", parent, a))
			}
		}
	}
	return faults
}

// EachSlotOnce finds slots of recurring jobs, from the first to the last, for
// which no job began, and those for which several did.
func EachSlotOnce(recurring []string, first, last time.Time, every time.Duration) Check {
	type slot struct {
		recurring string
		at        int64
	}
	return func(h *History) (faults []string) {
		jobs := map[slot][]string{}
		for _, a := range h.Attempts {
			if s := (slot{a.Recurring, a.Slot.UnixMicro()}); a.Recurring != "" && !slices.Contains(jobs[s], a.Job) {
				jobs[s] = append(jobs[s], a.Job)
			}
		}
		for _, name := range recurring {
			for at := first; !at.After(last); at = at.Add(every) {
				if made := jobs[slot{name, at.UnixMicro()}]; len(made) != 1 {
					faults = append(faults, fmt.Sprintf("recurring job %s, slot %s: %d jobs began, not 1: %v", name, at.Format(time.RFC3339), len(made), made))
				}
			}
		}
		return faults
	}
}
