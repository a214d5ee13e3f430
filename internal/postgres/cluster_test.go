package postgres_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler/internal/postgres"
)

// orphanEnv makes the test binary a program that starts a cluster, says where
// it is, and waits to be killed.
const orphanEnv = "POSTGRES_TEST_ORPHAN"

func TestMain(m *testing.M) {
	if os.Getenv(orphanEnv) == "" {
		os.Exit(m.Run())
	}
	c, err := postgres.Start(context.Background(), fast)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(c.URL("postgres"), filepath.Dir(c.LogFile()))
	select {}
}

var fast = postgres.Options{Settings: map[string]string{"fsync": "off", "max_connections": "20", "shared_buffers": "16MB"}}

func start(t *testing.T) *postgres.Cluster {
	c, err := postgres.Start(t.Context(), fast)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Stop()) })
	return c
}

func connect(t *testing.T, c *postgres.Cluster) *pgx.Conn {
	conn, err := pgx.Connect(t.Context(), c.URL("postgres"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // it may be gone already
	return conn
}

func query[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var value T
	require.NoError(t, conn.QueryRow(t.Context(), sql, args...).Scan(&value))
	return value
}

func TestCommittedDataOutliveACrashAndARestart(t *testing.T) {
	t.Parallel()
	c := start(t)
	conn := connect(t, c)
	_, err := conn.Exec(t.Context(), "CREATE TABLE kept AS SELECT 42 AS answer")
	require.NoError(t, err)

	require.NoError(t, c.Crash(t.Context()))
	require.Error(t, conn.Ping(t.Context()))
	_, err = pgx.Connect(t.Context(), c.URL("postgres"))
	require.Error(t, err)

	require.NoError(t, c.Restart(t.Context())) // after the crash
	require.Equal(t, 42, query[int](t, connect(t, c), "SELECT answer FROM kept"))
	require.NoError(t, c.Restart(t.Context())) // of a running server
	require.Equal(t, 42, query[int](t, connect(t, c), "SELECT answer FROM kept"))
}

func TestStopRemovesTheDirectory(t *testing.T) {
	t.Parallel()
	c := start(t)
	require.FileExists(t, c.LogFile())
	require.NoError(t, c.Stop())
	require.NoDirExists(t, filepath.Dir(c.LogFile()))
	require.NoError(t, c.Stop())
	require.Error(t, c.Restart(t.Context()))
}

func TestAClusterDoesNotOutliveItsKilledProgram(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells a child of its parent's end")
	}
	program := exec.Command(os.Args[0])
	program.Env = append(os.Environ(), orphanEnv+"=1")
	program.Stderr = t.Output()
	stdout, err := program.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, program.Start())
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	address, dir, ok := strings.Cut(strings.TrimSpace(line), " ")
	require.True(t, ok, line)
	defer func() { _ = os.RemoveAll(dir) }() // nobody else is left to do it

	conn, err := pgx.Connect(t.Context(), address)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	require.NoError(t, program.Process.Kill())
	require.Error(t, program.Wait())

	// The end of the connection is the server's shutdown.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err = conn.WaitForNotification(ctx)
	require.Error(t, err)
	require.NoError(t, ctx.Err(), "the server still runs")
	require.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(dir, "data", "postmaster.pid"))
		return os.IsNotExist(err)
	}, 30*time.Second, 10*time.Millisecond)
}

// extensions is a schema whose name needs its quotes.
const extensions = "The Extensions"

type answer struct {
	Status      int
	ContentType *string
	Content     *string
	Location    bool
}

const callSQL = `
SELECT r.status, r.content_type, r.content, EXISTS (SELECT FROM unnest(r.headers) h WHERE lower(h.field) = 'location')
FROM "The Extensions".http(($1, $2, ARRAY[("The Extensions".http_header('Authorization', 'Bearer 123ABC'))],
    'application/json', $3)::"The Extensions".http_request) AS r`

func call(t *testing.T, conn *pgx.Conn, method, url string, content any) (a answer, err error) {
	err = conn.QueryRow(t.Context(), callSQL, pgx.QueryExecModeExec, method, url, content).
		Scan(&a.Status, &a.ContentType, &a.Content, &a.Location)
	return a, err
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	t.Run("as the server has it", func(t *testing.T) {
		t.Parallel()
		conn := connect(t, start(t))
		isReal, err := postgres.InstallHTTP(t.Context(), conn, extensions)
		require.NoError(t, err)
		t.Logf("the real extension: %t", isReal)
		testHTTP(t, conn)
	})
	t.Run("double", func(t *testing.T) {
		t.Parallel()
		conn := connect(t, start(t))
		require.NoError(t, postgres.InstallHTTPDouble(t.Context(), conn, extensions))
		testHTTP(t, conn)
	})
}

