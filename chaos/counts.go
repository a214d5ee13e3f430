package main

import (
	"context"
	"fmt"
	"time"
)

// miscountedSQL finds queues whose number of running jobs, by which claims go, is
// not that of the jobs that run. All of it is seen in one moment.
const miscountedSQL = `
SELECT coalesce(string_agg(format('queue %s: %s, but %s jobs', q.queue, scheduler.running_in(q), r.n), '; '), '')
FROM scheduler.queue_limits q, LATERAL (
    SELECT count(*) AS n FROM scheduler.jobs j WHERE j.queue = q.queue AND j.lane IS NOT NULL AND j.status = 'running') AS r
WHERE coalesce(q.max_running, q.max_running_per_key) IS NOT NULL AND scheduler.running_in(q) <> r.n`

// watchCounts looks the whole time for such queues: mostly too few jobs run for a
// limit to be exceeded by that.
func (c *chaos) watchCounts(ctx context.Context) {
	for ; ctx.Err() == nil; sleep(ctx, 100*time.Millisecond) {
		c.lookAtCounts(ctx)
	}
}

func (c *chaos) lookAtCounts(ctx context.Context) {
	found, err := query[string](ctx, c.db, miscountedSQL)
	if err != nil {
		return
	}
	if found != "" && found != c.lastFound {
		c.miscounted = append(c.miscounted, fmt.Sprintf("at %s, %s", time.Now().Format(time.RFC3339Nano), found))
	}
	c.lastFound = found
}
