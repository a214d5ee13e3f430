package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
)

// observe begins what the flags -profile and -statements ask for, for one
// measurement of this library. The caller ends it while the database is still
// there.
func (b *bench) observe(ctx context.Context, sys system, figure string) (end func(context.Context, *database) error, err error) {
	if sys.name != ours {
		return func(context.Context, *database) error { return nil }, nil
	}
	profile := func() error { return nil }
	if b.profileDir != "" {
		if profile, err = startProfile(filepath.Join(b.profileDir, figure+".pprof")); err != nil {
			return nil, err
		}
	}
	if b.statements {
		if _, err := b.server.admin.Exec(ctx, "SELECT pg_stat_statements_reset()"); err != nil {
			return nil, errors.Join(err, profile())
		}
	}
	return func(ctx context.Context, d *database) error {
		err := profile()
		if b.statements {
			err = errors.Join(err, b.printStatements(ctx, figure, d))
		}
		return err
	}, nil
}

func startProfile(path string) (stop func() error, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(filepath.Clean(path), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return file.Close()
	}, nil
}

const topStatementsSQL = `
SELECT s.calls, s.rows, s.total_exec_time, s.mean_exec_time, s.wal_bytes::bigint, s.wal_records, s.shared_blks_hit + s.shared_blks_read,
    regexp_replace(s.query, '\s+', ' ', 'g')
FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
WHERE d.datname = $1 ORDER BY s.total_exec_time DESC LIMIT 12`

func (b *bench) printStatements(ctx context.Context, figure string, d *database) error {
	rows, err := b.server.admin.Query(ctx, topStatementsSQL, d.name)
	if err != nil {
		return err
	}
	defer rows.Close()
	fmt.Printf("\nstatements of %s\n%8s %9s %10s %9s %12s %9s %9s  query\n",
		figure, "calls", "rows", "total ms", "mean ms", "WAL bytes", "WAL recs", "blocks")
	for rows.Next() {
		var calls, returned, walBytes, walRecords, blocks int64
		var total, mean float64
		var query string
		if err := rows.Scan(&calls, &returned, &total, &mean, &walBytes, &walRecords, &blocks, &query); err != nil {
			return err
		}
		if len(query) > 150 {
			query = query[:150] + "…"
		}
		fmt.Printf("%8d %9d %10.1f %9.3f %12d %9d %9d %s\n", calls, returned, total, mean, walBytes, walRecords, blocks, query)
	}
	return rows.Err()
}
