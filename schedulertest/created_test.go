package schedulertest_test

import (
	"database/sql"
	"encoding/json"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/schedulertest"
)

// source is a Source, and how jobs get there.
type source struct {
	create  func(name string, data scheduler.JobData) (*scheduler.Job, error)
	require func(tb testing.TB, name string, data scheduler.JobData) *scheduler.Job
	not     func(tb testing.TB, name string, data scheduler.JobData)
	all     func(tb testing.TB, name string, data scheduler.JobData) []*scheduler.Job
}

func sourceOf[S schedulertest.Source](in S, create func(name string, data scheduler.JobData) (*scheduler.Job, error)) source {
	return source{
		create: create,
		require: func(tb testing.TB, name string, data scheduler.JobData) *scheduler.Job {
			tb.Helper()
			return schedulertest.RequireCreated(tb, in, name, data)
		},
		not: func(tb testing.TB, name string, data scheduler.JobData) {
			tb.Helper()
			schedulertest.RequireNotCreated(tb, in, name, data)
		},
		all: func(tb testing.TB, name string, data scheduler.JobData) []*scheduler.Job {
			tb.Helper()
			return schedulertest.Created(tb, in, name, data)
		},
	}
}

var anyName = scheduler.Config{Queues: map[scheduler.JobQueue]scheduler.QueueConfig{"mail": {}}}

// sources has every kind of Source. Transactions are rolled back in the end.
func sources(t *testing.T) map[string]source {
	pool := newPool(t)
	connector, err := pq.NewConnector(cluster.URL("postgres"))
	require.NoError(t, err)
	pqDB := sql.OpenDB(connector)
	t.Cleanup(func() { require.NoError(t, pqDB.Close()) })

	all := map[string]source{}
	s := schedulertest.New(t, pool, anyName)
	all["Scheduler"] = sourceOf(s, func(name string, data scheduler.JobData) (*scheduler.Job, error) {
		return s.CreateJob(t.Context(), name, data)
	})
	inTx := schedulertest.New(t, pool, anyName)
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { _ = tx.Rollback(t.Context()) })
	all["InTx"] = sourceOf(schedulertest.InTx(inTx, tx), func(name string, data scheduler.JobData) (*scheduler.Job, error) {
		return inTx.CreateJobTx(t.Context(), tx, name, data)
	})
	for title, db := range map[string]*sql.DB{"InSQL, pgx": stdlib.OpenDBFromPool(pool), "InSQL, pq": pqDB} {
		inSQL := schedulertest.New(t, pool, anyName)
		tx, err := db.BeginTx(t.Context(), nil)
		require.NoError(t, err)
		t.Cleanup(func() { _ = tx.Rollback() })
		all[title] = sourceOf(schedulertest.InSQL(inSQL, tx), func(name string, data scheduler.JobData) (*scheduler.Job, error) {
			return inSQL.CreateJobSQL(t.Context(), tx, name, data)
		})
	}
	fake := schedulertest.NewFake(t, anyName)
	all["Fake"] = sourceOf(fake, func(name string, data scheduler.JobData) (*scheduler.Job, error) {
		return fake.CreateJob(t.Context(), name, data)
	})
	return all
}

