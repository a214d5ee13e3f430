package scheduler_test

import (
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/relay-club/scheduler"
)

// actions are the steps of a sequence. "" is what comes after each.
func (m *modelTest) actions() map[string]func(*rapid.T) {
	actions := map[string]func(*rapid.T){}
	for _, step := range []struct {
		name   string
		weight int
		do     func(*rapid.T)
	}{
		{"create", 2, m.create}, {"batch", 3, m.createBatch}, {"tx", 1, m.createTx}, {"sql", 1, m.createInSQL},
		{"run", 6, m.run}, {"run slowly", 2, m.runSlowly}, {"release", 2, m.release}, {"crash", 1, m.crash}, {"work", 1, m.work},
		{"cancel", 2, m.cancel}, {"retry", 2, m.retry}, {"reschedule", 1, m.reschedule}, {"delete", 1, m.delete}, {"bulk", 3, m.bulk},
		{"pause", 1, m.pause}, {"resume", 2, m.resume}, {"time", 3, m.moveTime},
		{"clean up", 1, m.cleanUp}, {"migrate", 1, m.migrate}, {"list", 1, m.list},
	} {
		for i := range step.weight {
			actions[step.name+strings.Repeat(" ", i)] = step.do
		}
	}
	for name, action := range actions {
		actions[name] = func(t *rapid.T) {
			m.tick()
			action(t)
		}
	}
	actions[""] = m.check
	return actions
}

var (
	anyQueue   = rapid.SampledFrom([]scheduler.JobQueue{"", "blocking", "own", "skipping"})
	anyVerdict = rapid.SampledFrom([]verdict{succeeds, fails, snoozes, retries, givesUp, panics, completes, uncompletes})
	anyScript  = rapid.SliceOfN(anyVerdict, 1, 3)
	anyKey     = rapid.SampledFrom([]string{"", "k", "l"})
	anyFor     = rapid.SampledFrom([]time.Duration{0, 90 * time.Minute})
	anyOffset  = rapid.SampledFrom([]time.Duration{0, -time.Hour, time.Hour, -2 * time.Hour, 2 * time.Hour}) // 0: the zero time
)

// process draws one of the two.
func (m *modelTest) process(t *rapid.T) *testProcess {
	if rapid.Bool().Draw(t, "parallel") {
		return m.parallel
	}
	return m.serial
}

func (m *modelTest) runAt(t *rapid.T) time.Time {
	if offset := anyOffset.Draw(t, "run at"); offset != 0 {
		return m.model.now.Add(offset)
	}
	return time.Time{}
}

// job draws a job, which may be deleted.
func (m *modelTest) job(t *rapid.T) *modelJob {
	jobs := slices.Concat(m.model.jobs, m.deleted)
	if len(jobs) == 0 {
		t.Skip("there is no job")
	}
	return jobs[rapid.IntRange(0, len(jobs)-1).Draw(t, "job")]
}

// requireControl compares what came of asking for something to be done to a job.
func (m *modelTest) requireControl(t *rapid.T, j *modelJob, expected error, job *scheduler.Job, err error) {
	if expected != nil {
		require.ErrorIs(t, err, expected)
		return
	}
	require.NoError(t, err)
	require.Equal(t, j.row(), rowOf(job))
}

func (m *modelTest) cancel(t *rapid.T) {
	j := m.job(t)
	job, err := m.serial.CancelJob(t.Context(), j.id)
	m.requireControl(t, j, m.model.cancel(j), job, err)
}

func (m *modelTest) retry(t *rapid.T) {
	j := m.job(t)
	job, err := m.serial.RetryJob(t.Context(), j.id)
	m.requireControl(t, j, m.model.retry(j), job, err)
}

func (m *modelTest) reschedule(t *rapid.T) {
	j, runAt := m.job(t), m.runAt(t)
	job, err := m.serial.RescheduleJob(t.Context(), j.id, runAt)
	m.requireControl(t, j, m.model.reschedule(j, runAt), job, err)
}

func (m *modelTest) delete(t *rapid.T) {
	j := m.job(t)
	err := m.serial.DeleteJob(t.Context(), j.id)
	if expected := m.model.delete(j); expected != nil {
		require.ErrorIs(t, err, expected)
		return
	}
	require.NoError(t, err)
	m.deleted = append(m.deleted, j)
}

