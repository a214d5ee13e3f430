package scheduler

import (
	"context"
	"errors"
	"sync"
	"time"
)

// jobContext is a handler's context: it ends with the lease of its job, or when
// the job is cancelled, and has the values of the run. To make a context that
// ends by itself takes longer than to run a short job, so that is done when
// somebody asks for it.
type jobContext struct {
	lease   *term // ends when the lease is lost or Shutdown gives up waiting
	leaseID string
	attempt *attempt // set before the handler begins

	settled   bool // out of the way of claims; guarded by the lease
	calledOff bool // ended because the job was cancelled; guarded by the lease

	mu  sync.Mutex
	ctx context.Context // nil: nobody has asked yet
	end context.CancelCauseFunc
}

// over is the context of a handler that returned and never asked for its own.
var over = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// under says under which lease the job was claimed, before anybody else has it.
func (c *jobContext) under(lease *term, leaseID string) {
	c.leaseID, c.lease = leaseID, lease
}

func (c *jobContext) asked() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		c.ctx, c.end = context.WithCancelCause(c.lease)
	}
	return c.ctx
}

// soFar is the context if somebody has asked for it, else the lease's.
func (c *jobContext) soFar() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		return c.lease
	}
	return c.ctx
}

func (c *jobContext) Deadline() (time.Time, bool) { return c.lease.Deadline() }
func (c *jobContext) Done() <-chan struct{}       { return c.asked().Done() }
func (c *jobContext) Err() error                  { return c.soFar().Err() }

// attemptKey is that of the attempt in its handler's context.
type attemptKey struct{}

func (c *jobContext) Value(key any) any {
	switch key.(type) {
	case attemptKey:
		return c.attempt
	case traceparentKey:
		if c.attempt.job.traceparent != "" {
			return c.attempt.job.traceparent
		}
	}
	if value := c.asked().Value(key); value != nil {
		return value
	}
	return c.attempt.values.Value(key)
}

// callOff ends it because the job was cancelled.
func (c *jobContext) callOff() {
	c.asked()
	c.end(ErrJobCancelled)
}

func (c *jobContext) isCalledOff() bool {
	return errors.Is(context.Cause(c.soFar()), ErrJobCancelled)
}

// release ends it when the handler has returned.
func (c *jobContext) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx == nil {
		c.ctx, c.end = over, func(error) {}
	}
	c.end(nil)
}
