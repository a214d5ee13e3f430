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
	function string // of the schema
	text     string // in it; all of its places
	without  string // what is left of that
	harm     string
}

var fences = map[string]fence{
	"claim": {"claim", " FOR UPDATE SKIP LOCKED", "", "run twice at once"},
	"finish": {
		"finish", "j.claims = f.claims AND j.status = 'running' AND (j.cancelling IS NULL", "(j.cancelling IS NULL", "finished twice",
	},
	"rescue": {"rescue", "l.expires_at <= clock_timestamp()", "true", "run twice at once"},
	"order":  {"blocking_head", "q.head IS NOT NULL", "false", "out of order"},
	"limits": {"claim", "greatest(least(claim.n, {{schema}}.room(v_limits, v_at)), 0)", "claim.n", "limits exceeded"},
	"pause":  {"claim", "IF NOT FOUND OR v_paused THEN", "IF NOT FOUND THEN", "started though called off or paused"},
	"cancel": {"finish", "AND (j.cancelling IS NULL OR f.status = 'succeeded')", "", "started though called off or paused"},
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
	text := strings.ReplaceAll(f.text, "{{schema}}", `"scheduler"`)
	if !strings.Contains(definition, text) {
		return fmt.Errorf("fence %q: function %s has no %q", name, f.function, text)
	}
	_, err = d.admin.Exec(ctx, strings.ReplaceAll(definition, text, f.without))
	return err
}
