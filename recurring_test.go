package scheduler_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// recurringTest is a scheduler in a database in which there is no pg_cron: what
// is fired is fired by the test.
type recurringTest struct {
	*scheduler.Scheduler
	pool   *pgxpool.Pool
	config scheduler.Config
}

func newRecurringTest(t *testing.T, recurring ...scheduler.RecurringJob) *recurringTest {
	r := &recurringTest{pool: newPoolOn(t, newDatabase(t))}
	r.Scheduler = newSchedulerOn(t, r.pool, func(c *scheduler.Config) {
		c.Schema, c.Recurring = "", recurring
		c.JobNames = scheduler.JobNames{"report": succeed}
		c.Queues = queueConfigs{"own": {MaxAttempts: 3}}
		r.config = *c
	})
	return r
}

// migrate is a deploy with other recurring jobs.
func (r *recurringTest) migrate(t *testing.T, recurring ...scheduler.RecurringJob) {
	t.Helper()
	config := r.config
	config.Recurring = recurring
	s, err := scheduler.New(r.pool, config)
	require.NoError(t, err)
	require.NoError(t, s.Migrate(t.Context()))
}

// fire is a firing at another time than now.
func (r *recurringTest) fire(t *testing.T, at time.Time) int {
	t.Helper()
	return mustQuery[int](t, r.pool, "SELECT scheduler.fire_recurring_jobs($1)", at)
}

func (r *recurringTest) next(t *testing.T, name string) time.Time {
	t.Helper()
	return mustQuery[time.Time](t, r.pool, "SELECT next_slot FROM scheduler.recurring_jobs WHERE name = $1", name).UTC()
}

// slots are those of the jobs that there are, oldest first.
func (r *recurringTest) slots(t *testing.T, name string) (slots []time.Time) {
	t.Helper()
	for _, slot := range mustQuery[[]time.Time](t, r.pool, `SELECT coalesce(array_agg((attributes ->> 'slot')::timestamptz ORDER BY id), '{}')
		FROM scheduler.jobs WHERE attributes ->> 'recurring' = $1`, name) {
		slots = append(slots, slot.UTC())
	}
	return slots
}

func hourly(name string, missed scheduler.MissedPolicy) scheduler.RecurringJob {
	return scheduler.RecurringJob{Name: name, Schedule: "0 * * * *", Job: "report", Missed: missed}
}

