package scheduler_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// Text that comes through Go or HTTP is stored and found as it is, or refused: in
// the simple protocol too, where pgx writes it into the statement.
func TestTextThroughGoIsAValue(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeSimpleProtocol} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			config, err := pgxpool.ParseConfig(newDatabase(t))
			require.NoError(t, err)
			config.ConnConfig.DefaultQueryExecMode = mode
			pool := newPoolWith(t, config)
			mustExec(t, pool, "CREATE TABLE public.canary ()")
			s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
				c.Tokens = []string{webToken}
				c.JobNames = scheduler.JobNames{"tell": func(ctx context.Context, job *scheduler.Job) (any, error) {
					text := job.Owner
					if err := errors.Join(scheduler.SetProgress(ctx, 1, text), scheduler.Checkpoint(ctx, text)); err != nil {
						return nil, err
					}
					if job.Priority > 0 {
						return nil, scheduler.Cancel(errors.New(text))
					}
					return text, nil
				}}
			})
			w := &web{Scheduler: s, pool: pool}
			w.serve(t, s.Handler())
			// As what comes last, a minus before a parameter began a comment once.
			for _, text := range append(injections, "\\", "'", "''", `"`, "\x01\x1b\u202e\u00a0", "-1", "\n--\n") {
				requireIsAValue(t, s, text)
				requireNoNameIs(t, s, text)
				requireIsAValueOverHTTP(t, w, text)
			}
			mustExec(t, pool, "TABLE public.canary")
		})
	}
}

// requireIsAValue checks that a text comes back from wherever any may be.
func requireIsAValue(t *testing.T, s *scheduler.Scheduler, text string) {
	data := scheduler.JobData{Payload: text, Owner: text, Tags: []string{text}, Metadata: map[string]string{text: text}, UniqueKey: text, Key: text}
	job := mustCreate(t, s, "tell", data)
	again := mustCreate(t, s, "tell", data)
	require.True(t, again.Duplicate)
	data.UniqueKey, data.Priority = "", 1
	ids, err := s.CreateJobs(t.Context(), []scheduler.NewJob{{Name: "tell", JobData: data}})
	require.NoError(t, err)
	report := mustRun(t, s, scheduler.RunFilter{Limit: 10})
	require.Equal(t, []int{1, 1}, []int{report.Succeeded, report.Dead})
	job = mustGet(t, s, job.ID)
	requireSameJSON(t, text, job.Result)
	require.Equal(t, text, job.Key)
	require.Equal(t, text, mustGet(t, s, ids[0]).Errors[0].Error)
	page, err := s.ListJobs(t.Context(), scheduler.JobFilter{Owner: text, Tags: []string{text}})
	require.NoError(t, err)
	require.Len(t, page.Jobs, 2)
	n, err := s.DeleteJobs(t.Context(), scheduler.JobFilter{Owner: text})
	require.NoError(t, err)
	require.Equal(t, 2, n)
}

// requireNoNameIs checks that a text is refused as anything that is a name.
func requireNoNameIs(t *testing.T, s *scheduler.Scheduler, text string) {
	ctx, queue := t.Context(), scheduler.JobQueue(text)
	for field, err := range map[string]error{
		"name":   second(s.CreateJob(ctx, text, scheduler.JobData{})),
		"queue":  second(s.CreateJob(ctx, "tell", scheduler.JobData{Queue: queue})),
		"after":  second(s.CreateJob(ctx, "tell", scheduler.JobData{After: []string{text}})),
		"cursor": second(s.ListJobs(ctx, scheduler.JobFilter{Cursor: text})),
		"status": second(s.ListJobs(ctx, scheduler.JobFilter{Statuses: []scheduler.JobStatus{scheduler.JobStatus(text)}})),
	} {
		requireInputError(t, err, field)
	}
	require.ErrorIs(t, second(s.ListJobs(ctx, scheduler.JobFilter{Queues: []scheduler.JobQueue{queue}})), scheduler.ErrUnknownQueue)
	require.ErrorIs(t, second(s.Run(ctx, scheduler.RunFilter{Queue: queue})), scheduler.ErrUnknownQueue)
	require.ErrorIs(t, s.PauseQueue(ctx, queue), scheduler.ErrUnknownQueue)
	require.ErrorIs(t, s.ResumeQueue(ctx, queue), scheduler.ErrUnknownQueue)
	for _, err := range []error{
		second(s.GetJob(ctx, text)), second(s.CancelJob(ctx, text)), second(s.RetryJob(ctx, text)), second(s.RescheduleJob(ctx, text, time.Now())),
		s.DeleteJob(ctx, text),
	} {
		require.ErrorIs(t, err, scheduler.ErrJobNotFound)
	}
}

func second[T any](_ T, err error) error { return err }

// requireIsAValueOverHTTP is about what headers and parameters have of a text.
func requireIsAValueOverHTTP(t *testing.T, w *web, text string) {
	escaped := url.QueryEscape(text)
	for _, path := range []string{"/api/jobs?queue=" + escaped, "/api/jobs?cursor=" + escaped, "/api/jobs?status=" + escaped, "/api/jobs?created_after=" + escaped, "/api/jobs?" + escaped + "=1"} {
		require.Equal(t, http.StatusBadRequest, w.call(t, "GET", path, "").status, path)
	}
	for _, parameter := range []string{"queue=" + escaped, "status=" + escaped, "wait=" + escaped, "limit=" + escaped, escaped + "=1"} {
		require.Equal(t, http.StatusBadRequest, w.call(t, "POST", "/api/jobs/run?"+parameter, "").status, parameter)
	}
	for _, action := range []string{"cancel", "retry"} {
		require.Equal(t, http.StatusNotFound, w.call(t, "POST", "/api/jobs/"+url.PathEscape(text)+"/"+action, "").status)
	}
	body, err := json.Marshal(map[string]any{"name": "tell", "owner": text, "key": text, "tags": []string{text}})
	require.NoError(t, err)
	var job, again scheduler.Job
	key := []string{"Idempotency-Key", url.PathEscape(text) + "'; DROP TABLE public.canary; --"}
	w.call(t, "POST", "/api/jobs", string(body), key...).requireJSON(t, http.StatusCreated, &job)
	w.call(t, "POST", "/api/jobs", string(body), key...).requireJSON(t, http.StatusOK, &again)
	require.Equal(t, job.ID, again.ID)
	require.Equal(t, []string{text, text}, []string{job.Owner, job.Key})
	require.NoError(t, w.DeleteJob(t.Context(), job.ID))
}
