package scheduler_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func TestCreateJobWithDefaults(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	s := newScheduler(t, func(*scheduler.Config) {})
	before := mustQuery[time.Time](t, pool, "SELECT now()")
	job := mustCreate(t, s, "send_mail", scheduler.JobData{})
	after := mustQuery[time.Time](t, pool, "SELECT now()")

	id, err := uuid.Parse(job.ID)
	require.NoError(t, err)
	require.EqualValues(t, 7, id.Version())
	require.Equal(t, id.String(), job.ID)
	require.Equal(t, "send_mail", job.Name)
	require.Equal(t, scheduler.JobQueueDefault, job.Queue)
	require.Equal(t, scheduler.JobStatusPending, job.Status)
	require.JSONEq(t, "null", string(job.Payload))
	require.Nil(t, job.Result)
	require.Equal(t, job.CreatedAt, job.RunAt)
	require.False(t, job.CreatedAt.Before(before) || job.CreatedAt.After(after), "database time")
	require.Equal(t, time.UTC, job.RunAt.Location())
	require.Nil(t, job.StartedAt)
	require.Nil(t, job.FinishedAt)
	require.Zero(t, job.Attempt)
	require.Equal(t, 10, job.MaxAttempts)
	require.Equal(t, []scheduler.JobError{}, job.Errors)
	require.Zero(t, job.Timeout)
	require.Equal(t, job, mustGet(t, s, job.ID))
	require.Equal(t, job, mustGet(t, s, strings.ToUpper(job.ID)))
}

func TestCreateJobWithEverything(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) {
		c.Queues = map[scheduler.JobQueue]scheduler.QueueConfig{"outreach": {MaxAttempts: 4}}
	})
	at := time.Date(2091, 1, 31, 10, 30, 0, 123456000, time.FixedZone("", 3600))
	type payload struct {
		To   string   `json:"to"`
		Tags []string `json:"tags"`
	}
	job := mustCreate(t, s, "mail:send/v1.2_x-y", scheduler.JobData{
		RunAt: at, Queue: "outreach", Payload: payload{"a@example.com", []string{"é", "💌", `\u0000 <>&`}},
		MaxAttempts: 1000, Timeout: 1500 * time.Millisecond,
	})
	got := mustGet(t, s, job.ID)
	require.JSONEq(t, string(job.Payload), string(got.Payload))
	got.Payload = job.Payload // of which Postgres keeps no spaces
	require.Equal(t, job, got)
	require.Equal(t, at.UTC(), got.RunAt)
	require.Equal(t, scheduler.JobQueue("outreach"), got.Queue)
	require.Equal(t, 1000, got.MaxAttempts)
	require.Equal(t, 1500*time.Millisecond, got.Timeout)
	var decoded payload
	require.NoError(t, json.Unmarshal(got.Payload, &decoded))
	require.Equal(t, payload{"a@example.com", []string{"é", "💌", `\u0000 <>&`}}, decoded)

	require.Equal(t, 4, mustCreate(t, s, "a", scheduler.JobData{Queue: "outreach"}).MaxAttempts)
}

func TestPayloads(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(*scheduler.Config) {})
	large := strings.Repeat("x", 1<<20-2)
	for _, test := range []struct {
		payload any
		stored  string
	}{
		{json.RawMessage(` {"a": [1, 2.50, -1e3]} `), `{"a": [1, 2.5, -1000]}`},
		{[]byte(`"text"`), `"text"`},
		{json.RawMessage(`"\ud83d\ude00 \\u0000 \\ud800"`), `"😀 \\u0000 \\ud800"`},
		{"plain text", `"plain text"`},
		{"not UTF-8: \xff", `"not UTF-8: \ufffd"`}, // as encoding/json has it
		{map[string]int{"": 1}, `{"": 1}`},
		{[]int{}, `[]`},
		{false, `false`},
		{large, `"` + large + `"`},
		{json.RawMessage(strings.Repeat("[", 1000) + strings.Repeat("]", 1000)), strings.Repeat("[", 1000) + strings.Repeat("]", 1000)},
	} {
		job := mustCreate(t, s, "a", scheduler.JobData{Payload: test.payload})
		require.JSONEq(t, test.stored, string(job.Payload))
		require.JSONEq(t, test.stored, string(mustGet(t, s, job.ID).Payload))
	}
}

