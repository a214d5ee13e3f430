// Package schedulertest helps services to test what they do with package
// scheduler.
//
// With a database: [New] makes a Scheduler in a schema of its own. The test
// calls its business code, looks at what that has created, runs it, and moves
// the clock, all in its own goroutine and in an order that never changes:
//
//	func TestReminder(t *testing.T) {
//		jobs := schedulertest.New(t, pool, scheduler.Config{JobNames: handlers})
//		shop := NewShop(jobs)
//
//		shop.Order("book") // creates "remind", due tomorrow
//		schedulertest.RequireCreated(t, jobs, "remind", scheduler.JobData{
//			Payload: map[string]any{"item": "book"},
//		})
//		schedulertest.Advance(t, jobs, 24*time.Hour)
//		for _, job := range schedulertest.Drain(t, jobs) {
//			fmt.Println(job.Name, job.Status)
//		}
//	}
//
// In a transaction that the test rolls back: [InTx] and [InSQL] show what was
// created in it. Handlers have connections of their own, which don't see that,
// so nothing is run in there; [CallHandler] calls a handler and stores nothing.
//
// Without a database, for unit tests of business code: a [Fake] in the place of
// the Scheduler.
package schedulertest

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/seam"
)

// endWithin bounds each step of the end of a test.
const endWithin = 10 * time.Second

// New returns a Scheduler with this Config in a migrated schema of its own,
// whatever Config.Schema says, so that tests which run side by side don't meet.
// Config.Logger defaults to the test's log. When the test ends, before the pool
// is to be closed, it is shut down and the schema dropped. A Config or a
// database that can't be used fails the test.
func New(tb testing.TB, pool *pgxpool.Pool, config scheduler.Config) *scheduler.Scheduler {
	tb.Helper()
	config.Schema = "test_" + strings.ToLower(rand.Text())
	if config.Logger == nil {
		config.Logger = newLogger(tb)
	}
	s, err := scheduler.New(pool, config)
	if err != nil {
		tb.Fatalf("schedulertest: %v", err)
	}
	tb.Cleanup(func() { drop(tb, pool, config.Schema) })
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), endWithin)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			tb.Errorf("schedulertest: %v", err)
		}
	})
	if err := s.Migrate(tb.Context()); err != nil {
		tb.Fatalf("schedulertest: %v", err)
	}
	return s
}

// drop drops a schema, unless a transaction that the test has left open uses it.
func drop(tb testing.TB, pool *pgxpool.Pool, schema string) {
	ctx, cancel := context.WithTimeout(context.Background(), endWithin)
	defer cancel()
	_, err := pool.Exec(ctx, "DROP SCHEMA IF EXISTS "+pgx.Identifier{schema}.Sanitize()+" CASCADE")
	if err != nil {
		tb.Errorf("schedulertest: can't drop the schema %s: %v: expected transactions to be over, and the pool to be open, "+
			"when the test ends (t.Cleanup, before New is called, is the place to close it)", schema, err)
	}
}

// newLogger writes to a test's log until that ends.
func newLogger(tb testing.TB) *slog.Logger {
	w := &logWriter{out: tb.Output()}
	tb.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.out = io.Discard // a handler that outlives its test may write still, which a test's log does not take
	})
	return slog.New(slog.NewTextHandler(w, nil))
}

type logWriter struct {
	mu  sync.Mutex
	out io.Writer
}

func (w *logWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.out.Write(line)
}

// inside is what a Scheduler has beside its methods.
func inside(s *scheduler.Scheduler) seam.Scheduler { return seam.Of(s) }
