package scheduler_test

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// Another client than the one that works creates: one job after another, some
// with their notification and some before it, and then many at once.
func TestWorkIsNotifiedByOthers(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	jobs := make(chan *scheduler.Job, 300)
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.PollInterval = c.Schema, time.Hour
		c.JobNames = scheduler.JobNames{"a": telling(jobs)}
		c.Queues = queueConfigs{"serial": {Extends: scheduler.JobQueueBlocking}}
	})
	goWork(t, t.Context(), s)
	waitFor(t, func() bool { return listening(t, pool, schema) })
	other, err := scheduler.New(newPool(t), scheduler.Config{Schema: schema, Queues: queueConfigs{"serial": {Extends: scheduler.JobQueueBlocking}}})
	require.NoError(t, err)

	for range 50 {
		for _, queue := range []scheduler.JobQueue{"", "serial"} {
			id := mustCreate(t, other, "a", scheduler.JobData{Queue: queue}).ID
			require.Equal(t, id, await(t, jobs).ID)
		}
	}
	mustCreate(t, other, "a", scheduler.JobData{RunAt: time.Now().Add(200 * time.Millisecond)})
	await(t, jobs)

	const n = 200
	var group sync.WaitGroup
	for range n {
		group.Go(func() { mustCreate(t, other, "a", scheduler.JobData{}) })
	}
	group.Wait()
	for range n {
		await(t, jobs)
	}
}