func TestRunAtFromYear1To9999(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(*scheduler.Config) {})
	for _, at := range []time.Time{
		time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC),
		time.Date(1, 1, 1, 2, 0, 0, 0, time.FixedZone("", 3600)),
		time.Date(1969, 12, 31, 23, 59, 59, 999999000, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC), // in microseconds, it is still that year
	} {
		job := mustCreate(t, s, "a", scheduler.JobData{RunAt: at})
		require.Equal(t, at.UTC().Truncate(time.Microsecond), job.RunAt)
		require.Equal(t, job.RunAt, mustGet(t, s, job.ID).RunAt)
	}
	// The zero value in another zone means now, too.
	job := mustCreate(t, s, "a", scheduler.JobData{RunAt: time.Time{}.In(time.FixedZone("", -3600))})
	require.Equal(t, job.CreatedAt, job.RunAt)
}

func TestCreateJobTxFollowsItsTransaction(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	s := newScheduler(t, func(*scheduler.Config) {})
	begin := func() pgx.Tx {
		tx, err := pool.Begin(t.Context())
		require.NoError(t, err)
		t.Cleanup(func() { _ = tx.Rollback(t.Context()) })
		return tx
	}

	tx := begin()
	gone, err := s.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{})
	require.NoError(t, err)
	require.NoError(t, tx.Rollback(t.Context()))
	_, err = s.GetJob(t.Context(), gone.ID)
	require.ErrorIs(t, err, scheduler.ErrJobNotFound)

	tx = begin()
	kept, err := s.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{Payload: 1})
	require.NoError(t, err)
	_, err = s.GetJob(t.Context(), kept.ID)
	require.ErrorIs(t, err, scheduler.ErrJobNotFound, "not before the commit")
	// A refused job leaves the transaction as it was.
	for _, bad := range badJobs() {
		_, err = s.CreateJobTx(t.Context(), tx, bad.name, bad.data)
		requireInputError(t, err, bad.field, bad.names...)
	}
	require.NoError(t, tx.Commit(t.Context()))
	require.Equal(t, kept, mustGet(t, s, kept.ID))
}

func TestCreateJobsStoresAllInOrder(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(*scheduler.Config) {})
	at := time.Date(2091, 1, 1, 0, 0, 0, 0, time.UTC)
	ids, err := s.CreateJobs(t.Context(), []scheduler.NewJob{
		{Name: "first"},
		{Name: "second", JobData: scheduler.JobData{RunAt: at, Queue: scheduler.JobQueueBlocking, Payload: "p", MaxAttempts: 2, Timeout: time.Second}},
		{Name: "third", JobData: scheduler.JobData{Payload: json.RawMessage(`{}`)}},
	})
	require.NoError(t, err)
	require.Len(t, ids, 3)
	require.IsIncreasing(t, ids)
	first, second, third := mustGet(t, s, ids[0]), mustGet(t, s, ids[1]), mustGet(t, s, ids[2])
	require.Equal(t, []string{"first", "second", "third"}, []string{first.Name, second.Name, third.Name})
	require.Equal(t, first.CreatedAt, first.RunAt)
	require.Equal(t, 10, first.MaxAttempts)
	require.Zero(t, first.Timeout)
	require.Equal(t, at, second.RunAt)
	require.Equal(t, scheduler.JobQueueBlocking, second.Queue)
	require.Equal(t, 2, second.MaxAttempts)
	require.Equal(t, time.Second, second.Timeout)
	require.JSONEq(t, `"p"`, string(second.Payload))
	require.JSONEq(t, `{}`, string(third.Payload))

	ids, err = s.CreateJobs(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, ids)
}

func TestJobNotFound(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(*scheduler.Config) {})
	job := mustCreate(t, s, "a", scheduler.JobData{})
	for _, id := range []string{
		uuid.NewString(), "", "1", "' OR true --", "\x00", strings.Repeat("a", 10_000),
		"{" + job.ID + "}", "urn:uuid:" + job.ID, strings.ReplaceAll(job.ID, "-", ""), " " + job.ID[1:],
	} {
		_, err := s.GetJob(t.Context(), id)
		require.ErrorIs(t, err, scheduler.ErrJobNotFound)
		require.Less(t, len(err.Error()), 600)
	}
}