// testHTTP holds for the real extension and its double alike.
func testHTTP(t *testing.T, conn *pgx.Conn) {
	release := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, 100)
		n, _ := r.Body.Read(body)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusTeapot)
		_, _ = fmt.Fprintf(w, "%s %s %s %s %s", r.Method, r.URL.RawQuery, r.Header.Get("Authorization"), r.Header.Get("Content-Type"), body[:n])
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/echo?moved", http.StatusFound)
	})
	mux.HandleFunc("/round", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/round", http.StatusTemporaryRedirect)
	})
	mux.HandleFunc("/empty", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })

	require.Equal(t, extensions, query[string](t, conn,
		"SELECT nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE extname = 'http'"))

	a, err := call(t, conn, "POST", server.URL+"/echo?a=%20b", `{"a":"ü"}`)
	require.NoError(t, err)
	require.Equal(t, http.StatusTeapot, a.Status)
	require.Equal(t, "text/plain; charset=utf-8", *a.ContentType)
	require.Equal(t, `POST a=%20b Bearer 123ABC application/json {"a":"ü"}`, *a.Content)
	require.False(t, a.Location)

	a, err = call(t, conn, "POST", server.URL+"/moved", `{}`)
	require.NoError(t, err)
	require.Equal(t, `GET moved Bearer 123ABC application/json `, *a.Content)
	require.True(t, a.Location)

	a, err = call(t, conn, "GET", server.URL+"/empty", nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, a.Status)
	require.Nil(t, a.Content)

	var refused *pgconn.PgError
	_, err = call(t, conn, "POST", server.URL+"/echo", nil)
	require.ErrorAs(t, err, &refused)
	require.Contains(t, refused.Message, "content is NULL")
	_, err = call(t, conn, "POST", server.URL+"/round", `{}`)
	require.ErrorAs(t, err, &refused)
	require.Contains(t, refused.Message, "redirects")
	_, err = call(t, conn, "POST", "ftp://127.0.0.1/", `{}`)
	require.ErrorAs(t, err, &refused)
	_, err = call(t, conn, "POST", unused(t), `{}`)
	require.ErrorAs(t, err, &refused)
	require.Contains(t, strings.ToLower(refused.Message), "connect")

	// The time for the whole counts also where the server has begun to answer.
	for _, limit := range [][2]string{{"CURLOPT_TIMEOUT_MS", "300"}, {"CURLOPT_TIMEOUT", "1"}} {
		require.True(t, query[bool](t, conn, `SELECT "The Extensions".http_set_curlopt($1, $2)`, limit[0], limit[1]))
		_, err = call(t, conn, "POST", server.URL+"/slow", `{}`)
		require.ErrorAs(t, err, &refused)
		require.Contains(t, strings.ToLower(refused.Message), "timed out")
	}
	require.True(t, query[bool](t, conn, `SELECT "The Extensions".http_set_curlopt('CURLOPT_CONNECTTIMEOUT', '1')`))
	_, err = conn.Exec(t.Context(), `SELECT "The Extensions".http_set_curlopt('CURLOPT_NONSENSE', '1')`)
	require.ErrorAs(t, err, &refused)
	require.True(t, query[bool](t, conn, `SELECT "The Extensions".http_reset_curlopt()`))

	// Back at the default of five seconds, which nobody waits for.
	_, err = conn.Exec(t.Context(), "SET statement_timeout = '200ms'")
	require.NoError(t, err)
	_, err = call(t, conn, "POST", server.URL+"/slow", `{}`)
	require.Error(t, err)
	require.False(t, conn.IsClosed())
	_, err = conn.Exec(t.Context(), "RESET statement_timeout; DROP EXTENSION http")
	require.NoError(t, err)
	require.Zero(t, query[int](t, conn, "SELECT count(*) FROM pg_type WHERE typname = 'http_request'"))
}

// unused is the URL of a port on which nobody listens.
func unused(t *testing.T) string {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	return (&url.URL{Scheme: "http", Host: l.Addr().String()}).String()
}

func TestNetDouble(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /run", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusConflict)
		_, _ = fmt.Fprint(w, r.URL.RawQuery, " ", r.Header.Get("Authorization"))
	})
	mux.HandleFunc("POST /slow", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	t.Cleanup(func() { close(release) })

	conn := connect(t, start(t))
	require.NoError(t, postgres.InstallNet(t.Context(), conn))
	answered := query[int64](t, conn, `SELECT net.http_post(url := $1, params := '{"a":"1"}',
		headers := '{"Authorization": "Bearer 123ABC"}')`, server.URL+"/run")
	late := query[int64](t, conn, `SELECT net.http_post(url := $1, timeout_milliseconds := 100)`, server.URL+"/slow")
	refused := query[int64](t, conn, `SELECT net.http_post(url := $1)`, unused(t))
	require.Equal(t, 3, query[int](t, conn, "SELECT count(*) FROM net.http_request_queue"))
	require.Equal(t, 0, query[int](t, conn, "SELECT count(*) FROM net._http_response"))

	require.Equal(t, 3, query[int](t, conn, "SELECT net.deliver()"))
	require.Equal(t, 0, query[int](t, conn, "SELECT net.deliver()"))
	const outcome = "SELECT concat_ws(' ', status_code, content, timed_out, error_msg IS NOT NULL) FROM net._http_response WHERE id = $1"
	require.Equal(t, "409 a=1 Bearer 123ABC f f", query[string](t, conn, outcome, answered))
	require.Equal(t, "t t", query[string](t, conn, outcome, late))
	require.Equal(t, "f t", query[string](t, conn, outcome, refused))
}

func TestVaultDouble(t *testing.T) {
	t.Parallel()
	conn := connect(t, start(t))
	require.NoError(t, postgres.InstallVault(t.Context(), conn))
	id := query[string](t, conn, "SELECT vault.create_secret('123ABC', 'token')::text")
	const secret = "SELECT decrypted_secret FROM vault.decrypted_secrets WHERE id = $1::text::uuid"
	require.Equal(t, "123ABC", query[string](t, conn, secret, id))
	require.NotContains(t, query[string](t, conn, "SELECT secret FROM vault.secrets"), "123ABC")

	_, err := conn.Exec(t.Context(), "SELECT vault.update_secret($1::text::uuid, '456DEF')", id)
	require.NoError(t, err)
	require.Equal(t, "456DEF", query[string](t, conn, secret, id))
	require.Equal(t, "token", query[string](t, conn, "SELECT name FROM vault.secrets"))
	_, err = conn.Exec(t.Context(), "SELECT vault.create_secret('another', 'token')")
	require.Error(t, err)
}
