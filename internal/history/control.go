package history

import (
	"fmt"
	"time"
)

// Asked says whether somebody has asked for this, a Cancel, Retry or Delete, for
// a job: it may have been done or not.
func (h *History) Asked(what Kind, job string) bool {
	_, ok := h.asked[what][job]
	return ok
}

// calledOff says whether somebody had asked to cancel a job before this line.
func (h *History) calledOff(job string, line int) bool {
	asked, ok := h.asked[Cancel][job]
	return ok && asked < line
}

// NeverAfterCancel finds jobs that were started after somebody was told that they
// are called off. One that somebody retried may be.
func NeverAfterCancel(h *History) (faults []string) {
	cancelled := map[string]time.Time{}
	for _, event := range h.events {
		if _, ok := cancelled[event.Job]; event.Kind == Cancelled && !ok {
			cancelled[event.Job] = event.At
		}
	}
	for _, a := range h.Attempts {
		if at, ok := cancelled[a.Job]; ok && a.StartedAt.After(at) && !h.Asked(Retry, a.Job) {
			faults = append(faults, fmt.Sprintf("it was started at %s, after it was called off at %s: %s",
				a.StartedAt.Format(time.RFC3339Nano), at.Format(time.RFC3339Nano), a))
		}
	}
	return faults
}

// resumedWithin is for how long a claim may have been on its way, with a start
// that is before it saw that the queue is resumed.
const resumedWithin = 500 * time.Millisecond

// NeverInPause finds jobs that were started while their queue was paused.
func NeverInPause(h *History) (faults []string) {
	type pause struct{ from, to time.Time }
	pauses, open := map[string][]pause{}, map[string]time.Time{}
	for _, event := range h.events {
		switch event.Kind {
		case Pause:
			open[event.Queue] = event.At
		case Resume:
			if from, ok := open[event.Queue]; ok {
				pauses[event.Queue] = append(pauses[event.Queue], pause{from, event.At.Add(-resumedWithin)})
				delete(open, event.Queue)
			}
		}
	}
	for _, a := range h.Attempts {
		for _, queue := range []string{a.Queue, AllQueues} {
			for _, p := range pauses[queue] {
				if a.StartedAt.After(p.from) && a.StartedAt.Before(p.to) {
					faults = append(faults, fmt.Sprintf("it was started at %s, while queue %q was paused: %s", a.StartedAt.Format(time.RFC3339Nano), queue, a))
				}
			}
		}
	}
	return faults
}
