package scheduler_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// A job that was put off keeps its key. When it is called off or deleted, those who
// run jobs learn that the next one of the key may start.
func TestNextOfAKeyStartsWhenItsHolderIsGone(t *testing.T) {
	t.Parallel()
	needsSession(t) // to listen: it polls too rarely
	g := newGated(t, scheduler.QueueConfig{MaxConcurrencyPerKey: 1}, func(c *scheduler.Config) { c.PollInterval = time.Hour })
	ctx, cancel := context.WithCancel(t.Context())
	worked := make(chan error, 1)
	go func() { worked <- g.Work(ctx) }()
	other := newScheduler(t, func(c *scheduler.Config) {
		c.Schema, c.Queues = g.schema, queueConfigs{"limited": {MaxConcurrencyPerKey: 1}}
	})
	for title, remove := range map[string]func(id string) error{
		"cancel": func(id string) error {
			_, err := other.CancelJob(t.Context(), id)
			return err
		},
		"delete": func(id string) error { return other.DeleteJob(t.Context(), id) },
		"cancel all": func(string) error {
			_, err := other.CancelJobs(t.Context(), scheduler.JobFilter{Queues: []scheduler.JobQueue{"limited"}, Statuses: []scheduler.JobStatus{"failed"}})
			return err
		},
	} {
		holder, next := g.create(t, title), g.create(t, title)
		require.Equal(t, []string{holder}, g.starts(t, 1), title)
		g.gate(holder) <- scheduler.RetryAfter(time.Hour, context.DeadlineExceeded)
		g.waitFor(t, holder, scheduler.JobStatusFailed)
		require.NoError(t, remove(holder), title)
		require.Equal(t, []string{next}, g.starts(t, 1), title)
		g.gate(next) <- nil
		g.waitFor(t, next, scheduler.JobStatusSucceeded)
	}
	cancel()
	require.NoError(t, await(t, worked))
}

func (g *gated) waitFor(t *testing.T, id string, status scheduler.JobStatus) {
	waitFor(t, func() bool { return mustGet(t, g.Scheduler, id).Status == status })
}
