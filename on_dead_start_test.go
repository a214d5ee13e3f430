package scheduler_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// Resident processes learn of it as of any job that is created, without a poll.
func TestOnDeadIsStartedAtOnce(t *testing.T) {
	t.Parallel()
	m := newMortal(t, nil)
	resident := m.beside(t, func(c *scheduler.Config) {
		c.Queues["default"], c.PollInterval = scheduler.QueueConfig{OnDead: "mourn"}, time.Hour
	})
	goWork(t, t.Context(), resident)
	waitFor(t, func() bool { return listening(t, m.pool, m.schema) })
	id := mustCreate(t, m.Scheduler, "a", scheduler.JobData{Queue: "mortal", MaxAttempts: 1}).ID
	require.Equal(t, id, await(t, m.told).ID)
}

// So do those that can't be notified, of what dies in their own hands.
func TestOnDeadIsStartedAtOnceWithoutListening(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
		config := newPool(t).Config()
		config.ConnConfig.DefaultQueryExecMode = mode
		m := &mortal{told: make(chan scheduler.Job, 9)}
		s := newSchedulerOn(t, newPoolWith(t, config), func(c *scheduler.Config) {
			m.configure(c)
			c.PollInterval = time.Hour
		})
		goWork(t, t.Context(), s)
		id := mustCreate(t, s, "a", scheduler.JobData{Queue: "mortal", MaxAttempts: 1}).ID
		require.Equal(t, id, await(t, m.told).ID)
	}
}

// And workers with wake.
func TestOnDeadWakesWorkers(t *testing.T) {
	t.Parallel()
	w := newWakeTest(t, func(c *scheduler.Config) {
		c.Queues = queueConfigs{"mortal": {OnDead: "mourn"}}
		c.JobNames = scheduler.JobNames{"a": fail, "mourn": succeed}
	})
	w.workAwake(t, w.name, w.url())
	mustCreate(t, w.Scheduler, "a", scheduler.JobData{Queue: "mortal", MaxAttempts: 1})
	require.Zero(t, queued(t, w.pool, w.url()))
	require.Equal(t, 1, mustRun(t, w.Scheduler, scheduler.RunFilter{Queue: "mortal"}).Dead)
	require.Equal(t, 1, queued(t, w.pool, w.url()))
}

// A blocking queue goes on after its head has died, whoever is told.
func TestOnDeadInABlockingQueue(t *testing.T) {
	t.Parallel()
	m := newMortal(t, func(c *scheduler.Config) {
		c.Queues["blocking"] = scheduler.QueueConfig{OnDead: "mourn"}
		c.Queues["serial"] = scheduler.QueueConfig{Extends: scheduler.JobQueueBlocking} // has it from there
		c.JobNames["b"] = succeed
	})
	dead := mustCreate(t, m.Scheduler, "a", scheduler.JobData{Queue: "serial", MaxAttempts: 1}).ID
	mustCreate(t, m.Scheduler, "b", scheduler.JobData{Queue: "serial"})
	report := mustRun(t, m.Scheduler, scheduler.RunFilter{Queue: "serial", Limit: 9})
	require.Equal(t, []int{1, 1}, []int{report.Dead, report.Succeeded})
	require.Equal(t, 1, mustRun(t, m.Scheduler, scheduler.RunFilter{}).Succeeded)
	require.Equal(t, dead, await(t, m.told).ID)
}

// The trace that a job is part of goes on with what tells of its death.
func TestOnDeadKeepsTheTrace(t *testing.T) {
	t.Parallel()
	const traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	seen := make(chan string, 1)
	m := newMortal(t, func(c *scheduler.Config) {
		c.JobNames["mourn"] = func(ctx context.Context, _ *scheduler.Job) (any, error) {
			seen <- scheduler.Traceparent(ctx)
			return nil, nil
		}
	})
	_, err := m.CreateJob(scheduler.WithTraceparent(t.Context(), traceparent), "a", scheduler.JobData{Queue: "mortal", MaxAttempts: 1})
	require.NoError(t, err)
	mustRun(t, m.Scheduler, scheduler.RunFilter{Queue: "mortal"})
	mustRun(t, m.Scheduler, scheduler.RunFilter{})
	require.Equal(t, traceparent, await(t, seen))
}

// It counts for all processes from the last Migrate on that has a say in it. A
// change is told, because two services that disagree would undo each other.
func TestOnDeadIsDeclared(t *testing.T) {
	t.Parallel()
	m := newMortal(t, nil)
	onDead := func() map[string]string {
		declared := map[string]string{}
		for _, queue := range []string{"default", "blocking", "mortal"} {
			declared[queue] = mustQuery[string](t, m.pool, "SELECT coalesce(on_dead, 'NULL') FROM "+m.schema+".queues WHERE name = $1", queue)
		}
		return declared
	}
	before := onDead()
	require.Equal(t, map[string]string{"default": "", "blocking": "", "mortal": "mourn"}, before)
	logged := func(configure func(*scheduler.Config)) string {
		var log bytes.Buffer
		m.beside(t, func(c *scheduler.Config) {
			c.Logger = slog.New(slog.NewTextHandler(&log, nil))
			configure(c)
		})
		return log.String()
	}
	require.Empty(t, logged(func(c *scheduler.Config) { c.JobNames, c.Queues = nil, queueConfigs{"mortal": {}} }), "it only creates jobs")
	require.Equal(t, before, onDead())
	require.Contains(t, logged(func(c *scheduler.Config) { c.Queues = queueConfigs{"mortal": {OnDead: "a"}} }), "on_dead=a before=mourn")
	require.Contains(t, logged(func(c *scheduler.Config) { c.Queues = queueConfigs{"mortal": {}} }), `on_dead="" before=a`)
	before = maps.Clone(before)
	before["mortal"] = ""
	require.Equal(t, before, onDead())
	require.Empty(t, logged(func(*scheduler.Config) {}))
}

func TestNewRefusesABadOnDead(t *testing.T) {
	t.Parallel()
	for name, unknown := range map[string]bool{"a b": false, "a\x00": false, strings.Repeat("n", 129): false, "nobody": true} {
		_, err := scheduler.New(idlePool(t), scheduler.Config{
			JobNames: scheduler.JobNames{"a": succeed}, Queues: queueConfigs{"mortal": {OnDead: name}}})
		requireInputError(t, err, "queues", `"mortal"`, "on dead")
		require.Equal(t, unknown, errors.Is(err, scheduler.ErrUnknownJobName))
	}
	_, err := scheduler.New(idlePool(t), scheduler.Config{Queues: queueConfigs{"mortal": {OnDead: "of another service"}}})
	requireInputError(t, err, "queues")
	_, err = scheduler.New(idlePool(t), scheduler.Config{Queues: queueConfigs{"mortal": {OnDead: "of-another-service"}}})
	require.NoError(t, err)
}
