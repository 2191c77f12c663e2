package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"path/filepath"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// parity runs one sequence through the worker's program and compares it with Python's checked-in result.
func (d *demonstration) parity(ctx context.Context) error {
	python, err := checkpoint.OpenSafetensors(filepath.Join(d.dir, "parity.safetensors"))
	if err != nil {
		return err
	}
	defer func() { _ = python.Close() }()
	var about struct {
		Hook     string            `json:"hook"`
		Title    string            `json:"title"`
		MadeWith map[string]string `json:"made_with"`
	}
	if err := json.Unmarshal([]byte(readEmbedded("parity.json")), &about); err != nil {
		return err
	}
	program, err := d.extractor.Find()
	if err != nil {
		return err
	}
	acts, encoded := filepath.Join(d.dir, "acts.safetensors"), filepath.Join(d.dir, "encoded.safetensors")
	run := func(args ...string) error {
		out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
		return nil
	}
	if err := run("activations", "--model", d.gguf, "--in", filepath.Join(d.dir, "parity.safetensors"), "--hooks", about.Hook, "--out", acts); err != nil {
		return err
	}
	want, _, err := floats(python, about.Hook)
	if err != nil {
		return err
	}
	ours, err := checkpoint.OpenSafetensors(acts)
	if err != nil {
		return err
	}
	defer func() { _ = ours.Close() }()
	got, shape, err := floats(ours, about.Hook)
	if err != nil {
		return err
	}
	if len(got) != len(want) || len(shape) != 3 {
		return fmt.Errorf("%s has shape %v, Python's has %d values", about.Hook, shape, len(want))
	}
	tokens, width := shape[0]*shape[1], shape[2]
	worst := 0.0
	for t := range tokens {
		worst = max(worst, relative(got[t*width:][:width], want[t*width:][:width]))
	}

	x := filepath.Join(d.dir, "x.safetensors")
	if err := checkpoint.WriteSafetensors(x, []checkpoint.Tensor{checkpoint.Float32Tensor("x", got, tokens, width)}, nil); err != nil {
		return err
	}
	if err := run("encode", "--sae", filepath.Join(d.dir, "sae"), "--in", x, "--out", encoded); err != nil {
		return err
	}
	latents, err := compareLatents(python, encoded)
	if err != nil {
		return err
	}
	d.ids.Parity = fmt.Sprintf("%d tokens of %q at %s: largest ‖Δ‖/‖x‖ %.2g against transformers %s; %s against sae-lens %s",
		tokens, about.Title, about.Hook, worst, about.MadeWith["transformers"], latents, about.MadeWith["sae-lens"])
	if worst > 5e-5 {
		return errors.New(d.ids.Parity)
	}
	return nil
}

// compareLatents compares which latents fire on each token, and how strongly.
func compareLatents(python *checkpoint.Safetensors, path string) (string, error) {
	ours, err := checkpoint.OpenSafetensors(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = ours.Close() }()
	acts, shape, err := floats(ours, "acts")
	if err != nil {
		return "", err
	}
	t, err := python.Tensor("latents")
	if err != nil {
		return "", err
	}
	index, err := t.Int64()
	if err != nil {
		return "", err
	}
	values, vshape, err := floats(python, "activations")
	if err != nil {
		return "", err
	}
	tokens, width, k := shape[0], shape[1], vshape[1]
	same, fire, worst := 0, 0, 0.0
	for i := range tokens {
		largest := float64(0)
		for j := range k {
			largest = max(largest, float64(values[i*k+j]))
		}
		for j := range k {
			l := index[i*k+j]
			if l < 0 {
				continue
			}
			fire++
			if v := acts[i*width+int(l)]; v > 0 {
				same++
				worst = max(worst, math.Abs(float64(v)-float64(values[i*k+j]))/largest)
			}
		}
	}
	if missing := fire - same; missing > fire/10_000 {
		return "", fmt.Errorf("%d of Python's %d firings are missing here", missing, fire)
	}
	return fmt.Sprintf("%d of %d firings the same, largest difference %.2g of the token's strongest", same, fire, worst), nil
}

func floats(f *checkpoint.Safetensors, name string) ([]float32, []int, error) {
	t, err := f.Tensor(name)
	if err != nil {
		return nil, nil, err
	}
	v, err := t.Float32()
	return v, t.Shape, err
}

// relative is ‖a − b‖₂ ÷ ‖b‖₂.
func relative(a, b []float32) float64 {
	var d, n float64
	for i := range a {
		e := float64(a[i]) - float64(b[i])
		d += e * e
		n += float64(b[i]) * float64(b[i])
	}
	return math.Sqrt(d / n)
}
