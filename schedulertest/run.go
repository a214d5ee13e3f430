package schedulertest

import (
	"fmt"
	"testing"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/seam"
)

// mostDrained bounds what Drain runs, lest a test never end.
const mostDrained = 10_000

// RunJob runs one attempt of this job as a run does, whatever is due before it,
// and returns the job as it is after that. It fails the test if the job is not
// due (see Advance), has no handler in Config.JobNames, is not pending or
// failed, or is in a queue that is paused or in a blocking one behind another
// job. That the handler fails
// does not fail the test: look at Job.Status and Job.Errors.
func RunJob(tb testing.TB, s *scheduler.Scheduler, id string) *scheduler.Job {
	tb.Helper()
	if err := inside(s).RunJob(tb.Context(), id); err != nil {
		tb.Fatalf("schedulertest: run job %s: %v", id, err)
	}
	return get(tb, s, id)
}

// Drain runs due jobs one at a time until none is due any more, those included
// that the handlers create meanwhile, and returns each as it was after its
// attempt, in their order: a job that is tried again at once is there again. Of
// all queues, the one goes first whose next job has been due for longest. Jobs
// that wait for a backoff or for their time are left: see Advance. Recurring jobs
// whose slots have come are fired first. It fails the test after 10,000 attempts.
func Drain(tb testing.TB, s *scheduler.Scheduler) []*scheduler.Job {
	tb.Helper()
	return drain(tb, s, mostDrained)
}

func drain(tb testing.TB, s *scheduler.Scheduler, most int) []*scheduler.Job {
	tb.Helper()
	jobs := []*scheduler.Job{}
	for {
		id, err := inside(s).RunNext(tb.Context())
		switch {
		case err != nil:
			tb.Fatalf("schedulertest: run what is due: %v", err)
		case id == "":
			return jobs
		}
		jobs = append(jobs, get(tb, s, id))
		if len(jobs) == most {
			tb.Fatalf("schedulertest: after %d attempts there are still jobs due, the last one was a %q: does it create or repeat itself for ever?",
				most, jobs[len(jobs)-1].Name)
		}
	}
}

// CallHandler calls the handler of a job, in this goroutine and with what a run
// gives it: the middleware, the timeout, the trace context, and the job as it is
// in its next attempt. It returns what the handler returns. Nothing is stored,
// so it works where a job can't be run: of a Fake, or created in a transaction
// that the test rolls back. CompleteTx is refused in it. What the handler tells
// by SetProgress and Checkpoint is in job.Progress afterwards, and that is where
// LoadCheckpoint finds a checkpoint: another call with this job goes on there. A
// job without a handler in Config.JobNames fails the test.
func CallHandler[S Source](tb testing.TB, of S, job *scheduler.Job) (result any, err error) {
	tb.Helper()
	var maker seam.Maker
	switch of := any(of).(type) {
	case *scheduler.Scheduler:
		maker = inside(of)
	case *Tx:
		maker = inside(of.s)
	case *Fake:
		maker = of.maker
	}
	handled, result, err := maker.Call(tb.Context(), job)
	if !handled {
		tb.Fatalf("schedulertest: call the handler of job %s: %v", job.ID, err)
	}
	return result, err
}

func get(tb testing.TB, s *scheduler.Scheduler, id string) *scheduler.Job {
	tb.Helper()
	job, err := s.GetJob(tb.Context(), id)
	if err != nil {
		tb.Fatalf("schedulertest: %v", fmt.Errorf("look at what was run: %w", err))
	}
	return job
}
