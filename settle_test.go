package scheduler_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// Jobs that run for longer leave the part of the index that claims read, and
// are recorded, or taken back, like all others.
func TestLongJobsGetOutOfTheWayOfClaims(t *testing.T) {
	t.Parallel()
	const long = 40 // some are needed to be worth it
	pool := newPool(t)
	var schema string
	release := make(chan struct{})
	s := newScheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"short": succeed, "long": func(_ context.Context, job *scheduler.Job) (any, error) {
			<-release
			own := *job // which a handler may do at any time
			if own.Attempt == 1 {
				return nil, scheduler.RetryAfter(0, nil)
			}
			return nil, nil
		}}
	})
	ids := mustCreateMany(t, s, long, "long", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: long})
	waitFor(t, func() bool {
		return mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'running' AND lane = 2") == long
	})
	short := mustCreate(t, s, "short", scheduler.JobData{}).ID
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded)
	require.Equal(t, scheduler.JobStatusSucceeded, mustGet(t, s, short).Status)
	require.Zero(t, mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusAny, Limit: 100}).Picked, "they are running")

	close(release)
	require.Equal(t, long, (<-run).report.Failed)
	require.Equal(t, long, mustRun(t, s, scheduler.RunFilter{Status: scheduler.JobStatusFailed, Limit: 100}).Succeeded)
	for _, id := range ids {
		require.Equal(t, 2, mustGet(t, s, id).Attempt)
	}
}
