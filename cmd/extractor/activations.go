package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/torch"
)

// activationsCmd runs a model on token ids.
type activationsCmd struct {
	Model  string   `required:"" placeholder:"DIR|GGUF" help:"A Hugging Face folder (config.json, safetensors) or a .gguf file."`
	In     string   `required:"" placeholder:"FILE" help:"safetensors with input_ids and, where rows are padded, attention_mask: I64 [batch, seq]."`
	Hooks  []string `required:"" placeholder:"HOOK" help:"What to write, separated by commas: blocks.L.hook_resid_pre, _resid_mid, _resid_post, _attn_out, _mlp_out, blocks.L.attn.hook_z, mlp.hook_in, mlp.hook_post, ln1.hook_normalized, ln2.hook_normalized, hook_embed, or a Hugging Face module: model.layers.L.mlp, …, with .input or .output."`
	Out    string   `required:"" placeholder:"FILE" help:"safetensors to write: a tensor F32 [batch, seq, width] for each hook, with its name: width is d_model but for hook_z (heads × d_head) and hook_post (d_ff)."`
	Logits bool     `help:"Write logits, F32 [batch, seq, vocabulary], too. Without it the model runs up to the last hook only."`
	DType  string   `name:"dtype" default:"float32" enum:"float32,bfloat16,float16" help:"What the model computes in. bfloat16 and float16 take half the memory and give two or three digits; on a CPU they are slower than float32."`
	device
}

// Help is shown by kong below the flags.
func (activationsCmd) Help() string {
	return `Makes an input in Python and reads what comes out:

  from safetensors.torch import save_file, load_file
  save_file({"input_ids": ids, "attention_mask": mask}, "ids.safetensors")
  # extractor activations --model DIR --in ids.safetensors --hooks blocks.3.hook_resid_post --out acts.safetensors
  load_file("acts.safetensors")["blocks.3.hook_resid_post"]

A row's tokens are where the mask is 1; they must lie together, padding left or right of them. Padding is never seen by the model, and comes out as zeros. Numbers are float32 whatever the file's dtype, and agree with transformers to about 5e-6; with --dtype bfloat16 they are as far from that as transformers' own bfloat16.`
}

// Run reads, runs the model and writes.
func (c *activationsCmd) Run(ctx context.Context) error {
	var hooks []torch.Hook
	var names []string // as they were asked for: one hook may have several
	for _, name := range c.Hooks {
		name = strings.TrimSpace(name)
		hook, err := torch.ParseHook(name)
		if err != nil {
			return err
		}
		if !slices.Contains(names, name) {
			hooks, names = append(hooks, hook), append(names, name)
		}
	}
	batch, err := readTokens(c.In)
	if err != nil {
		return err
	}
	c.dtype = c.DType
	return c.with(func(r *torch.Runtime) error {
		return withModel(ctx, r, c.Model, func(m *torch.Model) error {
			a, err := m.Activations(ctx, batch.sequences, hooks, c.Logits)
			if err != nil {
				return err
			}
			var out []checkpoint.Tensor
			for i, h := range hooks {
				out = append(out, batch.place(names[i], a.Hooks[h], a.Seq, a.Widths[h]))
			}
			if c.Logits {
				out = append(out, batch.place("logits", a.Logits, a.Seq, a.Vocab))
			}
			return write(c.Out, out, map[string]string{"model": c.Model})
		})
	})
}

// tokens is a padded batch, taken apart.
type tokens struct {
	sequences [][]int32
	starts    []int // column of each row's first token
	seq       int
}

func readTokens(path string) (t tokens, err error) {
	f, err := checkpoint.OpenSafetensors(path)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	ids, shape, err := readMatrix(f, "input_ids")
	if err != nil {
		return t, err
	}
	mask := make([]int64, len(ids))
	for i := range mask {
		mask[i] = 1
	}
	for _, name := range f.Names() {
		if name != "attention_mask" {
			continue
		}
		var maskShape []int
		if mask, maskShape, err = readMatrix(f, name); err != nil {
			return t, err
		}
		if maskShape[0] != shape[0] || maskShape[1] != shape[1] {
			return t, fmt.Errorf("%s: attention_mask is %v, input_ids is %v: they must be equal", path, maskShape, shape)
		}
	}
	t.seq = shape[1]
	for row := range shape[0] {
		first, n := -1, 0
		var sequence []int32
		for column := range t.seq {
			id := ids[row*t.seq+column]
			switch mask[row*t.seq+column] {
			case 0:
				continue
			case 1:
			default:
				return t, fmt.Errorf("%s: attention_mask has %d in row %d: it is 0 or 1", path, mask[row*t.seq+column], row)
			}
			if first < 0 {
				first = column
			}
			if column != first+n {
				return t, fmt.Errorf("%s: the tokens of row %d do not lie together: attention_mask has a hole before column %d", path, row, column)
			}
			if id != int64(int32(id)) {
				return t, fmt.Errorf("%s: input_ids has %d in row %d: no token id", path, id, row)
			}
			sequence, n = append(sequence, int32(id)), n+1
		}
		t.sequences, t.starts = append(t.sequences, sequence), append(t.starts, max(first, 0))
	}
	return t, nil
}

func readMatrix(f *checkpoint.Safetensors, name string) ([]int64, []int, error) {
	found, err := f.Tensor(name)
	if err != nil {
		return nil, nil, err
	}
	if len(found.Shape) != 2 {
		return nil, nil, fmt.Errorf("%s: %s has shape %v, want [batch, seq]", f.Path(), name, found.Shape)
	}
	values, err := found.Int64()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %s: %w", f.Path(), name, err)
	}
	return values, found.Shape, nil
}

// place puts right-padded rows of `seq` tokens back to where the input had them.
func (t tokens) place(name string, values []float32, seq, width int) checkpoint.Tensor {
	out := make([]float32, len(t.sequences)*t.seq*width)
	for row, ids := range t.sequences {
		copy(out[(row*t.seq+t.starts[row])*width:], values[row*seq*width:][:len(ids)*width])
	}
	return checkpoint.Float32Tensor(name, out, len(t.sequences), t.seq, width)
}
