package scheduler_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// What ten thousand jobs cost that run before or after one grows with their number,
// not with its square: it is counted in blocks, which don't depend on the machine.
func TestTenThousandDependencies(t *testing.T) {
	t.Parallel()
	const n, each = 10_000, 120 // blocks a job, of all that is read to record its end
	url := newDatabase(t)
	p := newPlanTest(t, url, "auto")
	run := func(jobs int) (blocks int) {
		p.forget()
		require.Equal(t, jobs, mustRun(t, p.Scheduler, scheduler.RunFilter{Limit: n}).Succeeded)
		return p.blocks(t, ".finish(")
	}
	create := func(data scheduler.JobData, more ...scheduler.NewJob) []string {
		jobs := make([]scheduler.NewJob, n, n+1)
		for i := range jobs {
			jobs[i] = scheduler.NewJob{Name: "short", JobData: data}
		}
		p.forget()
		ids, err := p.CreateJobs(t.Context(), append(jobs, more...))
		require.NoError(t, err)
		return ids
	}

	ids := create(scheduler.JobData{})
	last := mustCreate(t, p.Scheduler, "short", after(ids...))
	require.Equal(t, n, last.WaitsFor)
	require.Less(t, p.blocks(t, "create_after("), n*each, "create a job after many")
	require.Less(t, run(n), n*each, "fan in")
	read := 0
	for parent, err := range p.Parents(t.Context(), last.ID) {
		require.NoError(t, err)
		require.Equal(t, ids[read], parent.ID)
		read++
	}
	require.Equal(t, n, read)
	require.Equal(t, 1, mustRun(t, p.Scheduler, scheduler.RunFilter{}).Succeeded)

	create(after("first"), scheduler.NewJob{Name: "short", Label: "first"})
	require.Less(t, p.blocks(t, "create_after("), n*each, "create many after one")
	require.Less(t, run(1), n*each, "fan out")
	require.Less(t, run(n), n*each)

	ids = create(after("first"), scheduler.NewJob{Name: "short", Label: "first", JobData: tomorrow()})
	p.forget()
	mustCancel(t, p.Scheduler, ids[n])
	require.Less(t, p.blocks(t, "cancel_job("), n*each, "call many off")
	require.Equal(t, n+1, mustQuery[int](t, p.aside, "SELECT count(*) FROM scheduler.jobs WHERE status = 'cancelled'"))
}

// A rescue looks for what it takes back in another way than for those that run after
// it. Neither is found by reading all jobs.
func TestRescueOfParentsReadsLittle(t *testing.T) {
	t.Parallel()
	a := newAfterTest(t, nil)
	mustExec(t, a.pool, fmt.Sprintf("ALTER TABLE %[1]s.jobs SET (autovacuum_enabled = false); ALTER TABLE %[1]s.job_dependencies SET (autovacuum_enabled = false)", a.schema),
		pgx.QueryExecModeSimpleProtocol)
	mustExec(t, a.pool, fmt.Sprintf(`INSERT INTO %[1]s.jobs (id, name, status, finished_at, lane)
		SELECT gen_random_uuid(), 'a', 'succeeded', now(), NULL FROM generate_series(1, 30000)`, a.schema))
	mustExec(t, a.pool, fmt.Sprintf(`INSERT INTO %[1]s.job_dependencies (child, parent, after_any, outcome)
		SELECT gen_random_uuid(), gen_random_uuid(), false, 'succeeded' FROM generate_series(1, 30000)`, a.schema))
	session, err := a.pool.Acquire(t.Context())
	require.NoError(t, err)
	defer session.Release()
	var blocks []int // a session also reads anew what it has to know of the schema, when that may have changed
	for i := range 5 {
		parent := mustCreate(t, a.Scheduler, "a", scheduler.JobData{MaxAttempts: 1}).ID
		child := mustCreate(t, a.Scheduler, "a", after(parent)).ID
		lost := fmt.Sprintf("ffffffff-0000-0000-0000-00000000000%d", i)
		mustExec(t, a.pool, "INSERT INTO "+a.schema+".leases (id, holder, expires_at) VALUES ($1::text::uuid, '', now())", lost)
		mustExec(t, a.pool, "UPDATE "+a.schema+".jobs SET status = 'running', attempt = 1, claims = 1, lease_id = $1::text::uuid WHERE id = $2::text::uuid", lost, parent)
		var text string
		require.NoError(t, session.QueryRow(t.Context(), "EXPLAIN (ANALYZE, BUFFERS, FORMAT json) SELECT FROM "+a.schema+".rescue()").Scan(&text))
		var plans []struct{ Plan planNode }
		require.NoError(t, json.Unmarshal([]byte(text), &plans))
		blocks = append(blocks, plans[0].Plan.Hit+plans[0].Plan.Read)
		a.requireCalledOff(t, child, parent+", which is dead")
	}
	slices.Sort(blocks)
	require.Less(t, blocks[2], 300)
}

// blocks is how many blocks the statements read that were sent since forget, of
// which each has part in it.
func (p *planTest) blocks(t *testing.T, part string) (blocks int) {
	for _, text := range p.record(t, part) {
		var statement struct {
			Text string `json:"Query Text"`
			Plan planNode
		}
		require.NoError(t, json.Unmarshal([]byte(text), &statement))
		if strings.Contains(statement.Text, part) && strings.Contains(statement.Text, "$1::") {
			blocks += statement.Plan.Hit + statement.Plan.Read
		}
	}
	require.Positive(t, blocks)
	return blocks
}
