package scheduler_test

import (
	"context"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/relay-club/scheduler"
)

// work is the resident mode until nothing is due.
func (m *model) work(p *modelProcess) (calls []*modelCall) {
	for name := range m.queues {
		did, _ := m.run(p, scheduler.RunFilter{Queue: name, Status: scheduler.JobStatusAny, Limit: len(m.jobs) + 1})
		calls = append(calls, did...)
	}
	return calls
}

// work lets a process be resident until it has worked off what is due: how
// often handlers are called, the model says.
func (m *modelTest) work(t *rapid.T) {
	p := m.process(t)
	m.saw = nil
	scheduler.ForgetProgress(p.Scheduler)
	calls := m.model.work(p.model)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Work(ctx) }()
	waitFor(t, func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.saw) >= len(calls)
	})
	running := len(m.inOrder(func(j *modelJob) bool { return j.running != nil }))
	waitFor(t, func() bool {
		var n int
		require.NoError(t, m.pool.QueryRow(t.Context(), "SELECT count(*) FROM "+m.schema+".jobs WHERE status = 'running'").Scan(&n))
		return n == running // what was lost is rescued, and what was begun recorded
	})
	cancel()
	require.NoError(t, <-done)
	m.requireSaw(t, calls, false)
}
