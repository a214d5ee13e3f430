package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func TestMaxConcurrencyPerKey(t *testing.T) {
	t.Parallel()
	g := newGated(t, scheduler.QueueConfig{MaxConcurrencyPerKey: 2})
	var ids []string
	for _, key := range []string{"a", "a", "a", "b", "a", "", "", ""} {
		ids = append(ids, g.create(t, key))
	}
	begun, run := g.start(t, 100, 6)
	require.ElementsMatch(t, []string{ids[0], ids[1], ids[3], ids[5], ids[6], ids[7]}, begun, "those without a key are not limited by it")
	g.nothingStarts(t)
	g.gate(ids[1]) <- errors.New("failed as asked")
	require.Equal(t, ids[2:3], g.starts(t, 1))
	g.gate(ids[0]) <- nil
	require.Equal(t, ids[4:5], g.starts(t, 1))
	for _, id := range ids[2:] {
		g.gate(id) <- nil
	}
	require.Equal(t, 7, await(t, run).report.Succeeded)
	require.Equal(t, "a", mustGet(t, g.Scheduler, ids[4]).Key)
}

// A limit of 1 per key is a blocking lane for each key.
func TestTheJobsOfAKeyRunInOrder(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{MaxConcurrencyPerKey: 1})
	first, second, other := g.create(t, "a"), g.create(t, "a"), g.create(t, "b")
	begun, run := g.start(t, 10, 2)
	require.ElementsMatch(t, []string{first, other}, begun)
	g.gate(other) <- nil
	g.gate(first) <- scheduler.RetryAfter(time.Hour, nil)
	report := await(t, run).report
	require.Equal(t, []int{2, 1, 1}, []int{report.Picked, report.Succeeded, report.Failed}, "the failed job holds its key")
	require.NotNil(t, report.NextDueAt)
	require.WithinDuration(t, time.Now().Add(time.Hour), *report.NextDueAt, time.Minute)
	for _, end := range []error{scheduler.Snooze(time.Hour), scheduler.RetryAfter(time.Hour, nil)} {
		g.nothingStarts(t)
		mustExec(t, pool, "UPDATE "+g.schema+".jobs SET run_at = now() WHERE id = $1::text::uuid", first)
		begun, run = g.start(t, 10, 1)
		require.Equal(t, []string{first}, begun, "a run of pending jobs takes it, too")
		g.gate(first) <- end
		await(t, run)
	}

	// Whoever ends the first one in whichever way lets the second one start.
	mustCancel(t, g.Scheduler, first)
	begun, run = g.start(t, 10, 1)
	require.Equal(t, []string{second}, begun)
	mustRetry(t, g.Scheduler, first)
	g.nothingStarts(t)
	third := g.create(t, "a")
	_, err := g.RescheduleJob(t.Context(), third, time.Now().Add(-time.Hour))
	require.NoError(t, err)
	g.gate(second) <- nil
	require.Equal(t, []string{third}, g.starts(t, 1), "in the order of run_at")
	g.gate(third) <- scheduler.Snooze(time.Hour)
	require.Equal(t, 1, await(t, run).report.Snoozed)
	g.nothingStarts(t)
	require.NoError(t, g.DeleteJob(t.Context(), third))
	begun, run = g.start(t, 10, 1)
	require.Equal(t, []string{first}, begun)
	g.gate(first) <- nil
	await(t, run)
	requireNothingCounts(t, pool, g.schema)
}

// A job that has kept its key is found when limits no longer ask for that, also if
// somebody had locked it when they were set.
func TestAJobThatKeptItsKeyRunsUnderOtherLimits(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{MaxConcurrencyPerKey: 1})
	id := g.create(t, "a")
	_, run := g.start(t, 1, 1)
	g.gate(id) <- scheduler.RetryAfter(time.Hour, nil)
	await(t, run)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	mustExec(t, tx, "SELECT FROM "+g.schema+".jobs FOR UPDATE")
	limit(t, g, scheduler.QueueConfig{MaxConcurrencyPerKey: 2})
	require.NoError(t, tx.Rollback(t.Context()))
	mustRetry(t, g.Scheduler, id)
	begun, run := g.start(t, 1, 1)
	require.Equal(t, []string{id}, begun)
	g.gate(id) <- nil
	require.Equal(t, 1, await(t, run).report.Succeeded)
	requireNothingCounts(t, pool, g.schema)
}

func TestSkipFailedLetsAKeyGoOn(t *testing.T) {
	t.Parallel()
	g := newGated(t, scheduler.QueueConfig{MaxConcurrencyPerKey: 1, SkipFailed: true})
	first, second := g.create(t, "a"), g.create(t, "a")
	_, run := g.start(t, 10, 1)
	g.gate(first) <- scheduler.RetryAfter(time.Hour, nil)
	require.Equal(t, []string{second}, g.starts(t, 1))
	mustRetry(t, g.Scheduler, first)
	g.nothingStarts(t)
	g.gate(second) <- nil
	require.Equal(t, []string{first}, g.starts(t, 1))
	g.gate(first) <- nil
	await(t, run)
}

