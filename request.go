package scheduler

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// mostBody bounds the body of a creation: a payload, and the other fields.
const mostBody = mostPayload + 64<<10

// jobFields are the fields of a creation's body.
var jobFields = []string{"name", "run_at", "payload", "queue", "max_attempts", "timeout", "owner", "tags", "metadata"}

// readJob reads the body of a creation. A body that is no JSON object is a 400,
// or a 413 if it is too large; a field that can't be used an *InputError.
func readJob(w http.ResponseWriter, r *http.Request) (name string, data JobData, err error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, mostBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return "", data, &statusError{http.StatusRequestEntityTooLarge, fmt.Errorf("the body is too large: expected at most %d bytes", mostBody)}
		}
		return "", data, &statusError{http.StatusBadRequest, errors.New("the body could not be read to its end")}
	}
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
	var queue, runAt, timeout string
	for field, want := range map[string]struct {
		value any
		shape string
	}{
		"name": {&name, "a string"}, "queue": {&queue, "a string"}, "run_at": {&runAt, "a string"},
		"max_attempts": {&data.MaxAttempts, "a whole number"}, "timeout": {&timeout, `a string such as "90s"`},
		"owner": {&data.Owner, "a string"}, "tags": {&data.Tags, "an array of strings"},
	} {
		if value := fields[field]; !isNull(value) && json.Unmarshal(value, want.value) != nil {
			return "", data, badInput(field, "%s: expected %s", shown(string(value)), want.shape)
		}
	}
	if timeout != "" {
		if data.Timeout, err = time.ParseDuration(timeout); err != nil {
			return "", data, badInput("timeout", `%s: expected a duration such as "90s"`, shown(timeout))
		}
	}
	if runAt != "" {
		if data.RunAt, err = parseTime(runAt); err != nil {
			return "", data, &InputError{"run_at", err}
		}
	} else if !isNull(fields["run_at"]) {
		return "", data, badInput("run_at", `"": expected a time, or no such field for now`)
	}
	data.Queue = JobQueue(queue)
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