func TestRecurringInput(t *testing.T) {
	t.Parallel()
	r := newRecurringTest(t)
	good := scheduler.RecurringJob{Name: "nightly", Schedule: "30 3 * * mon-fri", Job: "report"}
	for _, test := range []struct {
		change func(*scheduler.RecurringJob)
		sql    string // what the same mistake is in SQL; "": it can't be made
		names  []string
	}{
		{func(j *scheduler.RecurringJob) { j.Name = "a b" }, "name => 'a b'", []string{"name", "a b", "1 to 128"}},
		{func(j *scheduler.RecurringJob) { j.Name = "" }, "name => NULL", []string{"name"}},
		{func(j *scheduler.RecurringJob) { j.Schedule = "61 * * * *" }, "schedule => '61 * * * *'", []string{"61", "59"}},
		{func(j *scheduler.RecurringJob) { j.Schedule = "0 0 * * 7" }, "schedule => '0 0 * * 7'", []string{"7", "sun"}},
		{func(j *scheduler.RecurringJob) { j.Schedule = "0 0 * * *-5" }, "schedule => '0 0 * * *-5'", []string{"*-5"}},
		{func(j *scheduler.RecurringJob) { j.Schedule = "0 0 0 * * *" }, "schedule => '0 0 0 * * *'", []string{"0 0 0 * * *", "five fields"}},
		{func(j *scheduler.RecurringJob) { j.Schedule = "0 0 30 feb *" }, "schedule => '0 0 30 feb *'", []string{"30 feb", "day that exists"}},
		{func(j *scheduler.RecurringJob) { j.Schedule = "@every 1h" }, "schedule => '@every 1h'", []string{"@every 1h", "five fields"}},
		{func(j *scheduler.RecurringJob) { j.Schedule = "@hour" }, "schedule => '@hour'", []string{"@hour", "@hourly"}},
		{func(j *scheduler.RecurringJob) { j.Schedule = "TZ=UTC" }, "schedule => 'TZ=UTC'", []string{"TZ=UTC"}},
		{func(j *scheduler.RecurringJob) { j.Schedule = "" }, "schedule => NULL", []string{"schedule"}},
		{func(j *scheduler.RecurringJob) { j.TimeZone = "Europe/Berlim" }, "time_zone => 'Europe/Berlim'", []string{"Europe/Berlim", "Europe/Berlin"}},
		{func(j *scheduler.RecurringJob) { j.TimeZone = "Local" }, "time_zone => 'Local'", []string{"Local"}},
		{func(j *scheduler.RecurringJob) { j.TimeZone = "FOO-3" }, "time_zone => 'FOO-3'", []string{"FOO-3"}},
		{func(j *scheduler.RecurringJob) { j.Job = "a b" }, "job => 'a b'", []string{"job", "a b"}},
		{func(j *scheduler.RecurringJob) { j.Job = "stranger" }, "", []string{"stranger", "JobNames"}},
		{func(j *scheduler.RecurringJob) { j.Queue = "failed" }, "queue => 'failed'", []string{"failed", "default"}},
		{func(j *scheduler.RecurringJob) { j.Queue = "nowhere" }, "queue => 'nowhere'", []string{"nowhere", "own"}},
		{func(j *scheduler.RecurringJob) { j.Payload = make(chan int) }, "", []string{"payload"}},
		{func(j *scheduler.RecurringJob) { j.Payload = strings.Repeat("x", 1<<20) }, "payload => to_jsonb(repeat('x', 1048576))", []string{"1048578 bytes"}},
		{func(j *scheduler.RecurringJob) { j.Missed = "twice" }, "missed => 'twice'", []string{"twice", "once"}},
	} {
		job := good
		test.change(&job)
		_, err := scheduler.New(r.pool, scheduler.Config{JobNames: r.config.JobNames, Queues: r.config.Queues, Recurring: []scheduler.RecurringJob{job}})
		requireInputError(t, err, "recurring", test.names...)
		if test.sql == "" {
			continue
		}
		arguments := test.sql
		for argument, value := range map[string]string{"name": "'nightly'", "schedule": "'@daily'", "job": "'report'"} {
			if !strings.HasPrefix(test.sql, argument) {
				arguments += ", " + argument + " => " + value
			}
		}
		_, err = r.pool.Exec(t.Context(), "SELECT create_recurring_job("+arguments+")")
		requirePgError(t, err, "22023", test.names[0])
	}
	_, err := scheduler.New(r.pool, scheduler.Config{Recurring: []scheduler.RecurringJob{good, good}})
	requireInputError(t, err, "recurring", "nightly", "once")
	require.Zero(t, mustQuery[int](t, r.pool, "SELECT count(*) FROM scheduler.recurring"))
	require.False(t, mustQuery[bool](t, r.pool, "SELECT remove_recurring_job('nightly')"))
}

// The same schedule in Go and in SQL is the same row.
func TestRecurringJobsInGoAndSQL(t *testing.T) {
	t.Parallel()
	r := newRecurringTest(t)
	const columns = "SELECT to_jsonb(r) - 'name' - 'next_slot' FROM scheduler.recurring r WHERE r.name = $1"
	for _, schedule := range schedules {
		r.migrate(t, scheduler.RecurringJob{
			Name: "go", Schedule: schedule, TimeZone: "Europe/Berlin", Job: "report", Payload: map[string]int{"a": 1}, Queue: "own", Missed: scheduler.MissedAll})
		next := mustQuery[time.Time](t, r.pool, `SELECT create_recurring_job('sql', $1, 'report', '{"a": 1}', 'own', 'Europe/Berlin', 'all')`, schedule)
		require.True(t, next.After(time.Now().Add(-time.Minute)))
		require.JSONEq(t, mustQuery[string](t, r.pool, columns, "go"), mustQuery[string](t, r.pool, columns, "sql"), schedule)
	}
	require.Equal(t, "UTC once default null", mustQuery[string](t, r.pool, `SELECT concat_ws(' ', time_zone, missed, queue, payload)
		FROM scheduler.recurring WHERE name = 'least' AND create_recurring_job('other', '@daily', 'x') IS NOT NULL
		UNION ALL SELECT 'UTC once default null' WHERE create_recurring_job('least', '@daily', 'x') IS NOT NULL`))
	r.migrate(t, hourly("fewest", ""))
	const defaults = "SELECT to_jsonb(r) - '{name,next_slot,schedule,fields,job}'::text[] FROM scheduler.recurring r WHERE r.name = $1"
	require.JSONEq(t, mustQuery[string](t, r.pool, defaults, "fewest"), mustQuery[string](t, r.pool, defaults, "least"))
}

