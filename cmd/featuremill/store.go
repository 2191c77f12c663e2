package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/featuremill/featuremill/adapters/collect"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/worker"
	"github.com/featuremill/featuremill/cmd/internal/wiring"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/event"
)

type storeCmd struct {
	Sweep sweepCmd `cmd:"" help:"Remove stored files that no recorded fact names, artifacts of deleted extractions, partial files, forward passes past their hour and idempotency keys past a week. A server does the same once a day."`
}

type sweepCmd struct {
	wiring.Config
	DryRun bool          `help:"Say what would be removed, and remove nothing."`
	Grace  time.Duration `help:"What is younger stays: it may belong to an import whose fact is not recorded yet." default:"24h"`
	Quiet  bool          `help:"Print the sum only." short:"q"`
}

func (c *sweepCmd) Run(ctx context.Context) error {
	return offline(ctx, c.Config, func(ctx context.Context, log *postgres.Log, registry *event.Registry) error {
		store, err := wiring.OpenStore(ctx, c.Config, log)
		if err != nil {
			return err
		}
		s := wiring.Sweeper(c.Config, log, registry, store)
		s.Grace, s.Dry = c.Grace, c.DryRun
		if !c.Quiet {
			s.Removed = func(r collect.Removal) { fmt.Printf("%s  %s (%s)\n", r.What, r.Why, size(r.Bytes)) }
		}
		report, err := s.Sweep(ctx)
		verb := map[bool]string{true: "would be removed", false: "removed"}[c.DryRun]
		fmt.Printf("%s: %d files of %s, %d idempotency keys; %d stored files stay, %d under other keys were not looked at\n", verb, report.Files, size(report.Bytes), report.Keys, report.Kept, report.Unknown)
		return errors.Join(err, store.Close())
	})
}

// size is a number of bytes for people.
func size(bytes int64) string {
	switch {
	case bytes >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
	case bytes >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	case bytes >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(bytes)/(1<<10))
	}
	return fmt.Sprintf("%d B", bytes)
}

type artifactsCmd struct {
	Check  artifactsCheckCmd  `cmd:"" help:"Read every artifact of an extraction and say which are lost or changed."`
	Repair artifactsRepairCmd `cmd:"" help:"Compute lost artifacts again. Only what has the recorded digests is accepted."`
}

type artifactsCheckCmd struct {
	wiring.Config
	Extraction string `arg:"" help:"The extraction."`
}

func (c *artifactsCheckCmd) Run(ctx context.Context) error {
	lost, err := lostArtifacts(ctx, c.Config, c.Extraction)
	if err != nil {
		return err
	}
	for _, l := range lost {
		fmt.Printf("segment %d: %s\n", l.Segment, l.Why)
	}
	if len(lost) > 0 {
		return fmt.Errorf("%d artifacts are not as they were recorded (featuremill artifacts repair %s)", len(lost), c.Extraction)
	}
	fmt.Println("all artifacts are as they were recorded")
	return nil
}

func lostArtifacts(ctx context.Context, cfg wiring.Config, id string) (lost []worker.LostArtifact, err error) {
	return lost, offline(ctx, cfg, func(ctx context.Context, log *postgres.Log, registry *event.Registry) error {
		store, err := wiring.OpenStore(ctx, cfg, log)
		if err != nil {
			return err
		}
		lost, err = worker.LostArtifacts(ctx, store, command.NewHandler(log, registry, time.Now), id)
		return errors.Join(err, store.Close())
	})
}

type artifactsRepairCmd struct {
	wiring.Config
	Extraction string `arg:"" help:"The extraction."`
	Extractor  string `help:"The worker's program. Empty: the one beside this program." type:"path" env:"FEATUREMILL_EXTRACTOR"`
	Device     string `help:"Where to compute: cpu or cuda:N. It must be what the extraction was computed on." default:"cpu"`
	Threads    int    `help:"CPU threads; likewise. 0 is one a core." default:"0"`
}

// Run leaves the computing to the program that has libtorch.
func (c *artifactsRepairCmd) Run(ctx context.Context) error {
	path, err := wiring.Extractor{Path: c.Extractor}.Find()
	if err != nil {
		return err
	}
	args := []string{"repair", c.Extraction, "--state", c.State, "--log-level", c.LogLevel, "--device", c.Device, "--threads", fmt.Sprint(c.Threads)}
	cfg := wiring.Attach(ctx, c.Config)
	if cfg.Database != "" {
		args = append(args, "--database", cfg.Database)
	}
	store := c.Store
	if store == "" {
		store = filepath.Join(c.State, "files")
	}
	args = append(args, "--store", store)
	for _, b := range c.Kafka {
		args = append(args, "--kafka", b)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
