package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/cmd/internal/wiring"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/projections/projector"
)

type projectionsCmd struct {
	Status  projectionsStatusCmd  `cmd:"" default:"1" help:"Positions, and what is parked."`
	Rebuild projectionsRebuildCmd `cmd:"" help:"Build a projection anew from the log, beside the old tables, then switch. Features are folded again from the artifacts."`
	Retry   projectionsRetryCmd   `cmd:"" help:"Try the parked events of a stream again, in order."`
}

type projectionsStatusCmd struct{ wiring.Config }

func (c *projectionsStatusCmd) Run(ctx context.Context) error {
	return offline(ctx, c.Config, func(ctx context.Context, log *postgres.Log, registry *event.Registry) error {
		head, _, err := log.Head(ctx)
		if err != nil {
			return err
		}
		runners, err := wiring.Runners(ctx, log, registry, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		positions := projector.NewPositions(log.Pool(), slog.New(slog.DiscardHandler))
		for i, p := range wiring.Projections() {
			position, err := positions.Position(ctx, p.Name())
			if err != nil {
				return err
			}
			parked, err := runners[i].Parked(ctx)
			if err != nil {
				return err
			}
			fmt.Printf("%-12s v%d  at %d of %d, %d parked\n", p.Name(), p.Version(), position, head, len(parked))
			for _, e := range parked {
				fmt.Printf("  %d %s %s: %s\n", e.Position, e.Stream, e.Type, e.Error)
			}
		}
		return nil
	})
}

type projectionsRebuildCmd struct {
	wiring.Config
	Name string `arg:"" help:"library, extractions or features."`
}

func (c *projectionsRebuildCmd) Run(ctx context.Context) error {
	return onProjection(ctx, c.Config, c.Name, func(ctx context.Context, r *projector.Runner) error { return r.Rebuild(ctx) })
}

type projectionsRetryCmd struct {
	wiring.Config
	Name   string `arg:"" help:"library, extractions or features."`
	Stream string `arg:"" help:"The stream, as status shows it."`
}

func (c *projectionsRetryCmd) Run(ctx context.Context) error {
	return onProjection(ctx, c.Config, c.Name, func(ctx context.Context, r *projector.Runner) error {
		done, err := r.Retry(ctx, c.Stream)
		if err == nil {
			fmt.Printf("%+v\n", done)
		}
		return err
	})
}

func onProjection(ctx context.Context, cfg wiring.Config, name string, do func(context.Context, *projector.Runner) error) error {
	return offline(ctx, cfg, func(ctx context.Context, log *postgres.Log, registry *event.Registry) error {
		for _, p := range wiring.Projections() {
			if p.Name() != name {
				continue
			}
			r, err := wiring.Runner(log, registry, slog.Default(), p)
			if err != nil {
				return err
			}
			return do(ctx, r)
		}
		return fmt.Errorf("there is no projection %q: library, extractions and features are", name)
	})
}