type badJob struct {
	name  string
	data  scheduler.JobData
	field string
	names []string // what the error has to name
}

func badJobs() []badJob {
	payload := func(payload any, names ...string) badJob {
		return badJob{name: "a", data: scheduler.JobData{Payload: payload}, field: "payload", names: names}
	}
	queue := func(queue string, names ...string) badJob {
		return badJob{name: "a", data: scheduler.JobData{Queue: scheduler.JobQueue(queue)}, field: "queue", names: names}
	}
	at := func(year int) badJob {
		return badJob{name: "a", data: scheduler.JobData{RunAt: time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC)}, field: "run_at", names: []string{strconv.Itoa(year), "year 1 to 9999"}}
	}
	long := strings.Repeat("n", 10_000)
	bad := []badJob{
		payload(json.RawMessage(`{"a":`), `{\"a\":`, "expected JSON"),
		payload([]byte(``), "expected JSON"),
		payload([]byte(`{} {}`), "expected JSON"),
		payload(json.RawMessage(`NaN`), "NaN", "expected JSON"),
		payload(json.RawMessage(`[Infinity]`), "Infinity", "expected JSON"),
		payload(json.RawMessage(`'a'`), "'a'", "expected JSON"),
		payload(json.RawMessage("\"a\x00\""), "expected JSON"),
		payload(math.NaN(), "NaN"),
		payload(math.Inf(-1), "Inf"),
		payload(func() {}, "func()"),
		payload(map[bool]int{true: 1}, "map[bool]int"),
		payload(marshalFails{}, "no JSON today"),
		payload("NUL \x00", `\u0000`),
		payload(map[string]int{"\x00": 1}, `\u0000`),
		payload(json.RawMessage(`["\\\u0000"]`), `\u0000`),
		payload(json.RawMessage(`"\ud800"`), `\ud800`, "surrogate"),
		payload(json.RawMessage(`"\udbff\u0041"`), `\udbff`, "surrogate"),
		payload(json.RawMessage(`"\ud800\ud800"`), `\ud800`, "surrogate"),
		payload(json.RawMessage(`"\uDC00\uD800"`), `\udc00`, "surrogate"),
		payload(json.RawMessage(`{"\uDFFF": 1}`), `\udfff`, "surrogate"),
		payload(json.RawMessage("\"\xff\""), "UTF-8"),
		payload(json.RawMessage("\"\xed\xa0\x80\""), "UTF-8"),
		payload(strings.Repeat("x", 1<<20-1), "1048577", "1048576"),
		payload(json.RawMessage(`"`+strings.Repeat("x", 10<<20)+`"`), "10485762", "1048576"),
		payload(json.RawMessage(strings.Repeat("[", 10_001)+strings.Repeat("]", 10_001)), "[[[[", "depth"),
		queue("outreach", `"outreach"`, "blocking, default"),
		queue("Default", `"Default"`, "blocking, default"),
		queue("default ", `"default "`),
		queue("a\x00b", `"a\x00b"`),
		queue(long, `"nnnn`, "10000 bytes"),
		queue("failed", `"failed"`, "view", `"default"`),
		at(0), at(-1234), at(10_000), at(292_000_000),
		{name: "a", data: scheduler.JobData{RunAt: time.Date(10_000, 1, 1, 0, 30, 0, 0, time.FixedZone("", -3600))}, field: "run_at", names: []string{"10000"}},
		{name: "a", data: scheduler.JobData{RunAt: time.Date(1, 1, 1, 0, 30, 0, 0, time.FixedZone("", 3600))}, field: "run_at", names: []string{"year 1"}},
		{name: "a", data: scheduler.JobData{MaxAttempts: -1}, field: "max_attempts", names: []string{"-1", "1 to 1000"}},
		{name: "a", data: scheduler.JobData{MaxAttempts: 1001}, field: "max_attempts", names: []string{"1001", "1 to 1000"}},
		{name: "a", data: scheduler.JobData{Priority: 101}, field: "priority", names: []string{"101", "-100 to 100"}},
		{name: "a", data: scheduler.JobData{Priority: 1, Queue: scheduler.JobQueueBlocking}, field: "priority", names: []string{"blocking", "expected 0"}},
		{name: "a", data: scheduler.JobData{Timeout: -time.Second}, field: "timeout", names: []string{"-1s"}},
		{name: "a", data: scheduler.JobData{Timeout: time.Microsecond}, field: "timeout", names: []string{"1µs", "milliseconds"}},
	}
	for name, shown := range map[string]string{
		"": `""`, " ": `" "`, "a b": `"a b"`, "-a": `"-a"`, "é": `"é"`, "a\n": `"a\n"`, "a\x00": `"a\x00"`, "a'b": `"a'b"`,
		`a"b`: `"a\"b"`, "a\xff": `"a\xff"`, strings.Repeat("n", 129): "129 bytes", long: "10000 bytes",
	} {
		bad = append(bad, badJob{name: name, field: "name", names: []string{shown, "1 to 128"}})
	}

	for _, number := range []string{"1e131072", "1e200000", "-1e999999999", "1e-20000", strings.Repeat("9", 140_000)} {
		bad = append(bad, payload(json.RawMessage(`{"n": `+number+`}`), number[:5]))
	}
	return bad
}

