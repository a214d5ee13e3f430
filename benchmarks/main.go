// Benchmarks runs the same work on this library and on others, on one
// throw-away Postgres, and prints a table. See README.md for the method.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// bench is what one run measures with.
type bench struct {
	server *server
	sizes
	profileDir string
	statements bool
	large      *database // made by the first figure that needs it
}

type sizes struct {
	rounds         int // of all figures but those measured once; the median counts
	jobs           int // of a drain
	pendingBeside  int
	finishedBeside int
	running        int // slow handlers at once
	createFor      time.Duration
	latencyFor     time.Duration
	idleFor        time.Duration
	ticks          int
	longest        time.Duration // that one measurement may take
}

var (
	fullSizes = sizes{
		rounds: 3, jobs: 100_000, pendingBeside: 1_000_000, finishedBeside: 5_000_000, running: 10_000,
		createFor: 5 * time.Second, latencyFor: 10 * time.Second, idleFor: 20 * time.Second, ticks: 200, longest: 30 * time.Minute,
	}
	quickSizes = sizes{
		rounds: 1, jobs: 10_000, pendingBeside: 10_000, finishedBeside: 50_000, running: 1_000,
		createFor: time.Second, latencyFor: 2 * time.Second, idleFor: 4 * time.Second, ticks: 20, longest: time.Minute,
	}
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	var figureNames, systemNames []string
	for _, f := range figures {
		figureNames = append(figureNames, f.name)
	}
	for _, s := range systems {
		systemNames = append(systemNames, strings.ToLower(s.name))
	}
	only := flag.String("only", "", "comma-separated `systems`: "+strings.Join(systemNames, ", ")+" (default all)")
	chosen := flag.String("figures", "", "comma-separated `figures`: "+strings.Join(figureNames, ", ")+" (default all)")
	jobs := flag.Int("jobs", 0, "drain this `number` of jobs (default 100,000)")
	quick := flag.Bool("quick", false, "small sizes, to see that everything runs; the figures mean little")
	rounds := flag.Int("rounds", 0, "take the median of this `number` of measurements (default 3)")
	repeat := flag.Int("repeat", 1, "measure everything this `number` of times, printing a table each time")
	data := flag.String("data", "", "keep the server's files in this `directory` (default the usual one for temporary files)")
	b := &bench{}
	flag.StringVar(&b.profileDir, "profile", "", "write a CPU profile of each measurement of this library into the `directory`")
	flag.BoolVar(&b.statements, "statements", false, "print the statements of this library that took the database longest")
	flag.Parse()

	wantedSystems, err := choose("-only", *only, systemNames)
	if err != nil {
		return err
	}
	wantedFigures, err := choose("-figures", *chosen, figureNames)
	if err != nil {
		return err
	}
	b.sizes = fullSizes
	if *quick {
		b.sizes = quickSizes
	}
	if *jobs > 0 {
		b.jobs = *jobs
	}
	if *rounds > 0 {
		b.rounds = *rounds
	}

	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if b.server, err = startServer(ctx, *data); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.server.stop()) }()
	if err := b.describe(ctx); err != nil {
		return err
	}
	for i := range *repeat {
		if *repeat > 1 {
			fmt.Printf("\nrun %d of %d\n", i+1, *repeat)
		}
		measured, err := b.measure(ctx, wantedFigures, wantedSystems)
		fmt.Println()
		if err := errors.Join(measured.print(os.Stdout), err); err != nil {
			return err
		}
	}
	return nil
}

// choose reads a comma-separated list of names; an empty one means all.
func choose(option, list string, known []string) ([]string, error) {
	if list == "" {
		return known, nil
	}
	names := strings.Split(strings.ToLower(list), ",")
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("%s %q: expected some of %s", option, name, strings.Join(known, ","))
		}
	}
	return names, nil
}

// measure returns what it has measured also when it fails.
func (b *bench) measure(ctx context.Context, wantedFigures, wantedSystems []string) (results, error) {
	defer b.dropLarge()
	measured := results{}
	for round := range b.rounds {
		if b.large != nil {
			if err := b.vacuum(ctx, b.large); err != nil {
				return measured, err
			}
		}
		for _, f := range figures {
			if !slices.Contains(wantedFigures, f.name) || f.once && round < b.rounds-1 {
				continue
			}
			for _, sys := range systems {
				if !slices.Contains(f.of, sys.name) || !slices.Contains(wantedSystems, strings.ToLower(sys.name)) {
					continue
				}
				got, err := b.measureOne(ctx, f, sys)
				if err != nil {
					return measured, fmt.Errorf("%s of %s: %w", f.name, sys.name, err)
				}
				measured.add(sys.name, got)
			}
		}
	}
	return measured, nil
}

func (b *bench) measureOne(ctx context.Context, f figure, sys system) (values, error) {
	ctx, cancel := context.WithTimeout(ctx, b.longest)
	defer cancel()
	runtime.GC() // what was measured before shall not be swept meanwhile
	got, err := f.measure(b, ctx, sys)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		if value, ok := got[r.row]; ok {
			fmt.Fprintf(os.Stderr, "%-6s %-45s %12s\n", sys.name, r.title, number(value, r.digits))
		}
	}
	return got, nil
}

// describe prints what the figures depend on.
func (b *bench) describe(ctx context.Context) error {
	version, err := scalar[string](ctx, b.server.admin, "SHOW server_version")
	if err != nil {
		return err
	}
	durable, err := scalar[string](ctx, b.server.admin,
		"SELECT format('fsync %s, synchronous_commit %s, shared_buffers %s, max_wal_size %s', "+
			"current_setting('fsync'), current_setting('synchronous_commit'), current_setting('shared_buffers'), current_setting('max_wal_size'))")
	fmt.Printf("%s/%s, %d cores, %s\nPostgres %s on the same machine: %s\npools of %d connections; drains of %s jobs; medians of %d\n",
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), runtime.Version(), version, durable, poolSize, number(float64(b.jobs), 0), b.rounds)
	return err
}
