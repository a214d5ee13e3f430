package schedulertest_test

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/schedulertest"
)

// creator is what business code declares.
type creator interface {
	CreateJob(ctx context.Context, name string, data scheduler.JobData) (*scheduler.Job, error)
	CreateJobTx(ctx context.Context, tx pgx.Tx, name string, data scheduler.JobData) (*scheduler.Job, error)
	CreateJobSQL(ctx context.Context, tx scheduler.SQLTx, name string, data scheduler.JobData) (*scheduler.Job, error)
	CreateJobs(ctx context.Context, jobs []scheduler.NewJob) (ids []string, err error)
}

var _, _ creator = (*scheduler.Scheduler)(nil), (*schedulertest.Fake)(nil)

var fakeConfig = scheduler.Config{
	JobNames: scheduler.JobNames{"a": succeed, "b": succeed},
	Queues:   map[scheduler.JobQueue]scheduler.QueueConfig{"own": {MaxAttempts: 3}},
}

// What a Fake returns and refuses is what a Scheduler does.
func TestFakeIsLikeAScheduler(t *testing.T) {
	t.Parallel()
	actual, fake := creator(schedulertest.New(t, newPool(t), fakeConfig)), creator(schedulertest.NewFake(t, fakeConfig))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		ctx  context.Context
		name string
		data scheduler.JobData
	}{
		{t.Context(), "a", scheduler.JobData{}},
		{t.Context(), "a", scheduler.JobData{
			RunAt: time.Date(2091, 1, 31, 10, 30, 0, 123456789, time.FixedZone("", 3600)), Queue: "own", Payload: []int{1},
			Timeout: time.Second, Owner: "o", Tags: []string{"x"}, Metadata: map[string]int{"m": 1},
		}},
		{t.Context(), "b", scheduler.JobData{UniqueKey: "k", Payload: 1}},
		{t.Context(), "b", scheduler.JobData{UniqueKey: "k", Payload: 2}},
		{t.Context(), "b", scheduler.JobData{UniqueKey: "k", Payload: 3, Owner: "p", OnDuplicate: scheduler.DuplicateReplace}},
		{t.Context(), "b", scheduler.JobData{UniqueKey: "k", Payload: 4, UniqueFor: time.Hour}},
		{t.Context(), "a", scheduler.JobData{UniqueKey: "k", Payload: 5}},
		{t.Context(), "c", scheduler.JobData{}},
		{t.Context(), "", scheduler.JobData{}},
		{t.Context(), "a", scheduler.JobData{Queue: "nowhere"}},
		{t.Context(), "a", scheduler.JobData{Queue: scheduler.JobQueueFailed}},
		{t.Context(), "a", scheduler.JobData{RunAt: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}},
		{t.Context(), "a", scheduler.JobData{Payload: json.RawMessage("{")}},
		{t.Context(), "a", scheduler.JobData{Payload: "\x00"}},
		{t.Context(), "a", scheduler.JobData{MaxAttempts: 1001}},
		{t.Context(), "a", scheduler.JobData{Timeout: time.Microsecond}},
		{t.Context(), "a", scheduler.JobData{Tags: []string{""}}},
		{t.Context(), "a", scheduler.JobData{Metadata: 1}},
		{t.Context(), "a", scheduler.JobData{UniqueFor: time.Hour}},
		{t.Context(), "a", scheduler.JobData{After: []string{"x"}}},
		{t.Context(), "a", scheduler.JobData{After: []string{"ABCDEF00-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000001"}}},
		{t.Context(), "b", scheduler.JobData{UniqueKey: "k", After: []string{"00000000-0000-0000-0000-000000000001"}}},
		{ended, "a", scheduler.JobData{}},
		{ended, "c", scheduler.JobData{}},
	} {
		want, wantErr := actual.CreateJob(test.ctx, test.name, test.data)
		got, err := fake.CreateJob(test.ctx, test.name, test.data)
		requireSameError(t, wantErr, err)
		if err == nil {
			require.WithinDuration(t, want.CreatedAt, got.CreatedAt, time.Minute)
			require.Equal(t, want.CreatedAt.Equal(want.RunAt), got.CreatedAt.Equal(got.RunAt))
			require.JSONEq(t, string(want.Payload), string(got.Payload))
			if test.data.RunAt.IsZero() {
				got.RunAt = want.RunAt
			}
			got.ID, got.CreatedAt, got.Payload = want.ID, want.CreatedAt, want.Payload
			require.EqualExportedValues(t, *want, *got)
		}

		batch := []scheduler.NewJob{{Name: "a"}, {Name: test.name, JobData: test.data}, {Name: "b", JobData: scheduler.JobData{UniqueKey: "batch"}}}
		ids, wantErr := actual.CreateJobs(test.ctx, batch)
		fakeIDs, err := fake.CreateJobs(test.ctx, batch)
		requireSameError(t, wantErr, err)
		require.Len(t, fakeIDs, len(ids))
	}
	for _, batch := range [][]scheduler.NewJob{
		{{Name: "a", Label: "x"}, {Name: "a", JobData: scheduler.JobData{After: []string{"x"}}}},
		{{Name: "a", Label: "x"}, {Name: "a", JobData: scheduler.JobData{After: []string{"y"}}}},
		{{Name: "a", Label: "x", JobData: scheduler.JobData{After: []string{"x"}}}},
	} {
		ids, wantErr := actual.CreateJobs(t.Context(), batch)
		fakeIDs, err := fake.CreateJobs(t.Context(), batch)
		requireSameError(t, wantErr, err)
		require.Len(t, fakeIDs, len(ids))
	}
	for _, creator := range []creator{actual, fake} {
		parent, err := creator.CreateJob(t.Context(), "a", scheduler.JobData{})
		require.NoError(t, err)
		child, err := creator.CreateJob(t.Context(), "a", scheduler.JobData{After: []string{parent.ID, parent.ID}})
		require.NoError(t, err)
		require.Equal(t, 1, child.WaitsFor)
	}
	none, err := fake.CreateJobs(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, []string{}, none)

	all := actual.(*scheduler.Scheduler)
	for _, name := range []string{"a", "b"} {
		require.Len(t, schedulertest.Created(t, fake.(*schedulertest.Fake), name, scheduler.JobData{}),
			len(schedulertest.Created(t, all, name, scheduler.JobData{})), "as many are stored")
	}
}

