package projector_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/postgres/pgtest"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/feature"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/projections/projector"
)

// BenchmarkCatchUp applies a log of 10,000 events, one statement an event.
func BenchmarkCatchUp(b *testing.B) {
	registry, err := facts.Registry()
	require.NoError(b, err)
	log, err := postgres.Open(b.Context(), pgtest.New(b), postgres.Config{Registry: registry})
	require.NoError(b, err)
	defer log.Close()
	src, err := source.FromSAE("sae_1")
	require.NoError(b, err)
	const streams, events = 100, 100
	for i := range streams {
		request := eventlog.StreamAppend{Stream: feature.Stream(src, i)}
		for j := range events {
			request.Events = append(request.Events, event.Proposed{ID: event.NewID(time.Now()),
				Data: feature.Described{Latent: feature.Latent{Source: src, Index: i}, Description: fmt.Sprint("described ", j), By: feature.User}})
		}
		_, err := log.Append(b.Context(), eventlog.Request{Streams: []eventlog.StreamAppend{request}})
		require.NoError(b, err)
	}
	r, err := projector.New(projector.Config{Pool: log.Pool(), Log: log, Registry: registry, Logger: slog.New(slog.DiscardHandler)}, descriptions{newStars()})
	require.NoError(b, err)
	for b.Loop() {
		require.NoError(b, r.Rebuild(b.Context()))
	}
	b.ReportMetric(float64(b.N)*streams*events/b.Elapsed().Seconds(), "events/s")
}

// descriptions keeps the last description of each stream.
type descriptions struct{ *stars }

func (descriptions) Apply(ctx context.Context, tx pgx.Tx, rec event.Recorded, d event.Data) error {
	e, ok := d.(feature.Described)
	if !ok {
		return nil
	}
	_, err := tx.Exec(ctx, `insert into star_notes as s (stream, notes) values ($1, array[$2]) on conflict (stream) do update set notes = excluded.notes`, rec.Stream, e.Description)
	return err
}
