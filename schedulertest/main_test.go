package schedulertest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler/internal/postgres"
)

// cluster is the one of this package's tests.
var cluster *postgres.Cluster

func TestMain(m *testing.M) {
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	cluster, err = postgres.Start(context.Background(), postgres.Options{
		Parent:   postgres.InMemory(),
		Settings: map[string]string{"fsync": "off", "full_page_writes": "off", "max_connections": "200"},
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, cluster.Stop()) }()
	return m.Run(), nil
}

func newPool(t *testing.T) *pgxpool.Pool {
	pool, err := pgxpool.New(t.Context(), cluster.URL("postgres"))
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	return pool
}
