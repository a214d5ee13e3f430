package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
	"github.com/relay-club/scheduler/internal/postgres"
)

var databaseURL string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	gin.SetMode(gin.ReleaseMode)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cluster, err := postgres.Start(ctx, postgres.Options{Settings: map[string]string{"fsync": "off"}})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	databaseURL = cluster.URL("postgres")
	code := m.Run()
	if err := cluster.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

const token = "secret"

// serve mounts a scheduler with a schema of its own in a router.
func serve(t *testing.T, router string) *httptest.Server {
	pool, err := pgxpool.New(t.Context(), databaseURL)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	s, err := scheduler.New(pool, scheduler.Config{
		JobNames: scheduler.JobNames{"greet": scheduler.Handle(greet)},
		Tokens:   []string{token},
		Schema:   "in_" + router,
	})
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
	server := httptest.NewServer(routers[router](s.Handler()))
	server.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Cleanup(func() {
		server.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, s.Shutdown(ctx))
	})
	return server
}

// call makes a request and returns the answer with its JSON.
func call(t *testing.T, server *httptest.Server, method, path, body string) (*http.Response, map[string]any) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := server.Client().Do(request)
	require.NoError(t, err)
	defer func() { require.NoError(t, response.Body.Close()) }()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	var answer map[string]any
	if len(text) > 0 {
		require.NoError(t, json.Unmarshal(text, &answer), "%s %s: %s", method, path, text)
	}
	return response, answer
}

func TestEveryRouterServesTheHandler(t *testing.T) {
	t.Parallel()
	for router := range routers {
		t.Run(router, func(t *testing.T) {
			t.Parallel()
			server := serve(t, router)

			response, created := call(t, server, "POST", "/api/jobs", `{"name": "greet", "payload": "Ada"}`)
			require.Equal(t, http.StatusCreated, response.StatusCode, created)
			location := response.Header.Get("Location")
			require.Equal(t, "/api/jobs/"+created["id"].(string), location)

			response, report := call(t, server, "POST", "/api/jobs/run?queue=default&limit=10", "")
			require.Equal(t, http.StatusOK, response.StatusCode, report)
			require.EqualValues(t, 1, report["succeeded"], report)

			response, job := call(t, server, "GET", location, "")
			require.Equal(t, http.StatusOK, response.StatusCode, job)
			require.Equal(t, "succeeded", job["status"])
			require.Equal(t, "Hello, Ada", job["result"])
		})
	}
}

func TestEveryRouterKeepsTheHandlersAnswers(t *testing.T) {
	t.Parallel()
	for router := range routers {
		t.Run(router, func(t *testing.T) {
			t.Parallel()
			server := serve(t, router)
			for _, c := range []struct {
				method, path string
				status       int
				allow        string
			}{
				{"GET", "/healthz", http.StatusNoContent, ""},
				{"GET", "/api/jobs", http.StatusOK, ""},
				{"DELETE", "/api/jobs", http.StatusMethodNotAllowed, "GET, HEAD, POST"},
				{"GET", "/api/jobs/queues", http.StatusOK, ""},
				{"GET", "/api/jobs/run", http.StatusMethodNotAllowed, "POST"},
				{"POST", "/api/jobs/run/", http.StatusNotFound, ""},
				{"GET", "/api/jobs/0190a5b2-0000-7000-8000-000000000000", http.StatusNotFound, ""},
				{"DELETE", "/api/jobs/0190a5b2-0000-7000-8000-000000000000", http.StatusMethodNotAllowed, "GET, HEAD"},
			} {
				response, answer := call(t, server, c.method, c.path, "")
				require.Equal(t, c.status, response.StatusCode, "%s %s: %v", c.method, c.path, answer)
				require.Equal(t, c.allow, response.Header.Get("Allow"), "%s %s", c.method, c.path)
				if c.status >= 400 {
					require.Equal(t, "application/problem+json", response.Header.Get("Content-Type"), "%s %s", c.method, c.path)
				}
			}
		})
	}
}
