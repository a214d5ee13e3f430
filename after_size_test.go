package scheduler_test

import (
	"encoding/json"
	"strings"
	"testing"

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