func TestRequireCreated(t *testing.T) {
	t.Parallel()
	for title, in := range sources(t) {
		t.Run(title, func(t *testing.T) {
			requireFails(t, func(tb testing.TB) { in.require(tb, "mail", scheduler.JobData{}) },
				`0 jobs were created as "mail": expected one`, "no job was created at all")
			in.not(t, "mail", scheduler.JobData{})
			require.Empty(t, in.all(t, "mail", scheduler.JobData{}))

			ada, err := in.create("mail", scheduler.JobData{Payload: map[string]any{"to": "ada", "n": 1}, Owner: "shop"})
			require.NoError(t, err)
			found := in.require(t, "mail", scheduler.JobData{})
			require.Equal(t, ada.ID, found.ID)
			require.Equal(t, ada.CreatedAt, found.CreatedAt)
			bob, err := in.create("mail", scheduler.JobData{Payload: map[string]any{"to": "bob", "n": 1}})
			require.NoError(t, err)

			require.Equal(t, bob.ID, in.require(t, "mail", scheduler.JobData{Payload: map[string]string{"to": "bob"}}).ID)
			require.Equal(t, ada.ID, in.require(t, "mail", scheduler.JobData{Owner: "shop"}).ID)
			both := in.all(t, "mail", scheduler.JobData{Payload: json.RawMessage(`{"n": 1}`)})
			require.Equal(t, []string{ada.ID, bob.ID}, []string{both[0].ID, both[1].ID})

			requireFails(t, func(tb testing.TB) {
				in.require(tb, "mail", scheduler.JobData{Payload: map[string]string{"to": "eve"}, Queue: "mail"})
			},
				`0 jobs were created as "mail", Queue "mail", Payload {"to":"eve"}`, ada.ID, "ada", bob.ID, "bob", "owner shop", `in "default"`)
			requireFails(t, func(tb testing.TB) { in.require(tb, "mail", scheduler.JobData{Payload: map[string]int{"n": 1}}) },
				"2 jobs were created", ada.ID, bob.ID)
			requireFails(t, func(tb testing.TB) { in.require(tb, "male", scheduler.JobData{}) }, `as "male"`, ada.ID, "mail", bob.ID)
			requireFails(t, func(tb testing.TB) { in.not(tb, "mail", scheduler.JobData{Payload: map[string]string{"to": "bob"}}) },
				"1 jobs were created", "expected none", bob.ID)
			in.not(t, "mail", scheduler.JobData{Payload: map[string]string{"to": "eve"}})
			in.not(t, "male", scheduler.JobData{})
		})
	}
}

func TestPayloadsThatMatch(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{})
	for i, test := range []struct {
		created string
		want    any
		matches bool
	}{
		{`{"a": {"b": 1, "c": [1, {"d": null}]}, "e": "é"}`, map[string]any{"a": map[string]any{"c": []any{1, map[string]any{}}}}, true},
		{`{"a": 1}`, struct{ A int }{1}, false}, // the field is A
		{`{"a": 1}`, map[string]any{"a": 2}, false},
		{`{"a": 1}`, map[string]any{"a": "1"}, false},
		{`{"a": 1}`, map[string]any{"b": nil}, false},
		{`{"b": null}`, map[string]any{"b": nil}, true},
		{`{"b": {}}`, map[string]any{"b": nil}, false},
		{`[1, 2]`, []int{1, 2}, true},
		{`[1, 2]`, []int{1}, false},
		{`[1, 2]`, []int{2, 1}, false},
		{`9007199254740993`, json.RawMessage(`9007199254740993`), true},
		{`9007199254740993`, json.RawMessage(`9007199254740992`), false},
		{`1e2`, 100, true},
		{`1.50`, 1.5, true},
		{`"x"`, "x", true},
		{`"x"`, []byte(`"x"`), true},
		{`"x"`, map[string]any{}, false},
		{`true`, false, false},
		{`null`, json.RawMessage("null"), true},
		{`0`, json.RawMessage("null"), false},
		{`{"anything": 1}`, nil, true},
	} {
		name := "job" + string(rune('a'+i))
		mustCreate(t, s, name, scheduler.JobData{Payload: json.RawMessage(test.created)})
		if test.matches {
			schedulertest.RequireCreated(t, s, name, scheduler.JobData{Payload: test.want})
		} else {
			schedulertest.RequireNotCreated(t, s, name, scheduler.JobData{Payload: test.want})
		}
	}
	requireFails(t, func(tb testing.TB) { schedulertest.Created(tb, s, "a", scheduler.JobData{Payload: func() {}}) }, "the Payload to look for")
	requireFails(t, func(tb testing.TB) {
		schedulertest.Created(tb, s, "a", scheduler.JobData{Metadata: json.RawMessage("{")})
	}, "the Metadata to look for")
	requireFails(t, func(tb testing.TB) { schedulertest.Created(tb, s, "a", scheduler.JobData{UniqueFor: time.Hour}) }, "UniqueFor 1h0m0s")
}

