package main

import "context"

// figure is one measurement. It gives one or more rows of the table.
type figure struct {
	name    string
	of      []string // the systems that have it
	once    bool     // in the last round only
	measure func(*bench, context.Context, system) (values, error)
}

// In the order in which they are measured: each for one system after another,
// so that what changes on the machine meanwhile meets all of them.
var figures = []figure{
	{"create", []string{ours, river, gue, raw}, false, (*bench).measureCreate},
	{"batch", []string{ours, river, gue, raw}, false, (*bench).measureBatch},
	{"drain", []string{ours, river, gue, raw}, false, (*bench).measureDrain},
	{"latency", []string{ours, river, gue}, false, (*bench).measureLatency},
	{"http", []string{ours}, false, (*bench).measureHTTP},
	{"beside", []string{ours}, false, (*bench).measureBeside},
	{"limits", []string{ours}, false, (*bench).measureLimits},
	{"tick", []string{ours}, true, (*bench).measureTick},
	{"idle", []string{ours}, true, (*bench).measureIdle},
	{"memory", []string{ours}, true, (*bench).measureMemory},
}

// row is one line of the table.
type row string

type values map[row]float64

const (
	rowCreate      row = "create"
	rowBatch       row = "batch"
	rowDrain       row = "drain"
	rowWAL         row = "wal"
	rowDead        row = "dead"
	rowNotHOT      row = "not hot"
	rowP50         row = "p50"
	rowP99         row = "p99"
	rowCreating    row = "creating"
	rowP50Alone    row = "p50 alone"
	rowP99Alone    row = "p99 alone"
	rowHTTP        row = "http"
	rowBeside      row = "beside"
	rowPlain       row = "plain"
	rowUnlimited   row = "unlimited"
	rowAtOnce      row = "at once"
	rowPerKey      row = "per key"
	rowTickNew     row = "tick new"
	rowTickWarm    row = "tick warm"
	rowTickDrained row = "tick drained"
	rowTickScans   row = "tick scans"
	rowTickCalls   row = "tick calls"
	rowIdle        row = "idle"
	rowIdleOpen    row = "idle open"
	rowMemoryLive  row = "memory live"
	rowMemorySys   row = "memory sys"
)

// rows says how each is shown, in the order of the table.
var rows = []struct {
	row    row
	title  string
	digits int
}{
	{rowCreate, "single creations a second", 0},
	{rowBatch, "creations a second in batches of 1,000", 0},
	{rowDrain, "jobs drained a second", 0},
	{rowHTTP, "jobs drained a second over HTTP", 0},
	{rowBeside, "jobs drained a second beside many others", 0},
	{rowPlain, "jobs drained a second, in turn with the next three", 0},
	{rowUnlimited, "jobs drained a second beside limited queues", 0},
	{rowAtOnce, "jobs drained a second, 100 at once", 0},
	{rowPerKey, "jobs drained a second, 1 at once of each key", 0},
	{rowP50, "create to start, p50, ms", 2},
	{rowP99, "create to start, p99, ms", 2},
	{rowCreating, "the call that creates, p50, ms", 2},
	{rowP50Alone, "the same in one process, p50, ms", 2},
	{rowP99Alone, "the same in one process, p99, ms", 2},
	{rowWAL, "bytes of WAL a job", 0},
	{rowDead, "dead row versions a job", 2},
	{rowNotHOT, "of these not HOT", 2},
	{rowMemoryLive, "heap and stacks of a running job, KiB", 2},
	{rowMemorySys, "memory of a running job from the system, KiB", 2},
	{rowIdle, "queries a second of an idle service", 2},
	{rowIdleOpen, "transactions it keeps open", 0},
	{rowTickNew, "tick of an idle worker, new session, ms", 3},
	{rowTickWarm, "tick of an idle worker, same session, ms", 3},
	{rowTickDrained, "the same after a drain, before a vacuum, ms", 3},
	{rowTickScans, "its reads of the jobs that are not index-only", 0},
	{rowTickCalls, "its HTTP requests", 0},
}

// floor is what is to be reached. The value is divided by that of another
// system, or of another row of ours, or taken as it is.
type floor struct {
	row     row
	system  string // "": our own
	against row    // "": the same row
	limit   float64
	most    bool // the limit is the most, not the least
}

var floors = []floor{
	{row: rowDrain, system: river, limit: 2.5},
	{row: rowDrain, system: raw, limit: 0.6},
	{row: rowCreate, system: river, limit: 2},
	{row: rowBatch, system: river, limit: 1.6},
	{row: rowP50, system: river, limit: 0.15, most: true},
	{row: rowP99, system: river, limit: 0.25, most: true},
	{row: rowHTTP, against: rowDrain, limit: 0.8},
	{row: rowBeside, against: rowDrain, limit: 0.8},
	{row: rowUnlimited, against: rowPlain, limit: 0.95},
	{row: rowAtOnce, against: rowPlain, limit: 0.5},
	{row: rowPerKey, against: rowPlain, limit: 0.33},
	{row: rowIdle, limit: 1, most: true},
	{row: rowIdleOpen, limit: 0, most: true},
	{row: rowTickWarm, limit: 1, most: true},
	{row: rowTickScans, limit: 0, most: true},
	{row: rowTickCalls, limit: 0, most: true},
}
