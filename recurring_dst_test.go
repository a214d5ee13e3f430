package scheduler_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// On the days on which clocks are moved, a schedule of certain hours has each of
// its times once, and one of every hour has the hours that there are.
func TestSlotsWhenClocksAreMoved(t *testing.T) {
	t.Parallel()
	pool, schema := newPool(t), ""
	newScheduler(t, func(c *scheduler.Config) { schema = c.Schema })
	for _, test := range []struct {
		title, schedule, zone, after string
		slots                        [3]string
	}{
		{"skipped: as much later", "30 2 * * *", "Europe/Berlin", "2027-03-26T12:00:00Z",
			[3]string{"2027-03-27T01:30:00Z", "2027-03-28T01:30:00Z", "2027-03-29T00:30:00Z"}},
		{"twice: the first", "30 2 * * *", "Europe/Berlin", "2027-10-29T12:00:00Z",
			[3]string{"2027-10-30T00:30:00Z", "2027-10-31T00:30:00Z", "2027-11-01T01:30:00Z"}},
		{"between the two of a time", "30 2 * * *", "Europe/Berlin", "2027-10-31T01:10:00Z",
			[3]string{"2027-11-01T01:30:00Z", "2027-11-02T01:30:00Z", "2027-11-03T01:30:00Z"}},
		{"two times that are one moment", "0 2,3 * * *", "Europe/Berlin", "2027-03-27T12:00:00Z",
			[3]string{"2027-03-28T01:00:00Z", "2027-03-29T00:00:00Z", "2027-03-29T01:00:00Z"}},
		{"before what is skipped comes what is not", "30 2,3 * * *", "Europe/Berlin", "2027-03-28T00:59:59Z",
			[3]string{"2027-03-28T01:30:00Z", "2027-03-29T00:30:00Z", "2027-03-29T01:30:00Z"}},
		{"every hour, one skipped", "0 * * * *", "Europe/Berlin", "2027-03-28T00:00:00Z",
			[3]string{"2027-03-28T01:00:00Z", "2027-03-28T02:00:00Z", "2027-03-28T03:00:00Z"}},
		{"every hour, one twice", "0 * * * *", "Europe/Berlin", "2027-10-30T23:30:00Z",
			[3]string{"2027-10-31T00:00:00Z", "2027-10-31T01:00:00Z", "2027-10-31T02:00:00Z"}},
		{"midnight twice", "@daily", "America/Havana", "2027-11-06T12:00:00Z",
			[3]string{"2027-11-07T04:00:00Z", "2027-11-08T05:00:00Z", "2027-11-09T05:00:00Z"}},
		{"midnight skipped", "@daily", "Africa/Cairo", "2027-04-29T12:00:00Z",
			[3]string{"2027-04-29T22:00:00Z", "2027-04-30T21:00:00Z", "2027-05-01T21:00:00Z"}},
		{"half an hour", "15 2 * * *", "Australia/Lord_Howe", "2027-10-01T12:00:00Z",
			[3]string{"2027-10-01T15:45:00Z", "2027-10-02T15:45:00Z", "2027-10-03T15:15:00Z"}},
		{"skipped across midnight", "30 23 * * *", "America/Nuuk", "2027-03-27T12:00:00Z",
			[3]string{"2027-03-28T01:30:00Z", "2027-03-29T00:30:00Z", "2027-03-30T00:30:00Z"}},
		{"not moved", "30 2 * * *", "Asia/Kolkata", "2027-03-27T21:00:00Z",
			[3]string{"2027-03-28T21:00:00Z", "2027-03-29T21:00:00Z", "2027-03-30T21:00:00Z"}},
	} {
		after, err := time.Parse(time.RFC3339, test.after)
		require.NoError(t, err)
		var slots [3]string
		for i, slot := range slotsIn(t, pool, schema, test.schedule, test.zone, []time.Time{after})[0] {
			slots[i] = slot.Format(time.RFC3339)
		}
		require.Equal(t, test.slots, slots, test.title)
	}
}
