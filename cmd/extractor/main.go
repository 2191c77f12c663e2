// Command extractor is everything that needs libtorch or the tokenizer: the worker that computes
// features, and commands that show its numbers, to hold against Python.
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

// commands is what the program can do; each command is a struct with its flags and a Run.
type commands struct {
	Work        workCmd        `cmd:"" help:"Compute features: claim work from the event log until stopped."`
	Repair      repairCmd      `cmd:"" help:"Compute artifacts of an extraction again that the store has lost."`
	Activations activationsCmd `cmd:"" help:"Run a language model and write what its hooks see."`
	Encode      encodeCmd      `cmd:"" help:"Run a sparse autoencoder on vectors."`
	Tokenize    tokenizeCmd    `cmd:"" help:"Turn texts into token ids."`
}

const description = `Runs language models and sparse autoencoders with libtorch.

Files are safetensors, so that Python reads them with one line:

  from safetensors.numpy import load_file; load_file("acts.safetensors")`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		if errors.Is(err, context.Canceled) {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "extractor:", err)
		os.Exit(1)
	}
}

// run is main without the process: one error, however the arguments or the work went wrong.
func run(ctx context.Context, arguments []string) error {
	var c commands
	parser, err := kong.New(&c, kong.Name("extractor"), kong.Description(description), kong.Vars{"state": wiring.DefaultState()},
		kong.UsageOnError(), kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}))
	if err != nil {
		return err
	}
	parsed, err := parser.Parse(arguments)
	if err != nil {
		return fmt.Errorf("%w (extractor --help shows what there is)", err)
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	return parsed.Run()
}
