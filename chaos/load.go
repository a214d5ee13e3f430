package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/history"
)

// load creates jobs in all ways the whole time, and writes down which creations
// were acknowledged. What became of the others is not known.
type load struct {
	jobs  *scheduler.Scheduler
	pool  *pgxpool.Pool // by way of the proxy, as that of a service
	log   *history.Log
	fleet *fleet
	db    *database
	rate  int // how many jobs are to be created in a second, in all
	ways  []way

	acknowledged, unknown atomic.Int64
	begun                 time.Time // this round
	before                int64     // how many were acknowledged then

	mu         sync.Mutex
	rolledBack []string // jobs whose transaction was
	recent     []string // jobs that were created one by one
}

const (
	patience    = 5 * time.Second // with one creation
	mostWaiting = 20_000          // jobs, before no more are created for a while
	batch       = 100
)

// way is one in which jobs are created, or meddled with, again and again.
type way struct {
	pause  time.Duration // between two times, on the average
	create func(ctx context.Context)
}

// waysOf are those of a load. They go on where they were, round after round.
func waysOf(l *load) (ways []way) {
	every := func(pause time.Duration, create func(ctx context.Context)) { ways = append(ways, way{pause, create}) }
	fails := func() task { return task{Kind: brittle} }
	every(100*time.Millisecond, l.many)
	every(20*time.Millisecond, l.oneOfManyWays(scheduler.JobData{}, fails))
	every(50*time.Millisecond, l.family)
	every(200*time.Millisecond, l.inOrder(scheduler.JobQueueBlocking, "all", plain))
	every(200*time.Millisecond, l.inOrder("ledger", "all", plain))
	for key := range 5 {
		every(100*time.Millisecond, l.inOrder("lanes", fmt.Sprint("lane ", key), brittle))
		every(50*time.Millisecond, l.inOrder("singles", fmt.Sprint("single ", key), brittle))
	}
	every(20*time.Millisecond, l.oneOfManyWays(scheduler.JobData{Queue: "wide"}, fails))
	every(50*time.Millisecond, l.oneOfManyWays(scheduler.JobData{Queue: "rated"}, fails))
	for key := range 5 {
		key := fmt.Sprint("key ", key)
		every(60*time.Millisecond, l.oneOfManyWays(scheduler.JobData{Queue: "keyed", Key: key}, func() task { return task{Kind: brittle, Key: key} }))
	}
	every(300*time.Millisecond, l.burst("wide"))
	every(300*time.Millisecond, l.burst("keyed"))
	every(100*time.Millisecond, l.oneOfManyWays(scheduler.JobData{}, func() task { return task{Kind: completes} }))
	every(50*time.Millisecond, l.meddle)
	every(200*time.Millisecond, l.callOff)
	every(500*time.Millisecond, l.meddleWithMany)
	every(2*time.Second, l.pause)
	return ways
}

// run creates jobs until ctx ends.
func (l *load) run(ctx context.Context) {
	l.begun, l.before = time.Now(), l.acknowledged.Load()
	var group sync.WaitGroup
	for _, w := range l.ways {
		group.Go(func() {
			for ctx.Err() == nil {
				attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
				w.create(attempt)
				cancel()
				time.Sleep(rand.N(2 * w.pause))
			}
		})
	}
	group.Wait()
}

// acknowledge notes what came of a creation; no ids: it is not known.
func (l *load) acknowledge(err error, ids ...string) { l.acknowledgeAfter(nil, err, ids...) }

// acknowledgeAfter is acknowledge for jobs that run after others.
func (l *load) acknowledgeAfter(parents []string, err error, ids ...string) {
	if err != nil {
		l.unknown.Add(1)
		return
	}
	for _, id := range ids {
		l.write(history.Event{Kind: history.Create, Job: id, Parents: parents})
	}
	l.acknowledged.Add(int64(len(ids)))
	if len(ids) == 1 {
		l.remember(ids[0])
	}
}

func (l *load) write(event history.Event) {
	if err := l.log.Write(event); err != nil {
		panic(err)
	}
}

// many creates as many jobs as are missing, unless too many wait.
func (l *load) many(ctx context.Context) {
	missing := int64(time.Since(l.begun).Seconds()*float64(l.rate)) + l.before - l.acknowledged.Load()
	waiting, err := query[int](ctx, l.db, "SELECT count(*) FROM scheduler.jobs WHERE lane IS NOT NULL")
	if err != nil || waiting > mostWaiting {
		return
	}
	for ; missing >= batch; missing -= batch {
		jobs := make([]scheduler.NewJob, batch)
		for i := range jobs {
			jobs[i] = scheduler.NewJob{Name: jobName, JobData: scheduler.JobData{Payload: task{}}}
		}
		ids, err := l.jobs.CreateJobs(ctx, jobs)
		l.acknowledge(err, ids...)
		if err != nil {
			return
		}
	}
}

