package scheduler_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// lookTracer counts how often a process looks for jobs that were called off.
type lookTracer struct{ looks atomic.Int32 }

func (l *lookTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.Contains(data.SQL, "cancelled_under(") {
		l.looks.Add(1)
	}
	return ctx
}

func (*lookTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// While handlers have all connections of the pool, one more is enough to look for
// cancellations, and it is gone at the end.
func TestAFullPoolTakesOneConnectionMore(t *testing.T) {
	t.Parallel()
	var connects atomic.Int32
	tracer, name, observer := &lookTracer{}, unique(), newPool(t)
	config := observer.Config()
	config.MaxConns = 2
	config.ConnConfig.Tracer = tracer
	config.ConnConfig.RuntimeParams["application_name"] = name
	config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		connects.Add(1)
		return nil
	}
	pool := newPoolWith(t, config)
	var schema string
	began := make(chan struct{}, 2)
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			conn, err := pool.Acquire(ctx)
			if err != nil {
				return nil, err
			}
			defer conn.Release()
			began <- struct{}{}
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}}
	})
	other := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	ids := mustCreateMany(t, other, 2, "a", scheduler.JobData{})
	run := goRun(t.Context(), s, scheduler.RunFilter{Limit: 2})
	for range ids {
		await(t, began)
	}
	looked := tracer.looks.Load()
	waitFor(t, func() bool { return tracer.looks.Load() >= looked+6 })
	require.LessOrEqual(t, connects.Load(), int32(3))
	for _, id := range ids {
		mustCancel(t, other, id)
	}
	require.Equal(t, 2, await(t, run).report.Cancelled)
	require.NoError(t, s.Shutdown(t.Context()))
	waitFor(t, func() bool {
		return mustQuery[int](t, observer, "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", name) <= 2
	})
}

// What is urgent waits for no room in a pool that is closed, so it takes no
// connection beside it either.
func TestAClosedPoolTakesNoConnectionMore(t *testing.T) {
	t.Parallel()
	var connects atomic.Int32
	config := newPool(t).Config()
	config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		connects.Add(1)
		return nil
	}
	pool := newPoolWith(t, config)
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) { c.JobNames = scheduler.JobNames{"a": succeed} })
	pool.Close()
	before := connects.Load()
	_, err := s.Run(t.Context(), scheduler.RunFilter{})
	require.ErrorContains(t, err, "claim jobs: take a lease: closed pool")
	require.Equal(t, before, connects.Load())
}