// Each field of JobData counts, also those that there will be.
func TestEveryFieldCounts(t *testing.T) {
	t.Parallel()
	at := time.Now().Add(time.Hour)
	full := scheduler.JobData{
		RunAt: at, Queue: "mail", Payload: map[string]any{"a": 1}, MaxAttempts: 3, Timeout: time.Second, Priority: -1,
		Owner: "o", Tags: []string{"x", "y"}, Metadata: map[string]any{"m": 1, "n": 2}, UniqueKey: "k", Key: "t",
	}
	other := map[string]any{
		"RunAt": at.Add(time.Minute), "Queue": scheduler.JobQueue("default"), "Payload": 2, "MaxAttempts": 4, "Priority": 1, "Timeout": time.Minute,
		"Owner": "p", "Tags": []string{"x", "z"}, "Metadata": map[string]any{"m": 2}, "UniqueKey": "l", "Key": "u",
	}
	for title, in := range sources(t) {
		_, err := in.create("full", full)
		require.NoError(t, err)
		in.require(t, "full", full)
		in.require(t, "full", scheduler.JobData{RunAt: at.Add(-5 * time.Second), Tags: []string{"y"}, Metadata: map[string]any{"n": 2}})
		for i := range reflect.TypeFor[scheduler.JobData]().NumField() {
			field := reflect.TypeFor[scheduler.JobData]().Field(i).Name
			if slices.Contains([]string{"UniqueFor", "OnDuplicate", "After", "AfterAny"}, field) {
				continue // not shown by a job
			}
			require.Contains(t, other, field)
			var want scheduler.JobData
			reflect.ValueOf(&want).Elem().Field(i).Set(reflect.ValueOf(other[field]))
			in.not(t, "full", want)
			want = scheduler.JobData{}
			reflect.ValueOf(&want).Elem().Field(i).Set(reflect.ValueOf(full).Field(i))
			in.require(t, "full", want)
		}
		t.Log(title)
	}
}

// A job that was created in a transaction is seen in there only, whatever the
// transaction comes to.
func TestWhatATransactionCreates(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	s := schedulertest.New(t, pool, scheduler.Config{JobNames: scheduler.JobNames{"a": succeed}})
	tx, err := pool.Begin(t.Context())
	require.NoError(t, err)
	job, err := s.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{})
	require.NoError(t, err)
	require.Equal(t, job.ID, schedulertest.RequireCreated(t, schedulertest.InTx(s, tx), "a", scheduler.JobData{}).ID)
	schedulertest.RequireNotCreated(t, s, "a", scheduler.JobData{})
	require.Empty(t, schedulertest.Drain(t, s))
	result, err := schedulertest.CallHandler(t, schedulertest.InTx(s, tx), job)
	require.NoError(t, err)
	require.Equal(t, "done", result)
	require.NoError(t, tx.Rollback(t.Context()))
	schedulertest.RequireNotCreated(t, s, "a", scheduler.JobData{})
	requireFails(t, func(tb testing.TB) { schedulertest.Created(tb, schedulertest.InTx(s, tx), "a", scheduler.JobData{}) }, pgx.ErrTxClosed.Error())
}

func TestCreatedInNoTransaction(t *testing.T) {
	t.Parallel()
	s := schedulertest.New(t, newPool(t), scheduler.Config{})
	const expected = "tx: expected a transaction, got nil"
	requireFails(t, func(tb testing.TB) { schedulertest.Created(tb, schedulertest.InTx(s, nil), "a", scheduler.JobData{}) }, expected)
	requireFails(t, func(tb testing.TB) {
		schedulertest.Created(tb, schedulertest.InSQL(s, (*sql.Tx)(nil)), "a", scheduler.JobData{})
	}, expected)
}
