package scheduler

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// claimSQL picks due jobs, oldest first, and starts an attempt of each.
//
// SKIP LOCKED lets any number of runs claim side by side without waiting for
// each other or taking the same job. The lease is locked against its rescue
// until the claim has committed (see the SQL function rescue), and nothing is
// claimed under a lease that has run out. The ids go through an array so that
// the planner looks them up one by one, however large the table.
const claimSQL = `
WITH own AS MATERIALIZED (
    SELECT id FROM {{schema}}.leases WHERE id = $1::text::uuid AND expires_at > now() FOR KEY SHARE
), pending AS MATERIALIZED (
    SELECT id, run_at FROM {{schema}}.jobs
    WHERE queue = $2::text AND status = 'pending' AND run_at <= now() AND name = ANY ($3::text[]) AND $5::bool
    ORDER BY run_at, id LIMIT $4::int FOR UPDATE SKIP LOCKED
), failed AS MATERIALIZED (
    SELECT id, run_at FROM {{schema}}.jobs
    WHERE queue = $2::text AND status = 'failed' AND run_at <= now() AND name = ANY ($3::text[]) AND $6::bool
    ORDER BY run_at, id LIMIT $4::int FOR UPDATE SKIP LOCKED
), picked AS (
    SELECT id FROM (SELECT * FROM pending UNION ALL SELECT * FROM failed) AS due
    WHERE EXISTS (SELECT FROM own)
    ORDER BY run_at, id LIMIT $4::int
)
UPDATE {{schema}}.jobs j
SET status = 'running', lease_id = $1::text::uuid, started_at = now(), attempt = j.attempt + 1, claims = j.claims + 1
WHERE j.id = ANY (ARRAY(SELECT id FROM picked))
RETURNING j.id::text, j.name, j.queue, j.status, j.payload, j.result, j.run_at, j.created_at, j.started_at, j.finished_at,
    j.attempt, j.max_attempts, j.errors, coalesce(j.timeout_ms, 0), j.claims`

const claimBlockingSQL = `
SELECT j.id::text, j.name, j.queue, j.status, j.payload, j.result, j.run_at, j.created_at, j.started_at, j.finished_at,
    j.attempt, j.max_attempts, j.errors, coalesce(j.timeout_ms, 0), j.claims
FROM {{schema}}.claim_blocking($2::text, $4::bool, $1::text::uuid, $3::text[]) AS j`

// claimTimeout bounds a claim. It has no other deadline: a claim that is cut
// off may have happened all the same.
const claimTimeout = 30 * time.Second

// claimed are jobs whose attempt has begun, and the lease they run under.
type claimed struct {
	jobs  []*Job
	lease context.Context // ends when the lease is lost or Shutdown gives up waiting
}

// claim starts an attempt of up to n due jobs; in a blocking queue, of one.
func (s *Scheduler) claim(ctx context.Context, q *queue, status JobStatus, n int) (claimed, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTimeout)
	defer cancel()
	// Between the claim in the database and the note that we have it, nobody may
	// conclude that we don't.
	s.claims.RLock()
	defer s.claims.RUnlock()

	id, life, err := s.lease.hold(ctx, s)
	if err != nil {
		return claimed{}, fmt.Errorf("claim jobs: take a lease: %w", err)
	}
	var rows pgx.Rows
	if q.blocking() {
		rows, err = s.pool.Query(ctx, s.sql(claimBlockingSQL), id, string(q.name), s.names, q.SkipFailed)
	} else {
		rows, err = s.pool.Query(ctx, s.sql(claimSQL), id, string(q.name), s.names, n,
			status != JobStatusFailed, status != JobStatusPending)
	}
	var jobs []*Job
	if err == nil {
		jobs, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*Job, error) {
			job := &Job{}
			return job, job.scan(row)
		})
	}
	if err != nil {
		s.suspects.Store(suspectBeats)
		return claimed{}, fmt.Errorf("claim jobs: %w", err)
	}
	for _, job := range jobs {
		s.lease.keep(s, job)
	}
	slices.SortFunc(jobs, func(a, b *Job) int {
		return cmp.Or(a.RunAt.Compare(b.RunAt), cmp.Compare(a.ID, b.ID))
	})
	return claimed{jobs, life}, nil
}

// suspectBeats is for how many heartbeats after a failed claim its traces are
// looked for: the database may finish a statement well after the connection
// was lost.
const suspectBeats = 6

const handBackSQL = `
UPDATE {{schema}}.jobs j
SET status = 'pending', lease_id = NULL, attempt = j.attempt - 1
WHERE j.status = 'running' AND j.lease_id = $1::text::uuid AND NOT j.id = ANY ($2::text[]::uuid[])`

// reconcile hands back jobs that a claim took without our getting to know,
// because the connection was lost before the answer. They are running under
// our lease, which we go on renewing, so nobody else would ever rescue them.
func (s *Scheduler) reconcile(ctx context.Context) {
	if s.suspects.Load() == 0 {
		return
	}
	s.claims.Lock()
	defer s.claims.Unlock()
	id, held := s.lease.holdings()
	if id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	tag, err := s.pool.Exec(ctx, s.sql(handBackSQL), id, held)
	if err != nil {
		s.config.Logger.Warn("scheduler: can't look for lost claims", "error", err)
		return
	}
	if n := tag.RowsAffected(); n > 0 {
		s.config.Logger.Warn("scheduler: handed back jobs of a claim whose answer was lost", "jobs", n)
	}
	s.suspects.Add(-1)
}

const rescueSQL = `SELECT id::text, status, attempt, name FROM {{schema}}.rescue()`

// rescue takes back what processes that are gone were running, and returns how
// many jobs those were.
func (s *Scheduler) rescue(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTimeout)
	defer cancel()
	rows, err := s.pool.Query(ctx, s.sql(rescueSQL))
	if err != nil {
		return 0, fmt.Errorf("rescue jobs: %w", err)
	}
	var id, status, name string
	var attempt, rescued int
	_, err = pgx.ForEachRow(rows, []any{&id, &status, &attempt, &name}, func() error {
		rescued++
		s.config.Logger.Warn("scheduler: rescued a job whose process was lost",
			"job", id, "name", name, "attempt", attempt, "status", status)
		return nil
	})
	if err != nil {
		return rescued, fmt.Errorf("rescue jobs: %w", err)
	}
	return rescued, nil
}
