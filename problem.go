package scheduler

import (
	"errors"
	"net/http"
	"strings"
)

// problem is the body of an error answer (RFC 9457).
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Field  string `json:"field,omitempty"` // what was wrong in the request
}

// statusError is an error of the HTTP request itself.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// writeError is the one place that maps errors to answers. What a caller can
// act on is told; anything else goes to the log and not to the caller.
func writeError(w http.ResponseWriter, r *http.Request, s *Scheduler, err error) {
	var input *InputError
	var status *statusError
	p := problem{}
	switch {
	case errors.As(err, &status):
		p.Status, p.Detail = status.status, status.Error()
	case errors.Is(err, ErrJobNotFound):
		p.Status, p.Detail = http.StatusNotFound, "there is no job with this id"
	case errors.Is(err, ErrJobState):
		p.Status, p.Detail = http.StatusConflict, err.Error()
	case errors.Is(err, ErrJobLocked):
		w.Header().Set("Retry-After", "5")
		p.Status, p.Detail = http.StatusServiceUnavailable, "another transaction, such as that of its handler, holds the job; call again"
	case errors.As(err, &input):
		// A parameter is a bad request; a field that was understood but can't be
		// used is unprocessable.
		p.Status = http.StatusUnprocessableEntity
		if s.isRun(r) || r.Method == http.MethodGet || r.Method == http.MethodHead {
			p.Status = http.StatusBadRequest
		}
		p.Detail, p.Field = input.Error(), input.Field
	case errors.Is(err, ErrQueueFull):
		w.Header().Set("Retry-After", "5")
		p.Status, p.Detail = http.StatusTooManyRequests, err.Error()
	case errors.Is(err, ErrShuttingDown):
		w.Header().Set("Retry-After", "5")
		p.Status, p.Detail = http.StatusServiceUnavailable, "the service is shutting down; call again"
	default:
		s.config.Logger.ErrorContext(r.Context(), "scheduler: can't answer a request", "method", r.Method, "path", r.URL.Path, "error", err)
		p.Status, p.Detail = http.StatusInternalServerError, "the service could not do this; its log says why"
	}
	writeProblem(w, p)
}

func writeProblem(w http.ResponseWriter, p problem) {
	p.Type, p.Title = "about:blank", http.StatusText(p.Status)
	w.Header().Set("Content-Type", "application/problem+json")
	writeJSON(w, p.Status, p)
}

func (s *Scheduler) notFound(w http.ResponseWriter, r *http.Request) {
	detail := "there is nothing at this path"
	if !strings.HasPrefix(r.URL.Path, s.config.BasePath) {
		detail += ": the handler's begin with " + s.config.BasePath + " (the prefix it is mounted under must not be stripped)"
	}
	writeProblem(w, problem{Status: http.StatusNotFound, Detail: detail})
}

func refuseMethod(w http.ResponseWriter, r *http.Request, allowed string) {
	w.Header().Set("Allow", allowed)
	writeProblem(w, problem{Status: http.StatusMethodNotAllowed, Detail: "method " + shown(r.Method) + ": expected " + allowed})
}
