//go:build unix

package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/history"
)

func init() { childRoles["flow"] = workFlow }

// flowQueues are queues with every kind of limit, and the checks of a history of
// their jobs.
var (
	flowQueues = queueConfigs{
		"wide":  {MaxConcurrency: 7},
		"keyed": {MaxConcurrency: 9, MaxConcurrencyPerKey: 2, KeyRound: 3},
		"lanes": {MaxConcurrencyPerKey: 1},
		"rated": {Rate: scheduler.Rate{Limit: 40, Per: 100 * time.Millisecond}, RatePerKey: scheduler.Rate{Limit: 5, Per: 50 * time.Millisecond}},
	}
	flowChecks = []history.Check{
		history.NeverTwiceAtOnce,
		history.AtMost(7, "wide"),
		history.AtMost(9, "keyed"), history.AtMostOfAKey(2, "keyed"),
		history.AtMostOfAKey(1, "lanes"), history.InOrder("lanes"),
		history.RateAtMost(40, 100*time.Millisecond, "rated"), history.RateOfAKeyAtMost(5, 50*time.Millisecond, "rated"),
	}
)

const (
	flowProcesses = 3
	flowKeys      = 10
	flowLease     = 2 * time.Second
)

func flowConfig() scheduler.Config {
	return scheduler.Config{Logger: slog.New(slog.DiscardHandler), Lease: flowLease, Concurrency: 8, PollInterval: 100 * time.Millisecond, Queues: flowQueues}
}

// flowPayload says where a job is among those of its key.
type flowPayload struct{ Order int }

// workFlow works until it is killed. Its handler writes down what it does.
func workFlow() {
	process, err := strconv.Atoi(os.Getenv("FLOW_PROCESS"))
	exitOn(err)
	log, err := history.Open(os.Getenv("FLOW_LOG"))
	exitOn(err)
	var attempts atomic.Int64
	config := flowConfig()
	config.JobNames = scheduler.JobNames{"flow": func(ctx context.Context, job *scheduler.Job) (any, error) {
		return scheduler.Handle(func(ctx context.Context, in flowPayload) (any, error) {
			event := history.Event{
				Kind: history.Begin, Process: process, Job: job.ID, Attempt: int(attempts.Add(1)),
				Queue: string(job.Queue), Key: job.Key, Order: in.Order, StartedAt: *job.StartedAt,
			}
			exitOn(log.Write(event))
			event.Kind = history.End
			var result error
			event.Outcome, result = flowWork(ctx)
			exitOn(log.Write(event))
			return nil, result
		})(ctx, job)
	}}
	s := childScheduler(config)
	fmt.Println("works")
	exitOn(s.Work(context.Background()))
}

// flowWork takes a while, during which others could overlap, and comes to any
// end.
func flowWork(ctx context.Context) (history.Outcome, error) {
	select {
	case <-time.After(rand.N(6 * time.Millisecond)):
	case <-ctx.Done():
		return history.Interrupted, ctx.Err()
	}
	switch rand.N(40) {
	case 0:
		return history.Failed, scheduler.RetryAfter(rand.N(30*time.Millisecond), errors.New("failed as asked"))
	case 1:
		return history.Snoozed, scheduler.Snooze(rand.N(30 * time.Millisecond))
	case 2:
		return history.Dead, scheduler.Cancel(errors.New("dead as asked"))
	}
	return history.Succeeded, nil
}

// flow is a number of processes that work, and are killed now and then.
type flow struct {
	schema, log string
	children    []*child
	numbers     []int // of the children
	started     int
}

func (f *flow) start(t *testing.T) (*child, int) {
	f.started++
	c := startChild(t, "flow", "SCHEMA="+f.schema, "FLOW_LOG="+f.log, fmt.Sprint("FLOW_PROCESS=", f.started))
	require.Equal(t, "works", c.Line(t))
	return c, f.started
}

// replace kills one of the processes, at any moment, and starts another one.
func (f *flow) replace(t *testing.T, log *history.Log) {
	i := rand.IntN(len(f.children))
	f.kill(t, log, i)
	f.children[i], f.numbers[i] = f.start(t)
}

// kill notes the end of a process when it is gone: until then it may begin others.
func (f *flow) kill(t *testing.T, log *history.Log, i int) {
	f.children[i].Kill()
	require.NoError(t, log.Write(history.Event{Kind: history.Kill, Process: f.numbers[i]}))
}

// Over three processes, of which one after another is killed, no limit is
// exceeded, no order broken, and no job lost or run twice at once.
func TestFlowOverProcesses(t *testing.T) {
	t.Parallel()
	n, kills := 1000, 6
	if text, ok := os.LookupEnv("SCHEDULER_FLOW_JOBS"); ok {
		var err error
		n, err = strconv.Atoi(text)
		require.NoError(t, err)
		kills = max(kills, n/2000)
	}
	pool := newPool(t)
	f := &flow{log: filepath.Join(t.TempDir(), "history")}
	s := newScheduler(t, func(c *scheduler.Config) {
		f.schema, c.Queues, c.JobNames = c.Schema, flowQueues, scheduler.JobNames{"flow": succeed}
	})
	ids := createFlow(t, s, n)
	log, err := history.Open(f.log)
	require.NoError(t, err)
	defer func() { require.NoError(t, log.Close()) }()
	for range flowProcesses {
		c, number := f.start(t)
		f.children, f.numbers = append(f.children, c), append(f.numbers, number)
	}
	unfinished := func() int {
		return mustQuery[int](t, pool, "SELECT count(*) FROM "+f.schema+".jobs WHERE lane IS NOT NULL")
	}
	for left := n; left > 0; {
		waitFor(t, func() bool { return unfinished() < max(left-n/(kills+1), 1) })
		if left = unfinished(); left > 0 {
			f.replace(t, log)
		}
	}
	for i := range f.children {
		f.kill(t, log, i)
	}

	events, err := history.Read(f.log)
	require.NoError(t, err)
	h, err := history.New(events)
	require.NoError(t, err)
	require.Empty(t, h.Faults(append(flowChecks, history.NeverLost(ids))...))
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+f.schema+".jobs WHERE status NOT IN ('succeeded', 'dead')"))
	requireNothingCounts(t, pool, f.schema)
	t.Logf("%d jobs, %d attempts, %d processes", n, len(h.Attempts), f.started)
}

// createFlow creates n jobs, of each queue as many.
func createFlow(t *testing.T, s *scheduler.Scheduler, n int) (ids []string) {
	queues := []scheduler.JobQueue{"wide", "keyed", "lanes", "rated"}
	orders := map[string]int{}
	var batch []scheduler.NewJob
	for i := range n {
		queue := queues[i%len(queues)]
		key := fmt.Sprint("key ", i/len(queues)%flowKeys)
		if queue == "keyed" && i%3 > 0 {
			key = "key 0" // has more than others
		}
		orders[string(queue)+key]++
		batch = append(batch, scheduler.NewJob{Name: "flow", JobData: scheduler.JobData{
			Queue: queue, Key: key, MaxAttempts: 1000, Payload: flowPayload{orders[string(queue)+key]},
		}})
		if len(batch) == 1000 || i == n-1 {
			created, err := s.CreateJobs(t.Context(), batch)
			require.NoError(t, err)
			ids, batch = append(ids, created...), nil
		}
	}
	return ids
}
