package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/torch"
)

// encodeCmd runs an SAE on vectors.
type encodeCmd struct {
	SAE           string   `name:"sae" required:"" placeholder:"DIR" help:"A SAELens folder: cfg.json and sae_weights.safetensors."`
	In            string   `required:"" placeholder:"FILE" help:"safetensors with x: F32 [n, d_in]."`
	Out           string   `required:"" placeholder:"FILE" help:"safetensors to write: acts [n, d_sae], decode and recon [n, d_out]."`
	ScalingFactor *float64 `placeholder:"S" help:"For an SAE normalised as expected_average_only_in: sqrt(d_in) / mean norm of its training data."`
	Fold          string   `enum:"none,decoder-norm" default:"none" help:"none: magnitudes as sae-lens loads them; decoder-norm: as Neuronpedia shows them."`
	device
}

// Help is shown by kong below the flags.
func (encodeCmd) Help() string {
	return `acts is sae.encode(x), decode is sae.decode(acts), recon is sae(x) of sae-lens; decode and recon differ only for SAEs with a skip or a predicted part. Numbers are float32 whatever the file's dtype.

An SAE that was trained on scaled activations (expected_average_only_in) gives wrong numbers without its factor: it is read from activation_scaler.json, or must be given. SAELens folds it the same way: fold_activation_norm_scaling_factor(S).`
}

// Run reads, encodes and writes.
func (c *encodeCmd) Run(ctx context.Context) error {
	x, n, width, err := readVectors(c.In)
	if err != nil {
		return err
	}
	return c.with(func(r *torch.Runtime) error {
		return withSAE(ctx, r, c.SAE, c.Fold, c.ScalingFactor, func(a *torch.SAE) error {
			config := a.Config()
			if width != config.DIn {
				return fmt.Errorf("%s: x has width %d, but the SAE's d_in is %d", c.In, width, config.DIn)
			}
			e, err := a.Encode(ctx, x, n)
			if err != nil {
				return err
			}
			return write(c.Out, []checkpoint.Tensor{
				checkpoint.Float32Tensor("acts", e.Acts, n, config.DSAE),
				checkpoint.Float32Tensor("decode", e.Decode, n, config.DOut),
				checkpoint.Float32Tensor("recon", e.Recon, n, config.DOut),
			}, map[string]string{"sae": c.SAE, "fold": c.Fold})
		})
	})
}

func readVectors(path string) (x []float32, n, width int, err error) {
	f, err := checkpoint.OpenSafetensors(path)
	if err != nil {
		return nil, 0, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	found, err := f.Tensor("x")
	if err != nil {
		return nil, 0, 0, err
	}
	if len(found.Shape) != 2 {
		return nil, 0, 0, fmt.Errorf("%s: x has shape %v, want [n, d_in]", path, found.Shape)
	}
	values, err := found.Float32()
	if err != nil {
		return nil, 0, 0, fmt.Errorf("%s: x: %w", path, err)
	}
	return append([]float32(nil), values...), found.Shape[0], found.Shape[1], nil
}