var (
	anyPause  = rapid.SampledFrom([]scheduler.JobQueue{"", "blocking", "own", "skipping", scheduler.JobQueueAll})
	anyResume = rapid.SampledFrom([]scheduler.JobQueue{scheduler.JobQueueAll, scheduler.JobQueueAll, "", "blocking", "own", "skipping"})
)

func (m *modelTest) pause(t *rapid.T) {
	queue := anyPause.Draw(t, "queue")
	require.NoError(t, m.serial.PauseQueue(t.Context(), queue))
	m.model.setPaused(queue, true)
}

func (m *modelTest) resume(t *rapid.T) {
	queue := anyResume.Draw(t, "queue")
	require.NoError(t, m.serial.ResumeQueue(t.Context(), queue))
	m.model.setPaused(queue, false)
}

// moveTime makes everything longer ago. Leases stay as they are: they are
// renewed meanwhile, but for those of crashed processes.
func (m *modelTest) moveTime(t *rapid.T) {
	d := rapid.SampledFrom([]time.Duration{time.Hour, 3 * time.Hour}).Draw(t, "by")
	_, err := m.pool.Exec(t.Context(), `UPDATE `+m.schema+`.jobs SET run_at = run_at - $1::bigint * interval '1 microsecond',
		created_at = created_at - $1::bigint * interval '1 microsecond', started_at = started_at - $1::bigint * interval '1 microsecond',
		finished_at = finished_at - $1::bigint * interval '1 microsecond'`, d.Microseconds())
	require.NoError(t, err)
	m.model.move(d)
}

// cleanUp deletes what is finished. It looks only at jobs whose ids are old
// enough for the shorter of the two times, and ids don't move with time.
func (m *modelTest) cleanUp(t *rapid.T) {
	other := rapid.SampledFrom([]time.Duration{-1, 0, 90 * time.Minute}).Draw(t, "keep")
	keep, keepDead := time.Duration(0), other
	if rapid.Bool().Draw(t, "dead go first") {
		keep, keepDead = keepDead, keep
	}
	interval := func(d time.Duration) *int64 {
		if d < 0 {
			return nil
		}
		us := d.Microseconds()
		return &us
	}
	var deleted int
	err := m.pool.QueryRow(t.Context(), `SELECT `+m.schema+`.clean_up($1::bigint * interval '1 microsecond', $2::bigint * interval '1 microsecond')`,
		interval(keep), interval(keepDead)).Scan(&deleted)
	require.NoError(t, err)
	before := len(m.model.jobs)
	m.model.cleanUp(keep, keepDead)
	require.Equal(t, before-len(m.model.jobs), deleted)
}

func (m *modelTest) migrate(t *rapid.T) {
	require.NoError(t, m.process(t).Migrate(t.Context()))
}

// list reads what a filter finds, page by page.
func (m *modelTest) list(t *rapid.T) {
	filter := scheduler.JobFilter{
		Statuses: rapid.SliceOfN(rapid.SampledFrom([]scheduler.JobStatus{"pending", "running", "succeeded", "failed", "dead", "cancelled"}), 0, 3).Draw(t, "statuses"),
		Queues:   rapid.SliceOfN(rapid.SampledFrom([]scheduler.JobQueue{"default", "blocking", "own", "skipping"}), 0, 2).Draw(t, "queues"),
		Names:    rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b"}), 0, 1).Draw(t, "names"),
		Owner:    rapid.SampledFrom([]string{"", "ann"}).Draw(t, "owner"),
		Limit:    rapid.IntRange(1, 4).Draw(t, "limit"),
	}
	expected := []string{}
	for _, j := range slices.Backward(m.inOrder(func(j *modelJob) bool {
		return (len(filter.Statuses) == 0 || slices.Contains(filter.Statuses, j.status)) &&
			(len(filter.Queues) == 0 || slices.Contains(filter.Queues, j.queue.name)) &&
			(len(filter.Names) == 0 || slices.Contains(filter.Names, j.name)) && (filter.Owner == "" || filter.Owner == j.owner)
	})) {
		expected = append(expected, j.id)
	}
	found := []string{}
	for {
		page, err := m.parallel.ListJobs(t.Context(), filter)
		require.NoError(t, err)
		found = append(found, idsOf(page.Jobs)...)
		if filter.Cursor = page.Next; filter.Cursor == "" {
			break
		}
	}
	require.Equal(t, expected, found)
}
