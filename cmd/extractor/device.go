package main

import (
	"context"
	"errors"
	"os"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/torch"
)

// device is where and how wide to compute.
type device struct {
	Device  string `default:"cpu" placeholder:"cpu|cuda:N" help:"Where to compute: cpu, or cuda:N."`
	Threads int    `default:"0" help:"CPU threads; 0 is one a core."`

	dtype string // of models; an extraction's is float32, so only commands that say so have a choice
}

// with runs f with libtorch set up, and takes it down again.
func (d device) with(f func(*torch.Runtime) error) (err error) {
	r, err := torch.Start(torch.Options{Device: d.Device, DType: d.dtype, Threads: d.Threads})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return f(r)
}

// withModel opens a model, and closes it again.
func withModel(ctx context.Context, r *torch.Runtime, path string, f func(*torch.Model) error) (err error) {
	source, err := checkpoint.OpenModel(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	model, err := r.LoadModel(ctx, source)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, model.Close()) }()
	return f(model)
}

// withSAE opens an SAE, folds what is asked for, and closes it again.
func withSAE(ctx context.Context, r *torch.Runtime, path, fold string, facts checkpoint.SAEOption, f func(*torch.SAE) error) (err error) {
	source, err := checkpoint.OpenSAE(path, facts)
	if err != nil {
		return err
	}
	if fold == "decoder-norm" {
		err = source.FoldDecoderNorm()
	}
	var sae *torch.SAE
	if err == nil {
		sae, err = r.LoadSAE(ctx, source)
	}
	if err := errors.Join(err, source.Close()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sae.Close()) }()
	return f(sae)
}

// write puts the tensors there whole or not at all: a reader never sees half a file.
func write(path string, tensors []checkpoint.Tensor, facts map[string]string) error {
	building := path + ".partial"
	if err := checkpoint.WriteSafetensors(building, tensors, facts); err != nil {
		return errors.Join(err, os.Remove(building))
	}
	return os.Rename(building, path)
}
