package scheduler_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func TestHTTPListsJobs(t *testing.T) {
	t.Parallel()
	w := newWeb(t, func(c *scheduler.Config) { c.Queues = queueConfigs{"mails": {}} })
	var all scheduler.JobPage
	empty := w.call(t, "GET", "/api/jobs", "")
	empty.requireJSON(t, http.StatusOK, &all)
	require.JSONEq(t, `{"jobs": [], "next": ""}`, empty.body)
	require.Equal(t, "no-store", empty.header.Get("Cache-Control"))

	jobs, random := seed(t, w.pool, w.schema, 300)
	at := func(at time.Time) string { return url.QueryEscape(at.Format(time.RFC3339Nano)) }
	early, late := pick(random, jobs).CreatedAt, pick(random, jobs).CreatedAt
	if late.Before(early) {
		early, late = late, early
	}
	for query, filter := range map[string]scheduler.JobFilter{
		"": {}, "limit=3": {},
		"status=dead": {Statuses: []scheduler.JobStatus{"dead"}}, "status=dead&status=failed&limit=10": {Statuses: []scheduler.JobStatus{"dead", "failed"}},
		"queue=mails": {Queues: []scheduler.JobQueue{"mails"}}, "queue=mails&queue=elsewhere": {Queues: []scheduler.JobQueue{"mails", "elsewhere"}},
		"name=a": {Names: []string{"a"}}, "name=a&name=b": {Names: []string{"a", "b"}}, "owner=ada": {Owner: "ada"}, "owner=%22%C3%BC": {Owner: `"ü`},
		"tag=x": {Tags: []string{"x"}}, "tag=x&tag=y": {Tags: []string{"x", "y"}},
		"created_after=" + at(early): {CreatedAfter: early}, "created_before=" + at(late): {CreatedBefore: late},
		"created_after=" + at(early) + "&created_before=" + at(late) + "&status=pending&tag=x&limit=2": {
			CreatedAfter: early, CreatedBefore: late, Statuses: []scheduler.JobStatus{"pending"}, Tags: []string{"x"}},
		"status=&queue=&name=&tag=&owner=&created_after=&created_before=&limit=&cursor=": {}, // a form that nobody has filled in
		"status=&status=dead": {Statuses: []scheduler.JobStatus{"dead"}},
		"queue=failed":        {Queues: []scheduler.JobQueue{"default"}, Statuses: []scheduler.JobStatus{"failed"}},
	} {
		var expected, got []string
		for _, job := range jobs {
			if finds(filter, job) {
				expected = append(expected, job.ID)
			}
		}
		for cursor := ""; ; {
			var page scheduler.JobPage
			w.call(t, "GET", "/api/jobs?"+query+cursor, "").requireJSON(t, http.StatusOK, &page)
			got = append(got, idsOf(page.Jobs)...)
			if page.Next == "" {
				break
			}
			cursor = "&cursor=" + page.Next
			query = strings.TrimSuffix(query, "&cursor=")
		}
		require.Equal(t, expected, got, query)
	}

	var one struct{ Jobs []map[string]any }
	w.call(t, "GET", "/api/jobs?limit=1", "").requireJSON(t, http.StatusOK, &one)
	var same map[string]any
	w.call(t, "GET", "/api/jobs/"+jobs[0].ID, "").requireJSON(t, http.StatusOK, &same)
	require.Equal(t, []map[string]any{same}, one.Jobs)
	require.Equal(t, http.StatusOK, w.call(t, "HEAD", "/api/jobs?limit=1", "").status)
}

func TestHTTPListRefusesBadParameters(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	long := strings.Repeat("q", 10_000)
	for _, test := range []struct {
		query, field string
		names        []string
	}{
		{"status=any", "status", []string{`"any"`, "pending"}},
		{"status=dead&status=Dead", "status", []string{`"Dead"`}},
		{strings.Repeat("status=dead&", 101), "status", []string{"101", "100"}},
		{"queue=nowhere", "queue", []string{`"nowhere"`, "blocking, default"}},
		{"queue=a%00%27%3B--", "queue", []string{`a\x00';--`}},
		{"queue=" + long, "queue", []string{"10000 bytes"}},
		{"queue=failed&status=dead", "status", []string{`"dead"`}},
		{"name=a%20b", "name", []string{`"a b"`}},
		{"tag=a%00", "tag", []string{"NUL"}},
		{"tag=%ff", "tag", []string{"UTF-8"}},
		{"owner=" + long, "owner", []string{"10000 bytes"}},
		{"owner=a&owner=b", "owner", []string{"once", "2 times"}},
		{"created_after=yesterday", "created_after", []string{`"yesterday"`, "zone"}},
		{"created_before=2030-01-31", "created_before", []string{`"2030-01-31"`}},
		{"created_after=2030-01-31T00:00:00Z&created_before=2029-01-31T00:00:00Z", "created_before", []string{"2029", "2030"}},
		{"limit=0", "limit", []string{`"0"`, "1 to 1000"}},
		{"limit=-1", "limit", []string{"-1", "1 to 1000"}},
		{"limit=1001", "limit", []string{"1001", "1 to 1000"}},
		{"limit=ten", "limit", []string{`"ten"`}},
		{"limit=1&limit=", "limit", []string{"once"}},
		{"cursor=nope", "cursor", []string{`"nope"`, "next"}},
		{"cursor=" + long, "cursor", []string{"10000 bytes"}},
		{"page=2", "query", []string{`"page"`, "limit or cursor"}},
		{"Status=dead", "query", []string{`"Status"`}},
		{long + "=1", "query", []string{"10000 bytes"}},
		{"status=%zz", "query", []string{"status=%zz"}},
		{"status=dead;limit=5", "query", []string{"status=dead;limit=5"}},
	} {
		w.call(t, "GET", "/api/jobs?"+test.query, "").requireProblem(t, http.StatusBadRequest, test.field, test.names...)
	}
	w.call(t, "GET", "/api/jobs/queues?queue=default", "").requireProblem(t, http.StatusBadRequest, "query", "queue=default")
}

func TestHTTPShowsTheQueues(t *testing.T) {
	t.Parallel()
	w := newWeb(t, func(c *scheduler.Config) {
		c.Authorize = func(r *http.Request) bool { return r.Header.Get("X-User") == "ada" }
	})
	job := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{})
	as := func(user string) []string { return []string{"Authorization", "", "X-User", user} }
	answer := w.call(t, "GET", "/api/jobs/queues", "", as("ada")...)
	answer.requireJSON(t, http.StatusOK, new(any))
	require.JSONEq(t, `{"queues": [
		{"queue": "blocking", "pending": 0, "scheduled": 0, "failed": 0, "running": 0, "waiting": 0, "oldest_due_at": null, "paused": false, "rate_limited_until": null, "held_by": null},
		{"queue": "default", "pending": 1, "scheduled": 0, "failed": 0, "running": 0, "waiting": 0, "oldest_due_at": "`+job.RunAt.Format(time.RFC3339Nano)+`", "paused": false, "rate_limited_until": null, "held_by": null}
	]}`, answer.body)
	var page scheduler.JobPage
	w.call(t, "GET", "/api/jobs", "", as("ada")...).requireJSON(t, http.StatusOK, &page)
	require.Equal(t, []string{job.ID}, idsOf(page.Jobs))
	for _, path := range []string{"/api/jobs/queues", "/api/jobs"} {
		w.call(t, "GET", path, "", as("eve")...).requireProblem(t, http.StatusUnauthorized, "")
	}
}
