package main

import (
	"context"
	"time"
)

// costs are what a database writes between two moments.
type costs struct {
	db  *database
	lsn string
}

func (d *database) beginCosts(ctx context.Context) (costs, error) {
	lsn, err := scalar[string](ctx, d.server.admin, "SELECT pg_current_wal_insert_lsn()::text")
	return costs{d, lsn}, err
}

const deadSQL = `
SELECT coalesce(sum(n_tup_upd + n_tup_del), 0)::bigint, coalesce(sum(n_tup_upd + n_tup_del - n_tup_hot_upd), 0)::bigint
FROM pg_stat_user_tables`

// end closes the system's connections, which is when their last counts become
// visible.
func (c costs) end(ctx context.Context, jobs int) (values, error) {
	wal, err := scalar[int64](ctx, c.db.server.admin, "SELECT (pg_current_wal_insert_lsn() - $1::text::pg_lsn)::bigint", c.lsn)
	if err != nil {
		return nil, err
	}
	c.db.pool.Close()
	for left := 1; left > 0; time.Sleep(10 * time.Millisecond) {
		left, err = scalar[int](ctx, c.db.server.admin,
			"SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend' AND application_name <> $2", c.db.name, watcher)
		if err != nil {
			return nil, err
		}
	}
	var dead, notHOT int64
	if err := c.db.watch.QueryRow(ctx, deadSQL).Scan(&dead, &notHOT); err != nil {
		return nil, err
	}
	perJob := func(n int64) float64 { return float64(n) / float64(jobs) }
	return values{rowWAL: perJob(wal), rowDead: perJob(dead), rowNotHOT: perJob(notHOT)}, nil
}
