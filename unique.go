package scheduler

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// DuplicatePolicy says what becomes of a job that is created again while its
// JobData.UniqueKey is taken.
type DuplicatePolicy string

// What can become of a job that is created again: in JSON "keep" and "replace".
const (
	// DuplicateKeep leaves the job as it is.
	DuplicateKeep DuplicatePolicy = ""
	// DuplicateReplace gives the job the RunAt, Payload, Owner, Tags and
	// Metadata of the new one, if it is pending and has used no attempt.
	// Otherwise it is kept. Its queue, what it waits for and the rest stay, but
	// for the progress and the checkpoint of one that was snoozed or interrupted:
	// those are about the old payload, and go.
	DuplicateReplace DuplicatePolicy = "replace"
)

// keepInFull is DuplicateKeep as JSON may have it.
const keepInFull = "keep"

const (
	mostUniqueKey = 256
	mostUniqueFor = 366 * 24 * time.Hour // clean_up_keys in sql/006_unique.sql keeps keys for as long
)

// uniqueness is how a job is unique.
type uniqueness struct {
	key      string
	lasts    time.Duration // from the creation on, also when the job is finished
	replaces bool
}

// uniquenessOf checks what data says of it; nil: the job is not unique.
func uniquenessOf(data JobData) (*uniqueness, *InputError) {
	if err := checkText(data.UniqueKey, mostUniqueKey); err != nil {
		return nil, &InputError{"unique_key", err}
	}
	switch {
	case data.UniqueFor < 0 || data.UniqueFor > mostUniqueFor:
		return nil, badInput("unique_for", "%s: expected 0 to %s", data.UniqueFor, mostUniqueFor)
	case data.OnDuplicate != DuplicateKeep && data.OnDuplicate != keepInFull && data.OnDuplicate != DuplicateReplace:
		return nil, badInput("on_duplicate", `%s: expected "keep" or "replace"`, shown(string(data.OnDuplicate)))
	case data.UniqueKey != "":
		return &uniqueness{data.UniqueKey, data.UniqueFor, data.OnDuplicate == DuplicateReplace}, nil
	case data.UniqueFor != 0:
		return nil, badInput("unique_for", "%s without a unique_key: expected both", data.UniqueFor)
	case data.OnDuplicate != DuplicateKeep:
		return nil, badInput("on_duplicate", "%s without a unique_key: expected both", shown(string(data.OnDuplicate)))
	}
	return nil, nil
}

// uniqueColumns are the parameters $1 to $14 of create_unique.
func uniqueColumns(rows []newRow) []any {
	n := len(rows)
	keys, lasts, replaces := make([]*string, n), make([]*int64, n), make([]bool, n)
	bounded := false
	for i := range rows {
		bounded = bounded || rows[i].bounded
		if u := rows[i].unique; u != nil {
			microseconds := u.lasts.Microseconds()
			keys[i], lasts[i], replaces[i] = &u.key, &microseconds, u.replaces
		}
	}
	return append(columnsOf(rows), keys, lasts, replaces, bounded)
}

const (
	createUniqueSQL = foundSelect + `create_unique(` + uniqueTypes + `, $15::text, $16::text)` + foundFrom
	createAfterSQL  = foundSelect + `create_after(` + uniqueTypes + `, $15::text, $16::text, $18::uuid[], $19::uuid[], $20::bool[])` + foundFrom

	foundSelect = `
SELECT ` + jobColumns + `, duplicate, changed, coalesce(asked, ''), (extract(epoch FROM run_at - now()) * 1000000::numeric)::bigint,
    ` + othersListen + `$17::text::uuid)
FROM {{schema}}.`
	foundFrom = ` AS u, LATERAL (SELECT (u.job).*) AS j`

	// uniqueTypes are the parameters that uniqueColumns has.
	uniqueTypes = `$1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[], $6::int[], $7::bigint[],
    $8::text[], $9::int[], $10::text[], $11::text[], $12::bigint[], $13::bool[], $14::bool`
)

// found is the job that there is after a creation which may find one.
type found struct {
	job     *Job
	changed bool          // it was created or replaced
	asked   string        // digest of the request that used the Idempotency-Key first
	dueIn   time.Duration //
	heard   bool          // whether another process waits to be notified
}

// insertUnique stores a job or finds the one that is there: by its key, or by
// that of the request it comes from, which may be nil. It may be one that waits for
// others, and have no key.
func (s *Scheduler) insertUnique(ctx context.Context, db querier, row *newRow, from *keyedRequest) (f found, err error) {
	var key, digest *string
	if from != nil {
		key, digest = &from.key, &from.digest
	}
	f.job = &Job{}
	var dueInUS int64
	sql, args := createUniqueSQL, append(uniqueColumns([]newRow{*row}), key, digest, s.lease.own())
	if row.dependence != nil {
		sql, args = createAfterSQL, append(args, dependenceColumns([]newRow{*row})...)
	}
	err = f.job.scan(db.QueryRow(ctx, s.sql(sql), args...), &f.job.Duplicate, &f.changed, &f.asked, &dueInUS, &f.heard)
	f.dueIn = time.Duration(dueInUS) * time.Microsecond
	if f.changed {
		f.job.Progress = nil // the statement may have seen that of the old payload
	}
	return f, err
}

// createUnique is insertUnique in a transaction of its own. Creations that wait
// for a key must not hold up others, so they share no statement with any.
func (s *Scheduler) createUnique(ctx context.Context, row *newRow, from *keyedRequest) (found, error) {
	f, err := s.insertUnique(ctx, s.pool, row, from)
	if err == nil && f.changed {
		s.created(f.job.Queue, f.dueIn, f.heard, false)
	}
	return f, err
}

