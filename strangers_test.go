package scheduler_test

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// logged keeps what is logged.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// A name that is misspelt in SQL looks like one that another service handles.
func TestADueJobWithoutAHandlerIsToldOf(t *testing.T) {
	t.Parallel()
	for _, resident := range []bool{false, true} {
		log := &logged{}
		var schema string
		s := newScheduler(t, func(c *scheduler.Config) {
			schema, c.Logger = c.Schema, slog.New(slog.NewTextHandler(log, nil))
			c.JobNames = scheduler.JobNames{"welcome": succeed}
		})
		id := mustQuery[string](t, newPool(t), "SELECT "+schema+".create_job('wellcome', queue => 'blocking')::text")
		if resident {
			goWork(t, t.Context(), s)
		} else {
			require.Zero(t, mustRun(t, s, scheduler.RunFilter{Queue: scheduler.JobQueueBlocking}).Picked)
		}
		waitFor(t, func() bool {
			return bytes.Contains([]byte(log.String()), []byte(`no handler here" queue=blocking name=wellcome`))
		})
		require.Equal(t, scheduler.JobStatusPending, mustGet(t, s, id).Status)
	}
}

func TestMigrateWarnsOfAQueueThatWasDeclaredOtherwise(t *testing.T) {
	t.Parallel()
	log := &logged{}
	var schema string
	newScheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.Queues = queueConfigs{"ledger": {Extends: scheduler.JobQueueBlocking}}
	})
	newScheduler(t, func(c *scheduler.Config) {
		c.Schema, c.Logger = schema, slog.New(slog.NewTextHandler(log, nil))
		c.Queues = queueConfigs{"ledger": {}}
	})
	require.Contains(t, log.String(), "queue=ledger extends=default before=blocking")
}

func TestWithoutMigrateTheErrorSaysSo(t *testing.T) {
	t.Parallel()
	s, err := scheduler.New(newPool(t), scheduler.Config{Schema: "never_migrated", JobNames: scheduler.JobNames{"a": succeed}})
	require.NoError(t, err)
	_, err = s.CreateJob(t.Context(), "a", scheduler.JobData{})
	require.ErrorContains(t, err, "call Migrate first")
	_, err = s.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "a"}})
	require.ErrorContains(t, err, "call Migrate first")
	_, err = s.Run(t.Context(), scheduler.RunFilter{})
	require.ErrorContains(t, err, "call Migrate first")
	_, err = s.GetJob(t.Context(), "01a20c07-ca1a-72b1-9bb1-fa9cae523270")
	require.ErrorContains(t, err, "call Migrate first")
}
