package scheduler_test

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

var (
	seededQueues   = []scheduler.JobQueue{"default", "blocking", "mails", "elsewhere"}
	seededNames    = []string{"a", "b", "c"}
	seededOwners   = []string{"", "ada", "bob", `"ü`}
	seededTags     = []string{"x", "y", "z"}
	seededStatuses = []scheduler.JobStatus{"pending", "running", "succeeded", "failed", "dead", "cancelled"}
)

// seed stores jobs in any state, created in the last ten days, and returns them
// newest first. Their ids were made by a clock that is wrong by hours.
func seed(t *testing.T, pool *pgxpool.Pool, schema string, n int) (jobs []*scheduler.Job, random *rand.Rand) {
	t.Helper()
	number := rand.Uint64()
	t.Logf("seed %d", number)
	random = rand.New(rand.NewPCG(number, 0))
	now := time.Now().UTC().Truncate(time.Microsecond)
	batch := &pgx.Batch{}
	for range n {
		job := seedJob(random, now)
		jobs = append(jobs, job)
		lanes := map[scheduler.JobStatus]any{"pending": 0, "failed": 1, "running": random.IntN(3)}
		var lease, finishedAt, result, attributes any
		switch job.Status {
		case "running":
			lease = uuid.NewString()
		case "succeeded":
			finishedAt, result = job.CreatedAt, "1"
		case "dead", "cancelled":
			finishedAt = job.CreatedAt
		}
		if job.Owner != "" || len(job.Tags) > 0 {
			text, err := json.Marshal(map[string]any{"owner": job.Owner, "tags": job.Tags}) // no exec mode needs more than text
			require.NoError(t, err)
			attributes = string(text)
		}
		batch.Queue(`INSERT INTO `+schema+`.jobs (id, name, queue, status, lane, run_at, created_at, finished_at, lease_id, result, attributes, attempt, claims)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::text::jsonb, $11::text::jsonb, 1, 1)`,
			job.ID, job.Name, job.Queue, job.Status, lanes[job.Status], job.RunAt, job.CreatedAt, finishedAt, lease, result, attributes)
	}
	require.NoError(t, pool.SendBatch(t.Context(), batch).Close())
	slices.SortFunc(jobs, func(a, b *scheduler.Job) int { return strings.Compare(b.ID, a.ID) })
	return jobs, random
}

func seedJob(random *rand.Rand, now time.Time) *scheduler.Job {
	job := &scheduler.Job{
		Name:      pick(random, seededNames),
		Queue:     pick(random, seededQueues),
		Status:    pick(random, seededStatuses),
		Owner:     pick(random, seededOwners),
		CreatedAt: now.Add(-time.Duration(random.Int64N(int64(240 * time.Hour)))).Truncate(time.Microsecond),
		RunAt:     now.Add(time.Duration(random.Int64N(int64(48*time.Hour))) - 24*time.Hour).Truncate(time.Microsecond),
	}
	for _, tag := range seededTags {
		if random.IntN(3) == 0 {
			job.Tags = append(job.Tags, tag)
		}
	}
	id := uuid.Must(uuid.NewV7())
	madeAt := job.CreatedAt.Add(time.Duration(random.Int64N(int64(46*time.Hour))) - 23*time.Hour).UnixMilli()
	for i := range 6 {
		id[i] = byte(madeAt >> (8 * (5 - i)))
	}
	job.ID = id.String()
	return job
}

func pick[T any](random *rand.Rand, values []T) T { return values[random.IntN(len(values))] }

// finds says in other words than the library's what a filter finds.
func finds(f scheduler.JobFilter, job *scheduler.Job) bool {
	for _, tag := range f.Tags {
		if !slices.Contains(job.Tags, tag) {
			return false
		}
	}
	return (len(f.Statuses) == 0 || slices.Contains(f.Statuses, job.Status)) &&
		(len(f.Queues) == 0 || slices.Contains(f.Queues, job.Queue)) &&
		(len(f.Names) == 0 || slices.Contains(f.Names, job.Name)) &&
		(f.Owner == "" || f.Owner == job.Owner) &&
		(f.CreatedAfter.IsZero() || !job.CreatedAt.Before(f.CreatedAfter)) &&
		(f.CreatedBefore.IsZero() || job.CreatedAt.Before(f.CreatedBefore))
}
