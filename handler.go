package scheduler

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Handler returns the HTTP interface, to be mounted under Config.BasePath in
// the router that the service has; don't strip that prefix. Bodies and answers
// are JSON, errors are application/problem+json (RFC 9457).
//
//	POST /api/jobs/run?queue=&status=&limit=&wait=   one run, see Run
//	POST /api/jobs                                   creates a job, see CreateJob
//	GET  /api/jobs/{id}                              one job, see GetJob
//	GET  /api/jobs?status=&queue=&name=&tag=&owner=&created_after=&created_before=&limit=&cursor=
//	                                                 a page of jobs, see ListJobs
//	GET  /api/jobs/queues                            what waits in the queues, see QueueStats
//	POST /api/jobs/{id}/cancel                       calls it off, see CancelJob
//	POST /api/jobs/{id}/retry                        makes it due now, see RetryJob
//
// In a list, status, queue, name and tag may be there several times, and
// parameters without a value are left out. Times are RFC 3339.
//
// A creation answers 201 with the job, or 200 with the one that is there if its
// unique_key is taken. With the header Idempotency-Key, of 1 to 256 characters,
// it can be sent again: for 24 hours, the same key with the same body answers
// 200 with the job of the first time, finished or not, as far as that is kept
// (see Config.KeepFinished); with another body, 409. In a queue that is full it
// answers 429, see QueueConfig.MaxPending.
//
// A creation keeps the header traceparent, see WithTraceparent.
//
// A cancellation or a retry answers 503 while another transaction holds the job,
// see ErrJobLocked.
//
// Every call needs "Authorization: Bearer <token>" with one of Config.Tokens;
// Config.Authorize may decide in place of it for all but runs.
//
// A run outlives its request: it answers 200 with the RunReport when it is
// over, or 202 with the report so far after Config.RunWait (or ?wait=, such as
// 2s or 500ms, at most 5m), and goes on.
func (s *Scheduler) Handler() http.Handler {
	base := s.base()
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+base+"/run", s.serveRun)
	mux.HandleFunc("GET "+base+"/queues", s.serveQueues)
	mux.HandleFunc("GET "+base+"/{id}", s.serveGet)
	mux.HandleFunc(base+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		refuseMethod(w, r, map[bool]string{true: "POST", false: "GET, HEAD"}[r.PathValue("id") == "run"])
	})
	for action, do := range map[string]func(context.Context, string) (*Job, error){"cancel": s.CancelJob, "retry": s.RetryJob} {
		mux.HandleFunc("POST "+base+"/{id}/"+action, func(w http.ResponseWriter, r *http.Request) { s.serveControl(w, r, do) })
		mux.HandleFunc(base+"/{id}/"+action, func(w http.ResponseWriter, r *http.Request) { refuseMethod(w, r, "POST") })
	}
	root := base
	if root == "" {
		root = "/{$}"
	}
	mux.HandleFunc("GET "+root, s.serveList)
	mux.HandleFunc("POST "+root, s.serveCreate)
	mux.HandleFunc(root, func(w http.ResponseWriter, r *http.Request) { refuseMethod(w, r, "GET, HEAD, POST") })
	mux.HandleFunc("/", s.notFound)

	if len(s.config.Tokens) == 0 {
		s.config.Logger.Warn("scheduler: no Config.Tokens: runs over HTTP are all refused")
	}
	tokens := make([][sha256.Size]byte, len(s.config.Tokens))
	for i, token := range s.config.Tokens {
		tokens[i] = sha256.Sum256([]byte(token))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		setBodyDeadline(w, r, time.Now().Add(bodyTimeout))
		if !hasToken(r, tokens) && (s.isRun(r) || s.config.Authorize == nil || !s.config.Authorize(r)) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			writeProblem(w, problem{Status: http.StatusUnauthorized, Detail: "expected a valid token in the header Authorization: Bearer <token>"})
			return
		}
		// Written in another way, a path is another path: the mux would redirect.
		if r.URL.RawPath != "" || path.Clean("/"+r.URL.Path) != r.URL.Path { // also "*"
			s.notFound(w, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// base is what stands before the slash of every path below the handler's own.
func (s *Scheduler) base() string { return strings.TrimSuffix(s.config.BasePath, "/") }

func (s *Scheduler) isRun(r *http.Request) bool { return r.URL.Path == s.base()+"/run" }

// hasToken compares digests, of equal length whatever was sent, with every
// token, so that the time it takes tells nothing about them. Of two headers,
// what stands before the service might have looked at the other one.
func hasToken(r *http.Request, tokens [][sha256.Size]byte) bool {
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return false
	}
	scheme, token, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return false
	}
	if token = strings.TrimSpace(token); len(token) > mostToken { // not worth a digest
		return false
	}
	sent := sha256.Sum256([]byte(token))
	found := 0
	for _, known := range tokens {
		found |= subtle.ConstantTimeCompare(sent[:], known[:])
	}
	return found == 1
}

