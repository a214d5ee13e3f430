package schedulertest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/relay-club/scheduler"
)

// Source is where created jobs are looked for: in a Scheduler's schema, in a
// transaction, or in a Fake.
type Source interface {
	*scheduler.Scheduler | *Tx | *Fake
}

// Tx is a Scheduler as a transaction sees it: with what was created in that and
// is not committed. InTx and InSQL make one.
type Tx struct {
	s  *scheduler.Scheduler
	tx any // a pgx.Tx or a scheduler.SQLTx
}

// InTx is where to look for jobs created by CreateJobTx in tx.
func InTx(s *scheduler.Scheduler, tx pgx.Tx) *Tx { return &Tx{s, tx} }

// InSQL is where to look for jobs created by CreateJobSQL in tx.
func InSQL(s *scheduler.Scheduler, tx scheduler.SQLTx) *Tx { return &Tx{s, tx} }

// RequireCreated returns the one job of this name that was created with this
// data, whatever has become of it since, and fails the test if there is none or
// more than one, with a list of those that there are.
//
// What is zero in data matches anything. A Payload or Metadata matches, as JSON,
// what is equal; an object what has its fields with equal values, and maybe
// more. Tags match a job that has all of them, and RunAt one that is up to ten
// seconds off, because the code under test has taken the time itself.
// UniqueFor, OnDuplicate, After and AfterAny, which a job does not show, must be
// zero; see Scheduler.Parents.
func RequireCreated[S Source](tb testing.TB, in S, name string, data scheduler.JobData) *scheduler.Job {
	tb.Helper()
	jobs := Created(tb, in, name, data)
	if len(jobs) != 1 {
		tb.Fatalf("schedulertest: %d jobs were created as %s: expected one\n%s", len(jobs), wanted(name, data), others(tb, in, name))
	}
	return jobs[0]
}

// RequireNotCreated fails the test if a job that RequireCreated would count was
// created.
func RequireNotCreated[S Source](tb testing.TB, in S, name string, data scheduler.JobData) {
	tb.Helper()
	if jobs := Created(tb, in, name, data); len(jobs) > 0 {
		tb.Fatalf("schedulertest: %d jobs were created as %s: expected none\n%s", len(jobs), wanted(name, data), listed(jobs))
	}
}

// Created returns the jobs that RequireCreated counts, in the order of their
// creation, for tests that expect several.
func Created[S Source](tb testing.TB, in S, name string, data scheduler.JobData) []*scheduler.Job {
	tb.Helper()
	matches, err := matcher(data)
	if err != nil {
		tb.Fatalf("schedulertest: %v", err)
	}
	jobs, err := jobsIn(tb.Context(), in, name, mostRead)
	switch {
	case err != nil:
		tb.Fatalf("schedulertest: look for created jobs: %v", err)
	case len(jobs) == mostRead:
		tb.Fatalf("schedulertest: there are %d jobs %q or more: expected fewer in a test", mostRead, name)
	}
	return slices.DeleteFunc(jobs, func(job *scheduler.Job) bool { return !matches(job) })
}

const (
	mostRead  = 10_000
	mostShown = 20
	runAtOff  = 10 * time.Second
)

func jobsIn[S Source](ctx context.Context, in S, name string, most int) ([]*scheduler.Job, error) {
	var jobs any
	var err error
	switch in := any(in).(type) {
	case *scheduler.Scheduler:
		jobs, err = inside(in).Jobs(ctx, inside(in).Pool(), name, most)
	case *Tx:
		jobs, err = inside(in.s).Jobs(ctx, in.tx, name, most)
	case *Fake:
		jobs = in.jobsNamed(name, most)
	}
	if err != nil {
		return nil, err
	}
	return jobs.([]*scheduler.Job), nil
}

