package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/history"
)

// mostRecent is among how many of the youngest jobs one is chosen to meddle with.
const mostRecent = 100

func (l *load) remember(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.recent = append(l.recent, id); len(l.recent) > mostRecent {
		l.recent = l.recent[1:]
	}
}

// meddle cancels some job, or retries it, whatever it is doing.
func (l *load) meddle(ctx context.Context) {
	l.mu.Lock()
	id := ""
	if n := len(l.recent); n > 0 {
		id = l.recent[rand.N(n)]
	}
	l.mu.Unlock()
	switch {
	case id == "":
	case rand.N(5) == 0:
		l.retry(ctx, id)
	default:
		l.cancel(ctx, id)
	}
}

// callOff cancels a job about when it runs, and may think better of it.
func (l *load) callOff(ctx context.Context) {
	job, err := l.jobs.CreateJob(ctx, jobName, scheduler.JobData{Payload: task{Kind: lingers}})
	l.acknowledge(err, ids(job)...)
	if err != nil {
		return
	}
	sleep(ctx, rand.N(500*time.Millisecond))
	l.cancel(ctx, job.ID)
	if rand.N(3) == 0 {
		sleep(ctx, rand.N(time.Second))
		l.retry(ctx, job.ID)
	}
}

func (l *load) cancel(ctx context.Context, id string) {
	l.write(history.Event{Kind: history.Cancel, Job: id})
	if l.control(ctx, id, "cancel", l.jobs.CancelJob) == nil {
		l.write(history.Event{Kind: history.Cancelled, Job: id})
	}
}

// retry does not ask what came of it: most jobs can't be retried.
func (l *load) retry(ctx context.Context, id string) {
	l.write(history.Event{Kind: history.Retry, Job: id})
	_ = l.control(ctx, id, "retry", l.jobs.RetryJob)
}

// control does it in Go or over HTTP.
func (l *load) control(ctx context.Context, id, action string, inGo func(context.Context, string) (*scheduler.Job, error)) error {
	addresses := l.fleet.addresses()
	if len(addresses) == 0 || rand.N(3) > 0 {
		_, err := inGo(ctx, id)
		return err
	}
	response, err := call(ctx, addresses[rand.N(len(addresses))], fmt.Sprintf("/api/jobs/%s/%s", id, action), nil)
	if err != nil {
		return err
	}
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d (%w)", response.StatusCode, err)
	}
	return nil
}

// meddleWithMany does one thing to many jobs, of which some run meanwhile.
func (l *load) meddleWithMany(ctx context.Context) {
	jobs := make([]scheduler.NewJob, 20)
	filter := scheduler.JobFilter{Owner: fmt.Sprint("owner ", rand.Uint64())}
	for i := range jobs {
		at := time.Now().Add(rand.N(500 * time.Millisecond))
		jobs[i] = scheduler.NewJob{Name: jobName, JobData: scheduler.JobData{RunAt: at, Owner: filter.Owner, Payload: task{Kind: lingers}}}
	}
	ids, err := l.jobs.CreateJobs(ctx, jobs)
	l.acknowledge(err, ids...)
	if err != nil {
		return
	}
	sleep(ctx, rand.N(500*time.Millisecond))
	about := func(kind history.Kind) {
		for _, id := range ids {
			l.write(history.Event{Kind: kind, Job: id})
		}
	}
	switch rand.N(4) {
	case 0:
		about(history.Cancel)
		_, err = l.jobs.CancelJobs(ctx, filter)
		if err == nil && rand.N(2) == 0 {
			about(history.Retry)
			_, _ = l.jobs.RetryJobs(ctx, filter)
		}
	case 1:
		about(history.Retry)
		_, _ = l.jobs.RetryJobs(ctx, filter)
	case 2:
		_, _ = l.jobs.RescheduleJobs(ctx, filter, time.Now().Add(rand.N(time.Second)))
	case 3:
		about(history.Delete)
		_, _ = l.jobs.DeleteJobs(ctx, filter)
	}
}

// pause pauses a queue, or all of them, for a while. Whatever comes of that, it
// is resumed.
func (l *load) pause(ctx context.Context) {
	queue := someQueue()
	if rand.N(10) == 0 {
		queue = history.AllQueues
	}
	if err := l.jobs.PauseQueue(ctx, scheduler.JobQueue(queue)); err == nil {
		l.write(history.Event{Kind: history.Pause, Queue: queue})
		time.Sleep(time.Second + rand.N(time.Second))
	}
	l.write(history.Event{Kind: history.Resume, Queue: queue})
	for {
		attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		err := l.jobs.ResumeQueue(attempt, scheduler.JobQueue(queue))
		cancel()
		if err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
}
