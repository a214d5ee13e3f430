package scheduler_test

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// slowObserver is stuck at its first event until it is released.
type slowObserver struct {
	told           atomic.Int32
	stuck, release chan struct{}
}

func newSlowObserver() *slowObserver {
	return &slowObserver{stuck: make(chan struct{}), release: make(chan struct{})}
}

func (o *slowObserver) tell(scheduler.Event) {
	if o.told.Add(1) == 1 {
		close(o.stuck)
	}
	<-o.release
}

// Events are bounded in bytes too.
func TestEventsOfLargeJobsAreBounded(t *testing.T) {
	t.Parallel()
	slow := newSlowObserver()
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Observer = slow.tell
	})
	mustCreate(t, s, "a", scheduler.JobData{})
	await(t, slow.stuck)
	mustCreateMany(t, s, 20, "a", scheduler.JobData{Payload: strings.Repeat("x", 1<<20-2)})
	close(slow.release)
	require.NoError(t, s.Shutdown(t.Context()))
	require.EqualValues(t, 1+16, slow.told.Load())
}

// And so are those of jobs that have failed often.
func TestEventsOfJobsWithManyErrorsAreBounded(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	slow := newSlowObserver()
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.JobNames = c.Schema, scheduler.JobNames{"a": succeed}
		c.Observer = slow.tell
	})
	mustCreate(t, s, "a", scheduler.JobData{})
	await(t, slow.stuck)
	mustExec(t, pool, `INSERT INTO `+schema+`.jobs (id, name, errors) SELECT gen_random_uuid(), 'a', e.errors
		FROM generate_series(1, 200), (SELECT jsonb_agg(jsonb_build_object('attempt', 1, 'at', now(), 'error', repeat('x', 8192))) AS errors FROM generate_series(1, 16)) AS e`)
	require.Equal(t, 201, mustRun(t, s, scheduler.RunFilter{Limit: 201}).Succeeded)
	close(slow.release)
	require.NoError(t, s.Shutdown(t.Context()))
	const each = 16 * 8192
	require.LessOrEqual(t, int(slow.told.Load()), 1+2+(16<<20)/each, "the first job's have no errors")
}

// And of jobs with checkpoints, which a job that is called off is shown with.
func TestEventsOfJobsWithCheckpointsAreBounded(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	slow := newSlowObserver()
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Observer = c.Schema, slow.tell
	})
	mustCreate(t, s, "a", scheduler.JobData{})
	await(t, slow.stuck)
	mustExec(t, pool, `INSERT INTO `+schema+`.jobs (id, name) SELECT `+schema+`.new_job_id(), 'b' FROM generate_series(1, 400)`)
	mustExec(t, pool, `INSERT INTO `+schema+`.job_progress (job_id, claims, checkpoint, reported_at)
		SELECT id, 1, to_jsonb(repeat('x', 65000)), now() FROM `+schema+`.jobs`)
	n, err := s.CancelJobs(t.Context(), scheduler.JobFilter{Names: []string{"b"}})
	require.NoError(t, err)
	require.Equal(t, 400, n)
	close(slow.release)
	require.NoError(t, s.Shutdown(t.Context()))
	require.LessOrEqual(t, int(slow.told.Load()), 1+(16<<20)/65000)
	require.Greater(t, int(slow.told.Load()), 200)
}
