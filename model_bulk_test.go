package scheduler_test

import (
	"context"
	"slices"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/relay-club/scheduler"
)

// modelBulk is something that is done to the jobs of a filter.
type modelBulk struct {
	statuses, unnamed []scheduler.JobStatus // that it can be done to; and that it is done to if none is named
	mostly            int                   // the largest limit; 0: that by default
	isOpen            func(j *modelJob) bool
	library           func(ctx context.Context, filter scheduler.JobFilter) (int, error)
	model             func(j *modelJob) error
}

func (m *modelTest) anyBulk(t *rapid.T) modelBulk {
	const pending, running, failed = scheduler.JobStatusPending, scheduler.JobStatusRunning, scheduler.JobStatusFailed
	const succeeded, dead, cancelled = scheduler.JobStatusSucceeded, scheduler.JobStatusDead, scheduler.JobStatusCancelled
	type statuses = []scheduler.JobStatus
	runAt := m.runAt(t)
	return []modelBulk{{
		statuses: statuses{pending, running, failed}, mostly: 3,
		isOpen:  func(j *modelJob) bool { return !j.finished() && !j.cancelling },
		library: m.serial.CancelJobs, model: m.model.cancel,
	}, { // always all: those whose key is taken don't count, and are known afterwards
		statuses: statuses{pending, failed, dead, cancelled}, unnamed: statuses{failed, dead},
		isOpen:  func(j *modelJob) bool { return j.status != pending || j.runAt.After(m.model.now) },
		library: m.serial.RetryJobs, model: m.model.retry,
	}, {
		statuses: statuses{pending, failed}, mostly: 3,
		isOpen: func(j *modelJob) bool { return !runAt.IsZero() || j.runAt.After(m.model.now) },
		library: func(ctx context.Context, filter scheduler.JobFilter) (int, error) {
			return m.serial.RescheduleJobs(ctx, filter, runAt)
		},
		model: func(j *modelJob) error { return m.model.reschedule(j, runAt) },
	}, {
		statuses: statuses{pending, succeeded, failed, dead, cancelled}, mostly: 3,
		isOpen:  func(*modelJob) bool { return true },
		library: m.serial.DeleteJobs,
		model: func(j *modelJob) error {
			m.deleted = append(m.deleted, j)
			return m.model.delete(j)
		},
	}}[rapid.IntRange(0, 3).Draw(t, "action")]
}

// bulk cancels, retries, reschedules or deletes the jobs of a filter, newest first.
func (m *modelTest) bulk(t *rapid.T) {
	b := m.anyBulk(t)
	filter := scheduler.JobFilter{
		Statuses: rapid.SliceOfNDistinct(rapid.SampledFrom(b.statuses), 0, 2, rapid.ID[scheduler.JobStatus]).Draw(t, "statuses"),
		Queues:   []scheduler.JobQueue{rapid.SampledFrom([]scheduler.JobQueue{"default", "blocking", "own", "skipping"}).Draw(t, "queue")},
		Owner:    rapid.SampledFrom([]string{"", "", "ann"}).Draw(t, "owner"),
		Limit:    rapid.IntRange(0, b.mostly).Draw(t, "limit"),
	}
	statuses := filter.Statuses
	if len(statuses) == 0 {
		statuses = b.statuses
		if b.unnamed != nil {
			statuses = b.unnamed
		}
	}
	n, err := b.library(t.Context(), filter)
	require.NoError(t, err)
	expected := 0
	for _, j := range slices.Backward(m.inOrder(func(j *modelJob) bool {
		return slices.Contains(statuses, j.status) && j.queue.name == filter.Queues[0] && (filter.Owner == "" || filter.Owner == j.owner) && b.isOpen(j)
	})) {
		if filter.Limit > 0 && expected == filter.Limit {
			break
		}
		if b.model(j) == nil {
			expected++
		}
	}
	require.Equal(t, expected, n)
}
