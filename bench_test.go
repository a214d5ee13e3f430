package scheduler_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// These show where time and allocations go, on the cluster of the tests, which
// waits for no disk. What the library does on a durable server, and what others
// do, is measured by the module in benchmarks.

// newBenchmark is a scheduler whose jobs, named noop, do nothing.
func newBenchmark(b *testing.B) *scheduler.Scheduler {
	return newScheduler(b, func(config *scheduler.Config) {
		config.JobNames = scheduler.JobNames{
			"noop": func(context.Context, *scheduler.Job) (any, error) { return nil, nil },
		}
		config.Tokens = []string{"123ABC"}
		config.Logger = slog.New(slog.DiscardHandler)
	})
}

// noops are n jobs that are due.
func noops(n int) []scheduler.NewJob {
	jobs := make([]scheduler.NewJob, n)
	for i := range jobs {
		jobs[i] = scheduler.NewJob{Name: "noop", JobData: scheduler.JobData{Payload: map[string]int{"n": i}}}
	}
	return jobs
}

// reportPerJob adds the time and the throughput of a job, where an operation
// is many of them.
func reportPerJob(b *testing.B, jobs int) {
	seconds := b.Elapsed().Seconds()
	b.ReportMetric(seconds*1e9/float64(b.N*jobs), "ns/job")
	b.ReportMetric(float64(b.N*jobs)/seconds, "jobs/s")
}

func BenchmarkCreateJob(b *testing.B) {
	s := newBenchmark(b)
	data := scheduler.JobData{Payload: map[string]int{"n": 1}}
	b.ReportAllocs()
	for b.Loop() {
		_, err := s.CreateJob(b.Context(), "noop", data)
		require.NoError(b, err)
	}
}

func BenchmarkCreateJobs1000(b *testing.B) {
	s := newBenchmark(b)
	jobs := noops(1000)
	b.ReportAllocs()
	for b.Loop() {
		_, err := s.CreateJobs(b.Context(), jobs)
		require.NoError(b, err)
	}
	reportPerJob(b, len(jobs))
}

// claimSizes are how many jobs are claimed, or recorded, in one statement: one,
// or as many as Config.Concurrency has room for.
var claimSizes = []int{1, 100}

func BenchmarkClaim(b *testing.B) {
	for _, n := range claimSizes {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			s := newBenchmark(b)
			due := noops(100)
			var claimed []*scheduler.Job
			b.ReportAllocs()
			for b.Loop() {
				if len(claimed)%len(due) == 0 {
					b.StopTimer()
					require.Zero(b, scheduler.Finish(s, claimed))
					_, err := s.CreateJobs(b.Context(), due)
					require.NoError(b, err)
					claimed = claimed[:0]
					b.StartTimer()
				}
				jobs, err := scheduler.Claim(b.Context(), s, n)
				require.NoError(b, err)
				require.Len(b, jobs, n)
				claimed = append(claimed, jobs...)
			}
			reportPerJob(b, n)
			require.Zero(b, scheduler.Finish(s, claimed))
		})
	}
}

func BenchmarkFinish(b *testing.B) {
	for _, n := range claimSizes {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			s := newBenchmark(b)
			due := noops(100)
			var claimed []*scheduler.Job
			b.ReportAllocs()
			for b.Loop() {
				if len(claimed) == 0 {
					b.StopTimer()
					_, err := s.CreateJobs(b.Context(), due)
					require.NoError(b, err)
					claimed, err = scheduler.Claim(b.Context(), s, len(due))
					require.NoError(b, err)
					require.Len(b, claimed, len(due))
					b.StartTimer()
				}
				require.Zero(b, scheduler.Finish(s, claimed[:n]))
				claimed = claimed[n:]
			}
			reportPerJob(b, n)
			require.Zero(b, scheduler.Finish(s, claimed))
		})
	}
}

// BenchmarkRun claims, handles and finishes 1,000 jobs.
func BenchmarkRun(b *testing.B) {
	s := newBenchmark(b)
	jobs := noops(1000)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		_, err := s.CreateJobs(b.Context(), jobs)
		require.NoError(b, err)
		b.StartTimer()
		report, err := s.Run(b.Context(), scheduler.RunFilter{Limit: len(jobs)})
		require.NoError(b, err)
		require.Equal(b, len(jobs), report.Succeeded)
	}
	reportPerJob(b, len(jobs))
}

// BenchmarkRunNothingDue is the price of a run that was called in vain.
func BenchmarkRunNothingDue(b *testing.B) {
	s := newBenchmark(b)
	b.ReportAllocs()
	for b.Loop() {
		report, err := s.Run(b.Context(), scheduler.RunFilter{Limit: 1000})
		require.NoError(b, err)
		require.Zero(b, report.Picked)
	}
}

// benchCall sends a request to the handler, without a network between.
func benchCall(b *testing.B, handler http.Handler, target, body string) *httptest.ResponseRecorder {
	request := httptest.NewRequestWithContext(b.Context(), http.MethodPost, target, strings.NewReader(body))
	request.Header.Set("Authorization", "Bearer 123ABC")
	request.Header.Set("Content-Type", "application/json")
	response := httptest.NewRecorder()
	handler.ServeHTTP(response, request)
	return response
}

func BenchmarkHandlerCreate(b *testing.B) {
	handler := newBenchmark(b).Handler()
	b.ReportAllocs()
	for b.Loop() {
		response := benchCall(b, handler, "/api/jobs", `{"name": "noop", "payload": {"n": 1}}`)
		require.Equal(b, http.StatusCreated, response.Code)
	}
}

// BenchmarkHandlerRun is one call of the Run endpoint for one job.
func BenchmarkHandlerRun(b *testing.B) {
	s := newBenchmark(b)
	handler := s.Handler()
	jobs, left := noops(1000), 0
	b.ReportAllocs()
	for b.Loop() {
		if left == 0 {
			b.StopTimer()
			_, err := s.CreateJobs(b.Context(), jobs)
			require.NoError(b, err)
			left = len(jobs)
			b.StartTimer()
		}
		left--
		response := benchCall(b, handler, "/api/jobs/run", "")
		require.Equal(b, http.StatusOK, response.Code)
		body, err := io.ReadAll(response.Body)
		require.NoError(b, err)
		require.Contains(b, string(body), `"succeeded":1,`)
	}
}
