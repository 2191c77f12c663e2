package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/adapters/postings"
	"github.com/featuremill/featuremill/adapters/tokenizer"
	"github.com/featuremill/featuremill/adapters/torch"
	"github.com/featuremill/featuremill/adapters/worker"
	"github.com/featuremill/featuremill/domain/extraction"
)

// engine is libtorch as a worker sees it.
type engine struct {
	runtime *torch.Runtime
	taps    string // folder for what a batch's SAEs share
}

func (e engine) Profile() extraction.ComputeProfile { return e.runtime.Profile() }

func (e engine) Tokenizer(path string) (worker.Tokenizer, error) { return tokenizer.Load(path) }

// Open implements worker.Engine.
func (e engine) Open(ctx context.Context, p worker.Pair) (_ worker.Encoder, err error) {
	open := &pair{}
	defer func() {
		if err != nil {
			err = errors.Join(unusable(err), open.Close())
		}
	}()
	weights := p.ModelDir
	for _, f := range p.Model.Files {
		if strings.HasSuffix(f.Name, ".gguf") {
			weights = filepath.Join(p.ModelDir, filepath.FromSlash(f.Name))
		}
	}
	source, err := checkpoint.OpenModel(weights)
	if err != nil {
		return nil, err
	}
	open.closers = append(open.closers, source.Close)
	model, err := e.runtime.LoadModel(ctx, source)
	if err != nil {
		return nil, err
	}
	open.closers = append(open.closers, model.Close)
	files, err := library.OpenSAE(p.SAEDir, p.SAE)
	if err != nil {
		return nil, err
	}
	open.closers = append(open.closers, files.Close)
	if p.Fold == "decoder-norm" {
		if err := files.FoldDecoderNorm(); err != nil {
			return nil, err
		}
	}
	sae, err := e.runtime.LoadSAE(ctx, files)
	if err != nil {
		return nil, err
	}
	open.closers = append(open.closers, sae.Close)
	hook, err := torch.ParseHook(p.SAE.Hook)
	if err != nil {
		return nil, err
	}
	if open.engine, err = torch.NewEngine(model, sae, hook); err != nil {
		return nil, err
	}
	if p.Shared {
		taps, err := openTaps(e.taps, tapLimit)
		if err != nil {
			return nil, err
		}
		open.engine.Share(taps, p.Model.Files.Digest())
	}
	if p.SAE.PublishedL0 != nil {
		open.publishedL0 = *p.SAE.PublishedL0
	}
	return open, nil
}

// pair is a loaded model and SAE with the files below them.
type pair struct {
	engine      *torch.Engine
	publishedL0 float64
	closers     []func() error // in the order of opening
}

func (p *pair) Close() error {
	var errs []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		errs = append(errs, p.closers[i]())
	}
	p.closers = nil
	return errors.Join(errs...)
}

func (p *pair) Batch(ctx context.Context, sequences [][]int32, out *postings.Columns) ([][]float32, error) {
	norms, err := p.engine.Batch(ctx, sequences, 0, out)
	return norms, unusable(err)
}

func (p *pair) SelfTest(ctx context.Context, in worker.SelfTestInput) (extraction.SelfTest, error) {
	t, err := p.engine.SelfTest(ctx, torch.SelfTestOptions{
		Sequences: in.Sequences, Context: in.Context, BOS: in.BOS, PrependBOS: in.PrependBOS, SkipFirst: in.SkipFirst,
		Exclude: in.Exclude, Tokens: in.Tokens, PublishedL0: p.publishedL0, Beat: in.Beat,
	})
	return t, unusable(err)
}

// unusable sorts out what trying again cannot mend from what it may.
func unusable(err error) error {
	var nonFinite *torch.NonFiniteError
	var width *torch.WidthError
	var unsupported *checkpoint.UnsupportedError
	var format *checkpoint.FormatError
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &nonFinite):
		return &worker.Failure{Code: "not_finite", Detail: err.Error(), Err: err}
	case errors.As(err, &width):
		return &worker.Failure{Code: "sae_mismatch", Detail: err.Error(), Err: err}
	case errors.As(err, &unsupported), errors.As(err, &format):
		return &worker.Failure{Code: "unusable_checkpoint", Detail: err.Error(), Err: err}
	case errors.Is(err, os.ErrNotExist):
		return &worker.Failure{Code: "files_missing", Detail: err.Error(), Resumable: true, Err: err}
	case errors.Is(err, torch.ErrNoMemory):
		return &worker.Failure{Code: "out_of_memory", Detail: "the batch does not fit into memory: free some and resume, or start again with a smaller batch_size", Resumable: true, Err: err}
	}
	return err
}