// The handler gets a job like others, and knows its slot, also when it is retried.
func TestAJobOfASlot(t *testing.T) {
	t.Parallel()
	jobs := make(chan *scheduler.Job, 10)
	pool, schema := newPoolOn(t, newDatabase(t)), ""
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		schema = c.Schema
		c.Queues = queueConfigs{"own": {MaxAttempts: 3}}
		c.JobNames = scheduler.JobNames{"report": func(_ context.Context, job *scheduler.Job) (any, error) {
			jobs <- job
			if job.Attempt == 1 {
				return nil, scheduler.RetryAfter(0, nil)
			}
			return nil, nil
		}}
		c.Recurring = []scheduler.RecurringJob{{Name: "nightly", Schedule: "@hourly", Job: "report", Payload: "p", Queue: "own"}}
	})
	slot := time.Now().UTC().Truncate(time.Hour)
	mustExec(t, pool, "UPDATE "+schema+".recurring SET next_slot = $1", slot)
	report := mustRun(t, s, scheduler.RunFilter{Queue: "own", Status: scheduler.JobStatusAny, Limit: 10})
	require.Equal(t, 1, report.Failed, "%+v", report)
	require.Equal(t, 1, mustRun(t, s, scheduler.RunFilter{Queue: "own", Status: scheduler.JobStatusAny, Limit: 10}).Succeeded)
	for attempt := 1; attempt <= 2; attempt++ {
		job := await(t, jobs)
		require.Equal(t, attempt, job.Attempt)
		require.Equal(t, slot, job.Slot())
		require.Equal(t, "report", job.Name)
		require.Equal(t, scheduler.JobQueue("own"), job.Queue)
		require.JSONEq(t, `"p"`, string(job.Payload))
		require.Equal(t, 3, job.MaxAttempts)
		require.Zero(t, job.Priority)
		require.Equal(t, slot, mustGet(t, s, job.ID).Slot())
		require.Equal(t, job.ID, mustQuery[string](t, pool, "SELECT last_job_id::text FROM "+schema+".recurring_jobs WHERE last_slot = $1", slot))
	}
	require.Equal(t, slot.Add(time.Hour), mustQuery[time.Time](t, pool, "SELECT next_slot FROM "+schema+".recurring_jobs").UTC())
	require.True(t, mustCreate(t, s, "report", scheduler.JobData{}).Slot().IsZero())
}

// Each slot has one job, however often and by whom it is fired, and whatever
// becomes of the clock.
func TestEachSlotIsFiredOnce(t *testing.T) {
	t.Parallel()
	r := newRecurringTest(t, hourly("a", ""), hourly("b", ""))
	first := r.next(t, "a")
	require.Zero(t, r.fire(t, first.Add(-time.Microsecond)))
	var expected []time.Time
	for hour := range 5 {
		slot := first.Add(time.Duration(hour) * time.Hour)
		expected = append(expected, slot)
		var group sync.WaitGroup
		fired := make(chan int, 8)
		for range 8 {
			group.Go(func() { fired <- r.fire(t, slot.Add(time.Second)) })
		}
		group.Wait()
		sum := 0
		for range 8 {
			sum += <-fired
		}
		require.Equal(t, 2, sum)
		require.Zero(t, r.fire(t, slot.Add(-2*time.Hour)), "the clock was moved back")
		require.Zero(t, r.fire(t, slot.Add(time.Second)))
		require.Equal(t, slot.Add(time.Hour), r.next(t, "a"))
	}
	require.Equal(t, expected, r.slots(t, "a"))
	require.Equal(t, expected, r.slots(t, "b"))

	// Nor does one that is declared otherwise, and back again, fire twice.
	r.migrate(t, scheduler.RecurringJob{Name: "a", Schedule: "@daily", Job: "report"})
	r.migrate(t, hourly("a", ""))
	require.Equal(t, first.Add(5*time.Hour), r.next(t, "a"))
}

