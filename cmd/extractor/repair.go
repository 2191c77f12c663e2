package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"go.uber.org/fx"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/torch"
	"github.com/featuremill/featuremill/adapters/worker"
	"github.com/featuremill/featuremill/cmd/internal/wiring"
	"github.com/featuremill/featuremill/domain/command"
)

// repairCmd computes artifacts again that the store has lost.
type repairCmd struct {
	wiring.Config
	device
	Extraction string `arg:"" help:"The extraction."`
}

func (c *repairCmd) Run(ctx context.Context) error {
	return c.with(func(r *torch.Runtime) (err error) {
		var log *postgres.Log
		var commands *command.Handler
		var store blob.Store
		var lib *library.Library
		app := fx.New(wiring.Core(wiring.Attach(ctx, c.Config)), fx.Populate(&log, &commands, &store, &lib))
		if err := app.Err(); err != nil {
			return err
		}
		if err := app.Start(ctx); err != nil {
			return err
		}
		defer func() {
			stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			if stopped := app.Stop(stop); err == nil {
				err = stopped
			}
		}()
		w := worker.New(commands, log, store, lib, engine{runtime: r, taps: filepath.Join(c.Cache(), "taps")}, "repair")
		defer func() {
			if closed := w.Close(); err == nil {
				err = closed
			}
		}()
		n, err := w.Repair(ctx, c.Extraction, func(lost worker.LostArtifact, n, of int) {
			fmt.Printf("%d of %d: segment %d: %s; computing it again\n", n, of, lost.Segment, lost.Why)
		})
		if err != nil {
			return err
		}
		fmt.Printf("%d artifacts were computed again, and have the recorded digests\n", n)
		return nil
	})
}