type marshalFails struct{}

func (marshalFails) MarshalJSON() ([]byte, error) { return nil, fmt.Errorf("no JSON today") }

func TestBadInputIsRefusedAndNothingStored(t *testing.T) {
	t.Parallel()
	pool, schema := newPool(t), newSchema(t)
	s := newScheduler(t, func(c *scheduler.Config) { c.Schema = schema })
	for _, bad := range badJobs() {
		_, err := s.CreateJob(t.Context(), bad.name, bad.data)
		requireInputError(t, err, bad.field, bad.names...)
		require.ErrorContains(t, err, "create job: ")
		require.Equal(t, bad.field == "queue", errors.Is(err, scheduler.ErrUnknownQueue))

		_, err = s.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "a"}, {Name: bad.name, JobData: bad.data}, {Name: "b"}})
		requireInputError(t, err, "jobs[1]."+bad.field, bad.names...)
	}
	require.Zero(t, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs"))
}

func TestOnlyRegisteredNamesAreCreated(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) { c.JobNames = scheduler.JobNames{"known": succeed} })
	mustCreate(t, s, "known", scheduler.JobData{})
	_, err := s.CreateJob(t.Context(), "unknown", scheduler.JobData{})
	requireInputError(t, err, "name", `"unknown"`, "JobNames")
	require.ErrorIs(t, err, scheduler.ErrUnknownJobName)
	_, err = s.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "known"}, {Name: "unknown"}})
	requireInputError(t, err, "jobs[1].name", `"unknown"`)
	require.ErrorIs(t, err, scheduler.ErrUnknownJobName)

	none := newScheduler(t, func(c *scheduler.Config) { c.JobNames = scheduler.JobNames{} })
	_, err = none.CreateJob(t.Context(), "known", scheduler.JobData{})
	require.ErrorIs(t, err, scheduler.ErrUnknownJobName)
}

// A number of few digits may be one of a hundred thousand when Postgres writes
// it. What is stored must be something that can be claimed: a row that can't be
// read would fail every claim that meets it.
func TestEveryStoredPayloadCanBeRead(t *testing.T) {
	t.Parallel()
	s := newScheduler(t, func(c *scheduler.Config) { c.JobNames = scheduler.JobNames{"a": succeed} })
	deep := strings.Repeat("[", 9_999) + strings.Repeat("]", 9_999)
	wide := "[" + strings.Repeat("1e99999,", 20_000) + "1]"
	for name, payload := range map[string]string{"deep": deep, "wide": wide} {
		job, err := s.CreateJob(t.Context(), "a", scheduler.JobData{Payload: json.RawMessage(payload)})
		if err != nil {
			requireInputError(t, err, "payload")
			continue
		}
		require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{}).Succeeded, name)
		mustGet(t, s, job.ID)
	}
}