func TestMissedSlots(t *testing.T) {
	t.Parallel()
	r := newRecurringTest(t, hourly("skip", scheduler.MissedSkip), hourly("once", ""), hourly("all", scheduler.MissedAll))
	first := r.next(t, "all")
	slot := func(hour int) time.Time { return first.Add(time.Duration(hour) * time.Hour) }

	r.fire(t, slot(0).Add(2*time.Minute)) // just in time
	for _, name := range []string{"skip", "once", "all"} {
		require.Equal(t, []time.Time{slot(0)}, r.slots(t, name))
	}
	r.fire(t, slot(3).Add(2*time.Minute+time.Second))
	require.Equal(t, []time.Time{slot(0)}, r.slots(t, "skip"))
	require.Equal(t, []time.Time{slot(0), slot(3)}, r.slots(t, "once"))
	require.Equal(t, []time.Time{slot(0), slot(1), slot(2), slot(3)}, r.slots(t, "all"))
	r.fire(t, slot(6).Add(time.Minute)) // the last one is in time
	require.Equal(t, []time.Time{slot(0), slot(6)}, r.slots(t, "skip"))
	require.Equal(t, []time.Time{slot(0), slot(3), slot(5), slot(6)}, r.slots(t, "once"))
	for _, name := range []string{"skip", "once", "all"} {
		require.Equal(t, slot(7), r.next(t, name))
	}

	// Years later: a bounded number of jobs at a time, and those in time first.
	mustExec(t, r.pool, "TRUNCATE scheduler.jobs")
	later := first.AddDate(3, 0, 0)
	require.Equal(t, 1000, r.fire(t, later))
	require.Equal(t, []time.Time{later}, r.slots(t, "skip"))
	require.Equal(t, []time.Time{later.Add(-time.Hour), later}, r.slots(t, "once"))
	require.Len(t, r.slots(t, "all"), 997)
	require.Equal(t, 1000, r.fire(t, later))
	require.Equal(t, slot(7+1997), r.next(t, "all"))
	all := r.slots(t, "all")
	for i, at := range all {
		require.Equal(t, slot(7+i), at)
	}
}

// A deploy changes what has changed, and leaves the rest as it is.
func TestMigrateDeclaresRecurringJobs(t *testing.T) {
	t.Parallel()
	r := newRecurringTest(t, hourly("a", ""), hourly("gone", ""))
	first := r.next(t, "a")
	require.Equal(t, 2, r.fire(t, first))
	versions := func() string {
		return mustQuery[string](t, r.pool, "SELECT string_agg(name || ' ' || xmin, ',' ORDER BY name) FROM scheduler.recurring")
	}
	before := versions()
	r.migrate(t, hourly("a", ""))
	require.Equal(t, before, versions(), "what is the same is not written, what is left out stays")

	changed := hourly("a", scheduler.MissedSkip)
	changed.Payload, changed.Queue, changed.Schedule = 1, "own", " 0 */1 * * * "
	r.migrate(t, changed)
	require.Equal(t, first.Add(time.Hour), r.next(t, "a"), "the schedule means the same")
	require.Equal(t, 2, r.fire(t, first.Add(time.Hour)))
	require.Equal(t, "1 own", mustQuery[string](t, r.pool, "SELECT payload::text || ' ' || queue FROM scheduler.jobs WHERE attributes ->> 'recurring' = 'a' ORDER BY id DESC LIMIT 1"))

	changed.Schedule, changed.TimeZone = "30 5 * * *", "Asia/Kolkata" // at midnight UTC
	r.migrate(t, changed)
	require.Equal(t, first.Add(time.Hour).Truncate(24*time.Hour).Add(24*time.Hour), r.next(t, "a"))
	require.True(t, mustQuery[bool](t, r.pool, "SELECT remove_recurring_job('gone')"))
	require.False(t, mustQuery[bool](t, r.pool, "SELECT remove_recurring_job('gone')"))
	require.Equal(t, []time.Time{first, first.Add(time.Hour)}, r.slots(t, "gone"), "its jobs stay")
	require.Equal(t, 1, mustQuery[int](t, r.pool, "SELECT count(*) FROM scheduler.recurring_jobs"))
}

