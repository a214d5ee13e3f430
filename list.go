package scheduler

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// JobFilter says which jobs ListJobs returns, and which CancelJobs, RetryJobs,
// RescheduleJobs and DeleteJobs change. Every field is a condition of its own,
// and a zero one is none, so that the zero value finds all jobs.
type JobFilter struct {
	// Statuses are those of which the job has one. Defaults to any.
	Statuses []JobStatus
	// Queues are those of which the job is in one, at most 100. A queue may
	// also be one that another service declared. JobQueueFailed, which must be
	// alone then, finds the failed jobs of the default queue. Defaults to any.
	Queues []JobQueue
	// Names are those of which the job has one, at most 100. Defaults to any.
	Names []string
	// Tags are what the job all has, at most 32. Defaults to none.
	Tags []string
	// Owner is whose job it is. Defaults to anybody, and nobody.
	Owner string
	// CreatedAfter and CreatedBefore bound Job.CreatedAt: at the first time or
	// later, and earlier than the second. They don't find a job whose ID was
	// made more than a day before or after that, by a clock that is wrong or in
	// a transaction that was open for so long. Default to no bound.
	CreatedAfter, CreatedBefore time.Time
	// Limit is how many jobs a page has at most, 1 to 1,000, or how many one call
	// changes, 1 to 10,000. Defaults to 50, for changes to 1,000.
	Limit int
	// Cursor is the JobPage.Next of the page before, found with the same filter.
	// Changes take none. Defaults to the first page.
	Cursor string
}

// JobPage is a part of a list of jobs.
type JobPage struct {
	Jobs []*Job `json:"jobs"` // newest first; never nil
	Next string `json:"next"` // JobFilter.Cursor for the next page; "" if this is the last one
}

const (
	defaultPage   = 50
	mostPage      = 1000
	mostPageBytes = 16 << 20 // of their payloads, results and errors: a page ends there before its limit
	mostListed    = 100
)

// ListJobs returns the jobs that the filter finds, newest first (by ID, which
// begins with the time it was made at), a page at a time. A page has fewer jobs
// than the limit if there are no more, or if those in it have more than 16 MiB:
// only that Next is "" says that it is the last one.
//
// Going from page to page shows a job once, and none is left out because others
// are created or deleted meanwhile. Jobs that are created meanwhile come before
// the first page. A job that the filter finds at one moment and not at another,
// by its status, may be shown or not.
//
// The error is an *InputError, with the field in the singular as in
// GET /api/jobs ("status", "created_after"), if the filter can't be used; also
// ErrUnknownQueue.
func (s *Scheduler) ListJobs(ctx context.Context, filter JobFilter) (JobPage, error) {
	list, err := filter.check(defaultPage, mostPage)
	if err == nil {
		err = s.checkQueues(ctx, list.queues)
	}
	if err != nil {
		return JobPage{}, fmt.Errorf("list jobs: %w", err)
	}
	page, err := s.readPage(ctx, list)
	if err != nil {
		return JobPage{}, fmt.Errorf("list jobs: %w", explained(err))
	}
	return page, nil
}

const listJobsSQL = `
SELECT ` + jobColumns + `, ends
FROM {{schema}}.list_jobs($1::text[], $2::text[], $3::text[], $4::text::jsonb, $5::timestamptz, $6::timestamptz, $7::text::uuid, $8::int, $9::int) AS l,
    LATERAL (SELECT (l.job).*) AS j
ORDER BY id DESC`

// readPage gets one job more than the page has, if there is a next page.
func (s *Scheduler) readPage(ctx context.Context, list *listing) (page JobPage, err error) {
	page.Jobs = []*Job{}
	rows, err := s.pool.Query(ctx, s.sql(listJobsSQL), list.statuses, list.queues, list.names, list.attributes,
		list.createdAfter, list.createdBefore, list.before, list.limit, mostPageBytes)
	if err != nil {
		return page, err
	}
	defer rows.Close()
	for rows.Next() {
		job, ends := &Job{}, false
		if err := job.scan(rows, &ends); err != nil {
			return page, err
		}
		if n := len(page.Jobs); n == list.limit || ends {
			page.Next, err = encodeCursor(page.Jobs[n-1].ID)
			rows.Close()
			return page, err
		}
		page.Jobs = append(page.Jobs, job)
	}
	return page, rows.Err()
}

// listing is a JobFilter as the database takes it, checked. nil: no condition.
type listing struct {
	statuses, queues, names     []string
	attributes                  *string // JSON that those of the job contain
	createdAfter, createdBefore *time.Time
	before                      *string // an id
	limit                       int
}

