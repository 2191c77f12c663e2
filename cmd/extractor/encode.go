package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/torch"
	"github.com/featuremill/featuremill/cmd/internal/wiring"
)

// encodeCmd runs an SAE on vectors.
type encodeCmd struct {
	SAE  string `name:"sae" required:"" placeholder:"PATH" help:"A published SAE: its folder, or the file with its weights."`
	In   string `required:"" placeholder:"FILE" help:"safetensors with x: F32 [n, d_in]; [batch, seq, d_in] for a temporal SAE, [n, heads, d_head] for one on hook_z."`
	Out  string `required:"" placeholder:"FILE" help:"safetensors to write: acts [n, d_sae], decode and recon [n, d_out]."`
	Fold string `enum:"none,decoder-norm" default:"none" help:"none: magnitudes as sae-lens loads them; decoder-norm: as Neuronpedia shows them."`
	wiring.SAEFacts
	Repo string `placeholder:"OWNER/NAME" help:"Where it was published: some facts are known by it."`
	device
}

// Help is shown by kong below the flags.
func (encodeCmd) Help() string {
	return `acts is sae.encode(x), decode is sae.decode(acts), recon is sae(x) of sae-lens, in its shapes; decode and recon differ only for SAEs with a skip or a predicted part. Numbers are float32 whatever the file's dtype.

The format is found by what lies at PATH. What no file holds must be given: an SAE that was trained on scaled activations (expected_average_only_in), for one, gives wrong numbers without its factor, which is read from activation_scaler.json or must be given. SAELens folds it the same way: fold_activation_norm_scaling_factor(S).`
}

// Run reads, encodes and writes.
func (c *encodeCmd) Run(ctx context.Context) error {
	x, shape, err := readVectors(c.In)
	if err != nil {
		return err
	}
	return c.with(func(r *torch.Runtime) error {
		return withSAE(ctx, r, c.SAE, c.Fold, checkpoint.WithFacts(c.Facts(c.Repo)), func(a *torch.SAE) error {
			config := a.Config()
			s, err := shapesOf(config, shape)
			if err != nil {
				return fmt.Errorf("%s: %w", c.In, err)
			}
			e, err := a.EncodeSequences(ctx, x, s.batch, s.seq)
			if err != nil {
				return err
			}
			return write(c.Out, []checkpoint.Tensor{
				checkpoint.Float32Tensor("acts", e.Acts, s.acts...),
				checkpoint.Float32Tensor("decode", e.Decode, s.out...),
				checkpoint.Float32Tensor("recon", e.Recon, s.out...),
			}, map[string]string{"sae": c.SAE, "format": config.Format, "architecture": config.Architecture, "fold": c.Fold})
		})
	})
}

// shapes are what x's shape makes of the output's.
type shapes struct {
	batch, seq int // sequences, and their tokens: 1 and all tokens unless the SAE looks back
	acts, out  []int
}

func shapesOf(c checkpoint.SAEConfig, x []int) (shapes, error) {
	last := len(x) - 1
	leading, tail := x[:max(last, 0)], []int{c.DOut}
	fits := last > 0 && x[last] == c.DIn
	want := fmt.Sprintf("[n, %d]", c.DIn)
	if c.Reshape == "hook_z" {
		want = fmt.Sprintf("[n, heads, d_head] with heads × d_head = %d, or %s", c.DIn, want)
		if !fits && last > 1 && x[last-1]*x[last] == c.DIn {
			fits, leading = true, x[:last-1]
			if !c.Transcoder { // what comes out has heads as well
				tail = x[last-1:]
			}
		}
	}
	if c.Architecture == "temporal" {
		want = fmt.Sprintf("[batch, seq, %d], or %s as one sequence", c.DIn, want)
		fits = fits && len(leading) < 3
	}
	if !fits {
		return shapes{}, fmt.Errorf("x has shape %v, but the SAE's d_in is %d: want %s", x, c.DIn, want)
	}
	s := shapes{batch: 1, seq: 1, acts: append(slices.Clone(leading), c.DSAE), out: append(slices.Clone(leading), tail...)}
	for _, n := range leading {
		s.seq *= n
	}
	if c.Architecture == "temporal" && len(leading) == 2 {
		s.batch, s.seq = leading[0], leading[1]
	}
	return s, nil
}

func readVectors(path string) (x []float32, shape []int, err error) {
	f, err := checkpoint.OpenSafetensors(path)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	found, err := f.Tensor("x")
	if err != nil {
		return nil, nil, err
	}
	values, err := found.Float32()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: x: %w", path, err)
	}
	return slices.Clone(values), slices.Clone(found.Shape), nil
}
