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

	acknowledged, unknown atomic.Int64
	begun                 time.Time

	mu         sync.Mutex
	rolledBack []string // jobs whose transaction was
}

const (
	patience    = 5 * time.Second // with one creation
	mostWaiting = 20_000          // jobs, before no more are created for a while
	batch       = 100
)

// run creates jobs until ctx ends.
func (l *load) run(ctx context.Context) {
	l.begun = time.Now()
	var group sync.WaitGroup
	every := func(pause time.Duration, create func(ctx context.Context)) {
		group.Go(func() {
			for ctx.Err() == nil {
				attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
				create(attempt)
				cancel()
				time.Sleep(rand.N(2 * pause))
			}
		})
	}
	every(100*time.Millisecond, l.many)
	every(20*time.Millisecond, l.oneOfManyWays(scheduler.JobData{}, func() task { return task{Kind: brittle} }))
	every(50*time.Millisecond, l.family)
	every(200*time.Millisecond, l.inOrder(scheduler.JobQueueBlocking, "all", plain))
	every(200*time.Millisecond, l.inOrder("ledger", "all", plain))
	for key := range 5 {
		every(100*time.Millisecond, l.inOrder("lanes", fmt.Sprint("lane ", key), brittle))
		every(50*time.Millisecond, l.inOrder("singles", fmt.Sprint("single ", key), brittle))
	}
	every(20*time.Millisecond, l.oneOfManyWays(scheduler.JobData{Queue: "wide"}, func() task { return task{Kind: brittle} }))
	every(50*time.Millisecond, l.oneOfManyWays(scheduler.JobData{Queue: "rated"}, func() task { return task{Kind: brittle} }))
	for key := range 5 {
		key := fmt.Sprint("key ", key)
		every(60*time.Millisecond, l.oneOfManyWays(scheduler.JobData{Queue: "keyed", Key: key}, func() task { return task{Kind: brittle, Key: key} }))
	}
	group.Wait()
}

// acknowledge notes what came of a creation; no ids: it is not known.
func (l *load) acknowledge(err error, ids ...string) {
	if err != nil {
		l.unknown.Add(1)
		return
	}
	for _, id := range ids {
		if err := l.log.Write(history.Event{Kind: history.Create, Job: id}); err != nil {
			panic(err)
		}
	}
	l.acknowledged.Add(int64(len(ids)))
}

// many creates as many jobs as are missing, unless too many wait.
func (l *load) many(ctx context.Context) {
	missing := int64(time.Since(l.begun).Seconds()*float64(l.rate)) - l.acknowledged.Load()
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
		l.acknowledge(err, ids(job)...)
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
