package main

import (
	"context"
	"path/filepath"
	"time"

	"go.uber.org/fx"

	"github.com/featuremill/featuremill/adapters/torch"
	"github.com/featuremill/featuremill/adapters/worker"
	"github.com/featuremill/featuremill/cmd/internal/wiring"
)

// workCmd is the worker: it claims plans, corpus chunks and segments, and computes them.
type workCmd struct {
	wiring.Config
	device
	Heartbeat time.Duration `hidden:"" default:"3s" env:"FEATUREMILL_HEARTBEAT"`
	ReapEvery time.Duration `hidden:"" default:"400ms" env:"FEATUREMILL_REAP_EVERY"`
	Hung      time.Duration `hidden:"" default:"2m" env:"FEATUREMILL_HUNG"`

	Failpoints string `hidden:"" env:"FEATUREMILL_FAILPOINTS"`
}

func (c *workCmd) Run(ctx context.Context) error {
	c.Wait = time.Minute
	return c.with(func(r *torch.Runtime) error {
		app := fx.New(
			wiring.Core(c.Config),
			wiring.Worker(func() (worker.Engine, error) { return engine{runtime: r, taps: filepath.Join(c.Cache(), "taps")}, nil }, wiring.WorkerOptions{Heartbeat: c.Heartbeat, ReapEvery: c.ReapEvery, Hung: c.Hung, Failpoints: c.Failpoints}),
		)
		return wiring.RunUntil(ctx, app)
	})
}
