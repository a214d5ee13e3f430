package history_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler/internal/history"
)

// controlled has what may happen to jobs that are called off and retried: one
// that runs ends by that, its successor goes on, and what is dead begins again.
var controlled = []string{
	"1 begins a1", "9 cancel a1", "9 cancelled a1", "1 ends a1 interrupted", "1 begins a2", "1 records a1 cancelled", "1 ends a2 dead",
	"9 retry a2", "2 begins a2", "1 records a2 dead", "2 ends a2 succeeded", "2 commit a2", "2 records a2 succeeded", "9 cancel a3", "9 retry a3",
	"9 cancelled a3", "2 begins a3", "9 pause q", "2 ends a3 snoozed", "9 resume q", "2 begins a3",
}

func TestAGoodHistoryOfControl(t *testing.T) {
	t.Parallel()
	h := told(t, controlled...)
	require.Empty(t, h.Faults(history.NeverTwiceAtOnce, history.FinishedOnce, history.Ascending("q"), history.NeverAfterCancel, history.NeverInPause))
	require.True(t, h.Asked(history.Cancel, "a1"))
	require.False(t, h.Asked(history.Retry, "a1"))
	require.Empty(t, told(t, "9 pause q", "1 begins a1 late", "9 resume q").Faults(history.NeverInPause), "it was claimed before")
	require.Empty(t, told(t, "9 cancel a1", "9 cancelled a1", "1 begins a1 late").Faults(history.NeverAfterCancel), "likewise")
	require.Empty(t, told(t, "9 pause other", "1 begins a1", "9 resume other", "1 begins a2").Faults(history.NeverInPause))
}

func TestBrokenHistoriesOfControl(t *testing.T) {
	t.Parallel()
	for title, test := range map[string]struct {
		check history.Check
		fault string
		story []string
	}{
		"completed and again":         {history.FinishedOnce, "began after its success was recorded in line 3", []string{"1 begins a1", "1 ends a1 succeeded", "1 commit a1", "2 begins a1"}},
		"completed and retried":       {history.FinishedOnce, "began after its success", []string{"1 begins a1", "1 ends a1 succeeded", "1 commit a1", "9 retry a1", "2 begins a1"}},
		"succeeded and retried":       {history.FinishedOnce, "began after its success", []string{"1 begins a1", "1 ends a1 succeeded", "1 records a1 succeeded", "9 retry a1", "2 begins a1"}},
		"dead and again":              {history.FinishedOnce, "began after its end was recorded in line 3", []string{"1 begins a1", "1 ends a1 dead", "1 records a1 dead", "2 begins a1"}},
		"cancelled and again":         {history.FinishedOnce, "began after its end", []string{"9 records a1 cancelled", "2 begins a1"}},
		"retried once, again twice":   {history.FinishedOnce, "began after its end", append(controlled[:10:10], "2 ends a2 dead", "2 records a2 dead", "2 begins a2")},
		"retried once, ended thrice":  {history.FinishedOnce, "finished twice: lines 12 and 13", append(controlled[:10:10], "2 ends a2 dead", "2 records a2 dead", "1 records a2 dead")},
		"called off, not retried":     {history.NeverAfterCancel, "after it was called off", []string{"9 cancel a1", "9 cancelled a1", "1 begins a1"}},
		"called off while it failed":  {history.NeverAfterCancel, "after it was called off", append(controlled[:6:6], "1 begins a1")},
		"overtaken, called off later": {history.Ascending("q"), "out of order", []string{"1 begins a1", "1 ends a1 failed", "2 begins a2", "9 cancel a1"}},
		"called off and still there":  {history.Ascending("q"), "out of order", []string{"1 begins a1", "9 cancel a1", "9 cancelled a1", "2 begins a2"}},
		"another one was retried":     {history.Ascending("q"), "out of order", []string{"9 retry a3", "1 begins a2", "1 ends a2 dead", "1 begins a1"}},
		"in a pause":                  {history.NeverInPause, `while queue "q" was paused`, []string{"9 pause q", "1 begins a1", "9 resume q"}},
		"in a pause of all":           {history.NeverInPause, `while queue "*" was paused`, []string{"9 pause *", "1 begins a1", "9 resume *"}},
	} {
		faults := told(t, test.story...).Faults(test.check)
		require.NotEmpty(t, faults, title)
		require.Contains(t, faults[0], test.fault, title)
	}
}
