package scheduler_test

import (
	"cmp"
	"slices"
	"time"

	"github.com/relay-club/scheduler"
)

// placeOf resolves the view of failed jobs.
func (m *model) placeOf(filter scheduler.RunFilter) (q *modelQueue, statuses []scheduler.JobStatus) {
	pending, failed := scheduler.JobStatusPending, scheduler.JobStatusFailed
	switch {
	case filter.Queue == scheduler.JobQueueFailed:
		return m.queues[scheduler.JobQueueDefault], []scheduler.JobStatus{failed}
	case filter.Status == scheduler.JobStatusAny:
		statuses = []scheduler.JobStatus{pending, failed}
	default:
		statuses = []scheduler.JobStatus{cmp.Or(filter.Status, pending)}
	}
	return m.queues[cmp.Or(filter.Queue, scheduler.JobQueueDefault)], statuses
}

// next is the job that is started next; nil if none is due.
func (m *model) next(p *modelProcess, filter scheduler.RunFilter) *modelJob {
	q, statuses := m.placeOf(filter)
	var candidates []*modelJob
	switch {
	case q.paused:
	case q.blocking:
		if head := m.headOf(q); head != nil {
			candidates, statuses = []*modelJob{head}, []scheduler.JobStatus{scheduler.JobStatusPending, scheduler.JobStatusFailed}
		}
	default:
		candidates = m.in(q)
	}
	var best *modelJob
	for _, j := range candidates {
		if slices.Contains(statuses, j.status) && slices.Contains(p.names, j.name) && !j.runAt.After(m.now) && (best == nil || m.before(j, best)) {
			best = j
		}
	}
	return best
}

// before: of what is overdue the oldest goes first, then lower priorities.
func (m *model) before(a, b *modelJob) bool {
	overdue := func(j *modelJob) bool { return m.now.Sub(j.runAt) > j.queue.priorityAge }
	switch {
	case overdue(a) != overdue(b):
		return overdue(a)
	case overdue(a):
		return cmp.Or(a.runAt.Compare(b.runAt), cmp.Compare(a.priority, b.priority), cmp.Compare(a.id, b.id)) < 0
	default:
		return cmp.Or(cmp.Compare(a.priority, b.priority), a.runAt.Compare(b.runAt), cmp.Compare(a.id, b.id)) < 0
	}
}

func (m *model) in(q *modelQueue) (jobs []*modelJob) {
	for _, j := range m.jobs {
		if j.queue == q && !j.finished() {
			jobs = append(jobs, j)
		}
	}
	return jobs
}

// headOf is the job of a blocking queue that comes next, or is running: the
// one that holds the queue, else the first in order.
func (m *model) headOf(q *modelQueue) (head *modelJob) {
	if q.head != nil && (!q.skipFailed || q.head.status != scheduler.JobStatusFailed) {
		return q.head
	}
	for _, j := range m.in(q) {
		if head == nil || cmp.Or(j.runAt.Compare(head.runAt), cmp.Compare(j.id, head.id)) < 0 {
			head = j
		}
	}
	return head
}

// nextDue is when a run with this filter has something to do, the zero time if
// never; known is false where that depends on a lease.
func (m *model) nextDue(p *modelProcess, filter scheduler.RunFilter) (at time.Time, known bool) {
	q, statuses := m.placeOf(filter)
	if q.paused {
		return at, true
	}
	if q.blocking {
		head := m.headOf(q)
		switch {
		case head == nil || !slices.Contains(p.names, head.name):
			return at, true
		case head.running != nil:
			return at, false
		}
		return head.runAt, true
	}
	for _, j := range m.in(q) {
		if slices.Contains(p.names, j.name) && slices.Contains(statuses, j.status) && (at.IsZero() || j.runAt.Before(at)) {
			at = j.runAt
		}
		if j.running != nil && j.running.process.lost {
			return at, false
		}
	}
	return at, true
}

// stat counts a queue.
func (m *model) stat(q *modelQueue) scheduler.QueueStat {
	stat := scheduler.QueueStat{Queue: q.name, Paused: q.paused}
	for _, j := range m.in(q) {
		due := j.running == nil && !j.runAt.After(m.now)
		switch {
		case j.running != nil:
			stat.Running++
		case j.status == scheduler.JobStatusFailed:
			stat.Failed++
		case due:
			stat.Pending++
		default:
			stat.Scheduled++
		}
		if due && (stat.OldestDueAt == nil || j.runAt.Before(*stat.OldestDueAt)) {
			stat.OldestDueAt = &j.runAt
		}
	}
	if q.blocking {
		stat.HeldBy = m.holder(m.headOf(q))
	}
	return stat
}

// holder is what is said of the head of a blocking queue, but for when it was started.
func (m *model) holder(head *modelJob) *scheduler.QueueHolder {
	if head == nil {
		return nil
	}
	return &scheduler.QueueHolder{ID: head.id, Name: head.name, Status: head.status, Attempt: head.attempt, RunAt: head.runAt}
}

// setPaused pauses or resumes a queue, or all.
func (m *model) setPaused(queue scheduler.JobQueue, paused bool) {
	for name, q := range m.queues {
		if queue == scheduler.JobQueueAll || name == cmp.Or(queue, scheduler.JobQueueDefault) {
			q.paused = paused
		}
	}
}
