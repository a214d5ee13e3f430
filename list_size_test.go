package scheduler_test

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// countingConn counts what it reads.
type countingConn struct {
	net.Conn
	read *atomic.Int64
}

func (c countingConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// What a page has no room for is not sent either.
func TestTheServerEndsAPageOfLargeJobs(t *testing.T) {
	t.Parallel()
	var read atomic.Int64
	config := newPool(t).Config()
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		return countingConn{conn, &read}, err
	}
	pool := newPoolWith(t, config)
	var schema string
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) { schema = c.Schema })
	ids := mustCreateMany(t, s, 60, "a", scheduler.JobData{})
	large := strings.Repeat("a", 1<<20-2)
	mustExec(t, pool, "UPDATE "+schema+`.jobs SET status = 'succeeded', lane = NULL, finished_at = now(), result = to_jsonb($1::text)`, large)
	before := read.Load()
	page := mustList(t, s, scheduler.JobFilter{Limit: 1000})
	require.Len(t, page.Jobs, 16, "each has a little more than 1 MiB")
	require.Less(t, read.Load()-before, int64(20<<20))
	shown := idsOf(page.Jobs)
	for page.Next != "" {
		page = mustList(t, s, scheduler.JobFilter{Limit: 1000, Cursor: page.Next})
		shown = append(shown, idsOf(page.Jobs)...)
	}
	require.Len(t, shown, 60)
	require.ElementsMatch(t, ids, shown)
}
