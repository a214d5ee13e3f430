package scheduler

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// attributes are what a job may have and most jobs have not: they share one
// column, which is empty then.
type attributes struct {
	Owner       string          `json:"owner,omitempty"`
	Tags        []string        `json:"tags,omitempty"`
	Metadata    json.RawMessage `json:"metadata,omitempty"`
	UniqueKey   string          `json:"unique_key,omitempty"`
	Traceparent string          `json:"traceparent,omitempty"` // see WithTraceparent
	Slot        *time.Time      `json:"slot,omitempty"`        // see Job.Slot
}

const (
	mostOwner    = 256
	mostTags     = 32
	mostTag      = 256
	mostMetadata = 16 << 10
)

// encodeAttributes checks the attributes of a new job and makes JSON of them;
// nil if it has none.
func encodeAttributes(data JobData, traceparent string) (*string, error) {
	if data.Owner == "" && len(data.Tags) == 0 && data.Metadata == nil && data.UniqueKey == "" && traceparent == "" {
		return nil, nil
	}
	a := attributes{Owner: data.Owner, Tags: data.Tags, UniqueKey: data.UniqueKey, Traceparent: traceparent}
	if err := checkText(data.Owner, mostOwner); err != nil {
		return nil, &InputError{"owner", err}
	}
	if len(data.Tags) > mostTags {
		return nil, badInput("tags", "%d of them: expected at most %d", len(data.Tags), mostTags)
	}
	for _, tag := range data.Tags {
		if tag == "" {
			return nil, badInput("tags", `"": expected no empty tag`)
		}
		if err := checkText(tag, mostTag); err != nil {
			return nil, &InputError{"tags", err}
		}
	}
	if data.Metadata != nil {
		text, err := encodeJSON(data.Metadata)
		if err != nil {
			return nil, &InputError{"metadata", err}
		}
		if len(text) > mostMetadata {
			return nil, badInput("metadata", "has %d bytes: expected at most %d", len(text), mostMetadata)
		}
		a.Metadata = json.RawMessage(text)
		if text == "null" {
			a.Metadata = nil
		} else if !bytes.HasPrefix(bytes.TrimSpace(a.Metadata), []byte("{")) {
			return nil, badInput("metadata", "%s: expected a JSON object", shown(text))
		}
	}
	text, err := json.Marshal(a)
	if err != nil {
		return nil, fmt.Errorf("marshal the attributes: %w", err)
	}
	if string(text) == "{}" {
		return nil, nil
	}
	column := string(text)
	return &column, nil
}

// checkText refuses what Postgres can't store as text, and what is too long.
func checkText(text string, most int) error {
	switch {
	case len(text) > most:
		return fmt.Errorf("%s has %d bytes: expected at most %d", shown(text), len(text), most)
	case !utf8.ValidString(text):
		return fmt.Errorf("%s: expected UTF-8", shown(text))
	case strings.ContainsRune(text, 0):
		return fmt.Errorf("%s: expected no NUL character", shown(text))
	}
	return nil
}

// setAttributes reads the column attributes.
func (j *Job) setAttributes(text []byte) error {
	j.Tags = []string{}
	if text == nil {
		return nil
	}
	var a attributes
	if err := json.Unmarshal(text, &a); err != nil {
		return fmt.Errorf("attributes of job %s: %w", j.ID, err)
	}
	j.Owner, j.Metadata, j.UniqueKey, j.traceparent = a.Owner, a.Metadata, a.UniqueKey, checkedTraceparent(a.Traceparent)
	if a.Slot != nil {
		j.slot = a.Slot.UTC()
	}
	if a.Tags != nil {
		j.Tags = a.Tags
	}
	return nil
}
