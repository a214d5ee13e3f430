package scheduler

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// reporter writes what handlers report of their jobs: about once a second, of
// all jobs at once. What is the last of an attempt is written right away, and
// its outcome waits for that. Nothing else waits for it.
type reporter struct {
	mu      sync.Mutex
	waiting []*reports    // that have news
	works   bool          // somebody writes them
	over    bool          // at the end of Shutdown
	hurry   chan struct{} // some of them are the last
	working sync.WaitGroup
}

// reports are those of one attempt, made with the first of them. They are
// guarded by the reporter.
type reports struct {
	job        *Job
	news       news          // not sent yet
	sent       news          // on its way
	checkpoint *string       // the last one, as JSON
	waits      bool          // among the reporter's waiting
	flies      bool          // sent is in a statement that is under way
	lost       bool          // the job is another attempt's
	ended      bool          // the handler has returned
	done       chan struct{} // if it had news then: closed when they are written, or never will be
}

// noReports are those of an attempt that ended without any.
var noReports = &reports{ended: true}

// news is what is new in a report. nil: it is as it was.
type news struct {
	percent    *int32
	note       *string
	checkpoint *string   // JSON
	at         time.Time // zero: there are none
}

// over is the newer one and, where that says nothing, the older.
func (n news) over(older news) news {
	if n.at.IsZero() {
		return older
	}
	if n.percent == nil {
		n.percent, n.note = older.percent, older.note
	}
	if n.checkpoint == nil {
		n.checkpoint = older.checkpoint
	}
	return n
}

const (
	reportEvery = time.Second
	mostReports = 200 // in one statement, of at most 64 KiB each
)

// report notes what a handler reports.
func (a *attempt) report(n news) error {
	if errors.Is(context.Cause(a.job.life.lease), ErrLeaseLost) {
		return ErrLeaseLost
	}
	n.at = time.Now()
	r := a.reports.Load()
	if r == nil {
		r = &reports{job: a.job}
		if !a.reports.CompareAndSwap(nil, r) {
			r = a.reports.Load()
		}
	}
	p := &a.s.reporter
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case r.ended:
		return a.hasReturned()
	case r.lost:
		return ErrLeaseLost
	case p.over && !a.rehearsed:
		return ErrShuttingDown
	}
	r.news = n.over(r.news)
	if n.checkpoint != nil {
		r.checkpoint = n.checkpoint
	}
	if !a.rehearsed {
		p.await(a.s, r)
	}
	return nil
}

func (p *reporter) checkpointOf(r *reports) (last *string, ended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return r.checkpoint, r.ended
}

// await has reports written that have news. p.mu is held.
func (p *reporter) await(s *Scheduler, r *reports) {
	if !r.waits {
		r.waits = true
		p.waiting = append(p.waiting, r)
	}
	if r.ended {
		wake(p.hurry)
	}
	if !p.works {
		p.works = true
		p.working.Go(func() { p.work(s) })
	}
}

// endReports takes no more reports of an attempt, whose handler has returned.
// What it returns is closed when those there are were written; nil: they are.
func (s *Scheduler) endReports(a *attempt) <-chan struct{} {
	if a.reports.CompareAndSwap(nil, noReports) {
		return nil
	}
	p, r := &s.reporter, a.reports.Load()
	p.mu.Lock()
	defer p.mu.Unlock()
	r.ended = true
	if p.over || !r.waits && !r.flies {
		return nil
	}
	r.done = make(chan struct{})
	if r.waits {
		p.await(s, r)
	}
	return r.done
}

// work writes reports for as long as there are some.
func (p *reporter) work(s *Scheduler) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for pause := time.Duration(0); ; {
		all := false
		select {
		case <-tick.C:
			all = true
		case <-p.hurry:
		case <-s.gone.Done():
		}
		err := p.write(s, p.due(all))
		if pause = nextPause(pause, err); pause > 0 {
			s.config.Logger.Warn("scheduler: can't write the progress of jobs yet", "error", explained(err))
			select {
			case <-time.After(pause):
			case <-s.gone.Done():
			}
		}
		if p.rests(s) {
			return
		}
	}
}

// nextPause is how long to wait after an error.
func nextPause(last time.Duration, err error) time.Duration {
	if err == nil {
		return 0
	}
	return min(max(50*time.Millisecond, 2*last), 2*time.Second)
}

