package scheduler_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func TestHTTPCancelsAndRetries(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	id := mustCreate(t, w.Scheduler, "succeed", tomorrowIn("")).ID
	for range 2 {
		var shown map[string]any
		answer := w.call(t, "POST", "/api/jobs/"+strings.ToUpper(id)+"/cancel", "")
		answer.requireJSON(t, http.StatusOK, &shown)
		require.Equal(t, "no-store", answer.header.Get("Cache-Control"))
		require.Equal(t, id, shown["id"])
		require.Equal(t, "cancelled", shown["status"])
		require.NotNil(t, shown["finished_at"])
		require.Equal(t, scheduler.JobStatusCancelled, mustGet(t, w.Scheduler, id).Status)
	}
	var job scheduler.Job
	w.call(t, "POST", "/api/jobs/"+id+"/retry", `{"ignored": true}`).requireJSON(t, http.StatusOK, &job)
	require.Equal(t, scheduler.JobStatusPending, job.Status)
	require.Equal(t, 1, mustRun(t, w.Scheduler, scheduler.RunFilter{}).Succeeded)

	w.call(t, "POST", "/api/jobs/"+id+"/retry", "").requireProblem(t, http.StatusConflict, "", id, "succeeded", "expected")
	w.call(t, "POST", "/api/jobs/"+id+"/cancel", "").requireJSON(t, http.StatusOK, &job)
	require.Equal(t, scheduler.JobStatusSucceeded, job.Status, "it stays as it is")
	for _, action := range []string{"cancel", "retry"} {
		for _, other := range []string{"0190a5b2-0000-7000-8000-000000000000", "run", "nope", "%27%3B--", strings.Repeat("a", 2000), id + "0"} {
			w.call(t, "POST", "/api/jobs/"+other+"/"+action, "").requireProblem(t, http.StatusNotFound, "")
		}
		w.call(t, "POST", "/api/jobs/"+id+"/"+action+"/", "").requireProblem(t, http.StatusNotFound, "")
		w.call(t, "POST", "/api/jobs/"+id+"/"+strings.ToUpper(action), "").requireProblem(t, http.StatusNotFound, "")
	}
}

// A host's own check decides as it does for creating.
func TestHTTPCancelAndRetryAskTheHost(t *testing.T) {
	t.Parallel()
	w := newWeb(t, func(c *scheduler.Config) {
		c.Authorize = func(r *http.Request) bool { return r.Header.Get("X-User") == "ada" }
	})
	id := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{}).ID
	before := mustGet(t, w.Scheduler, id)
	for _, action := range []string{"cancel", "retry"} {
		w.call(t, "POST", "/api/jobs/"+id+"/"+action, "", "Authorization", "", "X-User", "eve").requireProblem(t, http.StatusUnauthorized, "")
		require.Equal(t, before, mustGet(t, w.Scheduler, id))
	}
	var job scheduler.Job
	for _, step := range []struct {
		action string
		status scheduler.JobStatus
	}{{"cancel", scheduler.JobStatusCancelled}, {"retry", scheduler.JobStatusPending}} {
		w.call(t, "POST", "/api/jobs/"+id+"/"+step.action, "", "Authorization", "", "X-User", "ada").requireJSON(t, http.StatusOK, &job)
		require.Equal(t, step.status, job.Status)
	}
}
