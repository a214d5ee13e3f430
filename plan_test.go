package scheduler_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

const (
	finishedJobs = 200_000
	pendingJobs  = 30_000 // due tomorrow
	failedJobs   = 500    // waiting for their backoff
	runningJobs  = 20     // of another process
	strangerJobs = 5      // due, but nobody here has a handler

	lostJobs = 3   // of a process that is gone
	oldJobs  = 100 // kept long enough

	// live is how many are not finished, with room for those that operations add.
	live = pendingJobs + failedJobs + runningJobs + strangerJobs + 2000
)

var (
	none   []string
	byID   = []string{"jobs_pkey"}
	byLive = []string{"jobs_live"}
	either = []string{"jobs_live", "jobs_pkey"}

	anyOfIDs = []string{"jobs_live", "jobs_pkey", "jobs_without_result"}

	forExceptions = []string{"jobs_live", "jobs_pkey", "jobs_cancelling"}
)

// operations are what the library does often. The bounds of rows are about twice
// what was measured, because that depends on how many jobs are recorded at once.
// Those of blocks are a multiple, because entries of jobs that were there before
// are passed over until a vacuum, on a busy machine more of them; and no more than
// a walk through the 30,000 pending jobs in an index.
var operations = []struct {
	title   string
	do      func(p *planTest, t *testing.T)
	asks    string   // part of a statement by which it is known that it was the one
	indexes []string // those by which jobs may be found; by ctid they may be found everywhere
	rows    int      // how many rows of jobs are read at most
	blocks  int      // how many blocks one statement reads at most, of the table and of indexes: a walk through an index may read no row
}{
	{"create a job", (*planTest).createJob, "INSERT INTO", none, 0, 0},
	{"create jobs", (*planTest).createJobs, "unnest", none, 0, 0},
	{"create a job in a transaction", (*planTest).createJobTx, "notify_created($1", none, 0, 0},
	{"create a job in SQL", (*planTest).createJobInSQL, "create_job(", none, 0, 0},
	{"create a unique job", (*planTest).createUnique, "create_unique(", byID, 8, 200},
	{"read a job", (*planTest).readJob, "WHERE id =", byID, 1, 10},
	{"run with nothing due", (*planTest).runNothingDue, "claim(", byLive, 20, 250},
	{"run ten jobs", (*planTest).runTen, "finish(", either, 60, 200},
	{"run a hundred jobs", (*planTest).runHundred, "finish(", either, 350, 1200},
	{"run jobs after each other", (*planTest).runAfter, "parents_of(", either, 700, 200},
	{"cancel and retry jobs after each other", (*planTest).callOffAfter, "wait_again.ids", either, 120, 200},
	{"fail and rerun ten jobs", (*planTest).rerunFailed, "finish(", either, 100, 200},
	{"run a blocking queue", (*planTest).runSerial, "claim_blocking(", either, 30, 200},
	{"finish a job that was taken away", (*planTest).finishTakenAway, "finish(", either, 20, 200},
	{"complete a job in a transaction", (*planTest).complete, "complete(", either, 20, 200},
	{"report the progress of ten jobs", (*planTest).reportProgress, "report_progress(", either, 100, 200},
	{"settle forty jobs", (*planTest).settle, "settle(", either, 200, 500},
	{"look for cancelled jobs", (*planTest).lookForCancelled, "cancelled_under(", none, 0, 0}, // an exception too
	{"cancel and retry a job", (*planTest).cancelAndRetry, "retry_job(", either, 45, 200},
	{"reschedule and delete a job", (*planTest).rescheduleAndDelete, "delete_job(", either, 30, 200},
	{"change twenty jobs", (*planTest).changeMany, "control_jobs(", anyOfIDs, 1600, 400},
	{"tell of a dead job", (*planTest).tellOfDead, "tell_dead(", either, 80, 200},
	{"cancel a running job", (*planTest).cancelRunning, "finish(", either, 35, 200},
	{"resident", (*planTest).resident, "pg_notify(", either, 200, 200},
	{"tick of a worker", (*planTest).tickDefault, "run_worker(", byLive, 4, 200},
	{"tick of a blocking queue's worker", (*planTest).tickSerial, "run_worker(", either, 6, 200},
	{"tick after a lease was lost", (*planTest).tickLost, "rescue()", either, 40, 200},
	{"rescue", (*planTest).rescue, "rescue()", either, 40, 200},
	{"clean up", (*planTest).cleanUp, "clean_up(", none, 0, 0}, // all of it is among the exceptions
	{"a process comes and goes", (*planTest).comeAndGo, "DELETE FROM", byLive, 40, 200},
	{"a process loses a claim", (*planTest).loseClaim, "hand_back.lease", byLive, 20, 200},
}

