package schedulertest_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/schedulertest"
)

// All of it works with the pools that services have, also those for poolers.
func TestEveryExecMode(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config := newPool(t).Config()
			config.ConnConfig.DefaultQueryExecMode = mode
			pool, err := pgxpool.NewWithConfig(t.Context(), config)
			require.NoError(t, err)
			t.Cleanup(pool.Close)
			s := schedulertest.New(t, pool, scheduler.Config{JobNames: scheduler.JobNames{"a": succeed, "fail": fail}})

			tx, err := pool.Begin(t.Context())
			require.NoError(t, err)
			_, err = s.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{Tags: []string{"x"}})
			require.NoError(t, err)
			schedulertest.RequireCreated(t, schedulertest.InTx(s, tx), "a", scheduler.JobData{Tags: []string{"x"}})
			require.NoError(t, tx.Commit(t.Context()))
			first := schedulertest.RequireCreated(t, s, "a", scheduler.JobData{})
			mustCreate(t, s, "fail", scheduler.JobData{MaxAttempts: 2, Queue: scheduler.JobQueueBlocking})
			require.Equal(t, scheduler.JobStatusSucceeded, schedulertest.RunJob(t, s, first.ID).Status)
			require.Equal(t, []string{"fail failed 1"}, statuses(schedulertest.Drain(t, s)))
			schedulertest.Advance(t, s, time.Hour)
			require.Equal(t, []string{"fail dead 2"}, statuses(schedulertest.Drain(t, s)))
		})
	}
}
