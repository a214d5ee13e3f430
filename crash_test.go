//go:build unix

package scheduler_test

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

func init() {
	childRoles["run 50"] = run50
	childRoles["late"] = runLate
	childRoles["run blocking"] = runBlocking
}

// run50 runs 50 jobs and gets stuck in the middle of them. It says when each of
// them is begun.
func run50() {
	var begun atomic.Int32
	s := childScheduler(scheduler.Config{Lease: time.Second, Concurrency: 8, JobNames: scheduler.JobNames{
		"a": func(context.Context, *scheduler.Job) (any, error) {
			i := begun.Add(1)
			fmt.Println("begun")
			if i > 25 {
				select {}
			}
			return "the child", nil
		},
	}})
	_, err := s.Run(context.Background(), scheduler.RunFilter{Limit: 50})
	exitOn(err)
}

func TestAKilledProcessLosesNoJob(t *testing.T) {
	t.Parallel()
	pool := newPool(t)
	var schema string
	s := newScheduler(t, func(c *scheduler.Config) {
		schema = c.Schema
		c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) { return "the parent", nil }}
	})
	ids := mustCreateMany(t, s, 50, "a", scheduler.JobData{})
	name := unique() // of the child's connections
	c := startChild(t, "run 50", "SCHEMA="+schema, "PGAPPNAME="+name)
	for range 25 + 8 { // what gets stuck takes all its slots
		require.Equal(t, "begun", c.Line(t))
	}
	count := func(status string) int {
		return mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = $1", status)
	}
	waitFor(t, func() bool { return count("succeeded") == 25 })
	c.Kill()
	waitGone(t, pool, name)
	stranded := mustQuery[[]string](t, pool, "SELECT array_agg(id::text) FROM "+schema+".jobs WHERE status = 'running'")
	require.GreaterOrEqual(t, len(stranded), 8)
	require.Equal(t, 25, count("succeeded"))
	require.Equal(t, 25, len(stranded)+count("pending"))

	waitFor(t, func() bool {
		mustRun(t, s, scheduler.RunFilter{Limit: 50})
		return count("succeeded") == 50
	})
	byChild := 0
	for _, id := range ids {
		job := mustGet(t, s, id)
		if string(job.Result) == `"the child"` {
			byChild++
		}
		require.Equal(t, slices.Contains(stranded, id), job.Attempt == 2, "what was recorded is not run again")
		require.Len(t, job.Errors, job.Attempt-1)
	}
	require.Equal(t, 25, byChild)
}

// waitGone waits until Postgres has noticed that a killed process is gone: what
// that had sent may be written until then.
func waitGone(t *testing.T, db database, name string) {
	waitFor(t, func() bool {
		return mustQuery[int](t, db, "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", name) == 0
	})
}

// runLate runs one job, whose handler does not look at its context and returns
// when it is told to.
func runLate() {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGUSR1)
	s := childScheduler(scheduler.Config{Lease: time.Second, JobNames: scheduler.JobNames{
		"a": func(ctx context.Context, _ *scheduler.Job) (any, error) {
			fmt.Println("begun")
			<-told
			<-ctx.Done()
			fmt.Println(context.Cause(ctx))
			return "late", nil
		},
	}})
	report, err := s.Run(context.Background(), scheduler.RunFilter{Queue: scheduler.JobQueue(os.Getenv("QUEUE"))})
	exitOn(err)
	fmt.Println("lost", report.Lost, "succeeded", report.Succeeded)
	report, err = s.Run(context.Background(), scheduler.RunFilter{Queue: scheduler.JobQueue(os.Getenv("QUEUE"))})
	exitOn(err)
	fmt.Println("picked", report.Picked)
}

// A process that was stopped for longer than its lease comes back too late.
func TestTheWritesOfAStoppedProcessBounce(t *testing.T) {
	t.Parallel()
	for _, queue := range []scheduler.JobQueue{scheduler.JobQueueDefault, scheduler.JobQueueBlocking} {
		t.Run(string(queue), func(t *testing.T) {
			t.Parallel()
			var schema string
			s := newScheduler(t, func(c *scheduler.Config) {
				schema = c.Schema
				c.JobNames = scheduler.JobNames{"a": func(context.Context, *scheduler.Job) (any, error) { return "in time", nil }}
			})
			id := mustCreate(t, s, "a", scheduler.JobData{Queue: queue}).ID
			c := startChild(t, "late", "SCHEMA="+schema, "QUEUE="+string(queue))
			require.Equal(t, "begun", c.Line(t))
			require.NoError(t, c.cmd.Process.Signal(syscall.SIGSTOP))
			waitFor(t, func() bool { return mustRun(t, s, scheduler.RunFilter{Queue: queue}).Succeeded == 1 })
			job := mustGet(t, s, id)
			require.Equal(t, 2, job.Attempt)
			require.Len(t, job.Errors, 1)

			require.NoError(t, c.cmd.Process.Signal(syscall.SIGUSR1))
			require.NoError(t, c.cmd.Process.Signal(syscall.SIGCONT))
			require.Equal(t, scheduler.ErrLeaseLost.Error(), c.Line(t))
			require.Equal(t, "lost 1 succeeded 0", c.Line(t))
			require.Equal(t, "picked 0", c.Line(t), "it works again")
			require.NoError(t, c.Wait(t))
			require.Equal(t, job, mustGet(t, s, id))
		})
	}
}

