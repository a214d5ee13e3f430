package scheduler_test

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/relay-club/scheduler"
)

func (m *modelTest) filter(t *rapid.T) scheduler.RunFilter {
	filter := scheduler.RunFilter{
		Queue: rapid.SampledFrom([]scheduler.JobQueue{"", "blocking", "own", "skipping", "failed"}).Draw(t, "queue"),
		Limit: rapid.SampledFrom([]int{1, 2, 10}).Draw(t, "limit"),
	}
	if filter.Queue != scheduler.JobQueueFailed {
		filter.Status = rapid.SampledFrom([]scheduler.JobStatus{scheduler.JobStatusAny, "", scheduler.JobStatusFailed}).Draw(t, "status")
	}
	return filter
}

// run is a run whose handlers return at once.
func (m *modelTest) run(t *rapid.T) {
	p, filter := m.process(t), m.filter(t)
	m.saw = nil
	scheduler.ForgetProgress(p.Scheduler)
	report, err := p.Run(t.Context(), filter)
	require.NoError(t, err)
	calls, outcomes := m.model.run(p.model, filter)
	m.requireSaw(t, calls, p.serial)
	m.requireReport(t, p, filter, report, outcomes)
}

// requireSaw compares what handlers saw of their jobs, and the order in which
// they were called, where one is promised: in a process that calls one at a time,
// and within blocking queues.
func (m *modelTest) requireSaw(t *rapid.T, calls []*modelCall, ordered bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	place := map[string]scheduler.JobQueue{} // where the order counts; "": anywhere
	expected := map[scheduler.JobQueue][]seen{}
	for _, call := range calls {
		if q := call.job.queue; q.blocking && !ordered {
			place[call.job.id] = q.name
		}
		expected[place[call.job.id]] = append(expected[place[call.job.id]], call.seen)
	}
	saw := map[scheduler.JobQueue][]seen{}
	for _, what := range m.saw {
		saw[place[what.ID]] = append(saw[place[what.ID]], what)
	}
	if !ordered {
		require.ElementsMatch(t, expected[""], saw[""])
		delete(expected, "")
		delete(saw, "")
	}
	require.Equal(t, expected, saw)
}

func (m *modelTest) requireReport(t *rapid.T, p *testProcess, filter scheduler.RunFilter, report *scheduler.RunReport, outcomes []scheduler.JobStatus) {
	count := map[scheduler.JobStatus]int{}
	for _, outcome := range outcomes {
		count[outcome]++
	}
	expected := scheduler.RunReport{
		RunID: report.RunID, Queue: report.Queue, Status: report.Status, Picked: len(outcomes), Succeeded: count[scheduler.JobStatusSucceeded],
		Failed: count[scheduler.JobStatusFailed], Dead: count[scheduler.JobStatusDead], Cancelled: count[scheduler.JobStatusCancelled],
		Snoozed: count[scheduler.JobStatusPending], Done: true, NextDueAt: report.NextDueAt,
	}
	require.Equal(t, expected, *report)
	switch next, known := m.model.nextDue(p.model, filter); {
	case !known:
	case next.IsZero():
		require.Nil(t, report.NextDueAt)
	default:
		require.NotNil(t, report.NextDueAt)
		require.WithinDuration(t, next, *report.NextDueAt, time.Minute)
	}
}

// runSlowly is a run whose handlers wait for release.
func (m *modelTest) runSlowly(t *rapid.T) {
	p, filter := m.parallel, m.filter(t)
	filter.Limit = rapid.IntRange(1, 3).Draw(t, "limit")
	if m.isBlocking(filter.Queue) {
		filter.Limit = 1
	}
	m.saw = nil
	scheduler.ForgetProgress(p.Scheduler)
	slow := &slowRun{process: p, filter: filter, begun: make(chan struct{}, filter.Limit), release: make(chan struct{})}
	slow.done = goRun(context.WithValue(context.Background(), slowRunKey{}, slow), p.Scheduler, filter)
	m.slow = append(m.slow, slow)
	slow.calls = m.model.begin(p.model, filter)
	for range slow.calls {
		select {
		case <-slow.begun:
		case <-time.After(patience / 3):
			require.FailNow(t, "no handler begins")
		}
	}
	m.requireSaw(t, slow.calls, false)
	if len(slow.calls) == 0 {
		m.finish(t, slow)
	}
}

func (m *modelTest) isBlocking(queue scheduler.JobQueue) bool {
	return m.model.queues[queue] != nil && m.model.queues[queue].blocking
}

// release lets the handlers of a slow run return. If its process was thought to
// be lost, they come too late.
func (m *modelTest) release(t *rapid.T) {
	if len(m.slow) == 0 {
		t.Skip("nothing is slow")
	}
	m.finish(t, m.slow[rapid.IntRange(0, len(m.slow)-1).Draw(t, "slow run")])
}

func (m *modelTest) finish(t *rapid.T, slow *slowRun) {
	m.slow = slices.DeleteFunc(m.slow, func(other *slowRun) bool { return other == slow })
	close(slow.release)
	var came ran
	select {
	case came = <-slow.done:
	case <-time.After(patience):
		require.FailNow(t, "the run does not end")
	}
	require.NoError(t, came.err)
	var outcomes []scheduler.JobStatus
	for _, call := range slow.calls {
		outcomes = append(outcomes, m.model.finish(call))
	}
	if slow.process.model.lost { // its report may be wrong about jobs that are not its own any more
		require.Equal(t, len(slow.calls), came.report.Picked)
		return
	}
	m.requireReport(t, slow.process, slow.filter, came.report, outcomes)
}

// crash lets the lease of the process that runs slowly run out, as if it were
// gone; another one takes its place.
func (m *modelTest) crash(t *rapid.T) {
	_, err := m.pool.Exec(t.Context(), fmt.Sprintf(`UPDATE %[1]s.leases SET expires_at = now() - interval '1 second'
		WHERE id IN (SELECT lease_id FROM %[1]s.jobs WHERE status = 'running')`, m.schema))
	require.NoError(t, err)
	m.parallel.model.lost = true
	m.crashed = append(m.crashed, m.parallel)
	m.parallel = m.newProcess(t, 0, m.parallel.model.names...)
}
