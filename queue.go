package scheduler

import (
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// JobQueue names a group of jobs that is run by workers of its own.
type JobQueue string

// The base queues, which are always there. A service declares others in
// Config.Queues.
const (
	// JobQueueDefault is where a job goes when no queue is named.
	JobQueueDefault JobQueue = "default"
	// JobQueueFailed is a view, not a place: running it means running the jobs
	// of the default queue whose last attempt failed. No job is created in it.
	JobQueueFailed JobQueue = "failed"
	// JobQueueBlocking runs one job at a time, in order of run_at (and of
	// creation where that is equal), over all processes.
	JobQueueBlocking JobQueue = "blocking"
)

// QueueConfig has the settings of one queue. A zero field takes the setting of
// the base queue that it extends, and that one the default named here.
type QueueConfig struct {
	// Extends is the base queue whose behaviour this one has: JobQueueDefault
	// or JobQueueBlocking. Defaults to JobQueueDefault. Every process that
	// works on a queue must say the same.
	Extends JobQueue
	// MaxAttempts is how often a job is tried before it is dead, 1 to 1,000.
	// JobData.MaxAttempts overrides it for one job. Defaults to 10.
	MaxAttempts int
	// Backoff is how long a job waits after failed attempt number attempt (1
	// for the first). A result below zero counts as zero, and one above 24
	// hours as 24 hours. Config.Backoffs overrides it for jobs of one name.
	// Defaults to attempt⁴ seconds, give or take a tenth.
	Backoff func(attempt int) time.Duration
	// Timeout ends the context of a handler that runs longer, with the cause
	// ErrJobTimeout. JobData.Timeout overrides it for one job. Defaults to
	// none.
	Timeout time.Duration
	// PriorityAge is how long a job may be overdue before its priority counts
	// for nothing: such jobs go first, the oldest first, so that none starves
	// behind those of lower priorities. Below zero: it always counts. It means
	// nothing for blocking queues, and for those without priorities. Defaults to
	// 10 minutes.
	PriorityAge time.Duration
	// OnDead is the name of the job that is created when one of this queue
	// becomes dead: in the same transaction, once for each death, in the default
	// queue and due at once. Its payload is the dead job as a Job in JSON, of its
	// Errors the last one; without Payload, Result and Metadata, which GetJob has.
	// So its handler may be Handle of a func that takes a Job. If it is dead
	// itself, no other is created for it.
	//
	// It counts from Migrate on, in all processes. It must be one of
	// Config.JobNames, if that is set. Defaults to none.
	OnDead string
	// SkipFailed lets a blocking queue, and a key with a MaxConcurrencyPerKey of
	// 1, go on with the next job while a failed one waits for its backoff. By
	// default the failed job holds them, so that order is kept. It means nothing
	// for other queues.
	SkipFailed bool

	// MaxConcurrency is how many jobs of the queue run at once, over all
	// processes, 1 to 1,000,000. Those of a process that is gone count until they
	// are taken back. As all limits it counts from Migrate on, with what runs
	// then, and blocking queues take none. Processes that share the limit should
	// have handlers for the same jobs: one that always has due ones fills it.
	// Defaults to no limit.
	MaxConcurrency int
	// MaxConcurrencyPerKey is how many jobs with the same JobData.Key run at
	// once; those without one are not limited by it. With 1, the jobs of each key
	// are run strictly in order, as in a blocking queue: the next one waits until
	// the one before is finished, also while that is failed or snoozed, and any
	// run takes it when it is due again, whatever its filter. They have no
	// priorities then. Defaults to no limit.
	MaxConcurrencyPerKey int
	// Rate is how many jobs of the queue start in a time, over all processes. The
	// start of a job is Job.StartedAt; its handler begins right after it. Those
	// that may not start yet stay pending, see RunReport.RateLimitedUntil.
	// Defaults to no limit.
	Rate Rate
	// RatePerKey is how many jobs with the same JobData.Key start in a time;
	// those without one are not limited by it. Defaults to no limit.
	RatePerKey Rate
	// KeyRound is how many due jobs of one key are started, 1 to 10,000, before
	// those of the next key have their turn, however long they wait: so one key
	// with a million jobs does not starve the others. Jobs without a key share a
	// turn. Defaults to no rounds: the oldest jobs go first, as far as limits let
	// them.
	KeyRound int
	// MaxPending is how many jobs of the queue may be pending for another one to
	// be created, 1 to 1,000,000; one more is refused with ErrQueueFull. Each
	// creation counts them, one after another: CreateJobTx holds up others in
	// this queue until its transaction ends. Jobs that become pending again, those
	// that OnDead makes, and recurring ones are never refused. One that waits for
	// others (see JobData.After) is counted from when it waits no longer. Every
	// process that creates jobs in the queue must say the same. Defaults to no
	// bound.
	MaxPending int
}

const (
	defaultMaxAttempts = 10
	mostAttempts       = 1000
	mostBackoff        = 24 * time.Hour
	defaultPriorityAge = 10 * time.Minute
)

// queue is one declared queue with all its settings filled in.
type queue struct {
	QueueConfig
	name     JobQueue
	progress [3]progress // by lanesOf
	turn     turn        // to claim
	rounds   rounds
	draining atomic.Bool // the resident loop is claiming its jobs
	unpolled atomic.Bool // a poll left it out because of that
	ranked   atomic.Bool // the database knows that its jobs have priorities
}

func (q *queue) blocking() bool { return q.Extends == JobQueueBlocking }

var queuePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// declaredQueues fills in the settings of the base queues and then of those
// that extend them.
func declaredQueues(configs map[JobQueue]QueueConfig) (map[JobQueue]*queue, error) {
	queues := map[JobQueue]*queue{}
	for _, base := range []JobQueue{JobQueueDefault, JobQueueBlocking} {
		config := configs[base]
		if config.Extends != "" && config.Extends != base {
			return nil, badInput("queues", "base queue %q can't extend %s", base, shown(string(config.Extends)))
		}
		config.Extends = base
		q, err := newQueue(base, config, QueueConfig{MaxAttempts: defaultMaxAttempts, Backoff: defaultBackoff, PriorityAge: defaultPriorityAge})
		if err != nil {
			return nil, err
		}
		queues[base] = q
	}
	for name, config := range configs {
		if name == JobQueueDefault || name == JobQueueBlocking {
			continue
		}
		if name == JobQueueFailed {
			return nil, badInput("queues", "queue %q is a view of the failed jobs of %q and has no settings of its own", name, JobQueueDefault)
		}
		if config.Extends == "" {
			config.Extends = JobQueueDefault
		}
		if config.Extends != JobQueueDefault && config.Extends != JobQueueBlocking {
			return nil, badInput("queues", "queue %s extends %s: expected %q or %q",
				shown(string(name)), shown(string(config.Extends)), JobQueueDefault, JobQueueBlocking)
		}
		q, err := newQueue(name, config, queues[config.Extends].QueueConfig)
		if err != nil {
			return nil, err
		}
		queues[name] = q
	}
	return queues, nil
}

func newQueue(name JobQueue, config, base QueueConfig) (*queue, error) {
	if !queuePattern.MatchString(string(name)) {
		return nil, badInput("queues", "queue %s: expected 1 to 63 letters, digits or _ . -, beginning with a letter or digit", shown(string(name)))
	}
	if config.MaxAttempts == 0 {
		config.MaxAttempts = base.MaxAttempts
	}
	if config.MaxAttempts < 0 || config.MaxAttempts > mostAttempts {
		return nil, badInput("queues", "queue %q: max attempts %d: expected 1 to %d", name, config.MaxAttempts, mostAttempts)
	}
	if config.Backoff == nil {
		config.Backoff = base.Backoff
	}
	if config.Timeout == 0 {
		config.Timeout = base.Timeout
	}
	if config.Timeout < 0 {
		return nil, badInput("queues", "queue %q: timeout %s: expected none or a time above zero", name, config.Timeout)
	}
	setDefault(&config.PriorityAge, base.PriorityAge)
	setDefault(&config.OnDead, base.OnDead)
	config.SkipFailed = config.SkipFailed || base.SkipFailed
	config.inheritLimits(base)
	if err := config.checkLimits(name); err != nil {
		return nil, err
	}
	return &queue{QueueConfig: config, name: name, turn: make(turn, 1)}, nil
}

// checkOnDead checks the name of a job that is created for dead ones; "" is none.
func (c Config) checkOnDead(name string) error {
	if name == "" {
		return nil
	}
	if err := checkJobName(name); err != nil {
		return err
	}
	if c.JobNames != nil && c.JobNames[name] == nil {
		return fmt.Errorf("%w %s: it has no handler in Config.JobNames", ErrUnknownJobName, shown(name))
	}
	return nil
}

// defaultBackoff grows with the fourth power of the attempt; the tenth up or
// down keeps jobs that failed together from coming back together.
func defaultBackoff(attempt int) time.Duration {
	seconds := math.Pow(float64(attempt), 4) * (0.9 + 0.2*rand.Float64()) //nolint:gosec // jitter is no secret
	return time.Duration(min(seconds, mostBackoff.Seconds()) * float64(time.Second))
}

// queue returns the declared queue of this name; "" is the default queue.
func (s *Scheduler) queue(name JobQueue) (*queue, *InputError) {
	if name == "" {
		name = JobQueueDefault
	}
	if q := s.queues[name]; q != nil {
		return q, nil
	}
	known := make([]string, 0, len(s.queues))
	for name := range s.queues {
		known = append(known, string(name))
	}
	slices.Sort(known)
	return nil, &InputError{"queue", fmt.Errorf("%w %s: declared are %s", ErrUnknownQueue, shown(string(name)), strings.Join(known, ", "))}
}
