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
	for _, job := range []string{"done", "failed only", "dead", "left", "gone", "deleted", "called off", "stopped"} {
		add(history.Create, job, "")
	}
	events = append(events, history.Event{Kind: history.Create, Job: "child", Parents: []string{"stopped"}},
		history.Event{Kind: history.Delete, Job: "deleted"}, history.Event{Kind: history.Cancel, Job: "called off"})
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

	rows := map[string]row{}
	for job, status := range map[string]string{
		"done": "succeeded", "failed only": "succeeded", "dead": "dead", "left": "failed", "here": "pending",
		"called off": "cancelled", "stopped": "cancelled", "child": "cancelled",
	} {
		rows[job] = row{status: status}
	}
	require.Equal(t, []string{
		"job failed only is succeeded, but no handler has",
		`job left has status "failed"`,
		`job gone has status ""`,
		`job stopped has status "cancelled"`,
	}, beginnings(lostJobs(h, rows)))
	l := &load{rolledBack: []string{"nowhere", "here", "undone"}}
	require.Equal(t, []string{`job here has status "pending" and 0 attempts`, `job undone has status "" and 1 attempts`}, l.there(h, rows))
}

func TestEffectsOfCompletedJobs(t *testing.T) {
	t.Parallel()
	h, err := history.New(nil)
	require.NoError(t, err)
	for fault, r := range map[string]row{
		"": {"succeeded", completes, 1},
		`job a has status "succeeded" and 2 effects`: {"succeeded", completes, 2},
		`job a has status "succeeded" and 0 effects`: {"succeeded", completes, 0},
		`job a has status "dead" and 1 effects`:      {"dead", completes, 1},
		`job a has status "" and 1 effects`:          {"", plain, 1},
	} {
		faults := effects(h, map[string]row{"a": r, "b": {"dead", completes, 0}, "c": {"succeeded", plain, 0}})
		require.Equal(t, fault, strings.Join(beginnings(faults), ""))
	}
}

// beginnings are faults without the attempts that they show.
func beginnings(faults []string) (texts []string) {
	for _, fault := range faults {
		text, _, _ := strings.Cut(fault, ":")
		texts = append(texts, text)
	}
	return texts
}
