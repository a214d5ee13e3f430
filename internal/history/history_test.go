package history_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler/internal/history"
)

// told makes the events of a story: "1 begins a2" is that process 1 begins a job
// of key a and order 2, "1 begins a2 late" that it had claimed it at the beginning
// of the story. Each line takes a second, and what is stopped has its lease for 3.
func told(t *testing.T, story ...string) *history.History {
	var events []history.Event
	at := time.Date(2026, 1, 31, 9, 30, 0, 0, time.UTC)
	attempts := map[string]int{}
	for i, line := range story {
		words := strings.Fields(line)
		e := history.Event{Process: int(words[0][0] - '0'), At: at.Add(time.Duration(i) * time.Second)}
		switch words[1] {
		case "begins":
			attempts[words[0]+words[2]]++
			e.Kind, e.Job, e.Queue, e.Key, e.StartedAt = history.Begin, words[2], "q", words[2][:1], e.At
			e.Order = int(words[2][1] - '0')
			switch more := words[3:]; {
			case len(more) == 1:
				e.StartedAt = at // late
			case len(more) == 2 && more[0] == "after":
				e.Parents = []string{more[1]}
			case len(more) == 2 && more[0] == "slot":
				e.Recurring, e.Slot = words[2][:1], at.Add(time.Duration(more[1][0]-'0')*time.Minute)
			}
		case "loses":
			e.Kind, e.Job = history.Lost, words[2]
		case "is":
			e.Kind = history.Kill
			if words[2] == "stopped" {
				e.Kind, e.Until = history.Stop, e.At.Add(3*time.Second)
			}
		case "records":
			e.Kind, e.Job, e.Outcome = history.Record, words[2], history.Outcome(words[3])
		case "commit", "cancel", "cancelled", "retry", "delete":
			e.Kind, e.Job = history.Kind(words[1]), words[2]
		case "pause", "resume":
			e.Kind, e.Queue = history.Kind(words[1]), words[2]
		case "ends":
			e.Kind, e.Job, e.Outcome = history.End, words[2], history.Outcome(words[3])
		default:
			t.Fatal("no such story: " + line)
		}
		e.Attempt = attempts[words[0]+e.Job]
		events = append(events, e)
	}
	h, err := history.New(events)
	require.NoError(t, err)
	return h
}

// good has everything that may happen: failures, a kill in the middle of one
// job and right after another one, keys beside each other.
var good = []string{
	"1 begins a1", "2 begins b1", "1 ends a1 failed", "2 begins a1", "1 begins b2", "2 is killed", "1 ends b2 snoozed",
	"3 begins a1", "3 ends a1 succeeded", "3 is killed", "1 begins a1", "1 ends a1 succeeded", "1 begins a2", "1 ends a2 dead",
}

func TestAGoodHistory(t *testing.T) {
	t.Parallel()
	h := told(t, good...)
	require.Empty(t, h.Faults(history.NeverTwiceAtOnce, history.NeverLost([]string{"a1", "a2"}), history.AtMost(3, "q"),
		history.AtMostOfAKey(2, "q"), history.RateAtMost(1, time.Second, "q"), history.RateOfAKeyAtMost(2, 3*time.Second, "q")))
	require.Empty(t, told(t, "1 begins a1", "1 ends a1 failed", "2 begins a1", "2 ends a1 succeeded", "1 begins a2", "1 ends a2 dead", "1 begins a3").
		Faults(history.InOrder("q")))
	require.Len(t, h.Attempts, 7)
	require.Equal(t, history.Outcome(""), h.Jobs["b1"][0].Outcome)
}

