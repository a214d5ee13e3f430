package scheduler

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Claim is the part of a run, in the default queue, that benchmarks measure alone.
func Claim(ctx context.Context, s *Scheduler, n int) ([]*Job, error) {
	jobs, err := s.claim(ctx, s.queues[JobQueueDefault], JobStatusPending, n)
	return jobs, err
}

// Finish is the other one: it records that jobs of Claim succeeded, and returns
// of how many it could not.
func Finish(s *Scheduler, jobs []*Job) (lost int) {
	batch := make([]*outcome, len(jobs))
	for i, job := range jobs {
		result := "null"
		batch[i] = &outcome{job: job, status: JobStatusSucceeded, result: &result}
	}
	s.finish(batch, false)
	s.lease.forget(batch)
	for _, o := range batch {
		if o.dropped {
			lost++
		}
	}
	return lost
}

// LoseLeaseUnnoticed lets the time of the lease be over whose timer has not run yet,
// as in a process that was stopped.
func LoseLeaseUnnoticed(s *Scheduler) {
	now := time.Now()
	s.lease.term.until.Store(&now)
}

// ObserverBegun says whether there is a goroutine for Config.Observer.
func ObserverBegun(s *Scheduler) bool {
	s.observer.mu.Lock()
	defer s.observer.mu.Unlock()
	return s.observer.events != nil
}

// TellAll tells of a job's whole life, and returns how many allocations that took.
func TellAll(s *Scheduler, job *Job) float64 {
	rows, ids, out := []newRow{{}}, []string{""}, &outcome{job: job, status: JobStatusDead}
	return testing.AllocsPerRun(100, func() {
		s.tellCreated(job)
		s.tellAllCreated(rows, ids, job.CreatedAt)
		s.tellRescued(job)
		out.seen = s.tellStarted(job)
		out.seen.returned()
		out.seen.failed(nil)
		s.tellOutcome(out)
	})
}

// ForgetProgress lets claims look for jobs that became due earlier, as they do
// after a second.
func ForgetProgress(s *Scheduler) {
	for _, q := range s.queues {
		for i := range q.progress {
			q.progress[i].forget()
		}
	}
}

// NeverCleanUp lets a process clean up nothing in the background.
func NeverCleanUp(s *Scheduler) {
	s.cleaner.mu.Lock()
	defer s.cleaner.mu.Unlock()
	s.cleaner.next = time.Now().Add(24 * time.Hour)
}

// LookForALostClaim has two goroutines wait for the moment in which to look for the last
// time, and returns how many looks are to come after that. inLock says how many of them wait.
func LookForALostClaim(s *Scheduler, inLock func() int) (left int32) {
	s.suspects.Store(1)
	s.lease.use(s)
	s.claims.RLock() // a claim is in flight
	var looks sync.WaitGroup
	for range 2 {
		looks.Go(func() { s.reconcile(context.Background()) })
	}
	for inLock() < 2 {
		runtime.Gosched()
	}
	s.claims.RUnlock()
	looks.Wait()
	return s.suspects.Load()
}

// AllJobs reads the whole table, newest first.
func AllJobs(ctx context.Context, s *Scheduler) ([]*Job, error) {
	rows, err := s.pool.Query(ctx, s.sql("SELECT "+jobColumns+" FROM {{schema}}.jobs ORDER BY id DESC"))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Job, error) {
		job := &Job{}
		return job, job.scan(row)
	})
}

// CleanUp is what a process does once an hour.
func CleanUp(s *Scheduler) {
	s.cleaner.mu.Lock()
	s.cleaner.next = time.Time{}
	s.cleaner.mu.Unlock()
	s.cleanUpSometimes()
}

func refillOf(limit int) *refill {
	return &refill{queue: &queue{QueueConfig: QueueConfig{MaxConcurrency: limit}}, freed: make(chan struct{}, 1)}
}

// RefillAfter has claims start so many jobs of a queue with this limit, each as many
// as it asked for, and then some of them end. It returns whether a claim is worth it
// at once, and whether in a moment, and what says so then.
func RefillAfter(limit int, started []int, ended int) (atOnce, soon bool, freed <-chan struct{}) {
	r := refillOf(limit)
	for _, n := range started {
		r.started(n, true)
	}
	for range ended {
		r.ended()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.freed) > 0 && !r.late, r.late || r.timer != nil, r.freed
}

// RefillAfterReplacing is RefillAfter when so many jobs of a queue run, and then a record
// of some of them takes along a claim of half the limit.
func RefillAfterReplacing(limit, running, ended, claimed int) (atOnce, soon bool, freed <-chan struct{}) {
	r := refillOf(limit)
	r.running = running
	r.replaced(ended, claimed, claimed == limit/2)
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.freed) > 0 && !r.late, r.late || r.timer != nil, r.freed
}

// RecordsAlong is how many records in a row take along the claim of another job of a queue
// with this limit, of which many are due, whether they do again after one by itself, and
// whether they go on right after one failed.
func RecordsAlong(limit int) (n int, again, afterFailure bool) {
	r := refillOf(limit)
	r.started(limit, true)
	for r.instead(limit) > 0 {
		n++
		r.replaced(limit, limit, true)
		r.started(0, false) // woken, by itself, without room
	}
	for range limit {
		r.ended()
	}
	r.started(limit, true)
	again = r.instead(limit) > 0
	r.failed()
	return n, again, r.instead(limit) > 0
}

// Room is for how many of up to n jobs a queue with this limit has room when so many
// are running, and whether that is worth a claim.
func Room(limit, running, n int) (most int, worth bool) {
	r := refillOf(limit)
	r.running = running
	return r.room(n)
}

// ClaimSizes are how many jobs the claims of a process with these slots are for that
// has just worked off so many jobs a second, if none ends meanwhile. tired is how many
// the last one gets of what it waits for in the end.
func ClaimSizes(slots, perSecond int) (sizes []int, tired int) {
	c := &capacity{slots: slots, freed: make(chan struct{}), since: time.Now().Add(time.Hour)}
	c.ahead = min(int(float64(perSecond)*aheadTime.Seconds()), mostAhead)
	noMore := make(chan time.Time)
	close(noMore)
	for {
		n := c.take(context.Background(), mostLimit, noMore)
		if n == 0 {
			return sizes, c.take(context.Background(), mostLimit, time.After(time.Minute))
		}
		sizes = append(sizes, n)
	}
}