const (
	createUniqueJobsSQL = foundAllSelect + `create_unique(` + uniqueTypes + `)` + foundAllFrom
	createJobsAfterSQL  = foundAllSelect + `create_after(` + uniqueTypes + `, NULL, NULL, $16::uuid[], $17::uuid[], $18::bool[])` + foundAllFrom

	foundAllSelect = `
SELECT (job).id::text, (job).queue, now(), changed, (extract(epoch FROM (job).run_at - now()) * 1000000::numeric)::bigint,
    ` + othersListen + `$15::text::uuid)
FROM {{schema}}.`
	foundAllFrom = ` WITH ORDINALITY AS u (job, duplicate, changed, asked, place) ORDER BY place`
)

// insertUniqueJobs stores all jobs or none, tells of them, and returns the ids
// of those there are in their places. at is when the new ones were created.
func (s *Scheduler) insertUniqueJobs(ctx context.Context, jobs []newRow) (ids []string, at time.Time, err error) {
	sql, args := createUniqueJobsSQL, append(uniqueColumns(jobs), s.lease.own())
	if slices.ContainsFunc(jobs, func(row newRow) bool { return row.dependence != nil }) {
		sql, args = createJobsAfterSQL, append(args, dependenceColumns(jobs)...)
	}
	rows, err := s.pool.Query(ctx, s.sql(sql), args...)
	type changed struct {
		queue JobQueue
		dueIn time.Duration
	}
	var all []changed
	var heard bool
	if err == nil {
		var id string
		var queue JobQueue
		var isChanged bool
		var dueInUS int64
		_, err = pgx.ForEachRow(rows, []any{&id, &queue, &at, &isChanged, &dueInUS, &heard}, func() error {
			ids = append(ids, id)
			if isChanged {
				all = append(all, changed{queue, time.Duration(dueInUS) * time.Microsecond})
			}
			return nil
		})
	}
	if err != nil {
		return nil, at, err
	}
	for _, c := range all {
		s.created(c.queue, c.dueIn, heard, false)
	}
	return ids, at.UTC(), nil
}

// keyedRequest is a creation over HTTP that has an Idempotency-Key.
type keyedRequest struct {
	key    string
	digest string // of the body: equal for bodies that mean the same
}

const mostIdempotencyKey = 256

// keyedRequestOf reads the key of a request; nil if it has none.
func keyedRequestOf(header http.Header) (*keyedRequest, error) {
	keys := header.Values("Idempotency-Key")
	if len(keys) == 0 {
		return nil, nil
	}
	if n := utf8.RuneCountInString(keys[0]); len(keys) > 1 || n < 1 || n > mostIdempotencyKey || checkText(keys[0], len(keys[0])) != nil {
		return nil, &statusError{http.StatusBadRequest,
			fmt.Errorf("the header Idempotency-Key is %s: expected one, of 1 to %d characters", shown(keys[0]), mostIdempotencyKey)}
	}
	return &keyedRequest{key: keys[0]}, nil
}

// setDigest sets the digest, of a body that readJob has read. What is written in
// another way is the same: the order of fields, spaces, a field that says what
// its absence says, the zone of a time.
func (k *keyedRequest) setDigest(body []byte, data JobData) error {
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	var fields map[string]any
	if err := decoder.Decode(&fields); err != nil {
		return fmt.Errorf("digest a request: %w", err)
	}
	fields["run_at"], fields["queue"] = nil, string(data.Queue)
	if !data.RunAt.IsZero() {
		fields["run_at"] = data.RunAt.UTC().Truncate(time.Microsecond).Format(time.RFC3339Nano)
	}
	if data.Queue == JobQueueDefault {
		fields["queue"] = nil
	}
	if fields["on_duplicate"] == keepInFull {
		fields["on_duplicate"] = nil
	}
	for field, duration := range map[string]time.Duration{"timeout": data.Timeout, "unique_for": data.UniqueFor} {
		if fields[field] = nil; duration != 0 {
			fields[field] = duration.String()
		}
	}
	for field, given := range map[string]bool{"max_attempts": data.MaxAttempts != 0, "priority": data.Priority != 0, "tags": len(data.Tags) > 0,
		"after": len(data.After) > 0, "after_any": data.AfterAny && len(data.After) > 0} {
		if !given {
			fields[field] = nil
		}
	}
	maps.DeleteFunc(fields, func(field string, value any) bool { return value == nil || value == "" && field != "payload" })
	text, err := json.Marshal(fields)
	if err != nil {
		return fmt.Errorf("digest a request: %w", err)
	}
	sum := sha256.Sum256(text)
	k.digest = hex.EncodeToString(sum[:])
	return nil
}

// errOtherRequest is the answer to a key that is used for two things.
var errOtherRequest = &statusError{http.StatusConflict,
	errors.New("this Idempotency-Key was used for another body within 24 hours: expected the same body, or another key")}

// createFrom is CreateJob for a request with an Idempotency-Key: the first one
// with this key creates the job, later ones get that.
func (s *Scheduler) createFrom(ctx context.Context, request *keyedRequest, name string, data JobData) (*Job, error) {
	row, err := s.newRow(ctx, name, data)
	if err != nil {
		return nil, fmt.Errorf("create job: %w", err)
	}
	f, err := s.createUnique(ctx, &row, request)
	if err != nil {
		return nil, fmt.Errorf("create job: %w", refusedCreation(err))
	}
	if f.asked != request.digest {
		return nil, errOtherRequest
	}
	s.tellCreated(f.job)
	return f.job, nil
}
