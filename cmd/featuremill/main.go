// Command featuremill is the backend: the API, the relay, the projections, and a command line that
// drives them. It needs no cgo; what needs libtorch is cmd/extractor.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/featuremill/featuremill/cmd/internal/wiring"
)

type commands struct {
	Demo        demoCmd        `cmd:"" help:"The main job on this machine: a real model, a real SAE and real text to browsable features. Then it serves."`
	Serve       serveCmd       `cmd:"" help:"Run the API, the relay, the projections, and a worker, each where you want it."`
	Import      importCmd      `cmd:"" help:"Register a model, an SAE, a training or a dataset from files."`
	Extract     extractCmd     `cmd:"" help:"Extract the features of an SAE over a dataset, and watch."`
	Features    featuresCmd    `cmd:"" help:"List the features of an extraction."`
	SAE         saeCmd         `cmd:"" name:"sae" help:"Look at an SAE's files, or at its record."`
	Events      eventsCmd      `cmd:"" help:"Read the event log, or prove that it is whole."`
	Work        workCmd        `cmd:"" help:"See open work and why it is still open; try a piece again at once."`
	Store       storeCmd       `cmd:"" help:"Remove stored files that nothing names."`
	Artifacts   artifactsCmd   `cmd:"" help:"Check the stored artifacts of an extraction; compute lost ones again."`
	Projections projectionsCmd `cmd:"" help:"See how far the read models are; rebuild one; retry what was parked."`
	Ready       readyCmd       `cmd:"" hidden:"" help:"Say whether a running API can answer."`
}

const description = `Turns a language model, a sparse autoencoder and text into browsable features, and keeps every fact about how they came to be.

  featuremill serve                                 everything on this machine
  featuremill import model ./SmolLM2-135M.gguf
  featuremill import sae ./my-sae --model m_…
  featuremill import dataset ./speeches.jsonl
  featuremill extract --sae sae_… --dataset d_…     with a progress bar; Ctrl-C asks to cancel
  featuremill features --extraction ext_… --sort density`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		if errors.Is(err, context.Canceled) {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "featuremill:", err)
		os.Exit(1)
	}
}

// run is main without the process: one error, however the arguments or the work went wrong.
func run(ctx context.Context, arguments []string) error {
	var c commands
	parser, err := kong.New(&c, kong.Name("featuremill"), kong.Description(description), kong.Vars{"state": wiring.DefaultState()},
		kong.UsageOnError(), kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 110}))
	if err != nil {
		return err
	}
	parsed, err := parser.Parse(arguments)
	if err != nil {
		return fmt.Errorf("%w (featuremill --help shows what there is)", err)
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	return parsed.Run()
}
