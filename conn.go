package scheduler

import (
	"context"
	"errors"
	"sync"
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
// handlers may use to the last, and then uses one beside it. As long as the pool
// stays full, it keeps to that one.
func (s *Scheduler) urgently(ctx context.Context, wait time.Duration, do func(*pgx.Conn) error) error {
	pool := s.pool.Stat()
	if hasRoom := pool.IdleConns() > 0 || pool.TotalConns() < pool.MaxConns(); hasRoom || !s.spare.isOpen() {
		patience, cancel := context.WithTimeout(ctx, wait)
		pooled, err := s.pool.Acquire(patience)
		cancel()
		if err == nil {
			defer s.spare.close(ctx, spareFor)
			defer pooled.Release()
			return do(pooled.Conn())
		}
		if ctx.Err() != nil || !errors.Is(patience.Err(), context.DeadlineExceeded) { // the pool is closed, or can't connect
			return err
		}
	}
	return s.spare.use(ctx, s, do)
}

// spare is a connection beside the pool, kept while that is full so that what is
// urgent does not have to make one each time.
type spare struct {
	using sync.Mutex // held while it is in use
	mu    sync.Mutex // guards conn and used; never held for long
	conn  *pgx.Conn  // nil: there is none
	used  time.Time  // last
}

// spareFor is for how long it is kept when the pool has room again.
const spareFor = 30 * time.Second

func (p *spare) isOpen() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn != nil
}

// set returns the one before.
func (p *spare) set(conn *pgx.Conn) (before *pgx.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, p.conn, p.used = p.conn, conn, time.Now()
	return before
}

// use does something on the connection, which is made if there is none. One that
// is in use, maybe by something that hangs, is not waited for.
func (p *spare) use(ctx context.Context, s *Scheduler, do func(*pgx.Conn) error) error {
	if !p.using.TryLock() {
		conn, err := s.connect(ctx)
		if err != nil {
			return err
		}
		defer closeConn(ctx, conn)
		return do(conn)
	}
	defer p.using.Unlock()
	conn := p.set(nil)
	if conn != nil && conn.Ping(ctx) != nil { // the server may have ended it
		closeConn(ctx, conn)
		conn = nil
	}
	if conn == nil {
		var err error
		if conn, err = s.connect(ctx); err != nil {
			return err
		}
	}
	if err := do(conn); err != nil {
		closeConn(ctx, conn)
		return err
	}
	p.set(conn)
	return nil
}

// close closes the connection if it is not in use and was not for so long.
func (p *spare) close(ctx context.Context, unused time.Duration) {
	if !p.using.TryLock() {
		return
	}
	defer p.using.Unlock()
	p.mu.Lock()
	conn := p.conn
	if time.Since(p.used) < unused {
		conn = nil
	}
	if conn != nil {
		p.conn = nil
	}
	p.mu.Unlock()
	if conn != nil {
		closeConn(ctx, conn)
	}
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
