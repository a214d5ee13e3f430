package scheduler_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// Times are UTC, whatever zone the sessions and the callers are in.
func TestTimesAreUTC(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config := newPool(t).Config()
			config.ConnConfig.DefaultQueryExecMode = mode
			config.ConnConfig.RuntimeParams["timezone"] = "Asia/Kolkata"
			s := newSchedulerOn(t, newPoolWith(t, config), func(c *scheduler.Config) {
				c.JobNames = scheduler.JobNames{"a": fail}
			})
			before := time.Now()
			at := time.Date(1969, 7, 20, 22, 17, 40, 0, time.FixedZone("", -2*3600))
			job := mustCreate(t, s, "a", scheduler.JobData{RunAt: at, MaxAttempts: 1})
			require.Equal(t, at.UTC(), job.RunAt)
			require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Dead)
			job = mustGet(t, s, job.ID)
			require.Equal(t, at.UTC(), job.RunAt)
			for _, at := range []time.Time{job.CreatedAt, *job.StartedAt, *job.FinishedAt, job.Errors[0].At} {
				require.Equal(t, time.UTC, at.Location())
				require.WithinDuration(t, before, at, patience)
			}
			report := mustRun(t, s, scheduler.RunFilter{})
			require.Nil(t, report.NextDueAt)
		})
	}
}