func TestBrokenHistories(t *testing.T) {
	t.Parallel()
	for title, test := range map[string]struct {
		check history.Check
		fault string
		story []string
	}{
		"twice at once":        {history.NeverTwiceAtOnce, "2 attempts of one job at once, not 1", []string{"1 begins a1", "2 begins a1"}},
		"never ends":           {history.NeverTwiceAtOnce, "2 attempts of one job", []string{"1 begins a1", "2 begins b1", "2 is killed", "3 begins a1"}},
		"lost":                 {history.NeverLost([]string{"a1", "b1"}), "job b1 never began", []string{"1 begins a1", "1 ends a1 dead"}},
		"left":                 {history.NeverLost([]string{"a1"}), "did not come to an end", []string{"1 begins a1", "1 ends a1 failed"}},
		"killed":               {history.NeverLost([]string{"a1"}), "did not come to an end", []string{"1 begins a1", "1 is killed"}},
		"again":                {history.NeverLost([]string{"a1"}), "began again after its end", []string{"1 begins a1", "1 ends a1 succeeded", "1 begins a1", "1 ends a1 succeeded"}},
		"again after a kill":   {history.NeverLost([]string{"a1"}), "began again", append(append([]string{"1 begins a1", "1 ends a1 dead"}, "2 begins b1", "2 begins b2", "2 begins b3", "2 begins b4", "1 is killed"), "3 begins a1", "3 ends a1 dead")},
		"too many":             {history.AtMost(2, "q"), `3 jobs of queue "q" at once, not 2`, []string{"1 begins a1", "1 begins b1", "2 begins c1"}},
		"too many of a key":    {history.AtMostOfAKey(1, "q"), `2 jobs of queue "q" and key "a" at once`, []string{"1 begins a1", "1 begins b1", "2 begins a2"}},
		"overtaken":            {history.InOrder("q"), "out of order", []string{"1 begins a1", "1 begins b1", "1 ends a1 failed", "2 begins a2"}},
		"overlapping":          {history.InOrder("q"), "out of order", []string{"1 begins a1", "2 begins a2"}},
		"left out":             {history.InOrder("q"), "out of order", []string{"1 begins a2"}},
		"back":                 {history.InOrder("q"), "out of order", []string{"1 begins a1", "1 ends a1 succeeded", "1 begins a2", "1 ends a2 failed", "1 begins a1"}},
		"too fast":             {history.RateAtMost(2, 5*time.Second, "q"), `3 starts of queue "q" within 2s, not 2 in 5s`, []string{"1 begins a1", "1 begins b1", "1 begins c1"}},
		"too fast of a key":    {history.RateOfAKeyAtMost(1, 3*time.Second, "q"), `2 starts of queue "q" and key "a" within 2s`, []string{"1 begins a1", "1 begins b1", "1 begins a2"}},
		"in the middle of all": {history.AtMost(2, "q"), "3 jobs", good},
	} {
		faults := told(t, test.story...).Faults(test.check)
		require.NotEmpty(t, faults, title)
		require.Contains(t, faults[0], test.fault, title)
	}
	require.Empty(t, told(t, "1 begins a1", "1 begins b1").Faults(history.AtMost(1, "other")))
}

// zombies has what may happen to a process that was stopped for longer than its
// lease, and to contexts that end.
var zombies = []string{
	"1 begins a1", "1 begins b1", "1 ends b1 succeeded", "1 is stopped", "2 records b1 succeeded", "2 begins c1 after b1", "3 begins a1",
	"3 loses a1", "2 begins a1", "3 ends a1 succeeded", "1 ends a1 succeeded", "2 ends a1 succeeded", "2 records a1 succeeded", "2 begins a2",
}

func TestAGoodHistoryOfZombies(t *testing.T) {
	t.Parallel()
	h := told(t, zombies...)
	require.Empty(t, h.Faults(history.NeverTwiceAtOnce, history.NeverLate, history.FinishedOnce, history.Ascending("q"), history.AfterParents,
		history.AtMostOfAKey(1, "q"), history.AtMost(3, "q")))
	require.True(t, h.Success("a1"))
	require.False(t, h.Success("a2"))
	require.Empty(t, told(t, "1 is stopped", "1 begins a1 late").Faults(history.NeverLate), "somebody else let it go on")
	require.Empty(t, told(t, "1 begins a1 slot 1", "1 ends a1 failed", "2 begins a1 slot 1", "1 begins a2 slot 2").
		Faults(history.EachSlotOnce([]string{"a"}, slot(1), slot(2), time.Minute)))
	require.Empty(t, told(t, "1 begins a1", "1 ends a1 dead", "1 begins a4").Faults(history.Ascending("q")), "orders are left out")
}

// slot is the moment of a slot of a story.
func slot(n int) time.Time { return time.Date(2026, 1, 31, 9, 30+n, 0, 0, time.UTC) }

