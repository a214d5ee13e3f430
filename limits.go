package scheduler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Rate is so many starts of jobs in any time of that length, over all
// processes. The zero value is no limit.
type Rate struct {
	// Limit is how many jobs start, 1 to 1,000,000.
	Limit int
	// Per is the length, in microseconds, from one to 366 days.
	Per time.Duration
}

const (
	mostRunning = 1_000_000
	mostRate    = 1_000_000
	mostPer     = 366 * 24 * time.Hour
	mostKey     = 256
	mostBound   = 1_000_000
)

// limited: claims of the queue get no more than its limits allow, so fewer than
// they ask for though more are due.
func (c QueueConfig) limited() bool {
	return c.MaxConcurrency != 0 || c.Rate != Rate{} || c.keyed()
}

// keyed: whose job it is counts in the queue.
func (c QueueConfig) keyed() bool {
	return c.MaxConcurrencyPerKey != 0 || c.RatePerKey != Rate{} || c.KeyRound != 0
}

// serial: jobs of one key run strictly one after another.
func (c QueueConfig) serial() bool { return c.MaxConcurrencyPerKey == 1 && !c.SkipFailed }

// rated: a job may have to wait for a time.
func (c QueueConfig) rated() bool { return c.Rate != Rate{} || c.RatePerKey != Rate{} }

// most is how many jobs of the queue, n at the most, may be claimed at once while
// so many of them are running here, and how many are worth a claim. Of a limit, a
// claim takes one half: meanwhile the other one is run and recorded.
func (q *queue) most(n, running int) (most, enough int) {
	switch {
	case q.blocking():
		return 1, 1
	case q.MaxConcurrency > 0:
		return max(min(n, (q.MaxConcurrency+1)/2, q.MaxConcurrency-running), 0), min(n, halfOf(q.MaxConcurrency))
	}
	return n, n
}

// halfOf, rounded down, but not to nothing.
func halfOf(n int) int { return max(n/2, 1) }

// rounds is how far this process has come in the rounds among the keys of a
// queue. A claim says which jobs are to start, as the database knows whose turn
// it is over all processes; this is for the order in which they do.
type rounds struct {
	mu    sync.Mutex
	last  string // the key that had its turn last,
	taken int    // and how many jobs it has had of that
}

// order puts jobs of one claim into the order in which their handlers start: so
// many of one key, then those of the next one.
func (r *rounds) order(jobs []*Job, turn int) []*Job {
	r.mu.Lock()
	defer r.mu.Unlock()
	waiting := map[string][]*Job{}
	for _, job := range jobs {
		waiting[job.Key] = append(waiting[job.Key], job)
	}
	keys := slices.Sorted(maps.Keys(waiting))
	next, found := slices.BinarySearch(keys, r.last)
	if found && r.taken >= turn {
		next++
	}
	if !found {
		r.taken = turn
	}
	ordered := make([]*Job, 0, len(jobs))
	for ; len(ordered) < len(jobs); next++ {
		key := keys[next%len(keys)]
		if key != r.last || r.taken >= turn {
			r.last, r.taken = key, 0
		}
		n := min(turn-r.taken, len(waiting[key]))
		ordered = append(ordered, waiting[key][:n]...)
		waiting[key] = waiting[key][n:]
		if r.taken += n; len(ordered) < len(jobs) {
			r.taken = turn // it had no more
		}
	}
	return ordered
}

// inheritLimits fills in those of the base queue.
func (c *QueueConfig) inheritLimits(base QueueConfig) {
	setDefault(&c.MaxConcurrency, base.MaxConcurrency)
	setDefault(&c.MaxConcurrencyPerKey, base.MaxConcurrencyPerKey)
	setDefault(&c.Rate, base.Rate)
	setDefault(&c.RatePerKey, base.RatePerKey)
	setDefault(&c.KeyRound, base.KeyRound)
	setDefault(&c.MaxPending, base.MaxPending)
}