// burst creates so many jobs of a queue at once that its limits are reached, which
// they rarely are by those that are created one by one.
func (l *load) burst(queue scheduler.JobQueue) func(ctx context.Context) {
	return func(ctx context.Context) {
		jobs := make([]scheduler.NewJob, 40)
		for i := range jobs {
			jobs[i] = scheduler.NewJob{Name: jobName, JobData: scheduler.JobData{Queue: queue, Payload: task{Kind: brittle}}}
			if queue == "keyed" {
				key := fmt.Sprint("key ", i%5)
				jobs[i].Key, jobs[i].Payload = key, task{Kind: brittle, Key: key}
			}
		}
		ids, err := l.jobs.CreateJobs(ctx, jobs)
		l.acknowledge(err, ids...)
	}
}

// family creates jobs that run after others.
func (l *load) family(ctx context.Context) {
	var parents []string
	for range 1 + rand.N(3) {
		job, err := l.jobs.CreateJob(ctx, jobName, scheduler.JobData{Payload: task{Kind: brittle}})
		l.acknowledge(err, ids(job)...)
		if err != nil {
			return
		}
		parents = append(parents, job.ID)
	}
	for range 2 { // a child of these, and one of the child
		job, err := l.jobs.CreateJob(ctx, jobName, scheduler.JobData{After: parents, Payload: task{Parents: parents}})
		l.acknowledgeAfter(parents, err, ids(job)...)
		if err != nil {
			return
		}
		parents = ids(job)
	}
}

func ids(job *scheduler.Job) []string {
	if job == nil || job.Duplicate {
		return nil
	}
	return []string{job.ID}
}

// inOrder creates jobs of a key one after another.
func (l *load) inOrder(queue scheduler.JobQueue, key string, k kind) func(ctx context.Context) {
	order := 0
	data := scheduler.JobData{Queue: queue}
	switch queue {
	case "lanes":
		data.Key = key
	case "singles":
		data.UniqueKey = key
	}
	return l.oneOfManyWays(data, func() task {
		order++
		if order%5 == 0 {
			return task{Kind: completes, Key: key, Order: order}
		}
		return task{Kind: k, Key: key, Order: order}
	})
}

var errRollback = errors.New("rolled back as asked")

// oneOfManyWays creates a job in Go, in a transaction, over HTTP or in SQL.
func (l *load) oneOfManyWays(data scheduler.JobData, next func() task) func(ctx context.Context) {
	return func(ctx context.Context) {
		data := data
		data.Payload = next()
		switch way := rand.N(5); {
		case way == 0 && data.Key == "" && data.UniqueKey == "":
			id, err := l.overHTTP(ctx, data)
			l.acknowledge(err, id)
		case way == 1 && data.UniqueKey == "":
			id, err := l.inSQL(ctx, data)
			l.acknowledge(err, id)
		case way == 2:
			var job *scheduler.Job
			err := pgx.BeginFunc(ctx, l.pool, func(tx pgx.Tx) (err error) {
				job, err = l.jobs.CreateJobTx(ctx, tx, jobName, data)
				time.Sleep(rand.N(5 * time.Millisecond))
				if err == nil && rand.N(10) == 0 {
					return errRollback
				}
				return err
			})
			if errors.Is(err, errRollback) {
				l.mu.Lock()
				l.rolledBack = append(l.rolledBack, ids(job)...)
				l.mu.Unlock()
				return
			}
			l.acknowledge(err, ids(job)...)
		default:
			job, err := l.jobs.CreateJob(ctx, jobName, data)
			l.acknowledge(err, ids(job)...)
		}
	}
}

func (l *load) inSQL(ctx context.Context, data scheduler.JobData) (id string, err error) {
	payload, err := json.Marshal(data.Payload)
	if err != nil {
		return "", err
	}
	err = l.pool.QueryRow(ctx, "SELECT create_job($1, payload => $2, queue => $3, key => $4)",
		jobName, string(payload), string(data.Queue), data.Key).Scan(&id)
	return id, err
}

func (l *load) overHTTP(ctx context.Context, data scheduler.JobData) (id string, err error) {
	addresses := l.fleet.addresses()
	if len(addresses) == 0 {
		return "", errors.New("no service is there")
	}
	body, err := json.Marshal(map[string]any{"name": jobName, "queue": data.Queue, "payload": data.Payload})
	if err != nil {
		return "", err
	}
	response, err := call(ctx, addresses[rand.N(len(addresses))], "/api/jobs", body)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("status %d", response.StatusCode)
	}
	var job struct {
		ID string `json:"id"`
	}
	err = json.NewDecoder(response.Body).Decode(&job)
	return job.ID, err
}

func call(ctx context.Context, address, path string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	request.Header.Set("Content-Type", "application/json")
	return http.DefaultClient.Do(request)
}
