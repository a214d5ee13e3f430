package scheduler

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

func (s *Scheduler) execUrgently(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	err = s.urgently(ctx, s.config.Lease/10, func(conn *pgx.Conn) error {
		tag, err = conn.Exec(ctx, sql, args...)
		return err
	})
	return tag, err
}

// urgently waits only for a while for a connection of the pool, which the
// handlers may use to the last, and then makes one of its own.
func (s *Scheduler) urgently(ctx context.Context, wait time.Duration, do func(*pgx.Conn) error) error {
	patience, cancel := context.WithTimeout(ctx, wait)
	pooled, err := s.pool.Acquire(patience)
	cancel()
	if err == nil {
		defer pooled.Release()
		return do(pooled.Conn())
	}
	if ctx.Err() != nil || patience.Err() == nil {
		return err
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	return do(conn)
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
