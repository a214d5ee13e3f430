package scheduler_test

import (
	"context"
	"encoding/json"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/relay-club/scheduler"
)

// newJob draws a job that this process may create.
func (m *modelTest) newJob(t *rapid.T, p *testProcess) scheduler.NewJob {
	job := scheduler.NewJob{Name: rapid.SampledFrom(p.model.names).Draw(t, "name"), JobData: scheduler.JobData{
		Queue: anyQueue.Draw(t, "queue"), RunAt: m.runAt(t), Payload: anyScript.Draw(t, "script"),
		MaxAttempts: rapid.IntRange(0, 3).Draw(t, "max attempts"),
		Owner:       rapid.SampledFrom([]string{"", "ann"}).Draw(t, "owner"),
		UniqueKey:   anyKey.Draw(t, "key"),
	}}
	if job.Queue == "" || job.Queue == "own" {
		job.Priority = rapid.SampledFrom([]int{0, 5, -5}).Draw(t, "priority")
	}
	if job.UniqueKey != "" {
		job.UniqueFor = anyFor.Draw(t, "unique for")
		job.OnDuplicate = rapid.SampledFrom([]scheduler.DuplicatePolicy{scheduler.DuplicateKeep, scheduler.DuplicateReplace}).Draw(t, "on duplicate")
	}
	return job
}

// created holds a returned job against what the model says of its creation.
func (m *modelTest) created(t *rapid.T, job *scheduler.Job, data scheduler.NewJob) {
	j, duplicate := m.model.create(data)
	if !duplicate {
		j.id = job.ID
	}
	require.Equal(t, duplicate, job.Duplicate)
	require.Equal(t, j.row(), rowOf(job))
}

func (m *modelTest) create(t *rapid.T) {
	p := m.process(t)
	data := m.newJob(t, p)
	job, err := p.CreateJob(t.Context(), data.Name, data.JobData)
	require.NoError(t, err)
	m.created(t, job, data)
}

func (m *modelTest) createBatch(t *rapid.T) {
	p := m.process(t)
	jobs := make([]scheduler.NewJob, rapid.IntRange(1, 5).Draw(t, "jobs"))
	alike := rapid.Bool().Draw(t, "of one queue and time")
	for i := range jobs {
		if jobs[i] = m.newJob(t, p); alike && !m.isBlocking(jobs[i].Queue) && !m.isBlocking(jobs[0].Queue) {
			jobs[i].Queue, jobs[i].RunAt = jobs[0].Queue, jobs[0].RunAt
		}
	}
	ids, err := p.CreateJobs(t.Context(), jobs)
	require.NoError(t, err)
	require.Len(t, ids, len(jobs))
	for i, id := range ids {
		j, duplicate := m.model.create(jobs[i])
		if !duplicate {
			j.id = id
		}
		require.Equal(t, j.id, id)
	}
}

func (m *modelTest) createTx(t *rapid.T) {
	p := m.process(t)
	tx, err := m.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	commit := rapid.Bool().Draw(t, "commit")
	for range rapid.IntRange(1, 2).Draw(t, "jobs") {
		data := m.newJob(t, p)
		job, err := p.CreateJobTx(t.Context(), tx, data.Name, data.JobData)
		require.NoError(t, err)
		if commit {
			m.created(t, job, data)
		}
	}
	if commit {
		require.NoError(t, tx.Commit(t.Context()))
	}
}

func (m *modelTest) createInSQL(t *rapid.T) {
	data := m.newJob(t, m.parallel)
	data.OnDuplicate, data.MaxAttempts = scheduler.DuplicateKeep, 0
	var runAt *time.Time
	if !data.RunAt.IsZero() {
		runAt = &data.RunAt
	}
	payload, err := json.Marshal(data.Payload)
	require.NoError(t, err)
	var id string
	err = m.pool.QueryRow(t.Context(), `SELECT `+m.schema+`.create_job($1, $2::timestamptz, $3::text::jsonb, $4, owner => $5,
		unique_key => $6, unique_for => $7::bigint * interval '1 microsecond', priority => $8)::text`, data.Name, runAt, string(payload), string(data.Queue), data.Owner,
		data.UniqueKey, data.UniqueFor.Microseconds(), data.Priority).Scan(&id)
	require.NoError(t, err)
	j, duplicate := m.model.create(data)
	if !duplicate {
		j.id = id
	}
	require.Equal(t, j.id, id)
}
