// Mailroom's job on River. `river install` migrates the database, `river work` is the worker, and `river line`
// prints the line of each row on standard input, for a test.
package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
)

type tuning struct {
	Workers  int `json:"workers"`
	Cooldown int `json:"cooldown"`
	Pool     int `json:"pool"`
}

type mailArgs struct {
	Token int64      `json:"token"`
	Row   *[5]string `json:"row,omitempty"`
}

func (mailArgs) Kind() string { return "mail" }

type mailWorker struct {
	river.WorkerDefaults[mailArgs]
	pool    *pgxpool.Pool
	perform func(context.Context, row) error
}

func (w *mailWorker) Work(ctx context.Context, job *river.Job[mailArgs]) error {
	if job.Args.Row != nil {
		return w.perform(ctx, unpacked(*job.Args.Row))
	}
	var id int64
	var found row
	err := w.pool.QueryRow(ctx, os.Getenv("MAILROOM_BENCH_FETCH"), []int64{job.Args.Token}).Scan(
		&id, &found.action, &found.email, &found.login, &found.secret, &found.code)
	if err == pgx.ErrNoRows {
		return nil
	}
	if err != nil {
		return err
	}
	return w.perform(ctx, found)
}

func unpacked(fields [5]string) row {
	secret, err := hex.DecodeString(fields[3])
	check(err)
	return row{fields[0], fields[1], fields[2], secret, fields[4]}
}

func main() {
	switch os.Args[1] {
	case "install":
		install()
	case "work":
		work()
	case "line":
		lines()
	}
}

func connect(connections int32) *pgxpool.Pool {
	config, err := pgxpool.ParseConfig(os.Getenv("MAILROOM_DATABASE_URL"))
	check(err)
	config.MaxConns = connections
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	check(err)
	return pool
}

func install() {
	pool := connect(2)
	defer pool.Close()
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
	check(err)
	_, err = migrator.Migrate(context.Background(), rivermigrate.DirectionUp, nil)
	check(err)
}

func work() {
	given := tuning{Workers: 1000, Cooldown: 2, Pool: 16}
	check(json.Unmarshal([]byte(os.Getenv("MAILROOM_BENCH_TUNING")), &given))
	pool := connect(int32(given.Pool))
	defer pool.Close()
	perform := write
	if os.Getenv("MAILROOM_BENCH_JOB") == "send" {
		perform = sender()
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &mailWorker{pool: pool, perform: perform})
	// Throughput is limited by FetchCooldown, and a killed worker's jobs wait for RescueStuckJobsAfter, which
	// must be longer than any job: https://pkg.go.dev/github.com/riverqueue/river#Config
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		FetchCooldown:        time.Duration(given.Cooldown) * time.Millisecond,
		JobTimeout:           5 * time.Second,
		RescueStuckJobsAfter: 10 * time.Second,
		Logger:               slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Queues:               map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: given.Workers}},
		Workers:              workers,
	})
	check(err)
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGTERM)
	check(client.Start(context.Background()))
	<-stopped
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	check(client.Stop(ctx))
}

var output sync.Mutex

func write(_ context.Context, found row) error {
	text := line(found)
	output.Lock()
	defer output.Unlock()
	_, err := os.Stdout.Write(text)
	return err
}

func lines() {
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		var fields [5]string
		check(json.Unmarshal(input.Bytes(), &fields))
		check(write(context.Background(), unpacked(fields)))
	}
}

func check(err error) {
	if err != nil {
		slog.Error("river", "error", err)
		os.Exit(1)
	}
}
