package scheduler_test

import (
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// The stats are those of a plain count, in every exec mode of the pool.
func TestQueueStats(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		config := pool.Config()
		config.ConnConfig.DefaultQueryExecMode = mode
		var schema string
		s := newSchedulerOn(t, newPoolWith(t, config), func(c *scheduler.Config) {
			schema, c.Queues = c.Schema, queueConfigs{"mails": {}, "unused": {}, "Upper": {}}
		})
		stats, err := s.QueueStats(t.Context())
		require.NoError(t, err)
		require.Equal(t, []scheduler.QueueStat{{Queue: "Upper"}, {Queue: "blocking"}, {Queue: "default"}, {Queue: "mails"}, {Queue: "unused"}}, stats)

		jobs, _ := seed(t, pool, schema, 600)
		expected := map[scheduler.JobQueue]*scheduler.QueueStat{}
		for _, queue := range append([]scheduler.JobQueue{"Upper", "unused"}, seededQueues...) {
			expected[queue] = &scheduler.QueueStat{Queue: queue}
		}
		now := time.Now()
		for _, job := range jobs {
			count(expected[job.Queue], job, now)
		}
		stats, err = s.QueueStats(t.Context())
		require.NoError(t, err)
		require.Len(t, stats, len(expected))
		require.True(t, slices.IsSortedFunc(stats, func(a, b scheduler.QueueStat) int { return slices.Compare([]byte(a.Queue), []byte(b.Queue)) }))
		for _, stat := range stats {
			require.Equal(t, stat.Queue == scheduler.JobQueueBlocking, stat.HeldBy != nil)
			stat.HeldBy = nil // several of its jobs are running, which can't be
			require.Equal(t, *expected[stat.Queue], stat)
		}
	}
}

func count(stat *scheduler.QueueStat, job *scheduler.Job, now time.Time) {
	due := !job.RunAt.After(now)
	switch {
	case job.Status == scheduler.JobStatusPending && due:
		stat.Pending++
	case job.Status == scheduler.JobStatusPending:
		stat.Scheduled++
	case job.Status == scheduler.JobStatusFailed:
		stat.Failed++
	case job.Status == scheduler.JobStatusRunning:
		stat.Running++
		return
	default:
		return
	}
	if due && (stat.OldestDueAt == nil || job.RunAt.Before(*stat.OldestDueAt)) {
		stat.OldestDueAt = &job.RunAt
	}
}

// Another process sees the same, also what runs elsewhere and queues that this
// one has not declared.
func TestQueueStatsOfAnotherProcess(t *testing.T) {
	t.Parallel()
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema, c.Queues = c.Schema, queueConfigs{"mails": {}}
		c.JobNames = scheduler.JobNames{"fail": fail}
	})
	other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	mustCreate(t, s, "fail", scheduler.JobData{Queue: "mails"})
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Queue: "mails"}).Failed)
	job := mustCreate(t, s, "fail", scheduler.JobData{Queue: "mails"})
	mustCreate(t, s, "fail", scheduler.JobData{Queue: "mails", RunAt: time.Now().Add(time.Hour)})
	for _, s := range []*scheduler.Scheduler{s, other} {
		stats, err := s.QueueStats(t.Context())
		require.NoError(t, err)
		require.Equal(t, scheduler.QueueStat{Queue: "mails", Pending: 1, Scheduled: 1, Failed: 1, OldestDueAt: &job.RunAt}, stats[2])
	}
}

// The stats name the job that holds a blocking queue, and why.
func TestQueueStatsNameTheHolderOfABlockingQueue(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{Extends: scheduler.JobQueueBlocking})
	heldBy := func() *scheduler.QueueHolder {
		stats, err := g.QueueStats(t.Context())
		require.NoError(t, err)
		require.Nil(t, stats[0].HeldBy, "an empty queue")
		require.Nil(t, stats[1].HeldBy, "another kind of queue")
		return stats[2].HeldBy
	}
	require.Nil(t, heldBy())
	mustCreate(t, g.Scheduler, "ok", scheduler.JobData{})
	first := g.create(t, "")
	g.create(t, "")
	job := mustGet(t, g.Scheduler, first)
	holder := &scheduler.QueueHolder{ID: first, Name: "work", Status: scheduler.JobStatusPending, RunAt: job.RunAt}
	require.Equal(t, holder, heldBy(), "no run has come")

	_, run := g.start(t, 1, 1)
	job = mustGet(t, g.Scheduler, first)
	holder.Status, holder.Attempt, holder.StartedAt = scheduler.JobStatusRunning, 1, job.StartedAt
	require.Equal(t, holder, heldBy())
	g.gate(first) <- scheduler.RetryAfter(time.Hour, nil)
	await(t, run)
	holder.Status, holder.RunAt = scheduler.JobStatusFailed, mustGet(t, g.Scheduler, first).RunAt
	require.Equal(t, holder, heldBy(), "until its retry")
	mustExec(t, pool, "UPDATE "+g.schema+".jobs SET status = 'dead', lane = NULL, finished_at = now() WHERE id = $1::text::uuid", first)
	require.NotEqual(t, first, heldBy().ID)
}
