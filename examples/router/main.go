// Command router shows how to mount the scheduler's Handler in the router that
// a service has: go run . servemux|chi|gin|echo, with DATABASE_URL and
// SCHEDULER_TOKEN set.
package main

import (
	"cmp"
	"context"
	"log"
	"maps"
	"net/http"
	"os"
	"slices"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/labstack/echo/v4"

	"github.com/relay-club/scheduler"
)

// routers has a service's own routes with the scheduler beside them, by router.
// None of them may strip the prefix: the Handler wants to see whole paths.
var routers = map[string]func(jobs http.Handler) http.Handler{
	// net/http: one pattern for the path itself, one for what is below it.
	"servemux": func(jobs http.Handler) http.Handler {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /healthz", healthy)
		mux.Handle("/api/jobs", jobs)
		mux.Handle("/api/jobs/", jobs)
		return mux
	},

	// chi: Mount takes both, and leaves the request's path as it is.
	"chi": func(jobs http.Handler) http.Handler {
		r := chi.NewRouter()
		r.Get("/healthz", healthy)
		r.Mount("/api/jobs", jobs)
		return r
	},

	// gin: a catch-all stands for what is below a slash, so it takes two routes.
	"gin": func(jobs http.Handler) http.Handler {
		r := gin.New()
		r.GET("/healthz", gin.WrapF(healthy))
		r.Any("/api/jobs", gin.WrapH(jobs))
		r.Any("/api/jobs/*path", gin.WrapH(jobs))
		return r
	},

	// echo: a star matches the empty rest too.
	"echo": func(jobs http.Handler) http.Handler {
		e := echo.New()
		e.GET("/healthz", echo.WrapHandler(http.HandlerFunc(healthy)))
		e.Any("/api/jobs*", echo.WrapHandler(jobs))
		return e
	},
}

func healthy(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }

func main() {
	if len(os.Args) != 2 || routers[os.Args[1]] == nil {
		log.Fatalf("usage: router %v", slices.Sorted(maps.Keys(routers)))
	}
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	jobs, err := scheduler.New(pool, scheduler.Config{
		JobNames: scheduler.JobNames{"greet": scheduler.Handle(greet)},
		Tokens:   []string{os.Getenv("SCHEDULER_TOKEN")},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := jobs.Migrate(ctx); err != nil {
		log.Fatal(err)
	}
	address := cmp.Or(os.Getenv("ADDRESS"), "127.0.0.1:8080")
	log.Printf("%s serves on %s", os.Args[1], address)
	log.Fatal(http.ListenAndServe(address, routers[os.Args[1]](jobs.Handler())))
}

func greet(_ context.Context, name string) (string, error) { return "Hello, " + name, nil }
