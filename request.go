package scheduler

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// mostBody bounds the body of a creation: a payload, and the other fields.
const mostBody = mostPayload + 64<<10

// jobFields are the fields of a creation's body.
var jobFields = []string{"name", "run_at", "payload", "queue", "max_attempts", "timeout", "owner", "tags", "metadata", "priority",
	"unique_key", "unique_for", "on_duplicate", "key", "after", "after_any"}

// bodyTimeout is how long a body may take to come.
const bodyTimeout = 30 * time.Second

// setBodyDeadline ends a body that comes too slowly, whether it is read here or
// dropped by the server after the answer, unless the service's http.Server bounds
// that time itself. Zero: it may take as long as it does. A router's writer that
// lets nobody set a deadline leaves it to the service.
func setBodyDeadline(w http.ResponseWriter, r *http.Request, at time.Time) {
	server, _ := r.Context().Value(http.ServerContextKey).(*http.Server)
	if r.ContentLength == 0 || server != nil && server.ReadTimeout > 0 {
		return
	}
	_ = http.NewResponseController(w).SetReadDeadline(at)
}

// readBody reads the body of a creation. One that is too large is a 413, one that
// is too slow a 408.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, &statusError{http.StatusRequestEntityTooLarge, fmt.Errorf("the body is too large: expected at most %d bytes", mostBody)}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, &statusError{http.StatusRequestTimeout, errors.New("the body took too long to come")}
		}
		return nil, &statusError{http.StatusBadRequest, errors.New("the body could not be read to its end")}
	}
	setBodyDeadline(w, r, time.Time{}) // or the server would take it for the caller's hanging up
	return body, nil
}

// readJob reads what the body of a creation says. A body that is no JSON object
// is a 400; a field that can't be used an *InputError.
func readJob(body []byte) (name string, data JobData, err error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return "", data, &statusError{http.StatusBadRequest, errors.New(`the body is not a JSON object: expected one such as {"name": "send_mail", "payload": {}}`)}
	}
	if isNull(fields["name"]) {
		return "", data, badInput("name", "missing: expected the name of a job")
	}
	for field := range fields {
		if !slices.Contains(jobFields, field) {
			return "", data, badInput(field[:min(len(field), 64)], "unknown field: expected %s", strings.Join(jobFields, ", "))
		}
	}
	var queue, runAt, timeout, uniqueFor, onDuplicate string
	for field, want := range map[string]struct {
		value any
		shape string
	}{
		"name": {&name, "a string"}, "queue": {&queue, "a string"}, "run_at": {&runAt, "a string"},
		"max_attempts": {&data.MaxAttempts, "a whole number"}, "timeout": {&timeout, `a string such as "90s"`},
		"owner": {&data.Owner, "a string"}, "tags": {&data.Tags, "an array of strings"},
		"unique_key": {&data.UniqueKey, "a string"}, "unique_for": {&uniqueFor, `a string such as "90s"`}, "on_duplicate": {&onDuplicate, "a string"},
		"priority": {&data.Priority, "a whole number"}, "key": {&data.Key, "a string"},
		"after": {&data.After, "an array of the ids of jobs"}, "after_any": {&data.AfterAny, "true or false"},
	} {
		value := fields[field]
		if isNull(value) {
			continue
		}
		// Go would read another text than was sent, the same for several of them.
		if err := checkJSON(value); err != nil {
			return "", data, &InputError{field, err}
		}
		if json.Unmarshal(value, want.value) != nil {
			return "", data, badInput(field, "%s: expected %s", shown(string(value)), want.shape)
		}
	}
	for field, duration := range map[string]struct {
		text  string
		value *time.Duration
	}{"timeout": {timeout, &data.Timeout}, "unique_for": {uniqueFor, &data.UniqueFor}} {
		if duration.text == "" {
			continue
		}
		if *duration.value, err = time.ParseDuration(duration.text); err != nil {
			return "", data, badInput(field, `%s: expected a duration such as "90s"`, shown(duration.text))
		}
	}
	if runAt != "" {
		if data.RunAt, err = parseTime(runAt); err != nil {
			return "", data, &InputError{"run_at", err}
		}
	} else if !isNull(fields["run_at"]) {
		return "", data, badInput("run_at", `"": expected a time, or no such field for now`)
	}
	data.Queue, data.OnDuplicate = JobQueue(queue), DuplicatePolicy(onDuplicate)
	if payload := fields["payload"]; payload != nil {
		data.Payload = payload
	}
	if metadata := fields["metadata"]; !isNull(metadata) {
		data.Metadata = metadata
	}
	return name, data, nil
}

func isNull(value json.RawMessage) bool {
	return len(value) == 0 || bytes.Equal(value, []byte("null"))
}

// timeLayouts are RFC 3339, and what ISO 8601 has beside it that clients send:
// minutes only, and a zone without a colon.
var timeLayouts = []string{time.RFC3339Nano, "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05Z0700", "20060102T150405Z0700"}

func parseTime(text string) (time.Time, error) {
	for _, layout := range timeLayouts {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s: expected a time with a zone, such as 2026-01-31T09:30:00Z or 2026-01-31T10:30:00+01:00", shown(text))
}
