package scheduler

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// RecurringJob is a job to be created for each slot of a schedule, exactly once
// over all processes, whatever becomes of them and of their clocks: a slot is a
// moment of the database's clock, and what it has fired is kept there. The job
// is one like others, due at its slot; Job.Slot tells its handler.
//
// A slot is the moment at which clocks in the time zone show what the schedule
// says. Where they are moved forward, a time that they skip comes as much later
// as they were moved: that of 02:30 at 03:30. Where they are moved back, a time
// that they show twice is the first of the two moments. So a schedule of certain
// hours has one slot for each time on those days too, but for two times that are
// then the same moment. One of every hour, such as "*/15 * * * *", goes by what
// clocks show, minute by minute: it has slots in both of two hours of the same
// name, and none in one that is skipped.
type RecurringJob struct {
	// Name is what it is replaced and removed by: 1 to 128 letters, digits or
	// any of _ . : / - beginning with a letter or digit, once in a schema.
	Name string
	// Schedule has five fields: minute (0-59), hour (0-23), day of the month
	// (1-31), month (1-12 or jan-dec) and weekday (0-6 from Sunday on, or
	// sun-sat), each * or ? (any), a value, a range (mon-fri), one of these with
	// a step (*/15), or a list of these. If both days are limited, one of them
	// is enough. Or it is @hourly, @daily (or @midnight), @weekly, @monthly or
	// @yearly (or @annually).
	Schedule string
	// TimeZone is the name of a time zone that Go and Postgres know, such as
	// Europe/Berlin. Where the service has no time zone files, import
	// time/tzdata. Defaults to UTC.
	TimeZone string
	// Job is the name of the jobs that it creates, as for CreateJob.
	Job string
	// Payload is that of each job, as in JobData. Defaults to null.
	Payload any
	// Queue is that of each job, as in JobData. Defaults to JobQueueDefault.
	Queue JobQueue
	// Missed says what becomes of slots that have passed without anybody who
	// could fire them, for more than two minutes. Defaults to MissedOnce.
	Missed MissedPolicy
}

// MissedPolicy says what becomes of the slots of a RecurringJob that were
// missed: for more than two minutes nobody has fired them, because no pg_cron
// was there and no service was up, say.
type MissedPolicy string

// What becomes of missed slots.
const (
	MissedOnce MissedPolicy = "once" // a job for the newest of them
	MissedSkip MissedPolicy = "skip" // no job
	MissedAll  MissedPolicy = "all"  // a job for each, up to 1,000 at a time
)

// Slot is the moment of its schedule that a job of a RecurringJob is for. It
// stays the same when RunAt changes, in every attempt. It is the zero time for
// other jobs.
func (j *Job) Slot() time.Time { return j.slot }

// newRecurring is a recurring job as it is stored, checked.
type newRecurring struct {
	RecurringJob
	fields  *schedule
	payload string
}

// recurringRows checks the recurring jobs of Config.
func (s *Scheduler) recurringRows(jobs []RecurringJob) ([]newRecurring, error) {
	var rows []newRecurring
	seen := make(map[string]bool)
	for _, job := range jobs {
		if !jobNamePattern.MatchString(job.Name) {
			return nil, badInput("recurring", "name %s: expected 1 to 128 letters, digits or _ . : / -, beginning with a letter or digit", shown(job.Name))
		}
		if seen[job.Name] {
			return nil, badInput("recurring", "%q: expected each name once", job.Name)
		}
		seen[job.Name] = true
		row, err := s.newRecurringRow(job)
		if err != nil {
			return nil, &InputError{"recurring", fmt.Errorf("%q: %w", job.Name, err)}
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// zonePattern keeps out what is the local time zone of some machine.
var zonePattern = regexp.MustCompile(`^[A-Z][A-Za-z0-9_+/-]{0,62}$`)

func (s *Scheduler) newRecurringRow(job RecurringJob) (row newRecurring, err error) {
	setDefault(&job.TimeZone, "UTC")
	setDefault(&job.Missed, MissedOnce)
	row.RecurringJob = job
	if row.fields, err = parseSchedule(job.Schedule); err != nil {
		return row, fmt.Errorf("schedule %s: %w", shown(job.Schedule), err)
	}
	if _, err := time.LoadLocation(job.TimeZone); err != nil || !zonePattern.MatchString(job.TimeZone) || job.TimeZone == "Local" {
		return row, fmt.Errorf("time zone %s: expected a name that this process knows, such as UTC or Europe/Berlin (import time/tzdata where there are no files of them)",
			shown(job.TimeZone))
	}
	switch job.Missed {
	case MissedOnce, MissedSkip, MissedAll:
	default:
		return row, fmt.Errorf("missed %s: expected %q, %q or %q", shown(string(job.Missed)), MissedOnce, MissedSkip, MissedAll)
	}
	created, err := s.newRow(context.Background(), job.Job, JobData{Queue: job.Queue, Payload: job.Payload})
	var input *InputError
	if errors.As(err, &input) && input.Field == "name" {
		return row, fmt.Errorf("job: %w", input.Err)
	}
	if err != nil {
		return row, err
	}
	row.Queue, row.payload = JobQueue(created.queue), created.payload
	return row, nil
}

const putRecurringSQL = `
SELECT {{schema}}.put_recurring_job($1::text, $2::text, ROW($3::int[], $4::int[], $5::int[], $6::int[], $7::int[], $8::bool)::{{schema}}.schedule,
    $9::text, $10::text::jsonb, $11::text, $12::text, $13::text)`

const scheduleFiringSQL = `SELECT {{schema}}.schedule_firing()`

// declareRecurring tells the database of the recurring jobs, and has pg_cron
// fire those that there are, if it is there.
func (s *Scheduler) declareRecurring(ctx context.Context, tx pgx.Tx) error {
	for _, r := range s.recurring {
		_, err := tx.Exec(ctx, s.sql(putRecurringSQL), r.Name, r.Schedule,
			r.fields.minutes, r.fields.hours, r.fields.days, r.fields.months, r.fields.weekdays, r.fields.eitherDay,
			r.Job, r.payload, string(r.Queue), r.TimeZone, string(r.Missed))
		var pg *pgconn.PgError
		if errors.As(err, &pg) && isBadData(pg.Code) {
			return badInput("recurring", "%q: refused by Postgres: %s", r.Name, pg.Message)
		}
		if err != nil {
			return err
		}
	}
	var obstacle *string
	if err := tx.QueryRow(ctx, s.sql(scheduleFiringSQL)).Scan(&obstacle); err != nil {
		return err
	}
	if obstacle != nil {
		s.config.Logger.InfoContext(ctx, "scheduler: resident processes and runs alone fire recurring jobs, not pg_cron", "reason", *obstacle)
	}
	return nil
}

const fireRecurringSQL = `SELECT {{schema}}.fire_recurring_jobs()`

// fireRecurring creates the jobs of slots that have come, and returns how many.
func (s *Scheduler) fireRecurring(ctx context.Context) (fired int, err error) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	if err := s.pool.QueryRow(ctx, s.sql(fireRecurringSQL)).Scan(&fired); err != nil {
		return 0, fmt.Errorf("fire recurring jobs: %w", explained(err))
	}
	return fired, nil
}
