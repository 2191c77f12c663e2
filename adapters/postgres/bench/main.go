// Command bench measures the event log against the same PostgreSQL's bare INSERT and prints ratios.
//
//	go run ./adapters/postgres/bench [-slice 2s] [-rounds 5] [-snapshot 60s]
//
// The server runs with durable settings. Rounds alternate between the kinds of load, and a ratio is
// the median of its rounds' ratios, so that a machine that is busy with other things shifts both sides.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"golang.org/x/sync/errgroup"

	"github.com/featuremill/featuremill/adapters/embedded"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/eventlog/eventlogtest"
)

func main() {
	var b bench
	flag.DurationVar(&b.slice, "slice", 2*time.Second, "how long one measurement lasts")
	flag.IntVar(&b.rounds, "rounds", 5, "how often everything is measured")
	flag.DurationVar(&b.snapshot, "snapshot", 60*time.Second, "how long a snapshot is held open")
	flag.IntVar(&b.writers, "writers", 8, "how many append at once")
	flag.IntVar(&b.connections, "connections", 10, "of the log's pool")
	flag.StringVar(&b.dir, "dir", "", "folder for the server's state; default: a temporary one")
	flag.BoolVar(&b.json, "json", false, "print one JSON object")
	flag.Parse()
	if err := b.run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	slice, snapshot time.Duration
	rounds, writers int
	connections     int
	json            bool
	dir             string

	log     *postgres.Log
	bare    *pgx.Conn
	bareRow int64
	stream  atomic.Int64
}

// figures are in events a second, or ratios of them.
type figures struct {
	Bare         float64 `json:"bare_inserts_per_second"`
	Single       float64 `json:"appends_per_second"`
	Held         float64 `json:"appends_per_second_snapshot_held"`
	Batch        float64 `json:"events_per_second_in_appends_of_100"`
	SingleToBare float64 `json:"appends_to_bare"` // at least 0.6
	HeldToSingle float64 `json:"held_to_appends"` // at least 0.8
	HeldLast     float64 `json:"held_last_third_to_appends"`
	BatchToOne   float64 `json:"batched_to_single"` // at least 10
}

