//go:build unix

package scheduler_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func init() {
	// A resident process that notes the starts of its jobs, of which some fail at
	// first, and some complete in a transaction.
	childRoles["work after"] = func() {
		pool := childPool()
		var s *scheduler.Scheduler
		note := func(ctx context.Context, job *scheduler.Job) error {
			_, err := pool.Exec(ctx, "INSERT INTO "+childSchema()+".journal (id) VALUES ($1::text::uuid)", job.ID)
			return err
		}
		s = childScheduler(scheduler.Config{
			Lease: time.Second, Concurrency: 8, PollInterval: 100 * time.Millisecond,
			Queues: queueConfigs{"default": {Backoff: func(int) time.Duration { return time.Millisecond }}},
			JobNames: scheduler.JobNames{
				"a": func(ctx context.Context, job *scheduler.Job) (any, error) { return nil, note(ctx, job) },
				"fail": func(ctx context.Context, job *scheduler.Job) (any, error) {
					if err := note(ctx, job); err != nil {
						return nil, err
					}
					return failAtFirst(ctx, job)
				},
				"complete": func(ctx context.Context, job *scheduler.Job) (any, error) {
					if err := note(ctx, job); err != nil {
						return nil, err
					}
					tx, err := pool.Begin(ctx)
					if err != nil {
						return nil, err
					}
					defer func() { _ = tx.Rollback(context.Background()) }()
					if err := s.CompleteTx(ctx, tx, job, nil); err != nil {
						return nil, err
					}
					return nil, tx.Commit(ctx)
				},
			},
		})
		go func() { exitOn(s.Work(context.Background())) }()
		fmt.Println("working")
		select {}
	}
}

// Three processes that are killed again and again work off graphs: no job starts
// before all of its parents have succeeded, and none is lost.
func TestDependantsOverProcessesThatAreKilled(t *testing.T) {
	t.Parallel()
	const layers, width = 12, 40
	a := newAfterTest(t, nil)
	mustExec(t, a.pool, "CREATE TABLE "+a.schema+".journal (id uuid, at timestamptz DEFAULT clock_timestamp())")
	children := make([]*child, 3)
	begin := func(i int) {
		children[i] = startChild(t, "work after", "SCHEMA="+a.schema)
		require.Equal(t, "working", children[i].Line(t))
	}
	for i := range children {
		begin(i)
	}
	creator := newSchedulerOn(t, newPool(t), func(c *scheduler.Config) { c.Schema = a.schema })
	var before []string
	for layer := range layers {
		jobs := make([]scheduler.NewJob, width)
		for i := range jobs {
			jobs[i] = scheduler.NewJob{Name: []string{"a", "fail", "complete"}[i%3], Label: fmt.Sprint(i), JobData: scheduler.JobData{MaxAttempts: 100}}
			for range min(layer, rand.IntN(4)) {
				jobs[i].After = append(jobs[i].After, before[rand.IntN(width)])
			}
			if i > 0 && i%4 == 0 {
				jobs[i].After = append(jobs[i].After, fmt.Sprint(rand.IntN(i)))
			}
		}
		var err error
		before, err = creator.CreateJobs(t.Context(), jobs)
		require.NoError(t, err)
		victim := rand.IntN(3)
		children[victim].Kill()
		begin(victim)
	}
	count := func(status string) int {
		return mustQuery[int](t, a.pool, "SELECT count(*) FROM "+a.schema+".jobs WHERE status = $1", status)
	}
	const kills = 6
	done := count("succeeded")
	left := layers*width - done
	for kill := range kills {
		waitFor(t, func() bool { return count("succeeded") >= done+left*kill/kills })
		children[kill%3].Kill()
		begin(kill % 3)
	}
	waitFor(t, func() bool { return count("succeeded") == layers*width })
	require.Zero(t, count("cancelled")+count("dead"))
	a.requireNoneLostOrEarly(t)
	require.Equal(t, layers*width, mustQuery[int](t, a.pool, "SELECT count(DISTINCT id) FROM "+a.schema+".journal"))
}
