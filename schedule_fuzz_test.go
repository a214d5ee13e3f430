package scheduler_test

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// FuzzSchedule holds what SQL makes of a schedule against Go: both take it or
// both refuse it, and if they take it, its slots are the library's.
func FuzzSchedule(f *testing.F) {
	pool, schema := newPool(f), ""
	newScheduler(f, func(c *scheduler.Config) { schema = c.Schema })
	for i, schedule := range schedules {
		f.Add(schedule, i, int64(1_700_000_000+i*1_000_003))
	}
	for i, schedule := range []string{
		"", " ", "@", "@every 1h", "@Daily", "TZ=UTC 0 0 * * *", "0 0 * *", "0 0 0 * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 7",
		"*/0 * * * *", "*/00 * * * *", "5-3 * * * *", "1,,2 * * * *", ", * * * *", "1- * * * *", "-1 * * * *", "*-5 * * * *", "1/2/3 * * * *", "+1 * * * *",
		"jan * * * *", "* * jan * *", "* * * feb-jan *", "* * * FEB/2 SUN", "* * 31 apr,jun *", "* * 29 feb ?", "* * ?/2 * 1", "* * */01 * 1", "007 * * * *",
		"\t1 \v2\f3 4\n5\r", "* * * * v", "1\u00a02 3 4 5", "* * * * ſun", "* * * * İun", "٣ * * * *", "0/59 0/23 1/30 1/11 0/6", "*/99 * * * *", "*/100 * * * *",
	} {
		f.Add(schedule, i, int64(1_600_000_000+i*10_000_019))
	}
	f.Fuzz(func(t *testing.T, schedule string, zone int, second int64) {
		if !utf8.ValidString(schedule) || strings.ContainsRune(schedule, 0) || len(schedule) > 200 {
			t.Skip("no text to Postgres")
		}
		_, err := scheduler.New(pool, scheduler.Config{Recurring: []scheduler.RecurringJob{{Name: "a", Schedule: schedule, Job: "a"}}})
		var understood bool
		errSQL := pool.QueryRow(t.Context(), "SELECT "+schema+".parse_schedule($1) IS NOT NULL", schedule).Scan(&understood)
		if err != nil {
			requirePgError(t, errSQL, "22023")
			return
		}
		require.NoError(t, errSQL)
		name := zones[uint(zone)%uint(len(zones))]
		location, err := time.LoadLocation(name)
		require.NoError(t, err)
		// From 2016 to 2036: what was decided before differs between versions of
		// the time zones, and what comes later has no rules in some.
		after := time.Unix(1_451_606_400+int64(uint64(second)%630_000_000), 0).UTC()
		spec := parsed(t, strings.Trim(schedule, " \t\r\n\f\v"))
		require.Equal(t, expectedSlots(spec, location, after, 3), slotsIn(t, pool, schema, schedule, name, []time.Time{after})[0][:],
			"%q in %s after %s", schedule, name, after)
	})
}