func (b *bench) run(ctx context.Context) (err error) {
	dir := b.dir
	if dir == "" {
		if dir, err = embedded.TempDir(); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	pg, err := embedded.StartPostgres(ctx, embedded.PostgresConfig{Dir: dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pg.Stop(ctx)) }()
	registry, err := eventlogtest.Registry()
	if err != nil {
		return err
	}
	b.log, err = postgres.Open(ctx, pg.DSN(), postgres.Config{
		Registry: registry, Effects: eventlogtest.Effects, Connections: int32(b.connections), Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	defer b.log.Close()
	if b.bare, err = pgx.Connect(ctx, pg.DSN()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.bare.Close(ctx)) }()
	if _, err := b.bare.Exec(ctx, `create table bare (like events including defaults, primary key (position))`); err != nil {
		return err
	}
	if _, err := b.measureBare(ctx, b.slice/4); err != nil {
		return err
	}
	if _, err := b.measureAppends(ctx, b.slice/4, 1); err != nil {
		return err
	}

	var f figures
	var bares, singles, batches, singleToBare, batchToOne []float64
	for range b.rounds {
		bare, err := b.measureBare(ctx, b.slice)
		if err != nil {
			return err
		}
		single, err := b.measureAppends(ctx, b.slice, 1)
		if err != nil {
			return err
		}
		batch, err := b.measureAppends(ctx, b.slice, 100)
		if err != nil {
			return err
		}
		if !b.json {
			fmt.Printf("  round: bare %.0f, appends %.0f, in hundreds %.0f\n", bare, single, batch)
		}
		bares, singles, batches = append(bares, bare), append(singles, single), append(batches, batch)
		singleToBare, batchToOne = append(singleToBare, single/bare), append(batchToOne, batch/single)
	}
	f.Bare, f.Single, f.Batch = median(bares), median(singles), median(batches)
	f.SingleToBare, f.BatchToOne = median(singleToBare), median(batchToOne)
	if b.snapshot > 0 {
		if err := b.measureHeld(ctx, pg.DSN(), &f); err != nil {
			return err
		}
	}
	return b.print(f)
}

// measureBare counts one writer's autocommitted inserts into a table like events, without its other indexes.
func (b *bench) measureBare(ctx context.Context, d time.Duration) (float64, error) {
	data, metadata := []byte(`{"text":"a fact of the usual size, such as a recorded segment with its digests and counts"}`), []byte(`{"actor":"bench"}`)
	digest := sha256.Sum256(data)
	start := time.Now()
	n := 0
	for ; time.Since(start) < d; n++ {
		b.bareRow++
		id := event.NewID(time.Now())
		_, err := b.bare.Exec(ctx, `insert into bare values ($1, $2, $3, $4, $5, $6, $7, $8, clock_timestamp(), $9, $9, $9)`,
			b.bareRow, pgtype.UUID{Bytes: id, Valid: true}, "bench-1", b.bareRow, "TestNoted", 1, data, metadata, digest[:])
		if err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(start).Seconds(), nil
}

// measureAppends counts the events that all writers append, each to a stream of its own.
func (b *bench) measureAppends(ctx context.Context, d time.Duration, events int) (float64, error) {
	start := time.Now()
	var n atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	for range b.writers {
		group.Go(func() error {
			stream := "bench-" + strconv.FormatInt(b.stream.Add(1), 10)
			var version int64
			for time.Since(start) < d {
				batch := make([]event.Proposed, events)
				for i := range batch {
					batch[i] = event.Proposed{
						ID: event.NewID(time.Now()), Metadata: event.Metadata{Actor: "bench"},
						Data: eventlogtest.Noted{Text: "a fact of the usual size, such as a recorded segment with its digests and counts"},
					}
				}
				_, err := b.log.Append(ctx, eventlog.Request{Streams: []eventlog.StreamAppend{{Stream: stream, Expected: version, Events: batch}}})
				if err != nil {
					return err
				}
				version += int64(events)
				n.Add(int64(events))
			}
			return nil
		})
	}
	err := group.Wait()
	return float64(n.Load()) / time.Since(start).Seconds(), err
}

// measureHeld appends while another session keeps a snapshot. Bare inserts, which a snapshot cannot slow
// down, run in between, so what is compared is again a ratio of two neighbours.
func (b *bench) measureHeld(ctx context.Context, dsn string, f *figures) (err error) {
	holder, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, holder.Close(ctx)) }()
	for _, sql := range []string{`begin isolation level repeatable read`, `select count(*) from events where position < 10`} {
		if _, err := holder.Exec(ctx, sql); err != nil {
			return err
		}
	}
	var rates, toBare []float64
	for start := time.Now(); time.Since(start) < b.snapshot; {
		bare, err := b.measureBare(ctx, b.slice)
		if err != nil {
			return err
		}
		rate, err := b.measureAppends(ctx, b.slice, 1)
		if err != nil {
			return err
		}
		rates, toBare = append(rates, rate), append(toBare, rate/bare)
	}
	f.Held, f.HeldToSingle = median(rates), median(toBare)/f.SingleToBare
	f.HeldLast = median(toBare[len(toBare)*2/3:]) / f.SingleToBare
	_, err = holder.Exec(ctx, `rollback`)
	return err
}

func (b *bench) print(f figures) error {
	if b.json {
		return json.NewEncoder(os.Stdout).Encode(f)
	}
	fmt.Printf("bare INSERT, one writer           %8.0f commits/s\n", f.Bare)
	fmt.Printf("one-event appends, %d writers      %8.0f events/s   %6.3f x bare INSERT (at least 0.6)\n", b.writers, f.Single, f.SingleToBare)
	if b.snapshot > 0 {
		fmt.Printf("  with a snapshot held open %-5s  %8.0f events/s   %5.2f x without (at least 0.8), %.2f x in the last third\n", b.snapshot, f.Held, f.HeldToSingle, f.HeldLast)
	}
	fmt.Printf("100-event appends, %d writers      %8.0f events/s   %5.2f x one-event appends (at least 10)\n", b.writers, f.Batch, f.BatchToOne)
	return nil
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	return s[len(s)/2]
}