func requireSameError(t *testing.T, want, got error) {
	t.Helper()
	if want == nil {
		require.NoError(t, got)
		return
	}
	require.Error(t, got)
	require.Equal(t, want.Error(), got.Error())
	for _, kind := range []error{scheduler.ErrInvalidInput, scheduler.ErrUnknownJobName, scheduler.ErrUnknownQueue, context.Canceled} {
		require.Equal(t, errors.Is(want, kind), errors.Is(got, kind), kind)
	}
	var wantInput, gotInput *scheduler.InputError
	if errors.As(want, &wantInput) {
		require.ErrorAs(t, got, &gotInput)
		require.Equal(t, wantInput.Field, gotInput.Field)
	}
}

func TestFakeKeepsWhatItReturned(t *testing.T) {
	t.Parallel()
	fake := schedulertest.NewFake(t, fakeConfig)
	job, err := fake.CreateJobTx(t.Context(), nil, "a", scheduler.JobData{Payload: "kept", Tags: []string{"x"}})
	require.NoError(t, err)
	job.Name, job.Payload[1], job.Tags[0] = "b", 'K', "y"
	found := schedulertest.RequireCreated(t, fake, "a", scheduler.JobData{Payload: "kept", Tags: []string{"x"}})
	found.Payload[1] = 'K'
	schedulertest.RequireCreated(t, fake, "a", scheduler.JobData{Payload: "kept"})
	again, err := fake.CreateJobSQL(t.Context(), nil, "a", scheduler.JobData{})
	require.NoError(t, err)
	require.NotEqual(t, job.ID, again.ID)
}

func TestFakeWithManyCallers(t *testing.T) {
	t.Parallel()
	fake := schedulertest.NewFake(t, scheduler.Config{})
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			for range 10 {
				_, _ = fake.CreateJob(t.Context(), "a", scheduler.JobData{UniqueKey: strconv.Itoa(i % 5)})
				_, _ = fake.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "b"}, {Name: "b"}})
				schedulertest.Created(t, fake, "a", scheduler.JobData{})
			}
		})
	}
	group.Wait()
	require.Len(t, schedulertest.Created(t, fake, "a", scheduler.JobData{}), 5)
	require.Len(t, schedulertest.Created(t, fake, "b", scheduler.JobData{}), 400)
}
