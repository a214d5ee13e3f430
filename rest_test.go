package scheduler_test

import (
	"bytes"
	"context"
	"runtime/pprof"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// Goroutines that are done and rest for the next jobs end when none come.
func TestGoroutinesThatRestEnd(t *testing.T) {
	t.Parallel()
	const mark = "of handlers that rest"
	label := pprof.WithLabels(context.Background(), pprof.Labels("test", mark))
	var all sync.WaitGroup
	all.Add(20)
	s := newScheduler(t, func(c *scheduler.Config) {
		c.JobNames = scheduler.JobNames{"work": func(context.Context, *scheduler.Job) (any, error) {
			pprof.SetGoroutineLabels(label) // of the goroutine, for as long as there is one
			all.Done()
			all.Wait() // so that there are twenty
			return nil, nil
		}}
	})
	mustCreateMany(t, s, 20, "work", scheduler.JobData{})
	report, err := s.Run(context.Background(), scheduler.RunFilter{Limit: 20})
	require.NoError(t, err)
	require.Equal(t, 20, report.Succeeded)
	require.Eventually(t, func() bool {
		var goroutines bytes.Buffer
		return pprof.Lookup("goroutine").WriteTo(&goroutines, 1) == nil && !bytes.Contains(goroutines.Bytes(), []byte(mark))
	}, 20*time.Second, 20*time.Millisecond)
}
