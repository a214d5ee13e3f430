package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTable(t *testing.T) {
	t.Parallel()
	measured := results{}
	measured.add(ours, values{rowDrain: 50_000, rowHTTP: 35_000, rowP99: 1.234, rowIdle: 0.6})
	measured.add(river, values{rowDrain: 12_000, rowP99: 30})
	measured.add(river, values{rowDrain: 90_000, rowP99: 10})
	measured.add(river, values{rowDrain: 20_000, rowP99: 50})
	measured.add(raw, values{rowDrain: 100_000})
	var table strings.Builder
	require.NoError(t, measured.print(&table))
	var lines []string
	for line := range strings.Lines(table.String()) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	require.Equal(t, []string{
		"| figure | ours | River | raw | ours ÷ River | ours ÷ raw | to be reached |",
		lines[1],
		"| jobs drained a second | 50,000 | 20,000 | 100,000 | 2.50 | 0.50 | ≥ 2.5 × River: reached; ≥ 0.6 × raw: NOT reached |",
		"| jobs drained a second over HTTP | 35,000 | | | | | ≥ 0.8 × the drain above: NOT reached (0.70) |",
		"| create to start, p99, ms | 1.23 | 30.00 | | 0.04 | | ≤ 0.25 × River: reached |",
		"| queries a second of an idle service | 0.60 | | | | | ≤ 1: reached |",
	}, lines)
}

func TestNumber(t *testing.T) {
	t.Parallel()
	for value, want := range map[float64]string{0: "0", 12: "12", 999.6: "1,000", 1234567: "1,234,567"} {
		require.Equal(t, want, number(value, 0))
	}
	require.Equal(t, "-123.50", number(-123.5, 2))
}

func TestTally(t *testing.T) {
	t.Parallel()
	jobs := newTally(2)
	jobs.start(0)
	require.ErrorContains(t, jobs.check(), "1 jobs did not start, 0 starts were too many")
	jobs.start(1)
	require.NoError(t, jobs.check())
	<-jobs.all
	jobs.start(1)
	jobs.start(2)
	require.ErrorContains(t, jobs.check(), "0 jobs did not start, 2 starts were too many")
}
