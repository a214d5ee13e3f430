package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// workers fire the demo's jobs from inside the database.
type workers struct {
	service *service
	cron    string        // what fires, and what calls, for people
	http    string        //
	period  time.Duration // between two ticks
}

// endpoints are those of the demo's workers, by name. The names are such that
// they replace no worker of the database's owner.
var endpoints = map[string]string{
	demoSchema + "-default":  "/api/jobs/run?limit=10",
	demoSchema + "-failed":   "/api/jobs/run?status=failed&limit=10",
	demoSchema + "-blocking": "/api/jobs/run?queue=blocking&limit=10",
}

var workerNames = slices.Sorted(maps.Keys(endpoints))

// createWorkers creates them where that is possible; otherwise it returns what
// is missing.
func createWorkers(ctx context.Context, s *service) (_ *workers, missing string, err error) {
	var version string
	var inSeconds bool // since 1.5, schedules can be
	err = s.database.pool.QueryRow(ctx, `
		SELECT extversion, string_to_array(split_part(extversion, '-', 1), '.')::int[] >= '{1,5}'
		FROM pg_extension WHERE extname = 'pg_cron'`).Scan(&version, &inSeconds)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, "this database does not have the extension pg_cron, which would fire them", nil
	}
	if err != nil {
		return nil, "", err
	}
	w := &workers{service: s, cron: "pg_cron " + version, period: time.Minute}
	schedule := "* * * * *"
	if inSeconds {
		schedule, w.period = "5 seconds", 5*time.Second
	}
	if w.http, missing, err = chooseHTTP(ctx, s); err != nil || missing != "" {
		return nil, missing, err
	}
	for _, name := range workerNames {
		_, err := s.database.pool.Exec(ctx, s.database.sql("SELECT {{schema}}.create_queue_worker($1::text, $2::text, $3::text, $4::text)"),
			name, s.url+endpoints[name], s.token, schedule)
		if err != nil {
			return nil, fmt.Sprintf("they can't be created (%v)", err), w.remove()
		}
		tell(name, "POST %s  %s", endpoints[name], schedule)
	}
	return w, "", nil
}

// chooseHTTP finds the extension by which the database can call the service,
// and tries it: the database's server may be on another machine.
func chooseHTTP(ctx context.Context, s *service) (about, missing string, err error) {
	var name, schema, version string
	err = s.database.pool.QueryRow(ctx, `
		SELECT e.extname, n.nspname, e.extversion FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
		WHERE e.extname IN ('http', 'pg_net') ORDER BY e.extname LIMIT 1`).Scan(&name, &schema, &version)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", "this database has pg_cron, but neither the extension http nor pg_net, which would call the service", nil
	}
	if err != nil {
		return "", "", err
	}
	about = "pgsql-http " + version
	call := callWithHTTP
	switch {
	case name == "pg_net":
		about, call = "pg_net "+version, callWithNet
	case s.database.double:
		about = "a stand-in for pgsql-http in PL/Python (Debian has no package of the real one)"
	}
	if err := call(ctx, s.database, pgx.Identifier{schema}.Sanitize(), s.url+"/healthz"); err != nil {
		return "", fmt.Sprintf("this database has pg_cron and an HTTP extension, but can't reach %s from where it is (%v)", s.url, err), ctx.Err()
	}
	return about, "", nil
}

func callWithHTTP(ctx context.Context, d *database, schema, url string) error {
	_, err := d.pool.Exec(ctx, fmt.Sprintf("SELECT %[1]s.http(ROW('GET', $1::text, NULL, NULL, NULL)::%[1]s.http_request)", schema), url)
	return err
}

// callWithNet waits for the answer, which comes some time after the commit.
func callWithNet(ctx context.Context, d *database, _, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var request int64
	if err := d.pool.QueryRow(ctx, "SELECT net.http_get($1::text)", url).Scan(&request); err != nil {
		return err
	}
	for {
		var failure string
		err := d.pool.QueryRow(ctx, "SELECT coalesce(error_msg, '') FROM net._http_response WHERE id = $1::bigint", request).Scan(&failure)
		if err == nil && failure != "" {
			err = errors.New(failure)
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// wait waits until the workers have fired all jobs.
func (w *workers) wait(ctx context.Context) error {
	defer countDown("", 0)
	poll := time.NewTicker(200 * time.Millisecond)
	defer poll.Stop()
	for shown := time.Duration(0); ; {
		n, err := unfinished(ctx, w.service.jobs, w.service.created)
		if err != nil || n == 0 {
			return err
		}
		now := time.Now().Add(w.service.skew)
		left := now.Truncate(w.period).Add(w.period).Sub(now).Round(time.Second)
		// Just after a tick the jobs are on their way.
		if left != shown && w.period == time.Minute && left < w.period-3*time.Second {
			countDown("next tick of pg_cron in", left)
			shown = left
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

const runsSQL = `
SELECT j.jobname::text, d.start_time, d.end_time, d.status, coalesce(d.return_message, '')
FROM cron.job_run_details d JOIN cron.job j USING (jobid)
WHERE j.jobname = ANY ($1::text[]) ORDER BY d.runid`

// printRuns prints what pg_cron knows, and returns what is not as it should be.
func (w *workers) printRuns(ctx context.Context) (wrong []error, err error) {
	var rows [][]string
	// A run is recorded a moment after its call of the service has ended.
	for open, end := true, time.Now().Add(10*time.Second); open && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		found, err := w.service.database.pool.Query(ctx, runsSQL, workerNames)
		if err != nil {
			return nil, err
		}
		rows, wrong, open = [][]string{{"WORKER", "BEGAN", "TOOK", "STATUS", "MESSAGE"}}, nil, false
		var name, status, message string
		var began, ended *time.Time
		_, err = pgx.ForEachRow(found, []any{&name, &began, &ended, &status, &message}, func() error {
			if began == nil || ended == nil {
				open = true
				return nil
			}
			if status != "succeeded" {
				wrong = append(wrong, fmt.Errorf("  a run of %s %s: %s", name, status, message))
			}
			rows = append(rows, []string{name, sinceStart(began.Add(-w.service.skew)), fmt.Sprintf("%d ms", ended.Sub(*began).Milliseconds()), status, message})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	table(rows)
	return wrong, nil
}

// remove removes them and their traces, also after an interrupt.
func (w *workers) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanUpTime)
	defer cancel()
	d := w.service.database
	_, err := d.pool.Exec(ctx, d.sql("SELECT count({{schema}}.remove_queue_worker(name)) FROM unnest($1::text[]) AS t (name)"), workerNames)
	if err != nil {
		return err
	}
	_, err = d.pool.Exec(ctx, "DELETE FROM cron.job_run_details WHERE starts_with(command, $1::text)", "SELECT "+d.schema+".run_worker(")
	return err
}