func (c QueueConfig) checkLimits(name JobQueue) error {
	for _, limit := range []struct {
		title string
		value int
		most  int
	}{
		{"max concurrency", c.MaxConcurrency, mostRunning}, {"max concurrency per key", c.MaxConcurrencyPerKey, mostRunning},
		{"key round", c.KeyRound, mostLimit}, {"max pending", c.MaxPending, mostBound},
	} {
		if limit.value < 0 || limit.value > limit.most {
			return badInput("queues", "queue %q: %s %d: expected 1 to %d, or 0 for none", name, limit.title, limit.value, limit.most)
		}
	}
	for title, rate := range map[string]Rate{"rate": c.Rate, "rate per key": c.RatePerKey} {
		if rate == (Rate{}) {
			continue
		}
		if rate.Limit < 1 || rate.Limit > mostRate || rate.Per < time.Microsecond || rate.Per > mostPer || rate.Per%time.Microsecond != 0 {
			return badInput("queues", "queue %q: %s of %d per %s: expected a Limit of 1 to %d and a Per of whole microseconds, from 1µs to %s", name, title, rate.Limit, rate.Per, mostRate, mostPer)
		}
	}
	if c.Extends == JobQueueBlocking && c.limited() {
		return badInput("queues", "queue %q runs one job at a time, in order: expected no limits but MaxPending", name)
	}
	return nil
}

// keyIn checks the key of a job, and makes of it what is stored; nil: none. In
// queues where it counts, none is a key too, so that such jobs are found among
// the others.
func keyIn(q *queue, data JobData) (*string, *InputError) {
	if err := checkText(data.Key, mostKey); err != nil {
		return nil, &InputError{"key", err}
	}
	if data.Key != "" && data.Priority != 0 && q.serial() {
		return nil, badInput("priority", "%d: queue %q runs the jobs of a key strictly in order: expected 0", data.Priority, q.name)
	}
	if data.Key == "" && !q.keyed() {
		return nil, nil
	}
	key := data.Key // not of data, all of which would be kept for it
	return &key, nil
}

const declareLimitsSQL = `
SELECT queue FROM unnest($1::text[], $2::int[], $3::int[], $4::int[], $5::bigint[], $6::int[], $7::bigint[], $8::int[], $9::bool[])
    AS n (queue, max_running, max_running_per_key, rate, rate_us, key_rate, key_rate_us, key_round, skip_failed)
WHERE {{schema}}.declare_limits(queue, nullif(max_running, 0), nullif(max_running_per_key, 0), nullif(rate, 0), nullif(rate_us, 0),
    nullif(key_rate, 0), nullif(key_rate_us, 0), nullif(key_round, 0), skip_failed)`

// declareLimits tells the database of the limits of queues.
func (s *Scheduler) declareLimits(ctx context.Context, tx pgx.Tx, queues []*queue) error {
	var names []string
	var running, runningPerKey, rates, keyRates, rounds []int32
	var pers, keyPers []int64
	var skips []bool
	for _, q := range queues {
		if !s.says(q.limited()) {
			continue
		}
		names = append(names, string(q.name))
		running, runningPerKey = append(running, int32(q.MaxConcurrency)), append(runningPerKey, int32(q.MaxConcurrencyPerKey))
		rates, pers = append(rates, int32(q.Rate.Limit)), append(pers, q.Rate.Per.Microseconds())
		keyRates, keyPers = append(keyRates, int32(q.RatePerKey.Limit)), append(keyPers, q.RatePerKey.Per.Microseconds())
		rounds, skips = append(rounds, int32(q.KeyRound)), append(skips, q.SkipFailed)
	}
	rows, err := tx.Query(ctx, s.sql(declareLimitsSQL), names, running, runningPerKey, rates, pers, keyRates, keyPers, rounds, skips)
	if err != nil {
		return err
	}
	others, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("declare limits: %w", err)
	}
	for _, name := range others {
		s.config.Logger.WarnContext(ctx, "scheduler: a queue had other limits before: every process that works on it must say the same", "queue", name)
	}
	return nil
}
