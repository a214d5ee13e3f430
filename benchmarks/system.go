package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"
)

// system is one of those that are compared.
type system struct {
	name string
	// open prepares an empty database and returns the system on it. handle is
	// what its jobs do: it is called with the job's number.
	open func(ctx context.Context, pool *pgxpool.Pool, handle func(n int)) (engine, error)
}

// engine is a system on one database. Its jobs carry a number.
type engine interface {
	create(ctx context.Context, n int) error
	// creator returns the create of another process, which works no jobs.
	creator(pool *pgxpool.Pool) (func(ctx context.Context, n int) error, error)
	// createBatch makes jobs with the numbers from, from+1, … in one call.
	createBatch(ctx context.Context, from, count int) error
	// work runs due jobs until stop is called, which waits for what runs.
	work(ctx context.Context) (stop func() error, err error)
	// finished counts the created jobs that are recorded as finished.
	finished(ctx context.Context, watch *pgxpool.Pool) (int, error)
}

// The columns of the table, in their order.
var systems = []system{
	{ours, openOurs},
	{river, openRiver},
	{gue, openGue},
	{raw, openRaw},
}

const (
	ours  = "ours"
	river = "River"
	gue   = "gue"
	raw   = "raw"
)

// numbered is the payload of every job.
type numbered struct {
	N int `json:"n"`
}

// poolSize is the same for all systems: above the eight goroutines that create
// jobs, and far above what two cores can serve at once.
const poolSize = 20

var logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
