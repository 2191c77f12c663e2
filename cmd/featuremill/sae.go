package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/cmd/internal/wiring"
)

type saeCmd struct {
	Inspect inspectCmd `cmd:"" help:"Say what an SAE's files are understood to mean, and why: without a model, a database or libtorch. Of one that was imported: its record, and its self-test."`
}

type inspectCmd struct {
	Path string `arg:"" help:"Folder, or file with the weights; or hf:owner/name[@revision][:path] on the hub; or sae_…, the id of one that was imported."`
	client
	JSON bool             `name:"json" help:"As JSON."`
	Hub  wiring.HubConfig `embed:"" prefix:"hub-"`

	wiring.SAEFacts
	Repo string `placeholder:"OWNER/NAME" help:"Where it was published: some facts are known by it."`
}

func (c *inspectCmd) Run(ctx context.Context) (err error) {
	if isRegistered(c.Path) {
		return c.registered(ctx, os.Stdout)
	}
	path, err := c.locate(ctx)
	if err != nil {
		return err
	}
	s, err := checkpoint.OpenSAE(path, checkpoint.WithFacts(c.Facts(c.Repo)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	r, err := inspect(path, s)
	if err != nil {
		return err
	}
	if c.JSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	return r.print(os.Stdout)
}

// locate says where the files lie. An SAE on the hub is fetched into its cache.
func (c *inspectCmd) locate(ctx context.Context) (path string, err error) {
	ref, ok, err := fromHub(c.Path)
	if !ok || err != nil {
		return absolute(c.Path), err
	}
	client, err := c.Hub.Client(wiring.DefaultState(), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return "", err
	}
	defer client.Close()
	return library.LocateSAE(ctx, client, ref, nil)
}

// inspection is what was understood.
type inspection struct {
	Path   string          `json:"path"`
	Format string          `json:"format"`
	Facts  []inspectedFact `json:"facts"`
	Folds  []string        `json:"folds"` // what was folded into the weights on opening, in order
	Notes  []string        `json:"notes"`
	Files  []inspectedFile `json:"files"`
	SHA256 string          `json:"sha256"` // of all files, as sha256sum lists them
}

type inspectedFact struct {
	Name  string `json:"name"`
	Value any    `json:"value"`
	From  string `json:"from,omitempty"` // a file, known.yaml, the path, the format's definition, or an option
}

type inspectedFile struct {
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

func inspect(path string, s *checkpoint.SAE) (inspection, error) {
	c := s.Config
	r := inspection{Path: path, Format: c.Format, Folds: append([]string{}, c.Folds...), Notes: append([]string{}, c.Notes...), SHA256: c.SHA256}
	add := func(there bool, name string, value any) {
		if there {
			r.Facts = append(r.Facts, inspectedFact{Name: name, Value: value, From: c.Origins[name]})
		}
	}
	add(c.FormatVersion != "", "format_version", c.FormatVersion)
	add(true, "architecture", c.Architecture)
	add(c.FileArchitecture != "" && c.FileArchitecture != c.Architecture, "file_architecture", c.FileArchitecture)
	add(c.Transcoder, "transcoder", c.Transcoder)
	add(s.WSkip != nil, "skip", s.WSkip != nil)
	add(true, "d_in", c.DIn)
	add(true, "d_sae", c.DSAE)
	add(c.DOut != c.DIn, "d_out", c.DOut)
	add(c.K > 0, "k", c.K)
	add(c.RescaleActsByDecoderNorm, "rescale_acts_by_decoder_norm", true)
	add(c.Signed, "signed", true)
	add(s.Temporal != nil, "temporal", s.Temporal != nil)
	if s.Pursuit != nil {
		add(true, "residual_threshold", s.Pursuit.ResidualThreshold)
		add(true, "max_iterations", s.Pursuit.MaxIterations)
		add(true, "stop_on_duplicate_support", s.Pursuit.StopOnDuplicateSupport)
	}
	add(true, "model_name", c.ModelName)
	if hub := checkpoint.HubModelName(c.ModelName); hub != c.ModelName {
		r.Facts = append(r.Facts, inspectedFact{"model_repository", hub, "known.yaml: TransformerLens's name"})
	}
	add(true, "hook", c.Hook)
	add(c.FileHook != "", "file_hook", c.FileHook)
	add(c.HookOut != "", "hook_out", c.HookOut)
	add(c.Layer >= 0, "layer", c.Layer)
	add(c.Reshape != "none", "reshape", c.Reshape)
	add(true, "normalization", c.FileNormalization)
	add(c.Normalization != c.FileNormalization, "normalization_at_run_time", c.Normalization)
	add(c.ScalingFactor != 0, "scaling_factor", c.ScalingFactor)
	add(!c.Transcoder, "apply_b_dec_to_input", c.ApplyBDecToInput)
	add(c.CenterWritingWeights, "center_writing_weights", true)
	add(c.ActivationsOnly, "activations_only", true)
	add(c.PrependBOS != nil, "prepend_bos", c.PrependBOS)
	add(c.ContextSize > 0, "context_length", c.ContextSize)
	add(true, "dtype", c.DType)
	add(c.Repo != "", "repo", c.Repo)
	if log10, ok := s.Sparsity(); ok {
		l0 := 0.0
		for _, v := range log10 {
			l0 += math.Pow(10, float64(v))
		}
		r.Facts = append(r.Facts, inspectedFact{"published_l0", l0, "sparsity.safetensors"})
	}
	for _, file := range c.Files {
		info, err := os.Stat(file)
		if err != nil {
			return r, err
		}
		sum, err := checkpoint.HashFiles([]string{file})
		if err != nil {
			return r, err
		}
		r.Files = append(r.Files, inspectedFile{filepath.Base(file), info.Size(), sum})
	}
	return r, nil
}

func (r inspection) print(out io.Writer) error {
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 3, ' ', 0)
	line := func(name, value, from string) { _, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", name, value, from) } // Flush has the error
	line("path", r.Path, "")
	line("format", r.Format, "")
	for _, f := range r.Facts {
		line(f.Name, shown(f.Value), f.From)
	}
	if len(r.Folds) > 0 {
		line("folded", strings.Join(r.Folds, ", "), "")
	}
	for _, f := range r.Files {
		line("file", fmt.Sprintf("%s, %d bytes", f.Name, f.Bytes), f.SHA256)
	}
	if len(r.Files) > 1 {
		line("all files", "", r.SHA256)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for row := range strings.Lines(table.String()) {
		if _, err := fmt.Fprintln(out, strings.TrimRight(row, " \n")); err != nil {
			return err
		}
	}
	for _, n := range r.Notes {
		if _, err := fmt.Fprintln(out, "note:", n); err != nil {
			return err
		}
	}
	return nil
}

func shown(v any) string {
	switch v := v.(type) {
	case string:
		if v == "" {
			return "not known"
		}
		return v
	case *bool:
		return fmt.Sprint(*v)
	}
	return fmt.Sprint(v)
}