// rests says whether nothing is left to be written, or nobody waits for it any
// longer. Then the next report begins anew.
func (p *reporter) rests(s *Scheduler) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) > 0 && s.gone.Err() == nil {
		return false
	}
	for _, r := range p.waiting {
		r.waits = false
		r.finish()
	}
	p.waiting, p.works = nil, false
	return true
}

// finish lets the outcome of an attempt go on. The reporter's mu is held.
func (r *reports) finish() {
	if r.done != nil {
		close(r.done)
		r.done = nil
	}
}

// stop is called when what handlers report is of no use any more.
func (p *reporter) stop() {
	p.mu.Lock()
	p.over = true
	p.mu.Unlock()
	p.working.Wait()
}

// due takes those reports that are to be written now: all, or only the last ones
// of attempts.
func (p *reporter) due(all bool) (due []*reports) {
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := p.waiting[:0]
	for _, r := range p.waiting {
		if !all && !r.ended {
			kept = append(kept, r)
			continue
		}
		r.waits = false
		if r.news.at.IsZero() { // it was lost meanwhile
			r.finish()
			continue
		}
		r.sent, r.news, r.flies = r.news, news{}, true
		due = append(due, r)
	}
	clear(p.waiting[len(kept):])
	p.waiting = kept
	return due
}

// write sends reports that were taken. Where Postgres refuses one of them, each
// is sent alone.
func (p *reporter) write(s *Scheduler, due []*reports) (err error) {
	for batch := range slices.Chunk(due, mostReports) {
		lost, sendErr := s.sendReports(batch)
		if len(batch) > 1 && isRefused(sendErr) {
			for i := range batch {
				err = errors.Join(err, p.write(s, batch[i:i+1]))
			}
			continue
		}
		again, dropped := p.landed(s, batch, lost, sendErr)
		if again {
			err = errors.Join(err, sendErr)
		}
		for _, r := range dropped {
			s.config.Logger.Error("scheduler: can't write the progress of a job", "job", r.job.key.String(), "name", r.job.Name, "error", explained(sendErr))
		}
	}
	return err
}

// landed notes what came of a statement: whether some of it is to be sent again,
// and what can't be.
func (p *reporter) landed(s *Scheduler, batch, lost []*reports, err error) (again bool, dropped []*reports) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range batch {
		switch {
		case err == nil && slices.Contains(lost, r):
			r.lost, r.news = true, news{}
		case err == nil:
		case isRefused(err) || r.ended && !isAway(err):
			dropped = append(dropped, r)
		default:
			r.news = r.news.over(r.sent)
			again = true
		}
		r.sent, r.flies = news{}, false
		if r.news.at.IsZero() {
			r.finish()
		} else {
			p.await(s, r)
		}
	}
	return again, dropped
}

// isAway: it may pass, and what else the database is asked has the same error
// until then, such as the record of the outcome. All other errors are of the
// progress alone, for which no job waits. The classes are those of connections,
// of a server that only reads for now, of conflicts, of resources, of an
// operator who intervened, and of the system.
func isAway(err error) bool {
	var pg *pgconn.PgError
	return !errors.As(err, &pg) || len(pg.Code) != 5 || slices.Contains([]string{"08", "25", "40", "53", "57", "58"}, pg.Code[:2])
}

const reportProgressSQL = `
SELECT place FROM {{schema}}.report_progress($1::uuid[], $2::int[], $3::int[], $4::text[], $5::text[], $6::bigint[]) AS r (place)`

// sendReports returns those that changed nothing, because their jobs are other
// attempts' now.
func (s *Scheduler) sendReports(batch []*reports) (lost []*reports, err error) {
	n := len(batch)
	ids, claims, ages := make([]pgtype.UUID, n), make([]int32, n), make([]int64, n)
	percents, notes, checkpoints := make([]*int32, n), make([]*string, n), make([]*string, n)
	for i, r := range batch {
		ids[i], claims[i], ages[i] = r.job.key, r.job.claims, time.Since(r.sent.at).Microseconds()
		percents[i], notes[i], checkpoints[i] = r.sent.percent, r.sent.note, r.sent.checkpoint
	}
	ctx, cancel := context.WithTimeout(s.gone, 30*time.Second)
	defer cancel()
	rows, err := s.pool.Query(ctx, s.sql(reportProgressSQL), ids, claims, percents, notes, checkpoints, ages)
	if err != nil {
		return nil, err
	}
	places, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	for _, place := range places {
		lost = append(lost, batch[place-1])
	}
	return lost, err
}
