package scheduler_test

import (
	"encoding/json"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// skipWhatIsNoText skips what no client can send to Postgres as text.
func skipWhatIsNoText(t *testing.T, texts ...string) {
	for _, text := range texts {
		if !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
			t.Skip("no text to Postgres")
		}
	}
}

// requireRefusedInput checks that an error says that the input was bad (class 22
// of SQLSTATE), and not that something has broken on it.
func requireRefusedInput(t *testing.T, err error) {
	var pg *pgconn.PgError
	require.ErrorAs(t, err, &pg)
	require.Equal(t, "22", pg.Code[:2], "%s: %s", pg.Code, pg.Message)
	require.Less(t, len(pg.Message), 2000)
}

// FuzzEndpoint holds what SQL makes of a worker's URL against Go: one that is
// accepted is a plain URL without credentials, and is for the same queue and
// status as its runs are.
func FuzzEndpoint(f *testing.F) {
	pool, schema := newPool(f), ""
	newScheduler(f, func(c *scheduler.Config) { schema = c.Schema })
	for _, endpoint := range []string{
		"https://app.example.com/api/jobs/run", "http://127.0.0.1:8080/run?queue=other&status=any&limit=20", "HTTPS://[::1]:1/?queue=failed", "http://a",
		"https://user:password@a/", "https://user@a/", "https://@a/", "https://a/@b", "http://a?x=@b/", "http://a:0/", "http://a:65536/", "http://a:x/", "ftp://a/", "//a/",
		"javascript:alert(1)", "file:///etc/passwd", "http://a/#b", "http://a/ b", "http://a\\@b/", "http://a/?queue=a&queue=b", "http://a/?queue=%61", "http://a/?%71ueue=a",
		"http://a/?queue=a;status=failed", "http://a/?queue", "http://a/?queue=", "http://a/?&&=", "http://a/?limit=0", "http://a/?limit=+5", "http://a/?status=pending&queue=failed",
		"http://a/\r\nX: y", "http://é/", "http://a..b/", "http://-a/", "http://[::1/", "http://a/?x=1?y=2", "http://a/%", "http://a/?wait=5s%", "http://" + strings.Repeat("a", 2000) + "/",
	} {
		f.Add(endpoint)
	}
	f.Fuzz(func(t *testing.T, endpoint string) {
		skipWhatIsNoText(t, endpoint)
		var queue, status string
		if err := pool.QueryRow(t.Context(), "SELECT queue, status FROM "+schema+".endpoint_filter($1)", endpoint).Scan(&queue, &status); err != nil {
			requireRefusedInput(t, err)
			if strings.Contains(endpoint, "@") && !strings.Contains(endpoint, "?") {
				require.NotContains(t, err.Error(), endpoint, "it may have a password in it")
			}
			return
		}
		u, err := url.Parse(endpoint)
		if err != nil {
			return // with a bad escape in its path: the service will say so
		}
		require.Nil(t, u.User)
		require.Contains(t, []string{"http", "https"}, u.Scheme)
		require.NotEmpty(t, u.Hostname())
		require.Empty(t, u.Fragment)
		require.LessOrEqual(t, len(endpoint), 2000)
		if values, err := url.ParseQuery(u.RawQuery); err == nil {
			requireSameFilter(t, values, queue, status)
		}
	})
}

// requireSameFilter checks that a run with these parameters is of this queue and
// status.
func requireSameFilter(t *testing.T, values url.Values, queue, status string) {
	for _, name := range []string{"queue", "status", "limit"} {
		require.LessOrEqual(t, len(values[name]), 1)
	}
	wanted := values.Get("queue")
	switch wanted {
	case "":
		wanted = "default"
	case "failed":
		wanted = "default"
		require.Equal(t, "failed", status)
	}
	require.Equal(t, wanted, queue)
	if values.Get("status") != "" {
		require.Equal(t, values.Get("status"), status)
	}
	if limit := values.Get("limit"); limit != "" {
		n, err := strconv.Atoi(limit)
		require.NoError(t, err)
		require.Positive(t, n)
	}
}

