package scheduler_test

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/robfig/cron/v3"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

var schedules = []string{
	"* * * * *", "*/15 * * * *", "5 * * * *", "0-10/5,45 * * * *", "? ? ? ? ?",
	"30 2 * * *", "30 3 * * mon-fri", "0 0 * * *", "0,30 0-3 * * *", "59 23 * * sun", "*/20 1-23/2 * * *", "15 */6 * * *", "* 2 * * *",
	"0 12 1 * *", "0 12 31 * *", "0 12 13 * fri", "0 12 */10 * 1", "0 12 * * */2", "0 12 */1 * Tue,THU", "0 12 1,15 jan-mar,Oct 0",
	"0 0 29 2 *", "0 0 1 1 *", "30 1 28-31 3,10 0,6", "0 8 */2 feb/3 *", "1 1 1 * 1-5/2",
	"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually",
}

var zones = []string{
	"UTC", "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "America/Havana", "America/Nuuk", "Atlantic/Azores", "Asia/Kolkata",
	"Asia/Gaza", "Africa/Cairo", "Africa/Casablanca", "Australia/Lord_Howe", "Pacific/Chatham", "Pacific/Apia", "Antarctica/Troll", "Etc/GMT+12",
}

var scheduleParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

func parsed(tb testing.TB, schedule string) *cron.SpecSchedule {
	spec, err := scheduleParser.Parse(schedule)
	require.NoError(tb, err)
	return spec.(*cron.SpecSchedule)
}

// slotsIn are the next three slots after each moment, by SQL.
func slotsIn(tb testing.TB, pool *pgxpool.Pool, schema, schedule, zone string, moments []time.Time) (slots [][3]time.Time) {
	rows, err := pool.Query(tb.Context(), `
		SELECT one, two, three FROM `+schema+`.parse_schedule($1) AS p, unnest($3::timestamptz[]) WITH ORDINALITY AS m (at, place),
			LATERAL `+schema+`.next_slot(p, $2, m.at) AS one, LATERAL `+schema+`.next_slot(p, $2, one) AS two, LATERAL `+schema+`.next_slot(p, $2, two) AS three
		ORDER BY place`, schedule, zone, moments)
	require.NoError(tb, err)
	var s [3]time.Time
	_, err = pgx.ForEachRow(rows, []any{&s[0], &s[1], &s[2]}, func() error {
		slots = append(slots, [3]time.Time{s[0].UTC(), s[1].UTC(), s[2].UTC()})
		return nil
	})
	require.NoError(tb, err)
	return slots
}

// expectedSlots are the next slots after a moment, by the library's idea of a
// calendar and Go's of time zones.
func expectedSlots(spec *cron.SpecSchedule, zone *time.Location, after time.Time, n int) (slots []time.Time) {
	if bits.OnesCount64(spec.Hour<<1) == 24 {
		return slotsByMinute(spec, zone, after, n)
	}
	calendar := *spec
	calendar.Location = time.UTC
	shown := after.In(zone).Add(-48 * time.Hour)
	shown = time.Date(shown.Year(), shown.Month(), shown.Day(), 0, 0, 0, 0, time.UTC)
	for settled := 0; settled <= n; {
		if shown = calendar.Next(shown); shown.IsZero() {
			break
		}
		slot := momentOf(shown, zone)
		if slot.After(after) && !slices.Contains(slots, slot) {
			slots = append(slots, slot)
		}
		slices.SortFunc(slots, time.Time.Compare)
		settled = 0 // those that nothing can come before any more
		for _, slot := range slots {
			if shown.Sub(slot) > 60*time.Hour {
				settled++
			}
		}
		if settled == n {
			break
		}
	}
	return slots[:min(n, len(slots))]
}

// slotsByMinute looks at what clocks show at each minute, but for years in which
// there is nothing.
func slotsByMinute(spec *cron.SpecSchedule, zone *time.Location, after time.Time, n int) (slots []time.Time) {
	calendar := *spec
	calendar.Location = time.UTC
	for at := after.Truncate(time.Minute); len(slots) < n; {
		at = at.Add(time.Minute)
		shown := at.In(zone)
		shown = time.Date(shown.Year(), shown.Month(), shown.Day(), shown.Hour(), shown.Minute(), 0, 0, time.UTC)
		next := calendar.Next(shown.Add(-time.Second))
		switch {
		case next.IsZero():
			return slots
		case next.Equal(shown):
			slots = append(slots, at.UTC())
		case next.Sub(shown) > 72*time.Hour:
			at = at.Add(next.Sub(shown) - 48*time.Hour)
		}
	}
	return slots
}

// momentOf is the first moment at which clocks show this, or, when they skip it,
// would if they had not been moved.
func momentOf(shown time.Time, zone *time.Location) time.Time {
	var by [2]time.Time
	for i, day := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		_, offset := shown.Add(day).In(zone).Zone()
		by[i] = shown.Add(-time.Duration(offset) * time.Second)
		if by[i].In(zone).Format(time.DateTime) == shown.Format(time.DateTime) {
			return by[i]
		}
	}
	return by[0]
}

// moments are some at random, and some around each time that clocks are moved.
func moments(random *rand.Rand, zone *time.Location) (moments []time.Time) {
	begin := time.Date(2019, 1, 1, 0, 0, 0, 0, time.UTC)
	for range 6 {
		moments = append(moments, begin.Add(time.Duration(random.Int64N(18*365*24*3600*1e6))*time.Microsecond))
	}
	for _, moved := range movesOf(zone, begin, begin.AddDate(16, 0, 0)) {
		if random.IntN(6) == 0 {
			moments = append(moments, moved.Add(-time.Duration(random.Int64N(30*3600*1e6))*time.Microsecond))
		}
	}
	return moments
}

// movesOf are the moments at which clocks are moved, in minutes.
func movesOf(zone *time.Location, from, to time.Time) (moves []time.Time) {
	offset := func(at time.Time) int {
		_, offset := at.In(zone).Zone()
		return offset
	}
	for at := from; at.Before(to); at = at.Add(24 * time.Hour) {
		if before := offset(at); before != offset(at.Add(24*time.Hour)) {
			minutes := sort.Search(24*60, func(minutes int) bool { return offset(at.Add(time.Duration(minutes)*time.Minute)) != before })
			moves = append(moves, at.Add(time.Duration(minutes)*time.Minute))
		}
	}
	return moves
}

// SQL computes the slots, from what SQL has parsed: they are those of the library
// that Go parses with, in each zone and year.
func TestSlotsAreThoseOfTheLibrary(t *testing.T) {
	t.Parallel()
	pool, schema := newPool(t), ""
	newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	compared := 0
	for _, name := range zones {
		zone, err := time.LoadLocation(name)
		require.NoError(t, err)
		for _, schedule := range schedules {
			spec, after := parsed(t, schedule), moments(random, zone)
			for i, slots := range slotsIn(t, pool, schema, schedule, name, after) {
				require.Equal(t, expectedSlots(spec, zone, after[i], 3), slots[:], "%q in %s after %s", schedule, name, after[i])
				// Where clocks are not moved, that is the library's own answer.
				spec.Location = zone
				end := slots[2].Add(48 * time.Hour)
				if len(movesOf(zone, after[i].Add(-48*time.Hour), end)) == 0 {
					compared++
					at := after[i]
					for _, slot := range slots {
						at = spec.Next(at)
						require.Equal(t, at.UTC(), slot, "%q in %s after %s", schedule, name, after[i])
					}
				}
			}
		}
	}
	require.Greater(t, compared, 1000)
}