// exceptions are statements that come rarely. Most look for running jobs by
// their lease, which no index has, and so read all that is not finished. They
// may go by a bitmap, and are bounded one by one.
var exceptions = []struct {
	part string // of the statement
	rows int    // how many rows of jobs it reads at most
}{
	{"SELECT min(l.expires_at)", live},                        // next_due, when a lease is lost
	{"lease_id = ANY (v_lost)", live},                         // rescue, likewise
	{"j.id = ANY (v_jobs)", 40},                               // rescue, of those
	{"l.id = ANY (v_lost)", live},                             // rescue, of the lease
	{"hand_back.lease", live},                                 // after a claim whose answer was lost
	{"greatest(j.attempt", 20},                                // likewise, of those
	{"end_lease.lease", live},                                 // at the end of a process
	{"'deleted', now()", live},                                // clean_up, of leases that were deleted by hand
	{"j.finished_at <= now()", oldJobs},                       // clean_up, of what is old
	{"OFFSET c_look", oldJobs},                                //
	{"j.id = ANY (v_ids)", oldJobs},                           //
	{"j.id = k.job_id\n        WHERE (j.id IS NULL", oldJobs}, // clean_up, of keys
	{"j.id = ANY (ids)", oldJobs},                             //
	{"DELETE FROM \"scheduler\".job_progress", 200},           // clean_up, of progress: no more than there is of it
	{"DELETE FROM \"scheduler\".job_dependencies", 200},       // likewise, of dependencies
	{"SET lane = 3 * j", 80},                                  // settle, to lock and to write
	{"WHERE j.cancelling AND", 4},                             // of running jobs that were called off, those are all
	{"j.cancelling AND f.status", 4},                          // finish, of those
}

// A table of many finished jobs costs nobody anything: what is done often finds
// its rows by an index, and reads no others. That has to hold while the table is
// too new to have statistics as well as afterwards; for plans that fit the
// parameters as well as for generic ones; and for plans that were made when the
// table was empty.
func TestPlansFindJobsByTheirIndexes(t *testing.T) {
	t.Parallel()
	url := newDatabase(t)
	early := newPlanTest(t, url, "force_generic_plan")
	mustExec(t, early.aside, `ALTER TABLE scheduler.jobs SET (autovacuum_enabled = false),
		ADD CONSTRAINT nobody_may_run_it CHECK (name <> 'refused' OR status <> 'running')`)
	mustExec(t, early.aside, `INSERT INTO scheduler.leases (id, holder, expires_at, listening)
		VALUES (gen_random_uuid(), 'another', now() + interval '1 hour', true)`)
	for _, op := range operations {
		op.do(early, t)
		early.record(t, op.asks)
	}
	early.fill(t)
	check := func(title string, p *planTest, analyzed bool) {
		require.Equal(t, analyzed, mustQuery[bool](t, p.aside, "SELECT reltuples >= 0 FROM pg_class WHERE oid = 'scheduler.jobs'::regclass"))
		for _, op := range operations {
			t.Run(title+"/"+op.title, func(t *testing.T) {
				p.forget() // what one that failed has left
				blocks := op.blocks
				if analyzed {
					mustExec(t, p.aside, "VACUUM (INDEX_CLEANUP ON) scheduler.jobs")
				} else {
					blocks *= 2 // a vacuum would count the rows
				}
				op.do(p, t)
				c := planCheck{title: op.title, indexes: op.indexes}
				for _, text := range p.record(t, op.asks) {
					c.add(t, text)
				}
				require.Equal(t, op.blocks > 0, c.texts != "", "whether jobs are looked for to %s", op.title)
				require.LessOrEqual(t, c.rows, op.rows, "rows of jobs that are read to %s:\n%s", op.title, c.texts)
				require.LessOrEqual(t, c.blocks, blocks, "blocks that a statement reads to %s:\n%s", op.title, c.texts)
			})
		}
	}
	check("planned when empty", early, false)
	check("fresh", newPlanTest(t, url, "force_custom_plan"), false)
	mustExec(t, early.aside, "VACUUM ANALYZE scheduler.jobs")
	check("analyzed", newPlanTest(t, url, "force_custom_plan"), true)
	check("analyzed, generic", newPlanTest(t, url, "force_generic_plan"), true)
}

