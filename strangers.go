package scheduler

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// strangers are due jobs for whose names this process has no handler. They may
// be meant for another process, so they are left alone; a misspelt name looks
// just the same, so they are told of, now and then.
type strangers struct {
	mu   sync.Mutex
	next time.Time
}

const strangersEvery = time.Minute

const strangersSQL = `SELECT queue, name FROM {{schema}}.strangers($1::text[], $2::text[])`

func (s *Scheduler) warnOfStrangers(ctx context.Context, queues ...string) {
	s.strangers.mu.Lock()
	wait := time.Now().Before(s.strangers.next)
	if !wait {
		s.strangers.next = time.Now().Add(strangersEvery)
	}
	s.strangers.mu.Unlock()
	if wait || len(s.names) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	rows, err := s.pool.Query(ctx, s.sql(strangersSQL), queues, s.names)
	if err == nil {
		var queue, name string
		_, err = pgx.ForEachRow(rows, []any{&queue, &name}, func() error {
			s.config.Logger.Warn("scheduler: a due job has a name that has no handler here", "queue", queue, "name", name)
			return nil
		})
	}
	if err != nil {
		s.config.Logger.Warn("scheduler: can't look for jobs without a handler", "error", err)
	}
}