// Nobody but the resident process is there, and it would not look again for an
// hour: it is told of a recurring job, and comes to its slots by itself.
func TestWorkFiresRecurringJobs(t *testing.T) {
	t.Parallel()
	jobs := make(chan *scheduler.Job, 10)
	pool, schema := newPoolOn(t, newDatabase(t)), ""
	s := newSchedulerOn(t, pool, func(c *scheduler.Config) {
		schema, c.PollInterval = c.Schema, time.Hour
		c.JobNames = scheduler.JobNames{"report": telling(jobs)}
	})
	goWork(t, t.Context(), s)
	waitFor(t, func() bool { return listening(t, pool, schema) })
	// A slot of a moment from now, which its schedule would not have.
	next := mustQuery[time.Time](t, pool, `WITH created AS MATERIALIZED (SELECT `+schema+`.create_recurring_job('a', '@yearly', 'report'))
		SELECT now() + interval '1 second' FROM created`).UTC()
	mustExec(t, pool, "UPDATE "+schema+".recurring SET next_slot = $1", next)
	mustExec(t, pool, "SELECT "+schema+".notify_created('', now())")
	require.Equal(t, next, await(t, jobs).Slot())
	mustExec(t, pool, "UPDATE "+schema+".recurring SET last_slot = NULL, next_slot = $1", next)
	mustExec(t, pool, "SELECT "+schema+".notify_created('', now())")
	require.Equal(t, next, await(t, jobs).Slot())
}

// One whose time zone Postgres does not know any more holds up nothing else.
func TestARecurringJobThatCantBeFired(t *testing.T) {
	t.Parallel()
	r := newRecurringTest(t, hourly("a", ""), hourly("bad", ""), hourly("c", ""))
	next := r.next(t, "a")
	mustExec(t, r.pool, "UPDATE scheduler.recurring SET time_zone = 'Nowhere/Else' WHERE name = 'bad'")
	require.Equal(t, 2, r.fire(t, next))
	mustExec(t, r.pool, "UPDATE scheduler.recurring SET next_slot = now() WHERE name = 'bad'")
	mustRun(t, r.Scheduler, scheduler.RunFilter{})
	require.Empty(t, r.slots(t, "bad"))
	r.migrate(t, hourly("bad", ""))
	require.Equal(t, next, r.next(t, "bad"))
	require.Equal(t, 1, r.fire(t, next))
}

// Pools for poolers, which send parameters as text.
func TestRecurringJobsInEveryExecMode(t *testing.T) {
	t.Parallel()
	r := newRecurringTest(t)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeDescribeExec} {
		config := r.pool.Config()
		config.ConnConfig.DefaultQueryExecMode = mode
		settings, name := r.config, strings.ReplaceAll(mode.String(), " ", "-")
		settings.Recurring = []scheduler.RecurringJob{{
			Name: name, Schedule: "30 3 1,15 * mon-fri", TimeZone: "Europe/Berlin", Job: "report", Payload: []int{1}, Queue: "own"}}
		s, err := scheduler.New(newPoolWith(t, config), settings)
		require.NoError(t, err)
		require.NoError(t, s.Migrate(t.Context()))
		require.Equal(t, `{30} {3} {1,15} {1,2,3,4,5} t [1]`, mustQuery[string](t, r.pool, `SELECT concat_ws(' ', (fields).minutes, (fields).hours, (fields).days,
			(fields).weekdays, (fields).either_day, payload) FROM scheduler.recurring WHERE name = $1`, name))
		mustRun(t, s, scheduler.RunFilter{})
		require.NoError(t, s.Shutdown(t.Context()))
	}
}