// runBlocking has three runs of a blocking queue under way until it is killed.
// Its handler writes into a journal when it begins and when it ends.
func runBlocking() {
	pool, err := pgxpool.New(context.Background(), os.Getenv("DATABASE_URL"))
	exitOn(err)
	const insert = "INSERT INTO %s.journal (job, event, process) VALUES ($1, $2, $3)"
	write := func(ctx context.Context, job *scheduler.Job, event string) error {
		_, err := pool.Exec(ctx, fmt.Sprintf(insert, os.Getenv("SCHEMA")), string(job.Payload), event, os.Getpid())
		return err
	}
	s := childScheduler(scheduler.Config{Lease: 3 * time.Second, JobNames: scheduler.JobNames{
		"a": func(ctx context.Context, job *scheduler.Job) (any, error) {
			if err := write(ctx, job, "begin"); err != nil {
				return nil, err
			}
			time.Sleep(5 * time.Millisecond) // work, during which others could overlap
			return nil, write(ctx, job, "end")
		},
	}})
	for range 3 {
		go func() {
			for range time.Tick(10 * time.Millisecond) { // triggers come whether there is work or not
				_, err := s.Run(context.Background(), scheduler.RunFilter{Queue: scheduler.JobQueueBlocking, Limit: 7})
				exitOn(err)
			}
		}()
	}
	select {}
}

func TestBlockingQueueStaysInOrderOverProcesses(t *testing.T) {
	t.Parallel()
	for name, kill := range map[string]bool{"undisturbed": false, "with a process killed": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := newPool(t)
			var schema string
			s := newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
			mustExec(t, pool, "CREATE TABLE "+schema+".journal (id bigserial, job text, event text, process int)")
			n := 0
			createUntil := func(most int) {
				for ; n < most; n++ {
					mustCreate(t, s, "a", scheduler.JobData{Queue: scheduler.JobQueueBlocking, Payload: n})
				}
			}
			createUntil(60)
			mine := unique() // names the connections of the first one
			first := startChild(t, "run blocking", "SCHEMA="+schema, "PGAPPNAME="+mine)
			startChild(t, "run blocking", "SCHEMA="+schema)
			const isIts = "SELECT count(*) FROM %[1]s.jobs j JOIN %[1]s.leases l ON l.id = j.lease_id WHERE l.holder LIKE '%%:' || $1::text"
			stranded := 0
			if kill {
				// In the middle of one of its own jobs, so that one is stranded.
				waitFor(t, func() bool {
					succeeded := mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'succeeded'")
					if succeeded < 20 {
						return false
					}
					createUntil(succeeded + 40) // the other one may have had most of them
					require.NoError(t, first.cmd.Process.Signal(syscall.SIGSTOP))
					if mustQuery[int](t, pool, fmt.Sprintf(isIts, schema), fmt.Sprint(first.cmd.Process.Pid)) == 1 {
						return true
					}
					require.NoError(t, first.cmd.Process.Signal(syscall.SIGCONT))
					return false
				})
				first.Kill()
				waitGone(t, pool, mine)
				stranded = mustQuery[int](t, pool, fmt.Sprintf(isIts, schema), fmt.Sprint(first.cmd.Process.Pid))
				startChild(t, "run blocking", "SCHEMA="+schema)
			}
			waitFor(t, func() bool {
				return mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".jobs WHERE status = 'succeeded'") == n
			})

			// In the journal: begin and end of each job, one job after another; a
			// killed process leaves an end out, and its job is begun again.
			journal := strings.Fields(mustQuery[string](t, pool, "SELECT string_agg(event || job, ' ' ORDER BY id) FROM "+schema+".journal"))
			again := 0
			for i := range n {
				begin, end := fmt.Sprintf("begin%d", i), fmt.Sprintf("end%d", i)
				if kill && len(journal) > 1 && journal[0] == begin && (journal[1] == begin || len(journal) > 2 && journal[1] == end && journal[2] == begin) {
					again++
					journal = journal[1:]
					if journal[0] == end { // it was killed between that and the record
						journal = journal[1:]
					}
				}
				require.Equal(t, []string{begin, end}, journal[:min(2, len(journal))])
				journal = journal[2:]
			}
			require.Empty(t, journal)
			require.LessOrEqual(t, again, 1)
			require.Greater(t, mustQuery[int](t, pool, "SELECT count(DISTINCT process) FROM "+schema+".journal"), 1)
			require.Equal(t, stranded, mustQuery[int](t, pool, "SELECT count(errors) FROM "+schema+".jobs"))
		})
	}
}
