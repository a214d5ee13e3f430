package scheduler_test

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/stdlib"

	"github.com/relay-club/scheduler"
)

// The job is created if, and only if, the order is. What an ORM has in place of
// the *sql.Tx: with GORM tx.Statement.ConnPool, with Bun tx.Tx, with sqlx tx.Tx,
// with xorm session.Tx().Tx, with ent (feature sql/execquery) its *ent.Tx itself.
func ExampleScheduler_CreateJobSQL() {
	ctx := context.Background()
	jobs := start(scheduler.Config{})
	db := stdlib.OpenDBFromPool(connect()) // sql.Open("postgres", os.Getenv("DATABASE_URL")) with lib/pq
	_, err := db.ExecContext(ctx, "CREATE TABLE orders (item text)")
	check(err)

	tx, err := db.BeginTx(ctx, nil)
	check(err)
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	_, err = tx.ExecContext(ctx, "INSERT INTO orders (item) VALUES ($1)", "book")
	check(err)
	job, err := jobs.CreateJobSQL(ctx, tx, "pack", scheduler.JobData{Payload: "book"})
	check(err)
	check(tx.Commit())

	job, err = jobs.GetJob(ctx, job.ID)
	check(err)
	fmt.Println(job.Name, job.Status, string(job.Payload))
	// Output: pack pending "book"
}

// Any transaction that takes the parameters $1, $2 will do.
func ExampleSQLTx() {
	ctx := context.Background()
	jobs := start(scheduler.Config{})
	db := stdlib.OpenDBFromPool(connect())

	inTx := func(work func(tx scheduler.SQLTx) error) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if err := work(tx); err != nil {
			_ = tx.Rollback()
			return err
		}
		return tx.Commit()
	}
	err := inTx(func(tx scheduler.SQLTx) error {
		_, err := jobs.CreateJobSQL(ctx, tx, "pack", scheduler.JobData{Queue: "nowhere"})
		return err
	})
	fmt.Println(err)
	// Output: create job: queue: unknown queue "nowhere": declared are blocking, default
}
