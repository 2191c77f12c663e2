package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"

	"github.com/featuremill/featuremill/adapters/collect"
	"github.com/featuremill/featuremill/adapters/postgres"
	"github.com/featuremill/featuremill/adapters/worker"
	"github.com/featuremill/featuremill/cmd/internal/wiring"
	"github.com/featuremill/featuremill/domain/event"
)

type verifyCmd struct {
	wiring.Config
	Quiet bool `help:"Print faults only." short:"q"`
}

func (c *verifyCmd) Run(ctx context.Context) error {
	return offline(ctx, c.Config, func(ctx context.Context, log *postgres.Log, registry *event.Registry) error {
		say := func(format string, args ...any) {
			if !c.Quiet {
				fmt.Printf(format+"\n", args...)
			}
		}
		report, err := log.Verify(ctx, func(position, head int64) {
			if isTerminal(os.Stderr) {
				fmt.Fprintf(os.Stderr, "\r\033[K%d of %d events", position, head)
			}
		})
		if err != nil {
			return err
		}
		if isTerminal(os.Stderr) {
			fmt.Fprint(os.Stderr, "\r\033[K")
		}
		faults := len(report.Faults)
		for _, f := range report.Faults {
			fmt.Println("FAULT", f)
		}
		say("log: %d events in %d streams, head %x", report.Events, report.Streams, report.Hash)
		say("side tables: %d reservations, %d pieces of open work", report.Reservations, report.Work)
		runners, err := wiring.Runners(ctx, log, registry, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		for i, p := range wiring.Projections() {
			differences, err := runners[i].Verify(ctx, wiring.PureTables(p)...)
			if err != nil {
				return fmt.Errorf("projection %s: %w", p.Name(), err)
			}
			for _, d := range differences {
				fmt.Println("FAULT", p.Name()+":", d)
			}
			faults += len(differences)
			say("projection %s: its tables are the fold of the log: %v", p.Name(), len(differences) == 0)
		}
		store, err := wiring.OpenStore(ctx, c.Config, log)
		if err != nil {
			return err
		}
		named, err := collect.Read(ctx, log, registry)
		if err != nil {
			return errors.Join(err, store.Close())
		}
		missing, unnamed, bytes, err := collect.Missing(ctx, named, store, worker.ArtifactKey)
		if err != nil {
			return errors.Join(err, store.Close())
		}
		for _, key := range slices.Sorted(maps.Keys(missing)) {
			fmt.Printf("FAULT store: %s is missing, which %s names\n", key, missing[key])
		}
		faults += len(missing)
		say("store: all that the log names is there: %v; %d files of %s are named by nothing (featuremill store sweep)", len(missing) == 0, unnamed, size(bytes))
		checked, differences, err := wiring.NewFolder(log, store).Verify(ctx)
		if err := errors.Join(err, store.Close()); err != nil {
			return err
		}
		for _, d := range differences {
			fmt.Println("FAULT", d)
		}
		faults += len(differences)
		say("features: %d extractions folded again from their artifacts, equal to the tables: %v", checked, len(differences) == 0)
		if faults > 0 {
			return fmt.Errorf("%d faults", faults)
		}
		say("all is as the log says")
		return nil
	})
}
