package scheduler_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// Events are bounded in bytes too.
func TestEventsOfLargeJobsAreBounded(t *testing.T) {
	t.Parallel()
	stuck, release := make(chan struct{}), make(chan struct{})
	var told atomic.Int32
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Observer = func(scheduler.Event) {
			if told.Add(1) == 1 {
				close(stuck)
			}
			<-release
		}
	})
	mustCreate(t, s, "a", scheduler.JobData{})
	await(t, stuck)
	mustCreateMany(t, s, 20, "a", scheduler.JobData{Payload: strings.Repeat("x", 1<<20-2)})
	close(release)
	require.NoError(t, s.Shutdown(t.Context()))
	require.EqualValues(t, 1+16, told.Load())
}

// And so are those of jobs that have failed often.
func TestEventsOfJobsWithManyErrorsAreBounded(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	stuck, release := make(chan struct{}), make(chan struct{})
	var schema string
	var told atomic.Int32
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": succeed}
		c.Observer = func(scheduler.Event) {
			if told.Add(1) == 1 {
				close(stuck)
			}
			<-release
		}
	})
	mustCreate(t, s, "a", scheduler.JobData{})
	await(t, stuck)
	mustExec(t, pool, `INSERT INTO `+schema+`.jobs (id, name, errors) SELECT gen_random_uuid(), 'a', e.errors
		FROM generate_series(1, 200), (SELECT jsonb_agg(jsonb_build_object('attempt', 1, 'at', now(), 'error', repeat('x', 8192))) AS errors FROM generate_series(1, 16)) AS e`)
	require.Equal(t, 201, mustRun(t, s, scheduler.RunFilter{Limit: 201}).Succeeded)
	close(release)
	require.NoError(t, s.Shutdown(t.Context()))
	const each = 16 * 8192
	require.LessOrEqual(t, int(told.Load()), 1+2+(16<<20)/each, "the first job's have no errors")
}
