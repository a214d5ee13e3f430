package scheduler

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
)

func (s *Scheduler) serveList(w http.ResponseWriter, r *http.Request) {
	filter, err := listParameters(r)
	if err != nil {
		writeError(w, r, s, err)
		return
	}
	page, err := s.ListJobs(r.Context(), filter)
	if err != nil {
		writeError(w, r, s, err)
		return
	}
	writeJSON(w, http.StatusOK, page)
}

// listParameters reads the query of a list.
func listParameters(r *http.Request) (filter JobFilter, err error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return filter, badInput("query", "%s: expected parameters such as ?status=failed&limit=10", shown(r.URL.RawQuery))
	}
	for name, all := range values {
		given := slices.DeleteFunc(slices.Clone(all), func(value string) bool { return value == "" }) // as forms send it
		switch name {
		case "status":
			filter.Statuses = cast[JobStatus](given)
		case "queue":
			filter.Queues = cast[JobQueue](given)
		case "name":
			filter.Names = given
		case "tag":
			filter.Tags = given
		case "owner", "created_after", "created_before", "limit", "cursor":
			if len(all) > 1 {
				return filter, badInput(name, "expected once, got %d times", len(all))
			}
			if len(given) == 1 {
				err = filter.setParameter(name, given[0])
			}
		default:
			err = badInput("query", "unknown parameter %s: expected status, queue, name, tag, owner, created_after, created_before, limit or cursor", shown(name))
		}
		if err != nil {
			return filter, err
		}
	}
	return filter, nil
}

func cast[T ~string](texts []string) []T {
	values := make([]T, len(texts))
	for i, text := range texts {
		values[i] = T(text)
	}
	return values
}

// setParameter sets what may be there once.
func (f *JobFilter) setParameter(name, value string) (err error) {
	switch name {
	case "owner":
		f.Owner = value
	case "cursor":
		f.Cursor = value
	case "created_after":
		f.CreatedAfter, err = parseTime(value)
	case "created_before":
		f.CreatedBefore, err = parseTime(value)
	case "limit":
		if f.Limit, err = strconv.Atoi(value); err != nil || f.Limit == 0 {
			return badInput(name, "%s: expected 1 to %d", shown(value), mostPage)
		}
	}
	if err != nil {
		return &InputError{name, err}
	}
	return nil
}

// queueStats is the answer about all queues.
type queueStats struct {
	Queues []QueueStat `json:"queues"`
}

func (s *Scheduler) serveQueues(w http.ResponseWriter, r *http.Request) {
	if r.URL.RawQuery != "" {
		writeError(w, r, s, badInput("query", "%s: expected no parameters", shown(r.URL.RawQuery)))
		return
	}
	stats, err := s.QueueStats(r.Context())
	if err != nil {
		writeError(w, r, s, err)
		return
	}
	writeJSON(w, http.StatusOK, queueStats{stats})
}
