package scheduler_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/relay-club/scheduler/internal/postgres"
)

// shared is the one cluster of this package's tests. pg_cron, http and pg_net
// are in its database postgres, the only one into which pg_cron schedules.
var shared struct {
	cluster *postgres.Cluster
	admin   *pgxpool.Pool // for administer
	cron    bool          // whether pg_cron is there
	http    string        // "extension", "double", or "" where there is neither
	net     bool          // whether the double of pg_net is there
}

// extensionSchema is where shared has the extension http, as on Supabase: not
// in the search_path.
const extensionSchema = "extensions"

func TestMain(m *testing.M) {
	if role, ok := os.LookupEnv(roleEnv); ok {
		runChild(role)
		return
	}
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	shared.cron = postgres.HasCron()
	shared.cluster, err = postgres.Start(context.Background(), postgres.Options{
		Cron:   shared.cron,
		Parent: postgres.InMemory(),
		Settings: map[string]string{
			// Nothing here has to outlive the machine. What is committed still
			// outlives the server.
			"fsync":            "off",
			"full_page_writes": "off",
			"max_connections":  "500",
		},
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, shared.cluster.Stop()) }()
	go stopWhenInterrupted()

	if err := installExtensions(context.Background()); err != nil {
		return 0, err
	}
	if shared.admin, err = pgxpool.New(context.Background(), shared.cluster.URL("postgres")); err != nil {
		return 0, err
	}
	defer shared.admin.Close()
	stopPooler, err := startSharedPooler()
	if err != nil {
		return 0, err
	}
	defer stopPooler()
	if err := waitLess(); err != nil {
		return 0, err
	}
	fmt.Printf("with PostgreSQL in %s, pg_cron: %t, http: %q, double of pg_net: %t, pooler: %q\n",
		shared.cluster.BinDir(), shared.cron, shared.http, shared.net, os.Getenv(poolerEnv))
	return m.Run(), nil
}

// waitLess runs twice as many tests at a time as there are processors, unless
// the command says how many: half of what a test does is to wait, for the server
// or for time to pass.
func waitLess() error {
	flag.Parse()
	parallel := flag.Lookup("test.parallel")
	isFuzzing := flag.Lookup("test.fuzz").Value.String() != "" // with a process, and a server, each
	if isFuzzing || parallel.Value.String() != parallel.DefValue {
		return nil
	}
	return parallel.Value.Set(strconv.Itoa(2 * runtime.GOMAXPROCS(0)))
}

// stopWhenInterrupted leaves no cluster behind when the tests are called off
// from the terminal.
func stopWhenInterrupted() {
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, syscall.SIGTERM)
	<-interrupted
	_ = shared.cluster.Stop() // there is nobody left to tell
	os.Exit(1)
}

func installExtensions(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, shared.cluster.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	if shared.cron {
		if _, err := conn.Exec(ctx, "CREATE EXTENSION pg_cron"); err != nil {
			return err
		}
	}
	switch isReal, err := postgres.InstallHTTP(ctx, conn, extensionSchema); {
	case err != nil:
		fmt.Println(err) // tests that need it are skipped
	case isReal:
		shared.http = "extension"
	default:
		shared.http = "double"
	}
	if err := postgres.InstallNet(ctx, conn); err != nil {
		fmt.Println(err)
	} else {
		shared.net = true
	}
	return nil
}