// FuzzRecurring: whatever create_recurring_job is given in SQL, it takes or it
// says what is wrong, and what Go knows as a time zone it does not take for
// another.
func FuzzRecurring(f *testing.F) {
	pool, schema := newPool(f), ""
	newScheduler(f, func(c *scheduler.Config) { schema = c.Schema })
	for _, seed := range [][6]string{
		{"nightly", "30 3 * * mon-fri", "report", "default", "Europe/Berlin", "once"}, {"a", "@hourly", "a", "", "UTC", "all"}, {"", "", "", "", "", ""},
		{"a b", "* * * * *", "a", "failed", "UTC", "skip"}, {"a", "* * * * *", "a b", "default", "Local", "once"}, {"a", "* * * * *", "a", "nowhere", "EST5EDT", "ONCE"},
		{"a", "* * * * *", "a", "default", "Factory", "once"}, {"a", "* * * * *", "a", "default", "utc", "once"}, {"a", "* * * * *", "a", "default", "<+03>-3", "once"},
		{"a", "* * * * *", "a", "default", "../../etc/passwd", "once"}, {"a", "* * * * *", "a", "default", "Etc/GMT+12", "never"}, {"a", "* * * * *", "a", "default", "posix/UTC", "once"},
		{strings.Repeat("n", 129), "* * * * *", "a", "default", "GMT0", "once"}, {"a'; DROP TABLE jobs; --", "* * * * *", "a", "default", "UTC", "once"}, {"a", "@every 1s", "a", "default", "UTC\n", "once"},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3], seed[4], seed[5])
	}
	f.Fuzz(func(t *testing.T, name, schedule, job, queue, zone, missed string) {
		skipWhatIsNoText(t, name, schedule, job, queue, zone, missed)
		_, err := pool.Exec(t.Context(), "SELECT "+schema+".create_recurring_job($1, $2, $3, 'null', $4, $5, $6)", name, schedule, job, queue, zone, missed)
		if err != nil {
			requireRefusedInput(t, err)
			return
		}
		_, err = scheduler.New(pool, scheduler.Config{Recurring: []scheduler.RecurringJob{{
			Name: name, Schedule: schedule, Job: job, Queue: scheduler.JobQueue(queue), TimeZone: zone, Missed: scheduler.MissedPolicy(missed)}}})
		require.NoError(t, err)
		require.True(t, mustQuery[bool](t, pool, "SELECT "+schema+".remove_recurring_job($1)", name))
	})
}

// FuzzCreationInSQL: whatever create_job is given in SQL, it takes or it says what
// is wrong, and a job that it makes can be read by Go, as it was given.
func FuzzCreationInSQL(f *testing.F) {
	z := newFuzzed(f)
	for _, seed := range [][8]string{
		{"a", `{"n": 1}`, "default", "ada", "x", `{"a": 1}`, "u", "k"}, {"", "null", "", "", "", "", "", ""}, {"a\n", "null", "failed", "", "", "null", "", ""},
		{"a", `"\u0000"`, "default", "", "", "{}", "", ""}, {"a", "1e1000", "nowhere", "", "", "[]", "", ""}, {"a", "", "blocking", "é", "\u202e", `{"a": "\ud800"}`, "\u00a0", "\x7f"},
		{"a", "[]", "default", strings.Repeat("o", 257), "x", "{}", "", ""}, {"a", "[]", "default", "", strings.Repeat("t", 257), "{}", strings.Repeat("u", 257), strings.Repeat("k", 257)},
		{"a'--", `{"a": null}`, `a"b`, "$1", "{a,b}", `{"a": {"b": null}}`, "%s", "\\"},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3], seed[4], seed[5], seed[6], seed[7])
	}
	f.Fuzz(func(t *testing.T, name, payload, queue, owner, tag, metadata, unique, key string) {
		skipWhatIsNoText(t, name, payload, queue, owner, tag, metadata, unique, key)
		if len(payload) > 10_000 || len(metadata) > 10_000 {
			t.Skip("what is long is another matter")
		}
		var id string
		err := z.pool.QueryRow(t.Context(), "SELECT "+z.schema+`.create_job($1, payload => $2::text::jsonb, queue => $3, owner => $4, tags => ARRAY[$5],
			metadata => $6::text::jsonb, unique_key => $7, key => $8)::text`, name, payload, queue, owner, tag, metadata, unique, key).Scan(&id)
		if err != nil {
			var pg *pgconn.PgError
			if errors.As(err, &pg) && pg.Code == "54000" {
				return // more levels or digits than Postgres has
			}
			requireRefusedInput(t, err)
			return
		}
		job := mustGet(t, z.Scheduler, id)
		require.Equal(t, name, job.Name)
		require.Equal(t, unique, job.UniqueKey)
		require.True(t, json.Valid(job.Payload))
		if unique == "" { // else it may be the job that was there
			require.Equal(t, key, job.Key)
			require.Equal(t, owner, job.Owner)
			require.Equal(t, []string{tag}, job.Tags)
		}
		answer := z.call(t, "GET", "/"+id, "", nil)
		require.Equal(t, 200, answer.Code)
	})
}
