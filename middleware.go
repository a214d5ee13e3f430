package scheduler

// Middleware is put around the handlers of Config.JobNames. It is called once
// for each job name, in New, and returns the handler that is run in place of
// next: one that calls next, or not, and may do something before and after it,
// change the context that it gets, and look at or change what it returns. That
// is still the job's verdict. A panic in it, while a job runs, is a failed
// attempt like one in the handler itself.
//
// It gets the *Job that the handler gets, and the context with which CompleteTx,
// SetProgress, Checkpoint and Traceparent are called: one that it hands on must
// be derived from that.
type Middleware func(name string, next HandlerFunc) HandlerFunc

// wrapped has the handlers with the middleware around them, the first outermost.
func (c Config) wrapped(names []string) (JobNames, error) {
	for i, middleware := range c.Middleware {
		if middleware == nil {
			return nil, badInput("middleware", "middleware[%d]: expected a function, got nil", i)
		}
	}
	handlers := make(JobNames, len(names))
	for _, name := range names {
		handler := c.JobNames[name]
		for i := len(c.Middleware) - 1; i >= 0; i-- {
			if handler = c.Middleware[i](name, handler); handler == nil {
				return nil, badInput("middleware", "middleware[%d]: expected a handler for %q, got nil", i, name)
			}
		}
		handlers[name] = handler
	}
	return handlers, nil
}