// matcher says which jobs could have been created with data.
func matcher(data scheduler.JobData) (func(*scheduler.Job) bool, error) {
	if data.UniqueFor != 0 || data.OnDuplicate != "" {
		return nil, fmt.Errorf("UniqueFor %s, OnDuplicate %q: expected none, a job does not show them", data.UniqueFor, data.OnDuplicate)
	}
	if len(data.After) > 0 || data.AfterAny {
		return nil, fmt.Errorf("with After %q, AfterAny %t: expected none, a job does not show them", data.After, data.AfterAny)
	}
	payload, err := parsed(data.Payload)
	if err != nil {
		return nil, fmt.Errorf("the Payload to look for: %w", err)
	}
	metadata, err := parsed(data.Metadata)
	if err != nil {
		return nil, fmt.Errorf("the Metadata to look for: %w", err)
	}
	return func(job *scheduler.Job) bool {
		return (data.Payload == nil || covers(payload, job.Payload)) &&
			(data.Metadata == nil || job.Metadata != nil && covers(metadata, job.Metadata)) &&
			(data.RunAt.IsZero() || job.RunAt.Sub(data.RunAt).Abs() <= runAtOff) &&
			(data.Queue == "" || job.Queue == data.Queue) &&
			(data.MaxAttempts == 0 || job.MaxAttempts == data.MaxAttempts) &&
			(data.Priority == 0 || job.Priority == data.Priority) &&
			(data.Timeout == 0 || job.Timeout == data.Timeout) &&
			(data.Owner == "" || job.Owner == data.Owner) &&
			(data.UniqueKey == "" || job.UniqueKey == data.UniqueKey) &&
			(data.Key == "" || job.Key == data.Key) &&
			!slices.ContainsFunc(data.Tags, func(tag string) bool { return !slices.Contains(job.Tags, tag) })
	}, nil
}

// parsed makes of a value what its JSON says. A RawMessage or []byte is JSON.
func parsed(value any) (any, error) {
	text, isJSON := value.([]byte)
	if raw, ok := value.(json.RawMessage); ok {
		text, isJSON = raw, true
	}
	if !isJSON {
		var err error
		if text, err = json.Marshal(value); err != nil {
			return nil, err
		}
	}
	return parse(text)
}

func parse(text []byte) (value any, err error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber() // of which a float64 would make two equal that are not
	err = decoder.Decode(&value)
	return value, err
}

func covers(want any, text json.RawMessage) bool {
	got, err := parse(text)
	return err == nil && coveredBy(want, got)
}

// coveredBy says whether got is want, and maybe more.
func coveredBy(want, got any) bool {
	switch want := want.(type) {
	case map[string]any:
		got, ok := got.(map[string]any)
		if !ok {
			return false
		}
		for field, value := range want {
			if its, has := got[field]; !has || !coveredBy(value, its) {
				return false
			}
		}
		return true
	case []any:
		got, ok := got.([]any)
		return ok && slices.EqualFunc(want, got, coveredBy)
	case json.Number:
		got, ok := got.(json.Number)
		return ok && sameNumber(want, got)
	}
	return reflect.DeepEqual(want, got)
}

// wanted shows a name and what is not zero in data.
func wanted(name string, data scheduler.JobData) string {
	shown := []string{fmt.Sprintf("%q", name)}
	value := reflect.ValueOf(data)
	for i := range value.NumField() {
		if field := value.Field(i); !field.IsZero() {
			shown = append(shown, value.Type().Field(i).Name+" "+asText(field.Interface()))
		}
	}
	return strings.Join(shown, ", ")
}

func asText(value any) string {
	switch value := value.(type) {
	case time.Duration:
		return value.String()
	case json.RawMessage:
		return string(value)
	case []byte:
		return string(value)
	}
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	return string(text)
}

// others shows what was created in place of what was expected: jobs of the same
// name if there are some, else all.
func others[S Source](tb testing.TB, in S, name string) string {
	for _, name := range []string{name, ""} {
		jobs, err := jobsIn(tb.Context(), in, name, mostShown+1)
		if err != nil {
			return fmt.Sprintf("(what was created can't be shown: %v)", err)
		}
		if len(jobs) > 0 {
			return listed(jobs)
		}
	}
	return "no job was created at all"
}

func listed(jobs []*scheduler.Job) string {
	var text strings.Builder
	text.WriteString("created were:")
	for i, job := range jobs {
		if i == mostShown {
			text.WriteString("\n  and more")
			break
		}
		fmt.Fprintf(&text, "\n  %s %s in %q, %s, run_at %s, payload %s", job.ID, job.Name, job.Queue, job.Status,
			job.RunAt.Format(time.RFC3339), cut(string(job.Payload)))
		for title, value := range map[string]string{"owner": job.Owner, "unique key": job.UniqueKey, "tags": strings.Join(job.Tags, " "), "metadata": cut(string(job.Metadata))} {
			if value != "" {
				fmt.Fprintf(&text, ", %s %s", title, value)
			}
		}
	}
	return text.String()
}

func cut(text string) string {
	const most = 500
	if len(text) > most {
		return fmt.Sprintf("%s… (%d bytes)", strings.ToValidUTF8(text[:most], ""), len(text))
	}
	return text
}

// sameNumber: Postgres writes 1e2 as 100, and what it is given as 1.0 so.
func sameNumber(a, b json.Number) bool {
	if a == b {
		return true
	}
	x, okX := new(big.Rat).SetString(a.String())
	y, okY := new(big.Rat).SetString(b.String())
	return okX && okY && x.Cmp(y) == 0
}