// planCheck looks at the plans of one operation.
type planCheck struct {
	title        string
	indexes      []string
	rows, blocks int    // of all statements; of the one that reads most
	texts        string // the plans that count in rows and blocks
}

func (c *planCheck) add(t *testing.T, text string) {
	var statement struct {
		Text string `json:"Query Text"`
		Plan planNode
	}
	require.NoError(t, json.Unmarshal([]byte(text), &statement))
	scans := statement.Plan.scans()
	for _, exception := range exceptions {
		if !strings.Contains(statement.Text, exception.part) {
			continue
		}
		rows := 0
		for _, scan := range scans {
			require.Contains(t, forExceptions, scan.Index, "the index of a %s to %s:\n%s", scan.Type, c.title, text)
			rows += scan.read()
		}
		require.LessOrEqual(t, rows, exception.rows, "rows of jobs that are read to %s:\n%s", c.title, text)
		return
	}
	blocks := 0
	for _, scan := range scans {
		if scan.Type != "Tid Scan" {
			require.Contains(t, []string{"Index Scan", "Index Only Scan"}, scan.Type, "the scan of jobs to %s:\n%s", c.title, text)
			require.Contains(t, c.indexes, scan.Index, "the index of a %s to %s:\n%s", scan.Type, c.title, text)
		}
		c.rows += scan.read()
		blocks += scan.Hit + scan.Read
	}
	c.blocks = max(c.blocks, blocks)
	if len(scans) > 0 {
		c.texts += text + "\n"
	}
}

// planNode is a node of a plan, as EXPLAIN (ANALYZE, BUFFERS) has it.
type planNode struct {
	Type      string  `json:"Node Type"`
	Relation  string  `json:"Relation Name"`
	Index     string  `json:"Index Name"`
	Rows      float64 `json:"Actual Rows"` // in each loop, as what was removed
	Filtered  float64 `json:"Rows Removed by Filter"`
	Rechecked float64 `json:"Rows Removed by Index Recheck"`
	Loops     float64 `json:"Actual Loops"`
	Hit       int     `json:"Shared Hit Blocks"`
	Read      int     `json:"Shared Read Blocks"`
	Plans     []planNode
}

// scans are the nodes that read jobs. That of a bitmap has the name of its index.
func (n planNode) scans() (scans []planNode) {
	// Of no id at all, which is any index's condition, nothing is read.
	nothing := n.Index == "jobs_without_result" && n.Hit+n.Read == 0
	if n.Relation == "jobs" && strings.HasSuffix(n.Type, "Scan") && !nothing {
		if n.Type == "Bitmap Heap Scan" {
			n.Index = n.Plans[0].Index
		}
		scans = append(scans, n)
	}
	for _, child := range n.Plans {
		scans = append(scans, child.scans()...)
	}
	return scans
}

// read is how many rows a scan has read.
func (n planNode) read() int {
	return int(math.Round((n.Rows + n.Filtered + n.Rechecked) * n.Loops))
}

// planTest is a scheduler whose statements are recorded with their plans.
type planTest struct {
	*scheduler.Scheduler
	pool    *pgxpool.Pool
	aside   *pgxpool.Pool // nothing is recorded of this one
	release chan struct{} // lets the jobs named long return
	queues  queueConfigs  // beside those of all

	mu       sync.Mutex
	recorded []string
}

// newPlanTest has a scheduler that has run once, so that what a process does
// now and then (a clean-up, a warning of strangers) is behind it.
func newPlanTest(t *testing.T, url, planCacheMode string) *planTest {
	return newPlanTestOf(t, url, planCacheMode, nil)
}

// newPlanTestOf has other queues, too.
func newPlanTestOf(t *testing.T, url, planCacheMode string, queues queueConfigs) *planTest {
	p := &planTest{aside: newPoolOn(t, url), release: make(chan struct{}), queues: queues}
	config := p.aside.Config()
	config.ConnConfig.OnNotice = p.note
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		// At the level of a notice, the plans come here and don't fill the server's log.
		_, err := conn.Exec(ctx, `
			LOAD 'auto_explain';
			SET auto_explain.log_level = notice;
			SET auto_explain.log_format = json;
			SET auto_explain.log_min_duration = 0;
			SET auto_explain.log_nested_statements = on;
			SET auto_explain.log_analyze = on;
			SET auto_explain.log_buffers = on;
			SET auto_explain.log_timing = off;
			SET plan_cache_mode = `+planCacheMode)
		return err
	}
	p.pool = newPoolWith(t, config)
	p.Scheduler = p.scheduler(t)
	mustRun(t, p.Scheduler, scheduler.RunFilter{Queue: "quiet"})
	p.record(t, "clean_up(")
	return p
}

