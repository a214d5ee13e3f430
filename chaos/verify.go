package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/relay-club/scheduler/internal/history"
)

// harms are what must not have happened, each with what finds it.
var harms = []struct {
	name   string
	checks []history.Check
}{
	{"run twice at once", []history.Check{history.NeverTwiceAtOnce, history.NeverLate}},
	{"out of order", []history.Check{
		history.Ascending("blocking"), history.Ascending("ledger"), history.Ascending("lanes"), history.Ascending("singles"),
	}},
	{"finished twice", []history.Check{history.FinishedOnce}},
	{"limits exceeded", []history.Check{
		history.AtMost(1, "blocking"), history.AtMost(1, "ledger"), history.AtMost(7, "wide"), history.AtMostOfAKey(1, "lanes"),
		history.AtMost(9, "keyed"), history.AtMostOfAKey(2, "keyed"), history.AtMostOfAKey(1, "singles"),
		history.RateAtMost(30, time.Second, "rated"),
	}},
	{"dependants early", []history.Check{history.AfterParents}},
	{"started though called off or paused", []history.Check{history.NeverAfterCancel, history.NeverInPause}},
}

// found is how often each harm was found, and one of each to look at.
type found struct {
	harm  string
	n     int
	first string
}

// verify reads the history and holds it, and the table, against what was
// acknowledged. Slots are those from first to last.
func (c *chaos) verify(ctx context.Context, stuck int, first, last time.Time) (all []found, attempts int, err error) {
	events, err := history.Read(c.fleet.logPath)
	if err != nil {
		return nil, 0, err
	}
	h, err := history.New(forgetUnknown(events))
	if err != nil {
		return nil, 0, err
	}
	c.lookAtCounts(ctx)
	rows, err := c.rows(ctx)
	if err != nil {
		return nil, 0, err
	}
	all = append(all, count("lost", lostJobs(h, rows)), count("there though rolled back", c.load.there(h, rows)),
		count("completed without its effect, or twice", effects(h, rows)))
	for _, harm := range harms {
		var faults []string
		for _, check := range harm.checks {
			faults = append(faults, check(h)...)
		}
		all = append(all, count(harm.name, faults))
	}
	all = append(all, count("slots missed or doubled", history.EachSlotOnce(recurringNames, first, last, time.Minute)(h)),
		count("running jobs miscounted", c.miscounted), found{harm: "stuck", n: stuck}, count("services that ended by themselves", c.fleet.surprises))
	return all, len(h.Attempts), nil
}

func count(harm string, faults []string) found {
	f := found{harm: harm, n: len(faults)}
	if f.n > 0 {
		f.first = faults[0]
	}
	return f
}

// forgetUnknown takes the orders of jobs away whose creation was not
// acknowledged: such a creation may happen at any time after it was given up.
func forgetUnknown(events []history.Event) []history.Event {
	known := map[string]bool{}
	for _, event := range events {
		if event.Kind == history.Create {
			known[event.Job] = true
		}
	}
	for i := range events {
		if !known[events[i].Job] {
			events[i].Order = 0
		}
	}
	return events
}

// row is what the database has of a job, or had when it was deleted.
type row struct {
	status  string
	kind    kind
	effects int // of handlers that complete it themselves
}

const rowsSQL = `
SELECT coalesce(j.id, e.job)::text, coalesce(j.status, ''), coalesce(j.kind, ''), coalesce(e.n, 0)
FROM (SELECT id, status::text, payload ->> 'kind' AS kind FROM scheduler.jobs UNION ALL SELECT id, status, kind FROM deleted) AS j
FULL JOIN (SELECT job, count(*) AS n FROM effects GROUP BY job) AS e ON e.job = j.id`

// rows are those of all jobs.
func (c *chaos) rows(ctx context.Context) (map[string]row, error) {
	rows, err := c.db.admin.Query(ctx, rowsSQL)
	if err != nil {
		return nil, err
	}
	all := map[string]row{}
	var id string
	var r row
	_, err = pgx.ForEachRow(rows, []any{&id, &r.status, &r.kind, &r.effects}, func() error {
		all[id] = r
		return nil
	})
	return all, err
}

// lostJobs finds jobs that were acknowledged and are not there or not finished,
// those that have succeeded without a handler that did, and those that are
// cancelled though nobody asked for that.
func lostJobs(h *history.History, rows map[string]row) (faults []string) {
	children := h.Children()
	for _, job := range h.Created() {
		switch status := rows[job].status; {
		case status == "succeeded":
			if !h.Success(job) {
				faults = append(faults, fmt.Sprintf("job %s is succeeded, but no handler has: %v", job, h.Jobs[job]))
			}
		case status == "dead", h.Asked(history.Delete, job):
		case status == "cancelled" && (h.Asked(history.Cancel, job) || children[job]):
		default:
			faults = append(faults, fmt.Sprintf("job %s has status %q", job, status))
		}
	}
	return faults
}

// effects finds jobs that their handlers have completed, or not, whose effects are
// not one, or none.
func effects(h *history.History, rows map[string]row) (faults []string) {
	for job, r := range rows {
		expected := 0
		if r.kind == completes && r.status == "succeeded" {
			expected = 1
		}
		if r.effects != expected {
			faults = append(faults, fmt.Sprintf("job %s has status %q and %d effects: %v", job, r.status, r.effects, h.Jobs[job]))
		}
	}
	return faults
}

// there finds jobs whose creation was rolled back and that exist all the same.
func (l *load) there(h *history.History, rows map[string]row) (faults []string) {
	for _, job := range l.rolledBack {
		if rows[job].status != "" || h.Jobs[job] != nil {
			faults = append(faults, fmt.Sprintf("job %s has status %q and %d attempts", job, rows[job].status, len(h.Jobs[job])))
		}
	}
	return faults
}

// print writes the tables.
func (c *chaos) print(w io.Writer, all []found, attempts int) {
	fmt.Fprintln(w, "| fault | injected |\n| --- | ---: |")
	total, kinds := 0, 0
	for _, side := range c.sides() {
		for _, f := range side.faults {
			fmt.Fprintf(w, "| %s | %d |\n", f.name, c.injected[f.name])
			total += c.injected[f.name]
			if c.injected[f.name] > 0 {
				kinds++
			}
		}
	}
	fmt.Fprintf(w, "| **%d kinds** | **%d** |\n\n", kinds, total)
	fmt.Fprintln(w, "| in all | |\n| --- | ---: |")
	fmt.Fprintf(w, "| jobs created | %d |\n| creations whose outcome was not known | %d |\n| attempts | %d |\n",
		c.load.acknowledged.Load(), c.load.unknown.Load(), attempts)
	for _, f := range all {
		fmt.Fprintf(w, "| %s | %d |\n", f.harm, f.n)
		if f.n > 0 {
			fmt.Fprintf(os.Stderr, "%s, such as: %s\n", f.harm, f.first)
		}
	}
}
