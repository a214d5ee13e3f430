package scheduler_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// A flood of bad tokens costs neither a query nor a line of the log, and every
// refusal is the same to the byte, whatever it was for.
func TestHTTPAFloodOfBadTokensCostsLittle(t *testing.T) {
	t.Parallel()
	config, err := pgxpool.ParseConfig("postgres://nobody@127.0.0.1:1/nowhere")
	require.NoError(t, err)
	config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
		t.Error("the database is asked")
		return nil
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	var log bytes.Buffer
	s, err := scheduler.New(pool, scheduler.Config{Tokens: []string{webToken, "other"}, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	require.NoError(t, err)
	handler := s.Handler()
	log.Reset()

	refused := map[string]bool{}
	var mu sync.Mutex
	var flood sync.WaitGroup
	for i := range 4 {
		flood.Go(func() {
			for n := range 1000 {
				call := everyCall("0190a5b2-0000-7000-8000-000000000000")[(i+n)%13]
				r := httptest.NewRequestWithContext(t.Context(), call[0], call[1], &unread{t: t})
				r.Header.Set("Authorization", "Bearer "+strings.Repeat("x", n))
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, r)
				mu.Lock()
				refused[fmt.Sprint(w.Code, w.Header(), w.Body)] = true
				mu.Unlock()
			}
		})
	}
	flood.Wait()
	require.Len(t, refused, 1)
	require.Empty(t, log.String())
	require.Zero(t, pool.Stat().NewConnsCount())
}

// unread is a body that nobody may read.
type unread struct{ t *testing.T }

func (u *unread) Read([]byte) (int, error) {
	u.t.Error("the body is read")
	return 0, io.EOF
}
func (u *unread) Close() error { return nil }

// What compares tokens is a comparison in constant time of what has one length,
// and it is made with all of them: shown by the code, as the time shows nothing.
func TestHTTPComparesTokensInConstantTime(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "handler.go", nil, 0)
	require.NoError(t, err)
	var has *ast.FuncDecl
	for _, declared := range file.Decls {
		if f, ok := declared.(*ast.FuncDecl); ok && f.Name.Name == "hasToken" {
			has = f
		}
	}
	require.NotNil(t, has)
	var loop *ast.RangeStmt
	ast.Inspect(has, func(n ast.Node) bool {
		if r, ok := n.(*ast.RangeStmt); ok {
			loop = r
		}
		return true
	})
	require.NotNil(t, loop)
	compares := 0
	ast.Inspect(loop, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if n.Sel.Name == "ConstantTimeCompare" {
				compares++
			}
		case *ast.IfStmt, *ast.ReturnStmt, *ast.BranchStmt:
			require.Fail(t, "the loop over the tokens ends or branches")
		}
		return true
	})
	require.Equal(t, 1, compares)
}

// Requests that two servers in a row could read in two ways have no effect, and
// none of what follows them is taken for a request with their token.
func TestHTTPRequestsWithTwoReadings(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	job := mustCreate(t, w.Scheduler, "succeed", scheduler.JobData{})
	before := w.stored(t)
	const allowed = "Authorization: Bearer " + webToken + "\r\n"
	const run = "POST /api/jobs/run HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" // without a token
	for title, request := range map[string]string{
		"two tokens":           "POST /api/jobs/run HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer no\r\n" + allowed + "Content-Length: 0\r\n\r\n",
		"two tokens, turned":   "POST /api/jobs/run HTTP/1.1\r\nHost: a\r\n" + allowed + "Authorization: Bearer no\r\nContent-Length: 0\r\n\r\n",
		"two lengths":          "POST /api/jobs HTTP/1.1\r\nHost: a\r\n" + allowed + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n" + run,
		"length and chunks":    "POST /api/jobs HTTP/1.1\r\nHost: a\r\n" + allowed + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + run,
		"chunks in a disguise": "POST /api/jobs HTTP/1.1\r\nHost: a\r\n" + allowed + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + run,
		"a folded header":      "POST /api/jobs/run HTTP/1.1\r\nHost: a\r\nX: y\r\n " + allowed + "Content-Length: 0\r\n\r\n",
		"a space in a name":    "POST /api/jobs/run HTTP/1.1\r\nHost: a\r\nAuthorization : Bearer " + webToken + "\r\nContent-Length: 0\r\n\r\n",
		"an absolute path":     "POST http://b//api/jobs/run HTTP/1.1\r\nHost: a\r\n" + allowed + "Content-Length: 0\r\n\r\n",
		"half a body":          "POST /api/jobs HTTP/1.1\r\nHost: a\r\n" + allowed + "Content-Length: 100\r\n\r\n{\"name\": \"succeed\"}",
		"a header without end": "POST /api/jobs/run HTTP/1.1\r\nHost: a\r\n" + allowed + "X: " + strings.Repeat("x", 2<<20) + "\r\n\r\n",
	} {
		for _, answer := range w.raw(t, request) {
			require.GreaterOrEqual(t, answer, 300, title)
			require.NotEqual(t, http.StatusInternalServerError, answer, title)
		}
	}
	require.Equal(t, before, w.stored(t))
	require.Equal(t, scheduler.JobStatusPending, mustGet(t, w.Scheduler, job.ID).Status)
}

// raw sends what is no request of http.Client's, and returns the statuses of all
// answers to it.
func (w *web) raw(t *testing.T, request string) (statuses []int) {
	conn, err := net.Dial("tcp", w.server.Listener.Addr().String())
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	go func() {
		_, _ = io.WriteString(conn, request) // the server may have enough of it before its end
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	for answers := bufio.NewReader(conn); ; {
		response, err := http.ReadResponse(answers, nil)
		if err != nil {
			return statuses
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
		statuses = append(statuses, response.StatusCode)
	}
}

// What was sent comes back in an error as far as it fits on a line.
func TestHTTPAnswersShortlyToWhatIsLong(t *testing.T) {
	t.Parallel()
	w := newWeb(t, nil)
	long := strings.Repeat("x", 5000)
	for query, field := range map[string]string{long + "=1&" + long + "=1": "query", long: "query", "queue=" + long: "queue", "limit=" + long: "limit"} {
		w.call(t, "POST", "/api/jobs/run?"+query, "").requireProblem(t, http.StatusBadRequest, field)
	}
}
