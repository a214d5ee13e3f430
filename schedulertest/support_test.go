package schedulertest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/seam"
)

// recorder is a testing.TB that only notes that the test under it has failed.
type recorder struct {
	testing.TB
	mu       sync.Mutex
	failures []string
	log      bytes.Buffer
	cleanups []func()
}

func (r *recorder) Helper()            {}
func (r *recorder) Output() io.Writer  { return r }
func (r *recorder) Cleanup(end func()) { r.cleanups = append(r.cleanups, end) }

func (r *recorder) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(line)
}

func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

// end does what the end of a test does.
func (r *recorder) end() {
	for len(r.cleanups) > 0 {
		last := len(r.cleanups) - 1
		end := r.cleanups[last]
		r.cleanups = r.cleanups[:last]
		end()
	}
}

// logged is what was logged so far.
func (r *recorder) logged() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

// inTest runs something as a test, without its end, and returns how it failed.
func inTest(t *testing.T, test func(tb testing.TB)) *recorder {
	r := &recorder{TB: t}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		test(r)
	}()
	<-ended
	return r
}

// requireFails requires that a test ends there, with one message that has these
// parts.
func requireFails(t *testing.T, test func(tb testing.TB), parts ...string) {
	t.Helper()
	r := inTest(t, func(tb testing.TB) {
		test(tb)
		tb.Errorf("it went on")
	})
	require.Len(t, r.failures, 1, "%q", r.failures)
	for _, part := range parts {
		require.Contains(t, r.failures[0], part)
	}
	require.True(t, strings.HasPrefix(r.failures[0], "schedulertest: "), r.failures[0])
}

func mustCreate(t *testing.T, s *scheduler.Scheduler, name string, data scheduler.JobData) *scheduler.Job {
	t.Helper()
	job, err := s.CreateJob(t.Context(), name, data)
	require.NoError(t, err)
	return job
}

func schemaOf(s *scheduler.Scheduler) string { return seam.Of(s).Schema() }

func mustQuery[T any](t *testing.T, pool *pgxpool.Pool, sql string, args ...any) (value T) {
	t.Helper()
	require.NoError(t, pool.QueryRow(t.Context(), sql, args...).Scan(&value))
	return value
}

func succeed(context.Context, *scheduler.Job) (any, error) { return "done", nil }

func fail(context.Context, *scheduler.Job) (any, error) { return nil, errors.New("failed as asked") }

// statuses are those of jobs, with their names.
func statuses(jobs []*scheduler.Job) []string {
	shown := []string{}
	for _, job := range jobs {
		shown = append(shown, fmt.Sprintf("%s %s %d", job.Name, job.Status, job.Attempt))
	}
	return shown
}