// mostToken bounds a token, as create_queue_worker does.
const mostToken = 4096

// mostWait bounds ?wait=.
const mostWait = 5 * time.Minute

func (s *Scheduler) serveRun(w http.ResponseWriter, r *http.Request) {
	filter, wait, err := s.runParameters(r)
	if err != nil {
		writeError(w, r, s, err)
		return
	}
	// Not while the caller waits: the server would take it for the caller's hanging up.
	setBodyDeadline(w, r, time.Now().Add(wait+bodyTimeout))
	// Neither the end nor the values of the request's context reach the
	// handlers: routers use them again for other requests.
	run, err := s.startRun(context.Background(), context.Background(), filter)
	if err != nil {
		writeError(w, r, s, err)
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-run.done:
	case <-timer.C:
	case <-r.Context().Done(): // nobody waits any more
	}
	status := http.StatusAccepted
	report := run.snapshot()
	if isDone(run.done) {
		status = http.StatusOK
		if run.err != nil && !errors.Is(run.err, ErrShuttingDown) {
			writeError(w, r, s, run.err)
			return
		}
		report = run.snapshot()
	}
	writeJSON(w, status, report)
}

func isDone(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// runParameters reads the query of the Run endpoint.
func (s *Scheduler) runParameters(r *http.Request) (filter RunFilter, wait time.Duration, err error) {
	wait = s.config.RunWait
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return filter, 0, badInput("query", "%s: expected queue, status, limit and wait, as in ?queue=default&limit=10", shown(r.URL.RawQuery))
	}
	for name, all := range values {
		value := all[0]
		switch {
		case !slices.Contains([]string{"queue", "status", "limit", "wait"}, name):
			return filter, 0, badInput("query", "unknown parameter %s: expected queue, status, limit or wait", shown(name))
		case len(all) > 1:
			return filter, 0, badInput(name, "expected once, got %d times", len(all))
		case name == "queue":
			filter.Queue = JobQueue(value)
		case name == "status":
			filter.Status = JobStatus(value)
		case name == "limit" && value != "":
			if filter.Limit, err = strconv.Atoi(value); err != nil || filter.Limit == 0 {
				return filter, 0, badInput(name, "%s: expected 1 to %d", shown(value), mostLimit)
			}
		case name == "wait" && value != "":
			if wait, err = time.ParseDuration(value); err != nil || wait < 0 || wait > mostWait {
				return filter, 0, badInput(name, "%s: expected a time such as 2s or 500ms, at most 5m", shown(value))
			}
		}
	}
	return filter, wait, nil
}

func (s *Scheduler) serveGet(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if id == "run" {
		refuseMethod(w, r, "POST")
		return
	}
	job, err := s.GetJob(r.Context(), id)
	if err != nil {
		writeError(w, r, s, err)
		return
	}
	writeJSON(w, http.StatusOK, job)
}

func (s *Scheduler) serveCreate(w http.ResponseWriter, r *http.Request) {
	job, err := s.createAsAsked(w, r)
	if err != nil {
		writeError(w, r, s, err)
		return
	}
	w.Header().Set("Location", s.base()+"/"+job.ID)
	status := http.StatusCreated
	if job.Duplicate {
		status = http.StatusOK
	}
	writeJSON(w, status, job)
}

func (s *Scheduler) createAsAsked(w http.ResponseWriter, r *http.Request) (*Job, error) {
	request, err := keyedRequestOf(r.Header)
	if err != nil {
		return nil, err
	}
	body, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	name, data, err := readJob(body)
	if err != nil {
		return nil, err
	}
	// Once it is sent, a creation is not to be cut off half-way by a client that
	// hangs up: it would not know whether there is a job.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), claimTimeout)
	defer cancel()
	ctx = withTraceparentOf(ctx, r)
	if request == nil {
		return s.CreateJob(ctx, name, data)
	}
	if err := request.setDigest(body, data); err != nil {
		return nil, err
	}
	return s.createFrom(ctx, request, name, data)
}

func (s *Scheduler) serveControl(w http.ResponseWriter, r *http.Request, do func(context.Context, string) (*Job, error)) {
	// As in serveCreate, it is not to be cut off half-way.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), claimTimeout)
	defer cancel()
	job, err := do(ctx, r.PathValue("id"))
	if err != nil {
		writeError(w, r, s, err)
		return
	}
	writeJSON(w, http.StatusOK, job)
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff") // a payload is what somebody sent, and may look like a page
	w.WriteHeader(status)
	text := json.NewEncoder(w)
	text.SetEscapeHTML(false) // it is no page
	_ = text.Encode(value)    // the only error left is that the client has gone
}
