package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"go.uber.org/fx"

	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/cmd/internal/wiring"
	"github.com/featuremill/featuremill/domain/event"
)

type eventsCmd struct {
	Tail   tailCmd   `cmd:"" help:"Print events as they come, a JSON object a line."`
	Verify verifyCmd `cmd:"" help:"Prove hash chain, positions, reservations and work, and that the tables are the fold of the log."`
}

// offline runs f with the log, and stops what was started for it.
func offline(ctx context.Context, cfg wiring.Config, f func(context.Context, *postgres.Log, *event.Registry) error) (err error) {
	var log *postgres.Log
	var registry *event.Registry
	app := fx.New(wiring.Core(wiring.Attach(ctx, cfg)), fx.Populate(&log, &registry))
	if err := app.Err(); err != nil {
		return err
	}
	if err := app.Start(ctx); err != nil {
		return err
	}
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), app.StopTimeout())
		defer cancel()
		err = errors.Join(err, app.Stop(stop))
	}()
	return f(ctx, log, registry)
}

type tailCmd struct {
	wiring.Config
	After  int64 `help:"Begin after this position."`
	Follow bool  `help:"Wait for more." short:"f"`
}

// line is an event as tail prints it.
type line struct {
	Position   int64           `json:"position"`
	ID         string          `json:"event_id"`
	Stream     string          `json:"stream"`
	Version    int64           `json:"version"`
	Type       string          `json:"type"`
	RecordedAt time.Time       `json:"recorded_at"`
	Data       json.RawMessage `json:"data"`
	Metadata   json.RawMessage `json:"metadata"`
	Hash       string          `json:"hash"`
}

func (c *tailCmd) Run(ctx context.Context) error {
	return offline(ctx, c.Config, func(ctx context.Context, log *postgres.Log, _ *event.Registry) error {
		out := json.NewEncoder(os.Stdout)
		after := c.After
		for {
			events, err := log.ReadAll(ctx, after, 1000)
			if err != nil {
				return err
			}
			for _, e := range events {
				after = e.Position
				if err := out.Encode(line{e.Position, e.ID.String(), e.Stream, e.Version, e.Type, e.RecordedAt, e.Data, e.Metadata, fmt.Sprintf("%x", e.Hash)}); err != nil {
					return err
				}
			}
			switch {
			case len(events) > 0:
			case !c.Follow:
				return nil
			default:
				if _, err := log.Wait(ctx, after); err != nil {
					return nil //nolint:nilerr // asked to stop
				}
			}
		}
	})
}