func (f JobFilter) check(byDefault, most int) (list *listing, err error) {
	list = &listing{limit: f.Limit}
	setDefault(&list.limit, byDefault)
	if list.limit < 1 || list.limit > most {
		return nil, badInput("limit", "%d: expected 1 to %d, or 0 for %d", f.Limit, most, byDefault)
	}
	if err := f.checkPlaces(list); err != nil {
		return nil, err
	}
	if err := checkCount("name", f.Names, mostListed); err != nil {
		return nil, err
	}
	for _, name := range f.Names {
		if err := checkJobName(name); err != nil {
			return nil, err
		}
		list.names = append(list.names, name)
	}
	if list.attributes, err = f.encodeAttributes(); err != nil {
		return nil, err
	}
	if err := f.checkTimes(list); err != nil {
		return nil, err
	}
	if f.Cursor != "" {
		if list.before, err = decodeCursor(f.Cursor); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func checkCount[T any](field string, values []T, most int) error {
	if len(values) > most {
		return badInput(field, "%d of them: expected at most %d", len(values), most)
	}
	return nil
}

// jobStatuses are those that a job may have.
var jobStatuses = []JobStatus{
	JobStatusPending, JobStatusRunning, JobStatusSucceeded, JobStatusFailed, JobStatusDead, JobStatusCancelled,
}

// checkPlaces checks statuses and queues; whether somebody declared those is for
// checkQueues.
func (f JobFilter) checkPlaces(list *listing) error {
	if err := checkCount("status", f.Statuses, mostListed); err != nil {
		return err
	}
	if err := checkCount("queue", f.Queues, mostListed); err != nil {
		return err
	}
	for _, status := range f.Statuses {
		if !slices.Contains(jobStatuses, status) {
			return badInput("status", "%s: expected %s", shown(string(status)), joined(jobStatuses))
		}
		list.statuses = append(list.statuses, string(status))
	}
	for _, queue := range f.Queues {
		list.queues = append(list.queues, string(queue))
	}
	if !slices.Contains(f.Queues, JobQueueFailed) {
		return nil
	}
	if len(f.Queues) > 1 {
		return badInput("queue", "%q beside others: expected it alone, as it is a view of the failed jobs of %q", JobQueueFailed, JobQueueDefault)
	}
	for _, status := range f.Statuses {
		if status != JobStatusFailed {
			return badInput("status", "%q in queue %q: expected %q or none", status, JobQueueFailed, JobStatusFailed)
		}
	}
	list.queues, list.statuses = []string{string(JobQueueDefault)}, []string{string(JobStatusFailed)}
	return nil
}

func joined[T ~string](values []T) string {
	texts := make([]string, len(values))
	for i, value := range values {
		texts[i] = string(value)
	}
	return strings.Join(texts, ", ")
}

// encodeAttributes makes JSON that the attributes of those jobs contain which
// have this owner and all of these tags; nil if neither is asked for.
func (f JobFilter) encodeAttributes() (*string, error) {
	if f.Owner == "" && len(f.Tags) == 0 {
		return nil, nil
	}
	if err := checkText(f.Owner, mostOwner); err != nil {
		return nil, &InputError{"owner", err}
	}
	if err := checkCount("tag", f.Tags, mostTags); err != nil {
		return nil, err
	}
	for _, tag := range f.Tags {
		if tag == "" {
			return nil, badInput("tag", `"": expected no empty tag`)
		}
		if err := checkText(tag, mostTag); err != nil {
			return nil, &InputError{"tag", err}
		}
	}
	text, err := json.Marshal(attributes{Owner: f.Owner, Tags: f.Tags})
	if err != nil {
		return nil, fmt.Errorf("marshal the attributes: %w", err)
	}
	contained := string(text)
	return &contained, nil
}

func (f JobFilter) checkTimes(list *listing) error {
	for _, bound := range []struct {
		field string
		at    time.Time
		list  **time.Time
	}{{"created_after", f.CreatedAfter, &list.createdAfter}, {"created_before", f.CreatedBefore, &list.createdBefore}} {
		if bound.at.IsZero() {
			continue
		}
		at := bound.at.UTC()
		if at.Year() < 1 || at.Year() > 9999 {
			return badInput(bound.field, "%s: expected a time from year 1 to 9999", at)
		}
		*bound.list = &at
	}
	if list.createdAfter != nil && list.createdBefore != nil && list.createdBefore.Before(*list.createdAfter) {
		return badInput("created_before", "%s: expected no time before created_after, %s",
			list.createdBefore.Format(time.RFC3339Nano), list.createdAfter.Format(time.RFC3339Nano))
	}
	return nil
}

const knownQueuesSQL = `SELECT name FROM {{schema}}.known_queues($1::text[]) AS q (name) ORDER BY name`

// checkQueues refuses queues that nobody knows. The database is asked for those
// that this process has not declared.
func (s *Scheduler) checkQueues(ctx context.Context, queues []string) error {
	others := slices.DeleteFunc(slices.Clone(queues), func(name string) bool { return s.queues[JobQueue(name)] != nil })
	if len(others) == 0 {
		return nil
	}
	wellFormed := slices.DeleteFunc(slices.Clone(others), func(name string) bool { return !queuePattern.MatchString(name) })
	rows, err := s.pool.Query(ctx, s.sql(knownQueuesSQL), wellFormed)
	if err != nil {
		return explained(err)
	}
	known, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return explained(err)
	}
	for _, name := range others {
		if !slices.Contains(known, name) {
			return &InputError{"queue", fmt.Errorf("%w %s: known are %s", ErrUnknownQueue, shown(name), strings.Join(known, ", "))}
		}
	}
	return nil
}

// A cursor is base64url of its version, the id of the last job on the page, and
// a checksum. Where its job is gone, it still says where the page ended.
const (
	cursorVersion = 1
	cursorBytes   = 1 + 16 + crc32.Size
)

func encodeCursor(id string) (string, error) {
	key, err := uuid.Parse(id)
	if err != nil {
		return "", fmt.Errorf("id of a job: %w", err)
	}
	cursor := append([]byte{cursorVersion}, key[:]...)
	cursor = binary.BigEndian.AppendUint32(cursor, crc32.ChecksumIEEE(cursor))
	return base64.RawURLEncoding.EncodeToString(cursor), nil
}

func decodeCursor(text string) (id *string, err error) {
	cursor, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(cursor) != cursorBytes || len(text) != base64.RawURLEncoding.EncodedLen(cursorBytes) || cursor[0] != cursorVersion ||
		binary.BigEndian.Uint32(cursor[1+16:]) != crc32.ChecksumIEEE(cursor[:1+16]) {
		return nil, badInput("cursor", "%s: expected the next of the page before, unchanged", shown(text))
	}
	before := uuid.UUID(cursor[1 : 1+16]).String()
	return &before, nil
}
