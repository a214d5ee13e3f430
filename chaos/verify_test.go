package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler/internal/history"
)

func TestWhatTheTableSays(t *testing.T) {
	t.Parallel()
	var events []history.Event
	add := func(kind history.Kind, job string, outcome history.Outcome) {
		events = append(events, history.Event{Kind: kind, Job: job, Attempt: 1, Outcome: outcome, Order: 1})
	}
	for _, job := range []string{"done", "failed only", "dead", "left", "gone"} {
		add(history.Create, job, "")
	}
	for job, outcome := range map[string]history.Outcome{
		"done": history.Succeeded, "failed only": history.Failed, "dead": history.Dead, "left": history.Failed, "unknown": history.Succeeded, "undone": "",
	} {
		add(history.Begin, job, "")
		add(history.End, job, outcome)
	}
	h, err := history.New(forgetUnknown(events))
	require.NoError(t, err)
	require.Equal(t, 1, h.Jobs["done"][0].Order)
	require.Zero(t, h.Jobs["unknown"][0].Order)

	statuses := map[string]string{"done": "succeeded", "failed only": "succeeded", "dead": "dead", "left": "failed", "here": "pending"}
	require.Equal(t, []string{
		"job failed only is succeeded, but no handler has",
		`job left has status "failed"`,
		`job gone has status ""`,
	}, beginnings(lostJobs(h, statuses)))
	l := &load{rolledBack: []string{"nowhere", "here", "undone"}}
	require.Equal(t, []string{`job here has status "pending" and 0 attempts`, `job undone has status "" and 1 attempts`}, l.there(h, statuses))
}

// beginnings are faults without the attempts that they show.
func beginnings(faults []string) (texts []string) {
	for _, fault := range faults {
		text, _, _ := strings.Cut(fault, ":")
		texts = append(texts, text)
	}
	return texts
}
