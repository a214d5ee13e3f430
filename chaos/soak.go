package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	soakMoments = 10 // at which it is looked whether all stays level
	soakCalm    = 5  // times as long are the pauses between faults
	soakRests   = 3 * time.Second
	soakTidy    = 5 * time.Minute // at most, for old jobs to be deleted,
	soakVacuum  = 3 * time.Minute // and for autovacuum to come
)

// moment is how things are when nothing is left to do.
type moment struct {
	created               int64
	table, indexes        int64 // bytes
	free                  int64 // of those of the table, for new rows
	live, dead, discarded int64 // rows; and those that were deleted so far
	services              []vitals
}

// vitals are how a service is.
type vitals struct {
	Number     int           `json:"number"`
	Lasts      bool          `json:"lasts"` // from the beginning to the end
	Age        time.Duration `json:"age"`
	Goroutines int           `json:"goroutines"`
	Heap       int64         `json:"heap"` // in use, after a collection
	RSS        int64         `json:"rss"`
}

// soak creates so many jobs under faults. After each tenth of them all is healed
// and worked off, and looked at; once more at the end, when old jobs are deleted
// and their rows are vacuumed. No moments: it got stuck.
func (c *chaos) soak(ctx context.Context, jobs int) (moments []moment, err error) {
	if err := c.db.exec(ctx, "CREATE EXTENSION pgstattuple"); err != nil {
		return nil, err
	}
	for i := range soakMoments {
		target := int64(jobs) * int64(i+1) / soakMoments
		c.round(ctx, func(ctx context.Context) {
			for c.load.acknowledged.Load() < target && ctx.Err() == nil {
				sleep(ctx, 50*time.Millisecond)
			}
		})
		if stuck, err := c.settle(ctx, time.Now().Truncate(time.Minute)); err != nil || stuck > 0 {
			return nil, err
		}
		if moments, err = c.addMoment(ctx, moments); err != nil {
			return nil, err
		}
	}
	if err := c.tidy(ctx); err != nil {
		return nil, err
	}
	return c.addMoment(ctx, moments)
}

const (
	oldSQL  = `SELECT count(*) FROM scheduler.jobs WHERE finished_at < now() - $1::bigint * interval '1 microsecond'`
	deadSQL = `SELECT dead_tuple_count > 1000 + 0.02 * tuple_count FROM pgstattuple('scheduler.jobs')`
)

// tidy waits until what is old is deleted and vacuumed. A service looks for what
// is old once an hour and when it begins, so these begin anew.
func (c *chaos) tidy(ctx context.Context) error {
	sleep(ctx, c.fleet.kept)
	late := time.Now().Add(soakTidy)
	for old := 1; old > 0; {
		if time.Now().After(late) {
			return fmt.Errorf("%d old jobs are not deleted after %s", old, soakTidy)
		}
		err := deploy(ctx, c)
		if err != nil {
			return err
		}
		for until := time.Now().Add(10 * time.Second); old > 0 && time.Now().Before(until); sleep(ctx, time.Second) {
			if old, err = query[int](ctx, c.db, oldSQL, (c.fleet.kept + 15*time.Second).Microseconds()); err != nil {
				return err
			}
		}
	}
	for until := time.Now().Add(soakVacuum); time.Now().Before(until); sleep(ctx, time.Second) {
		if dead, err := query[bool](ctx, c.db, deadSQL); err != nil || !dead {
			return err
		}
	}
	return nil
}

const sizesSQL = `
SELECT pg_table_size('scheduler.jobs'), pg_indexes_size('scheduler.jobs'), t.free_space, t.tuple_count, t.dead_tuple_count, (SELECT count(*) FROM deleted)
FROM pgstattuple('scheduler.jobs') AS t`

// addMoment looks at how things are.
func (c *chaos) addMoment(ctx context.Context, moments []moment) ([]moment, error) {
	sleep(ctx, soakRests)
	m := moment{created: c.load.acknowledged.Load()}
	err := c.db.admin.QueryRow(ctx, sizesSQL).Scan(&m.table, &m.indexes, &m.free, &m.live, &m.dead, &m.discarded)
	if err != nil {
		return nil, fmt.Errorf("look at the table: %w", err)
	}
	for _, p := range c.fleet.processes() {
		v, err := vitalsOf(ctx, p)
		if err != nil {
			return nil, err
		}
		m.services = append(m.services, v)
	}
	return append(moments, m), nil
}

func vitalsOf(ctx context.Context, p *process) (v vitals, err error) {
	response, err := call(ctx, p.address, "/vitals", nil)
	if err != nil {
		return v, err
	}
	defer func() { _ = response.Body.Close() }()
	err = json.NewDecoder(response.Body).Decode(&v)
	v.Number, v.Lasts = p.number, p.lasts
	return v, err
}

var begun = time.Now()

// serveVitals is the other side of that. What is free is given back to the system
// first, so that the figures are not of what was needed for a moment.
func serveVitals(w http.ResponseWriter, _ *http.Request) {
	debug.FreeOSMemory()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	v := vitals{Age: time.Since(begun), Goroutines: runtime.NumGoroutine(), Heap: int64(memory.HeapInuse)}
	if text, err := os.ReadFile("/proc/self/statm"); err == nil {
		var size, resident int64
		_, _ = fmt.Sscan(string(text), &size, &resident)
		v.RSS = resident * int64(os.Getpagesize())
	}
	_ = json.NewEncoder(w).Encode(v)
}