func (p *planTest) scheduler(t *testing.T) *scheduler.Scheduler {
	return newSchedulerOn(t, p.pool, func(c *scheduler.Config) {
		c.Schema, c.Lease = "", time.Hour // so there are no renewals
		c.Queues = queueConfigs{"quiet": {}, "refused": {}, "mortal": {MaxAttempts: 1, OnDead: "short"}}
		maps.Copy(c.Queues, p.queues)
		c.JobNames = scheduler.JobNames{
			"short": succeed, "refused": succeed,
			"long": func(context.Context, *scheduler.Job) (any, error) {
				<-p.release
				return nil, nil
			},
			"failing": func(_ context.Context, job *scheduler.Job) (any, error) {
				if job.Attempt == 1 {
					return nil, scheduler.RetryAfter(0, nil)
				}
				return nil, nil
			},
			"completing": func(ctx context.Context, job *scheduler.Job) (any, error) {
				return nil, pgx.BeginFunc(ctx, p.pool, func(tx pgx.Tx) error { return p.CompleteTx(ctx, tx, job, nil) })
			},
			"reporting": func(ctx context.Context, _ *scheduler.Job) (any, error) {
				return nil, scheduler.SetProgress(ctx, 50, "")
			},
			"taken": func(ctx context.Context, job *scheduler.Job) (any, error) {
				_, err := p.aside.Exec(ctx, `UPDATE scheduler.jobs
					SET status = 'cancelled', lane = NULL, lease_id = NULL, finished_at = now() WHERE id = $1::text::uuid`, job.ID)
				return nil, err
			},
		}
	})
}

// fill adds the jobs that no operation is about.
func (p *planTest) fill(t *testing.T) {
	p.insert(t, fmt.Sprintf(`
		(%d, '6 days',   '2.5 seconds', 'short',    'succeeded', NULL, '0',     '1 second', 3, NULL),
		(%d, '10 hours', '1 second',    'short',    'pending',   0,    '1 day', NULL,       3, NULL),
		(%d, '1 hour',   '5 seconds',   'failing',  'failed',    1,    '1 day', NULL,       3, NULL),
		(%d, '1 hour',   '1 second',    'long',     'running',   2,    '0',     NULL,       1, 'another'),
		(%d, '1 hour',   '1 second',    'stranger', 'pending',   0,    '0',     NULL,       1, NULL)`,
		finishedJobs, pendingJobs, failedJobs, runningJobs, strangerJobs))
}

// insert adds jobs. Their kinds are the number of jobs, the age of the first
// one, how much later than the one before each was created, the name, status
// and lane, how long after its creation a job is due and was finished, over how
// many queues the jobs are spread, and the holder of their lease.
func (p *planTest) insert(t *testing.T, kinds string) {
	mustExec(t, p.aside, `
		INSERT INTO scheduler.jobs (id, name, queue, status, lane, run_at, created_at, finished_at, lease_id, attempt, claims, max_attempts)
		SELECT (left(scheduler.first_id_after(created_at)::text, 14) || '7' || right(gen_random_uuid()::text, 21))::uuid, k.name,
			(ARRAY['default', 'quiet', 'blocking'])[1 + i % k.queues], k.status, k.lane::smallint, created_at + k.due::interval, created_at,
			created_at + k.done::interval, (SELECT l.id FROM scheduler.leases l WHERE l.holder = k.holder), 1, 1, 2
		FROM (VALUES `+kinds+`) AS k (n, age, step, name, status, lane, due, done, queues, holder),
			generate_series(1, k.n) AS i, LATERAL (SELECT now() - k.age::interval + i * k.step::interval AS created_at) AS c`)
}

func (p *planTest) note(_ *pgconn.PgConn, n *pgconn.Notice) {
	if _, text, ok := strings.Cut(n.Message, "plan:\n"); ok {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.recorded = append(p.recorded, text)
	}
}

// waitAsked waits until a statement was executed.
func (p *planTest) waitAsked(t *testing.T, part string) {
	waitFor(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return slices.ContainsFunc(p.recorded, func(text string) bool { return strings.Contains(text, part) })
	})
}

func (p *planTest) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recorded = nil
}

// record waits for a statement, and returns what was executed since the last
// time.
func (p *planTest) record(t *testing.T, part string) (recorded []string) {
	p.waitAsked(t, part)
	p.mu.Lock()
	defer p.mu.Unlock()
	recorded, p.recorded = p.recorded, nil
	return recorded
}
