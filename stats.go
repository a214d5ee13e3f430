package scheduler

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// QueueStat is how many jobs of a queue are not finished, and why.
type QueueStat struct {
	Queue       JobQueue   `json:"queue"`
	Pending     int        `json:"pending"`       // due and not started yet
	Scheduled   int        `json:"scheduled"`     // pending too, but not due yet
	Waiting     int        `json:"waiting"`       // pending too, but for other jobs first, see JobData.After; whether due or not
	Failed      int        `json:"failed"`        // waiting to be rerun, due or not
	Running     int        `json:"running"`       // those of processes that are gone included, until they are taken back
	OldestDueAt *time.Time `json:"oldest_due_at"` // the earliest run_at of a pending or failed job that is due, in UTC; nil if none is
	Paused      bool       `json:"paused"`        // none of it is started, see PauseQueue

	// RateLimitedUntil is that of RunReport; nil if no rate is in the way.
	RateLimitedUntil *time.Time `json:"rate_limited_until"`
	// HeldBy is the job of a blocking queue before which no other one is started;
	// nil if the queue has no jobs, or is another kind of queue.
	HeldBy *QueueHolder `json:"held_by"`
}

// QueueHolder is the job that holds a blocking queue. Its status says why: it is
// running; or it has failed, and will be rerun from RunAt on; or it is pending,
// and is the next from RunAt on, when a run comes that has a handler for it.
type QueueHolder struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Status    JobStatus  `json:"status"`
	Attempt   int        `json:"attempt"`
	RunAt     time.Time  `json:"run_at"`
	StartedAt *time.Time `json:"started_at"` // of the last attempt; nil: it was not started yet
}

const queueStatsSQL = `
SELECT queue, pending, scheduled, waiting, failed, running, oldest_due_at, paused, rate_limited_until, held_by
FROM {{schema}}.queue_stats($1::text[]) ORDER BY queue COLLATE "C"`

// QueueStats counts, by the database's clock, what is not finished in each queue
// that this process or another declared, and in others that have such jobs,
// sorted by name. It reads those jobs, and none that are finished. The error is
// one of the database.
func (s *Scheduler) QueueStats(ctx context.Context) ([]QueueStat, error) {
	declared := make([]string, 0, len(s.queues))
	for name := range s.queues {
		declared = append(declared, string(name))
	}
	rows, err := s.pool.Query(ctx, s.sql(queueStatsSQL), declared)
	if err != nil {
		return nil, fmt.Errorf("queue stats: %w", explained(err))
	}
	stats, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (q QueueStat, err error) {
		err = row.Scan(&q.Queue, &q.Pending, &q.Scheduled, &q.Waiting, &q.Failed, &q.Running, &q.OldestDueAt, &q.Paused,
			&q.RateLimitedUntil, &q.HeldBy)
		q.OldestDueAt, q.RateLimitedUntil = inUTC(q.OldestDueAt), inUTC(q.RateLimitedUntil)
		return q, err
	})
	if err != nil {
		return nil, fmt.Errorf("queue stats: %w", explained(err))
	}
	return stats, nil
}