// A job that this process has no handler for holds its key, and no other.
func TestAStrangerHoldsItsKey(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{MaxConcurrencyPerKey: 1})
	mustExec(t, pool, "SELECT "+g.schema+".create_job('stranger', queue => 'limited', key => 'a')")
	g.create(t, "a")
	b := g.create(t, "b")
	begun, run := g.start(t, 10, 1)
	require.Equal(t, []string{b}, begun)
	require.Equal(t, 0, g.nothingStarts(t).Picked)
	g.gate(b) <- nil
	await(t, run)
}

// Keys whose turn it is are found behind any number of jobs that can't start.
func TestKeysAreFoundBehindManyJobsOfAnother(t *testing.T) {
	t.Parallel()
	for title, limits := range map[string]scheduler.QueueConfig{
		"in order": {MaxConcurrencyPerKey: 1}, "limited": {MaxConcurrencyPerKey: 2}, "in rounds": {MaxConcurrencyPerKey: 1, KeyRound: 5},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			g := newGated(t, limits)
			mustCreateMany(t, g.Scheduler, 3000, "work", scheduler.JobData{Queue: "limited", Key: "many"})
			for i := range 20 {
				mustCreate(t, g.Scheduler, "ok", scheduler.JobData{Queue: "limited", Key: fmt.Sprint(i % 10)})
			}
			mustCreate(t, g.Scheduler, "ok", scheduler.JobData{Queue: "limited"})
			// One that was created by somebody who knows nothing of the limits.
			mustExec(t, pool, "UPDATE "+g.schema+".jobs SET key = NULL WHERE key = ''")
			mustExec(t, pool, "UPDATE "+g.schema+".jobs SET run_at = now() - interval '1 hour' WHERE key IS NULL")
			n := limits.MaxConcurrencyPerKey
			begun, run := g.start(t, 1000, n)
			waitFor(t, func() bool {
				return mustQuery[int](t, pool, "SELECT count(*) FROM "+g.schema+".jobs WHERE status = 'succeeded'") == 21
			})
			g.nothingStarts(t)
			require.True(t, mustQuery[bool](t, pool, "SELECT "+g.schema+".next_due('limited') > now()"), "none can start")
			for _, id := range begun {
				mustCancel(t, g.Scheduler, id)
			}
			require.True(t, mustQuery[bool](t, pool, "SELECT count(*) = 3000 FROM "+g.schema+".jobs WHERE key = 'many'"))
			g.gate(g.starts(t, 1)[0]) <- nil
			mustExec(t, pool, "UPDATE "+g.schema+".jobs SET run_at = now() + interval '1 day' WHERE status = 'pending'")
			for {
				select {
				case job := <-g.begun:
					g.gate(job.ID) <- nil
				case <-run:
					return
				}
			}
		})
	}
}

// In a queue with rounds each key has its turn, however many jobs another one has.
func TestRoundsAmongKeys(t *testing.T) {
	t.Parallel()
	for title, limit := range map[string]int{"one at a time": 1, "some": 4, "all at once": 100} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			var order []string
			s := newScheduler(t, func(c *scheduler.Config) {
				c.Queues = queueConfigs{"limited": {KeyRound: 2}}
				c.Concurrency = 1
				c.JobNames = scheduler.JobNames{"work": func(_ context.Context, job *scheduler.Job) (any, error) {
					order = append(order, job.Key)
					return nil, nil
				}}
			})
			for key, n := range map[string]int{"a": 300, "b": 5, "c": 3} {
				mustCreateMany(t, s, n, "work", scheduler.JobData{Queue: "limited", Key: key})
			}
			for done := 0; done < 16; {
				done += mustRun(t, s, scheduler.RunFilter{Queue: "limited", Limit: limit}).Succeeded
			}
			counts := map[string]int{}
			for i, key := range order[:16] {
				counts[key]++
				if i == 5 {
					require.Equal(t, map[string]int{"a": 2, "b": 2, "c": 2}, counts, order[:16])
				}
			}
			require.Equal(t, map[string]int{"a": 8, "b": 5, "c": 3}, counts, order[:16])
			if limit > 1 {
				return
			}
			require.Equal(t, "aabbccaabbcaabaa", strings.Join(order[:16], ""))
		})
	}
}

func TestKeysThatCannotBe(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{MaxConcurrencyPerKey: 1})
	create := func(data scheduler.JobData) error {
		data.Queue = "limited"
		_, err := g.CreateJob(t.Context(), "ok", data)
		return err
	}
	requireInputError(t, create(scheduler.JobData{Key: strings.Repeat("k", 257)}), "key", "257", "256")
	requireInputError(t, create(scheduler.JobData{Key: "a\x00"}), "key")
	requireInputError(t, create(scheduler.JobData{Key: "a", Priority: 1}), "priority", "1", `"limited"`, "strictly in order")
	require.NoError(t, create(scheduler.JobData{Priority: 1}))
	for sql, expected := range map[string]string{
		"key => repeat('k', 257)":     "create_job: key has 257 bytes: expected at most 256",
		"key => 'a', priority => 100": "create_job: priority 100: queue 'limited' runs the jobs of a key strictly in order: expected 0",
	} {
		_, err := pool.Exec(t.Context(), "SELECT "+g.schema+".create_job('ok', queue => 'limited', "+sql+")")
		require.ErrorContains(t, err, expected)
	}
	require.Equal(t, 1, mustQuery[int](t, pool, "SELECT count(*) FROM "+g.schema+".jobs"), "nothing else is stored")
}
