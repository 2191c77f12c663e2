package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/cmd/internal/wiring"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/projections/projector"
)

type projectionsCmd struct {
	Status  projectionsStatusCmd  `cmd:"" default:"1" help:"Positions, and what is parked."`
	Rebuild projectionsRebuildCmd `cmd:"" help:"Build a projection anew from the log, beside the old tables, then switch. Features are folded again from the artifacts."`
	Retry   projectionsRetryCmd   `cmd:"" help:"Try the parked events of a stream again, in order."`
	Skip    projectionsSkipCmd    `cmd:"" help:"Leave one parked event out of a projection for good. The log keeps who did it and why, and every rebuild and verify honours it."`
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

type projectionsSkipCmd struct {
	wiring.Config
	Name     string `arg:"" help:"library, extractions or features."`
	Position int64  `arg:"" help:"The event's position, as status shows it."`
	Reason   string `required:"" help:"Why; it stays in the log."`
	Actor    string `help:"Who says so." env:"USER" default:"operator"`
}

func (c *projectionsSkipCmd) Run(ctx context.Context) error {
	return offline(ctx, c.Config, func(ctx context.Context, log *postgres.Log, registry *event.Registry) error {
		if !slices.ContainsFunc(wiring.Projections(), func(p projector.Projection) bool { return p.Name() == c.Name }) {
			return unknownProjection(c.Name)
		}
		done, err := command.NewHandler(log, registry, time.Now).SkipEvent(ctx, command.Call{Metadata: event.Metadata{Actor: c.Actor}},
			command.SkipEvent{Projection: c.Name, Position: c.Position, Reason: c.Reason})
		if err != nil {
			return err
		}
		if done.Position == 0 {
			fmt.Printf("%s leaves event %s out already\n", c.Name, done.ID)
			return nil
		}
		fmt.Printf("%s leaves event %s out from position %d on; what was parked behind it goes on then\n", c.Name, done.ID, done.Position)
		return nil
	})
}

func unknownProjection(name string) error {
	return fmt.Errorf("there is no projection %q: library, extractions and features are", name)
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
		return unknownProjection(name)
	})
}
