package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// fence is a condition in the library's SQL that keeps a kind of harm away.
// Without it, the checks have to find that harm, or they are worth nothing.
type fence struct {
	function string   // of the schema
	edits    []string // what stands in it, and what instead, in pairs
	harm     string
}

var fences = map[string]fence{
	// By its place, a row that somebody else has claimed meanwhile is not found.
	"claim": {"claim", []string{" FOR UPDATE SKIP LOCKED", "", "j.ctid AS row", "j.id AS row", "j.ctid = ANY", "j.id = ANY"}, "run twice at once"},
	"finish": {
		"finish", []string{"j.claims = f.claims AND j.status = 'running' AND (j.cancelling IS NULL", "(j.cancelling IS NULL"}, "finished twice",
	},
	"rescue": {"rescue", []string{"l.expires_at <= clock_timestamp()", "true"}, "run twice at once"},
	"order":  {"blocking_head", []string{"q.head IS NOT NULL", "false"}, "out of order"},
	"limits": {"claim", []string{"v_limits.max_running - (v_limits.running - v_ended)", "claim.n"}, "limits exceeded"},
	"pause":  {"set_paused", []string{"SET paused = set_paused.paused", "SET paused = false"}, "started though called off or paused"},
	"cancel": {"is_open_to", []string{"is_open_to.status IN ('pending', 'failed') OR is_open_to.status = 'running'", "is_open_to.status = 'running'"}, "started though called off or paused"},
}

func fenceNames() string { return strings.Join(slices.Sorted(maps.Keys(fences)), ", ") }

// removeFence replaces a function in the database by one without the fence.
func (d *database) removeFence(ctx context.Context, name string) error {
	f, ok := fences[name]
	if !ok {
		return fmt.Errorf("fence %q: expected one of %s", name, fenceNames())
	}
	definition, err := query[string](ctx, d, "SELECT pg_get_functiondef(('scheduler.' || $1)::regproc)", f.function)
	if err != nil {
		return err
	}
	for edit := range slices.Chunk(f.edits, 2) {
		text := strings.ReplaceAll(edit[0], "{{schema}}", `"scheduler"`)
		if !strings.Contains(definition, text) {
			return fmt.Errorf("fence %q: function %s has no %q", name, f.function, text)
		}
		definition = strings.ReplaceAll(definition, text, edit[1])
	}
	_, err = d.admin.Exec(ctx, definition)
	return err
}
