package scheduler

import "context"

// Claim is the part of a run, in the default queue, that benchmarks measure alone.
func Claim(ctx context.Context, s *Scheduler, n int) ([]*Job, error) {
	got, err := s.claim(ctx, s.queues[JobQueueDefault], JobStatusPending, n)
	return got.jobs, err
}

// Finish is the other one: it records that jobs of Claim succeeded, and returns
// of how many it could not.
func Finish(s *Scheduler, jobs []*Job) (lost int) {
	batch := make([]*outcome, len(jobs))
	for i, job := range jobs {
		result := "null"
		batch[i] = &outcome{job: job, status: JobStatusSucceeded, result: &result}
	}
	s.finish(batch)
	s.lease.forget(batch)
	for _, o := range batch {
		if o.dropped {
			lost++
		}
	}
	return lost
}
