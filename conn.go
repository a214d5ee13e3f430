package scheduler

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// execUrgently waits only for a while for a connection of the pool, which the
// handlers may use to the last, and then makes one of its own.
func (s *Scheduler) execUrgently(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	patience, cancel := context.WithTimeout(ctx, s.config.Lease/10)
	pooled, err := s.pool.Acquire(patience)
	cancel()
	if err == nil {
		defer pooled.Release()
		return pooled.Exec(ctx, sql, args...)
	}
	if ctx.Err() != nil || patience.Err() == nil {
		return pgconn.CommandTag{}, err
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	defer closeConn(ctx, conn)
	return conn.Exec(ctx, sql, args...)
}

// connect makes a connection beside the pool, in the way the pool does.
func (s *Scheduler) connect(ctx context.Context) (*pgx.Conn, error) {
	config := s.pool.Config()
	if config.BeforeConnect != nil {
		if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
			return nil, err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err == nil && config.AfterConnect != nil {
		if err = config.AfterConnect(ctx, conn); err != nil {
			closeConn(ctx, conn)
		}
	}
	return conn, err
}

func closeConn(ctx context.Context, conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // it may be broken already, and is of no use any more
}
