package scheduler_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// A job that became due before the last one that was claimed does not wait for an
// end while there is room.
func TestOlderJobsTakeRoomThatThereIs(t *testing.T) {
	t.Parallel()
	g := newGated(t, scheduler.QueueConfig{MaxConcurrency: 10})
	first := g.create(t, "")
	_, run := g.start(t, 1, 1)
	older := mustCreate(t, g.Scheduler, "work", scheduler.JobData{Queue: "limited", RunAt: time.Now().Add(-time.Hour)}).ID
	younger := g.create(t, "")
	begun, other := g.start(t, 10, 2)
	require.ElementsMatch(t, []string{older, younger}, begun)
	for _, id := range []string{first, older, younger} {
		g.gate(id) <- nil
	}
	require.Equal(t, 1, await(t, run).report.Succeeded)
	require.Equal(t, 2, await(t, other).report.Succeeded)
}

// Ends that are worth a claim at once ask for one, not for another one a moment
// later; fewer of them ask for one in a moment.
func TestEndsAskForOneClaim(t *testing.T) {
	t.Parallel()
	atOnce, soon, _ := scheduler.RefillAfter(1, []int{1}, 1)
	require.True(t, atOnce)
	require.False(t, soon)
	_, _, freed := scheduler.RefillAfter(10, []int{10}, 3)
	await(t, freed)
}

// While claims bring all they ask for, what the limit has room for counts, not how
// few of the jobs have ended.
func TestRoomOfTheLimitIsWorthAClaim(t *testing.T) {
	t.Parallel()
	atOnce, _, _ := scheduler.RefillAfter(100, []int{50}, 1)
	require.True(t, atOnce)
	atOnce, soon, _ := scheduler.RefillAfter(100, []int{50, 50}, 49)
	require.False(t, atOnce)
	require.True(t, soon)
}

// A claim that came with a record and brought less than it asked for is followed by
// one that finds out why, and room that it leaves gets one in a moment.
func TestWhatFollowsAClaimThatCameWithARecord(t *testing.T) {
	t.Parallel()
	atOnce, _, freed := scheduler.RefillAfterReplacing(100, 100, 50, 49)
	require.False(t, atOnce)
	await(t, freed)
	atOnce, soon, _ := scheduler.RefillAfterReplacing(100, 100, 50, 50)
	require.False(t, atOnce || soon, "there is no room")
	atOnce, _, _ = scheduler.RefillAfterReplacing(100, 100, 100, 50)
	require.True(t, atOnce)
	_, soon, _ = scheduler.RefillAfterReplacing(100, 10, 1, 50)
	require.True(t, soon)
}

// Others see the room that ends make now and then, also while this process always has
// jobs that take it.
func TestRecordsLeaveRoomToOthersNowAndThen(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 100} {
		n, again, afterFailure := scheduler.RecordsAlong(limit)
		require.Equal(t, 15, n)
		require.True(t, again)
		require.False(t, afterFailure)
	}
}

// Two claims take all of a limit, the larger half first.
func TestRoomForHalvesOfALimit(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{1, 2, 3, 7, 100} {
		for n := 1; n <= limit+1; n++ {
			first, worth := scheduler.Room(limit, 0, n)
			require.True(t, worth)
			require.Equal(t, min(n, (limit+1)/2), first)
		}
		larger := (limit + 1) / 2
		second, worth := scheduler.Room(limit, larger, limit)
		require.Equal(t, limit/2, second)
		require.Equal(t, limit > 1, worth)
		if limit > 3 {
			_, worth = scheduler.Room(limit, larger+1, limit)
			require.False(t, worth)
			_, worth = scheduler.Room(limit, larger+1, 1)
			require.True(t, worth, "no more is asked for")
		}
		none, worth := scheduler.Room(limit, limit, limit)
		require.Zero(t, none)
		require.False(t, worth)
	}
}
