package scheduler

import (
	"errors"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

const (
	mostParents = 10_000
	mostLabel   = 128
)

// dependence is what a new job waits for.
type dependence struct {
	parents []uuid.UUID // each of them once
	any     bool        // it runs whatever comes of them
}

// dependenceOf checks what data says of it; nil: the job waits for nothing.
func dependenceOf(data JobData) (*dependence, *InputError) {
	if len(data.After) == 0 {
		return nil, nil
	}
	d := &dependence{any: data.AfterAny}
	known := make(map[uuid.UUID]bool, len(data.After))
	for _, text := range data.After {
		id, err := uuid.Parse(text)
		if err != nil || len(text) != 36 {
			return nil, badInput("after", "%s: expected the id of a job, or in CreateJobs the label of another one of the call", shown(text))
		}
		if !known[id] {
			known[id] = true
			d.parents = append(d.parents, id)
		}
	}
	if len(d.parents) > mostParents {
		return nil, tooManyParents(len(d.parents))
	}
	return d, nil
}

func tooManyParents(n int) *InputError {
	return badInput("after", "%d jobs: expected at most %d", n, mostParents)
}

// checkMostParents is for jobs that have parents by label too.
func checkMostParents(rows []newRow) error {
	for i := range rows {
		if d := rows[i].dependence; d != nil && len(d.parents) > mostParents {
			return ofJob(i, tooManyParents(len(d.parents)))
		}
	}
	return nil
}

// labels are which jobs of a batch others of it wait for.
type labels struct {
	places  map[string]int // of the jobs that have one
	parents [][]int        // of each job, the places of those it names; nil: nobody names any
	rest    [][]string     // of each job, what else is in After
	order   []int          // the places, parents before children; nil: as they are
}

// labelsOf reads the labels of a batch. Those that no job can have, and jobs that
// would wait for themselves, are refused.
func labelsOf(jobs []NewJob) (*labels, error) {
	l := &labels{places: map[string]int{}, rest: make([][]string, len(jobs))}
	for i, job := range jobs {
		if job.Label == "" {
			continue
		}
		other, taken := l.places[job.Label]
		switch err := checkText(job.Label, mostLabel); {
		case err != nil:
			return nil, ofJob(i, &InputError{"label", err})
		case uuid.Validate(job.Label) == nil:
			return nil, ofJob(i, badInput("label", "%s: expected no UUID, which would be the id of a job", shown(job.Label)))
		case taken:
			return nil, ofJob(i, badInput("label", "%s: jobs[%d] has it too: expected another one", shown(job.Label), other))
		case job.UniqueKey != "":
			return nil, ofJob(i, badInput("label", "%s: the job has a unique_key, so that it may be there already: expected one of the two", shown(job.Label)))
		}
		l.places[job.Label] = i
	}
	for i, job := range jobs {
		for _, after := range job.After {
			place, ok := l.places[after]
			if !ok {
				l.rest[i] = append(l.rest[i], after)
				continue
			}
			if l.parents == nil {
				l.parents = make([][]int, len(jobs))
			}
			l.parents[i] = append(l.parents[i], place)
		}
	}
	return l, l.sort(jobs)
}

// others are what a job's After has beside labels.
func (l *labels) others(i int) []string { return l.rest[i] }

// sort finds an order in which each job comes after its parents.
func (l *labels) sort(jobs []NewJob) error {
	if l.parents == nil {
		return nil
	}
	children, waits := make([][]int, len(jobs)), make([]int, len(jobs))
	for i, parents := range l.parents {
		slices.Sort(parents)
		l.parents[i] = slices.Compact(parents)
		waits[i] = len(l.parents[i])
		for _, parent := range l.parents[i] {
			children[parent] = append(children[parent], i)
		}
	}
	for i := range jobs {
		if waits[i] == 0 {
			l.order = append(l.order, i)
		}
	}
	for next := 0; next < len(l.order); next++ {
		for _, child := range children[l.order[next]] {
			if waits[child]--; waits[child] == 0 {
				l.order = append(l.order, child)
			}
		}
	}
	if len(l.order) == len(jobs) {
		return nil
	}
	return l.cycle(jobs, waits)
}

// cycle is the error of jobs that wait for each other. Of those that wait still,
// each has a parent that does.
func (l *labels) cycle(jobs []NewJob, waits []int) error {
	i := slices.IndexFunc(waits, func(n int) bool { return n > 0 })
	var path []int
	for !slices.Contains(path, i) {
		path = append(path, i)
		i = l.parents[i][slices.IndexFunc(l.parents[i], func(parent int) bool { return waits[parent] > 0 })]
	}
	path = path[slices.Index(path, i):]
	const most = 10
	names := []string{shown(jobs[i].Label)}
	for _, place := range path[1:min(len(path), most)] {
		names = append(names, shown(jobs[place].Label))
	}
	if len(path) > most {
		names = append(names, "…")
	}
	return ofJob(i, badInput("after", "the job waits for itself: %s, %s: expected no circle", strings.Join(names, " after "), names[0]))
}

// link makes parents of labels. Ids go up from parents to children, as they do
// where jobs are created one after another: locks are taken in that order.
func (l *labels) link(jobs []NewJob, rows []newRow) {
	if l.parents == nil {
		return
	}
	ids := make([]uuid.UUID, len(rows))
	for i := range rows {
		ids[i] = rows[i].id
	}
	for n, place := range l.order {
		rows[place].id = ids[n]
	}
	for i, parents := range l.parents {
		for _, parent := range parents {
			if rows[i].dependence == nil {
				rows[i].dependence = &dependence{any: jobs[i].AfterAny}
			}
			rows[i].dependence.parents = append(rows[i].dependence.parents, rows[parent].id)
		}
	}
}

// dependenceColumns are the last parameters of create_after: children, their
// parents, and whether they run whatever comes of those.
func dependenceColumns(rows []newRow) []any {
	children, parents, anys := []pgtype.UUID{}, []pgtype.UUID{}, []bool{}
	for _, row := range rows {
		d := row.dependence
		if d == nil {
			continue
		}
		for _, parent := range d.parents {
			children = append(children, row.key())
			parents = append(parents, pgtype.UUID{Bytes: parent, Valid: true})
			anys = append(anys, d.any)
		}
	}
	return []any{children, parents, anys}
}

// noParent is the code with which create_after refuses a parent that is not there.
const noParent = "P0002"

// refusedCreation turns what the database refuses about a new job into an
// InputError.
func refusedCreation(err error) error {
	var pg *pgconn.PgError
	switch {
	case sqlState(err) != noParent:
		return refusedByPostgres("payload", err)
	case errors.As(err, &pg) && pg.Detail != "":
		return badInput("after", "there is no job %s", pg.Detail)
	}
	return &InputError{"after", err} // of another driver
}

// refusedBatch is refusedCreation for several jobs.
func refusedBatch(rows []newRow, err error) error {
	refused := refusedCreation(err)
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != noParent {
		return refused
	}
	parent, parseErr := uuid.Parse(pg.Detail)
	i := slices.IndexFunc(rows, func(row newRow) bool { return row.dependence != nil && slices.Contains(row.dependence.parents, parent) })
	if parseErr != nil || i < 0 {
		return refused
	}
	return ofJob(i, refused)
}
