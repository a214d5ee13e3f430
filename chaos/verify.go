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
	statuses, err := c.statuses(ctx)
	if err != nil {
		return nil, 0, err
	}
	all = append(all, count("lost", lostJobs(h, statuses)), count("there though rolled back", c.load.there(h, statuses)))
	for _, harm := range harms {
		var faults []string
		for _, check := range harm.checks {
			faults = append(faults, check(h)...)
		}
		all = append(all, count(harm.name, faults))
	}
	all = append(all, count("slots missed or doubled", history.EachSlotOnce(recurringNames, first, last, time.Minute)(h)),
		found{harm: "stuck", n: stuck}, count("services that ended by themselves", c.fleet.surprises))
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

// statuses are those in the table, by job.
func (c *chaos) statuses(ctx context.Context) (map[string]string, error) {
	rows, err := c.db.admin.Query(ctx, "SELECT id::text, status FROM scheduler.jobs")
	if err != nil {
		return nil, err
	}
	statuses := map[string]string{}
	var id, status string
	_, err = pgx.ForEachRow(rows, []any{&id, &status}, func() error {
		statuses[id] = status
		return nil
	})
	return statuses, err
}

// lostJobs finds jobs that were acknowledged and are not there or not finished,
// and those that have succeeded without a handler that did.
func lostJobs(h *history.History, statuses map[string]string) (faults []string) {
	for _, job := range h.Created() {
		switch status := statuses[job]; status {
		case "succeeded":
			if !h.Success(job) {
				faults = append(faults, fmt.Sprintf("job %s is succeeded, but no handler has: %v", job, h.Jobs[job]))
			}
		case "dead", "cancelled":
		default:
			faults = append(faults, fmt.Sprintf("job %s has status %q", job, status))
		}
	}
	return faults
}

// there finds jobs whose creation was rolled back and that exist all the same.
func (l *load) there(h *history.History, statuses map[string]string) (faults []string) {
	for _, job := range l.rolledBack {
		if statuses[job] != "" || h.Jobs[job] != nil {
			faults = append(faults, fmt.Sprintf("job %s has status %q and %d attempts", job, statuses[job], len(h.Jobs[job])))
		}
	}
	return faults
}

// print writes the tables.
func (c *chaos) print(w io.Writer, all []found, attempts int) (harm int) {
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
		harm += f.n
		if f.n > 0 {
			fmt.Fprintf(os.Stderr, "%s, such as: %s\n", f.harm, f.first)
		}
	}
	return harm
}
