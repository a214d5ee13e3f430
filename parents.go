package scheduler

import (
	"context"
	"fmt"
	"iter"

	"github.com/google/uuid"
)

// mostParentsRead is how many parents are read at once.
const mostParentsRead = 200

const parentsSQL = `
SELECT ` + jobColumns + `
FROM {{schema}}.parents_of($1::text::uuid, $2::text::uuid, $3::int) ORDER BY id`

// Parents are the jobs that this one was created after (see JobData.After), in the
// order in which they were created. A handler that calls it with the ID of its own
// job reads their results. Those that were deleted are left out; a clean-up deletes
// none of them as long as the job is not finished.
//
// They are read as they are come to, up to 200 at a time, and no connection is held
// meanwhile, so there may be 10,000 of them with large results. An error is the
// last that is yielded: ErrJobNotFound if there is no job with this id, or one of
// ctx or the database.
func (s *Scheduler) Parents(ctx context.Context, id string) iter.Seq2[*Job, error] {
	return func(yield func(*Job, error) bool) {
		_, err := s.GetJob(ctx, id)
		var page []*Job
		for behind, more := uuid.Nil.String(), true; more && err == nil; {
			page, more, err = s.parentsBehind(ctx, id, behind)
			for _, parent := range page {
				behind = parent.ID
				if !yield(parent, nil) {
					return
				}
			}
		}
		if err != nil {
			yield(nil, fmt.Errorf("parents: %w", err))
		}
	}
}

// parentsBehind reads some parents, and says whether there may be more.
func (s *Scheduler) parentsBehind(ctx context.Context, id, behind string) (page []*Job, more bool, err error) {
	rows, err := s.pool.Query(ctx, s.sql(parentsSQL), id, behind, mostParentsRead)
	if err != nil {
		return nil, false, explained(err)
	}
	defer rows.Close()
	for size := 0; rows.Next(); {
		if size > mostPageBytes {
			return page, true, nil
		}
		for _, value := range rows.RawValues() {
			size += len(value)
		}
		job := &Job{}
		if err := job.scan(rows); err != nil {
			return nil, false, err
		}
		page = append(page, job)
	}
	return page, len(page) == mostParentsRead, explained(rows.Err())
}
