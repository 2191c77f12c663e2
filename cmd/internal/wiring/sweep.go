package wiring

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"go.uber.org/fx"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/collect"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/worker"
	"github.com/featuremill/featuremill/domain/event"
)

// Sweeper removes from the store, and from this machine's caches, what no recorded fact names.
func Sweeper(cfg Config, l *postgres.Log, registry *event.Registry, store blob.Store) *collect.Sweeper {
	return &collect.Sweeper{Log: l, Registry: registry, Store: store, Artifact: worker.ArtifactKey, Keys: l, Cache: cfg.Cache()}
}

const (
	sweepEvery = 24 * time.Hour
	sweepFirst = 10 * time.Minute // after a start, so that one that is restarted again and again sweeps, too
	sweepAgain = time.Hour        // after an error
)

// sweeps sweeps once a day, in one process of all.
func sweeps(lc fx.Lifecycle, shut fx.Shutdowner, cfg Config, l *postgres.Log, registry *event.Registry, store blob.Store, log *slog.Logger) {
	log = log.With("part", "sweep")
	background(lc, shut, log, "sweep", func(ctx context.Context) error {
		pause := sweepFirst + rand.N(sweepFirst)
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
			pause = sweepEvery
			_, err := l.Alone(ctx, "sweep", func(ctx context.Context) error {
				report, err := Sweeper(cfg, l, registry, store).Sweep(ctx)
				log.Info("removed what nothing names", "files", report.Files, "bytes", report.Bytes, "keys", report.Keys)
				return err
			})
			if err != nil && ctx.Err() == nil {
				log.Warn("the sweep did not come to its end; it is tried again", "error", err)
				pause = sweepAgain
			}
		}
	})
}
