package scheduler_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/relay-club/scheduler"
)

// A queue that is being added while all are paused is paused, by whatever
// transaction it is added.
func TestPauseOfAllQueuesWaitsForOneThatIsBeingAdded(t *testing.T) {
	t.Parallel()
	for name, add := range map[string]func(t *testing.T, s *scheduler.Scheduler, tx pgx.Tx, schema string){
		"by a claim": func(t *testing.T, _ *scheduler.Scheduler, tx pgx.Tx, schema string) {
			mustExec(t, tx, "SELECT FROM "+schema+".claim_blocking('added', false, '{a}', gen_random_uuid())")
		},
		"by a priority": func(t *testing.T, s *scheduler.Scheduler, tx pgx.Tx, _ string) {
			_, err := s.CreateJobTx(t.Context(), tx, "a", scheduler.JobData{Queue: "added", Priority: 1})
			require.NoError(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, name := newPool(t), unique()
			config := pool.Config()
			config.ConnConfig.RuntimeParams["application_name"] = name
			var schema string
			s := newSchedulerOn(t, newPoolWith(t, config), func(c *scheduler.Config) { schema = c.Schema })
			undeclared, err := scheduler.New(pool, scheduler.Config{Schema: schema, Queues: queueConfigs{"added": {}}})
			require.NoError(t, err)
			tx, err := pool.Begin(t.Context())
			require.NoError(t, err)
			defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
			add(t, undeclared, tx, schema)
			paused := make(chan error, 1)
			go func() { paused <- s.PauseQueue(context.Background(), scheduler.JobQueueAll) }()
			waitBlocked(t, pool, name)
			require.NoError(t, tx.Commit(t.Context()))
			require.NoError(t, await(t, paused))
			require.True(t, mustQuery[bool](t, pool, "SELECT bool_and(paused) FROM "+schema+".queues"))
			require.Equal(t, 3, mustQuery[int](t, pool, "SELECT count(*) FROM "+schema+".queues"))
		})
	}
}

// Where the order of the database is another one than that of bytes, queues are
// locked in one order all the same.
func TestQueuesAreLockedInTheOrderOfBytes(t *testing.T) {
	t.Parallel()
	needsVersion(t, 15) // of databases with an order of ICU's
	database := unique()
	administer(t, "CREATE DATABASE "+database+" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'en-US'")
	t.Cleanup(func() { administer(t, "DROP DATABASE "+database+" WITH (FORCE)") })
	url := shared.cluster.URL(database)
	for name, do := range map[string]string{
		"prioritize": "SELECT FROM s.prioritize('{a,B}')",
		"pause":      "SELECT FROM s.pause_queue('*')",
		"migrate":    "",
	} {
		pool := newPoolOn(t, url)
		require.True(t, mustQuery[bool](t, pool, "SELECT 'a' < 'B'"))
		schema := unique()
		s := newSchedulerOn(t, pool, func(c *scheduler.Config) { c.Schema, c.Queues = schema, queueConfigs{"a": {}, "B": {}} })
		later, other := newPoolOn(t, url), unique()
		config := later.Config()
		config.ConnConfig.RuntimeParams["application_name"] = other
		later = newPoolWith(t, config)
		tx, err := pool.Begin(t.Context())
		require.NoError(t, err)
		defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
		mustExec(t, tx, "SELECT FROM "+schema+".queues WHERE name = 'B' FOR UPDATE")
		done := make(chan error, 1)
		go func() {
			if do == "" {
				migrates, err := scheduler.New(later, scheduler.Config{Schema: schema, Queues: queueConfigs{"a": {}, "B": {}}})
				if err == nil {
					err = migrates.Migrate(t.Context())
				}
				done <- err
				return
			}
			_, err := later.Exec(t.Context(), inTestSchema(schema, do))
			done <- err
		}()
		waitBlocked(t, pool, other)
		_, err = tx.Exec(t.Context(), "SELECT FROM "+schema+".queues WHERE name = 'a' FOR UPDATE NOWAIT")
		require.NoError(t, err, "%s: it is not locked yet", name)
		require.NoError(t, tx.Rollback(t.Context()))
		require.NoError(t, await(t, done))
		require.NoError(t, s.ResumeQueue(t.Context(), scheduler.JobQueueAll))
	}
}