func TestBrokenHistoriesOfZombies(t *testing.T) {
	t.Parallel()
	slots := history.EachSlotOnce([]string{"a"}, slot(1), slot(2), time.Minute)
	for title, test := range map[string]struct {
		check history.Check
		fault string
		story []string
	}{
		"taken too early":          {history.NeverTwiceAtOnce, "2 attempts of one job at once", []string{"1 begins a1", "1 is stopped", "2 begins b1", "2 begins a1"}},
		"twice in spite of a stop": {history.NeverTwiceAtOnce, "2 attempts of one job at once", append(zombies[:7:7], "2 begins a1")},
		"context still there":      {history.NeverTwiceAtOnce, "2 attempts of one job", append(zombies[:7:7], "2 loses a1", "2 begins a1")},
		"late":                     {history.NeverLate, "began after its lease had run out", []string{"1 is stopped", "2 begins a1", "2 ends a1 dead", "2 begins c1", "1 begins b1 late"}},
		"late and told late":       {history.NeverLate, "began after its lease", []string{"1 is stopped", "2 begins a1", "2 ends a1 dead", "2 begins c1", "1 begins b1 late", "1 loses b1"}},
		"finished twice":           {history.FinishedOnce, "finished twice", append(zombies, "1 records a1 succeeded")},
		"begun after the end":      {history.FinishedOnce, "began after its success was recorded", append(zombies, "1 begins a1")},
		"overtaken":                {history.Ascending("q"), "out of order", []string{"1 begins a1", "1 begins b1", "1 ends a1 failed", "2 begins a3"}},
		"back":                     {history.Ascending("q"), "out of order", []string{"1 begins a2", "1 ends a2 succeeded", "2 begins a1"}},
		"taken over and overtaken": {history.Ascending("q"), "out of order", append(zombies[:9:9], "3 begins a2")},
		"before its parent":        {history.AfterParents, "began before job b1 had succeeded", []string{"1 begins b1", "2 begins a1 after b1", "1 ends b1 succeeded"}},
		"after a dead parent":      {history.AfterParents, "began before job b1", []string{"1 begins b1", "1 ends b1 dead", "2 begins a1 after b1"}},
		"slot missed":              {slots, "0 jobs began", []string{"1 begins a1 slot 1"}},
		"slot doubled":             {slots, "2 jobs began", []string{"1 begins a1 slot 1", "1 begins a2 slot 2", "1 begins a3 slot 2"}},
	} {
		faults := told(t, test.story...).Faults(test.check)
		require.NotEmpty(t, faults, title)
		require.Contains(t, faults[0], test.fault, title)
	}
	stopped := history.Event{Kind: history.Stop, Process: 1, Until: time.Unix(20, 0)}
	begins := history.Event{Kind: history.Begin, Process: 1, Job: "a", StartedAt: time.Unix(10, 0), At: time.Unix(30, 0)}
	loses := history.Event{Kind: history.Lost, Process: 1, Job: "a", At: time.Unix(30, 0)}
	require.Empty(t, must(t, stopped, begins, loses).Faults(history.NeverLate), "its context ends at once")
	require.NotEmpty(t, must(t, stopped, begins).Faults(history.NeverLate))
	require.False(t, told(t, "1 begins a1", "1 is stopped", "2 begins b1", "2 begins b2", "2 begins a1", "1 ends a1 succeeded").Success("a1"))
	require.True(t, told(t, "1 begins a1", "1 is stopped", "1 ends a1 succeeded").Success("a1"), "nobody else had it")
	created := must(t, history.Event{Kind: history.Create, Job: "a"}, history.Event{Kind: history.Create, Job: "b", Parents: []string{"a"}})
	require.Equal(t, []string{"a", "b"}, created.Created())
	require.Equal(t, map[string]bool{"b": true}, created.Children())
}

func must(t *testing.T, events ...history.Event) *history.History {
	h, err := history.New(events)
	require.NoError(t, err)
	return h
}

func TestEventsThatCannotBe(t *testing.T) {
	t.Parallel()
	for expected, events := range map[string][]history.Event{
		"line 2: job a":                              {{Kind: history.Begin, Job: "a"}, {Kind: history.Begin, Job: "a"}},
		"line 1: an attempt of job a ends that":      {{Kind: history.End, Job: "a"}},
		`line 1: kind "": expected one of the kinds`: {{}},
	} {
		_, err := history.New(events)
		require.ErrorContains(t, err, expected)
	}
}

func TestALogKeepsTheOrderOfItsEvents(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	var logs []*history.Log
	for range 3 {
		log, err := history.Open(path)
		require.NoError(t, err)
		defer func() { require.NoError(t, log.Close()) }()
		logs = append(logs, log)
	}
	at := time.Now().UTC()
	for i := range 100 {
		require.NoError(t, logs[i%3].Write(history.Event{Kind: history.Begin, Process: i, Job: "a", StartedAt: at}))
	}
	events, err := history.Read(path)
	require.NoError(t, err)
	require.Len(t, events, 100)
	for i, event := range events {
		require.WithinDuration(t, at, event.At, time.Minute)
		event.At = time.Time{}
		require.Equal(t, history.Event{Kind: history.Begin, Process: i, Job: "a", StartedAt: at}, event)
	}
}
