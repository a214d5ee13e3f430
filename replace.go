package scheduler

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// replacement is jobs that were claimed in place of others when these were recorded.
type replacement struct {
	loop *queueLoop
	jobs []*Job
}

// replace records outcomes that make room in a queue with a MaxConcurrency which
// Work serves, and claims jobs in their place: in one round trip and one transaction,
// so that where one job runs at once, it costs one of each, not two. claims is told
// before, and when that has failed.
//
// It returns nil, and all that is left to do, where something of this process would
// have to be waited for, and when anything goes wrong: then the outcomes are recorded
// and jobs are claimed one after the other, as in other queues.
func (s *Scheduler) replace(batch []*outcome, claims func(along bool)) *replacement {
	loop := loopOf(batch)
	if loop == nil || !loop.flights.TryRLock() {
		return nil
	}
	defer loop.flights.RUnlock()
	if loop.ctx.Err() != nil || !s.claims.TryRLock() { // as in claimBy
		return nil
	}
	defer s.claims.RUnlock()
	lease, life := s.lease.holdNow(s)
	if lease == "" {
		return nil
	}
	n := loop.refill.instead(len(batch))
	if n == 0 || !s.capacity.retake(n, len(batch)) {
		return nil
	}
	claims(true)
	jobs, err := s.finishAndClaim(batch, loop.queue, lease, n)
	s.capacity.put(n-len(jobs), 0)
	if err != nil {
		s.config.Logger.Debug("scheduler: jobs are recorded and claimed apart", "queue", loop.queue.name, "error", err)
		loop.refill.failed()
		claims(false)
		if !isRolledBack(err) && s.gone.Err() == nil {
			s.suspect()
		}
		return nil
	}
	s.keepClaimed(jobs, lease, life)
	for _, o := range batch {
		o.replaced = true
	}
	s.underway.Add(len(jobs)) // the outcomes are still counted, so Shutdown has not stopped waiting
	loop.refill.replaced(len(batch), len(jobs), len(jobs) == n)
	return &replacement{loop, jobs}
}

// loopOf is the loop in whose queue all of the outcomes make room; nil: there is none.
func loopOf(batch []*outcome) *queueLoop {
	if batch[0].claim == nil {
		return nil
	}
	loop := batch[0].claim.loop
	if loop == nil || loop.queue.MaxConcurrency == 0 ||
		slices.ContainsFunc(batch, func(o *outcome) bool { return o.written || o.claim == nil || o.claim.loop != loop }) {
		return nil
	}
	return loop
}

// isRolledBack: the server says that a statement failed, and not because the session ends.
func isRolledBack(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.SeverityUnlocalized == "ERROR"
}

// replaceSQL is a claim that gives way where it has to wait for others of its queue:
// it holds the jobs that have just been recorded.
const replaceSQL = claimUpToSQL + `CASE WHEN pg_catalog.set_config('lock_timeout', '50ms', true) <> '' THEN $6::int END` + claimSinceSQL

// finishAndClaim notes what came of the record and of the claim when both are committed.
func (s *Scheduler) finishAndClaim(batch []*outcome, q *queue, lease string, n int) ([]*Job, error) {
	sortOutcomes(batch)
	since, after := q.since(JobStatusAny)
	both := &pgx.Batch{}
	both.Queue(s.sql(finishSQL), finishArgs(batch)...)
	both.Queue(s.sql(replaceSQL), s.claimArgs(q, JobStatusAny, lease, n, since, after)...)
	others, jobs, err := s.sendBoth(both, q)
	if err != nil {
		return nil, err
	}
	noteRecorded(batch, others)
	q.found(JobStatusAny, since, jobs, n)
	return jobs, nil
}

// sendBoth returns what a record and a claim have brought, once they are committed.
func (s *Scheduler) sendBoth(both *pgx.Batch, q *queue) (others map[int]bool, jobs []*Job, err error) {
	ctx, cancel := context.WithTimeout(s.gone, finishTimeout)
	defer cancel()
	answers := s.pool.SendBatch(ctx, both)
	defer func() { err = errors.Join(err, answers.Close()) }()
	rows, err := answers.Query()
	if err != nil {
		return nil, nil, err
	}
	if others, err = scanOthers(rows); err != nil {
		return nil, nil, err
	}
	if rows, err = answers.Query(); err != nil {
		return nil, nil, err
	}
	jobs, err = scanClaimed(rows, q)
	return others, jobs, err
}

// start lets the jobs start, when all know that those before them have ended.
func (r *replacement) start() {
	if r != nil {
		r.loop.start(r.jobs)
	}
}
