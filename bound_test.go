package scheduler_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func TestMaxPendingRefusesCreations(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{MaxPending: 3}, func(c *scheduler.Config) { c.Tokens = []string{"token"} })
	data := scheduler.JobData{Queue: "limited"}
	mustCreate(t, g.Scheduler, "ok", data)
	mustCreate(t, g.Scheduler, "ok", scheduler.JobData{Queue: "limited", RunAt: time.Now().Add(time.Hour)})
	full := func(err error) {
		t.Helper()
		require.ErrorIs(t, err, scheduler.ErrQueueFull)
		require.ErrorContains(t, err, "'limited' has 3 pending jobs")
	}
	_, err := g.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "ok", JobData: data}, {Name: "ok"}, {Name: "ok", JobData: data}})
	full(err)
	require.Equal(t, 2, mustQuery[int](t, pool, "SELECT count(*) FROM "+g.schema+".jobs"), "all or none")
	_, err = g.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "ok", JobData: data}, {Name: "ok"}})
	require.NoError(t, err)

	_, err = g.CreateJob(t.Context(), "ok", data)
	full(err)
	full(pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		_, err := g.CreateJobTx(t.Context(), tx, "ok", data)
		return err
	}))
	_, err = g.CreateJob(t.Context(), "ok", scheduler.JobData{Queue: "limited", UniqueKey: "new"})
	full(err)
	_, err = pool.Exec(t.Context(), "SELECT "+g.schema+".create_job('ok', queue => 'limited')")
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.Equal(t, "JQ001", pg.Code)
	request := httptest.NewRequest(http.MethodPost, "/api/jobs", strings.NewReader(`{"name": "ok", "queue": "limited"}`))
	request.Header.Set("Authorization", "Bearer token")
	answer := httptest.NewRecorder()
	g.Handler().ServeHTTP(answer, request)
	require.Equal(t, http.StatusTooManyRequests, answer.Code)
	require.NotEmpty(t, answer.Header().Get("Retry-After"))
	require.Contains(t, answer.Body.String(), "'limited' has 3 pending jobs")
	require.Equal(t, 4, mustQuery[int](t, pool, "SELECT count(*) FROM "+g.schema+".jobs"), "nothing else is stored")

	// Others are not concerned, and what is not pending does not count.
	mustCreate(t, g.Scheduler, "ok", scheduler.JobData{})
	require.Equal(t, 2, mustRun(t, g.Scheduler, scheduler.RunFilter{Queue: "limited", Limit: 10}).Succeeded)
	id := mustCreate(t, g.Scheduler, "work", data).ID
	run := goRun(t.Context(), g.Scheduler, scheduler.RunFilter{Queue: "limited"})
	require.Equal(t, id, await(t, g.begun).ID)
	mustCreate(t, g.Scheduler, "ok", scheduler.JobData{Queue: "limited", UniqueKey: "a"})
	mustCreate(t, g.Scheduler, "ok", data)
	_, err = g.CreateJob(t.Context(), "ok", data)
	full(err)
	require.True(t, mustCreate(t, g.Scheduler, "ok", scheduler.JobData{Queue: "limited", UniqueKey: "a"}).Duplicate, "what is there is no creation")
	g.gate(id) <- errors.New("failed as asked")
	require.Equal(t, 1, await(t, run).report.Failed)
	mustRetry(t, g.Scheduler, id)
	require.Equal(t, 4, mustQuery[int](t, pool, "SELECT count(*) FROM "+g.schema+".jobs WHERE queue = 'limited' AND status = 'pending'"),
		"what is there already comes back")
}

// Creations at once fill a queue and no more than that.
func TestMaxPendingHoldsForCreationsAtOnce(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{MaxPending: 50})
	var group sync.WaitGroup
	var mu sync.Mutex
	created, refused := 0, 0
	for worker := range 8 {
		group.Go(func() {
			for range 10 {
				var err error
				switch worker % 4 {
				case 0:
					_, err = g.CreateJob(t.Context(), "ok", scheduler.JobData{Queue: "limited"})
				case 1:
					_, err = g.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "ok", JobData: scheduler.JobData{Queue: "limited"}}})
				case 2:
					_, err = pool.Exec(t.Context(), "SELECT "+g.schema+".create_job('ok', queue => 'limited')")
				default:
					err = pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
						_, err := g.CreateJobTx(t.Context(), tx, "ok", scheduler.JobData{Queue: "limited", Priority: 1})
						return err
					})
				}
				mu.Lock()
				if err == nil {
					created++
				} else {
					refused++
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	require.Equal(t, []int{50, 30}, []int{created, refused})
	require.Equal(t, 50, mustQuery[int](t, pool, "SELECT count(*) FROM "+g.schema+".jobs"))
}

// A transaction whose snapshot does not show what others have created since is
// told so.
func TestMaxPendingUnderRepeatableRead(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	g := newGated(t, scheduler.QueueConfig{MaxPending: 2})
	mustCreate(t, g.Scheduler, "ok", scheduler.JobData{Queue: "limited"})
	tx, err := pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	require.NoError(t, err)
	mustExec(t, tx, "SELECT 1 FROM "+g.schema+".jobs")
	mustCreate(t, g.Scheduler, "ok", scheduler.JobData{Queue: "limited"})
	_, err = g.CreateJobTx(t.Context(), tx, "ok", scheduler.JobData{Queue: "limited"})
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.Equal(t, "40001", pg.Code)
	require.NoError(t, tx.Rollback(t.Context()))
}

// A creation in a transaction that lasts holds up creations, and no claim.
func TestMaxPendingHoldsUpNoClaim(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	for title, limits := range map[string]scheduler.QueueConfig{
		"default": {MaxPending: 10}, "limited": {MaxPending: 10, MaxConcurrency: 1}, "blocking": {MaxPending: 10, Extends: scheduler.JobQueueBlocking},
	} {
		g := newGated(t, limits)
		mustCreate(t, g.Scheduler, "ok", scheduler.JobData{Queue: "limited"})
		tx, err := pool.Begin(t.Context())
		require.NoError(t, err)
		_, err = g.CreateJobTx(t.Context(), tx, "ok", scheduler.JobData{Queue: "limited"})
		require.NoError(t, err)
		require.Equal(t, 1, mustRun(t, g.Scheduler, scheduler.RunFilter{Queue: "limited", Limit: 10}).Succeeded, title)
		require.NoError(t, g.PauseQueue(t.Context(), "limited"))
		require.NoError(t, tx.Commit(t.Context()))
	}
}
