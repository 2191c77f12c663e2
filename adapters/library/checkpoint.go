package library

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/tokenizer"
	"github.com/featuremill/featuremill/domain/fileset"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/training"
)

// TokenizerFile is the tokenizer's name in a model's files.
const TokenizerFile = "tokenizer.json"

// Model reads a HuggingFace folder or a GGUF file, checks every weight, and stores its files. A GGUF's
// tokenizer.json is built from the facts in the file. The name is what the checkpoint calls itself.
func (l *Library) Model(ctx context.Context, path string) (facts model.Facts, name string, err error) {
	path, err = l.resolve(path)
	if err != nil {
		return facts, "", err
	}
	m, err := checkpoint.OpenModel(path)
	if err != nil {
		return facts, "", unreadable("model", path, err)
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.CheckFinite(); err != nil {
		return facts, "", unreadable("model", path, err)
	}
	c := m.Config()
	facts = model.Facts{Family: c.Family, Format: "safetensors", Layers: c.Layers, DModel: c.DModel, Vocab: c.Vocab, Context: c.MaxPositions, BOS: c.BOS, EOS: c.EOS}
	for _, n := range m.Names() {
		if n == "lm_head.weight" && c.TiedEmbeddings {
			continue // the embedding under another name
		}
		t, err := m.Tensor(n)
		if err != nil {
			return facts, "", unreadable("model", path, err)
		}
		count := int64(1)
		for _, d := range t.Shape {
			count *= int64(d)
		}
		facts.Params += count
		if facts.DType == "" {
			facts.DType = string(t.DType)
		}
	}
	base, files := path, m.Files()
	tokens := fileset.File{Name: TokenizerFile}
	if g := m.GGUF(); g != nil {
		facts.Format, base = "gguf", filepath.Dir(path)
		tok, err := g.Tokenizer()
		if err != nil {
			return facts, "", unreadable("model", path, err)
		}
		built, err := tokenizer.FromGGUF(tok)
		if err != nil {
			return facts, "", unreadable("model", path, err)
		}
		sum := sha256.Sum256(built)
		tokens.Bytes, tokens.SHA256 = int64(len(built)), hex.EncodeToString(sum[:])
		if err := l.store.Put(ctx, blob.FileKey(tokens.SHA256), bytes.NewReader(built)); err != nil {
			return facts, "", err
		}
	} else {
		file := filepath.Join(path, TokenizerFile)
		if _, err := os.Stat(file); err != nil {
			return facts, "", problem.New(problem.Invalid, "tokenizer_missing", "the folder has no %s: text cannot be turned into this model's tokens without it", TokenizerFile)
		}
		files = append(files, file)
		for _, extra := range []string{"tokenizer_config.json", "generation_config.json"} {
			if _, err := os.Stat(filepath.Join(path, extra)); err == nil {
				files = append(files, filepath.Join(path, extra))
			}
		}
	}
	set, err := l.put(ctx, base, files)
	if err != nil {
		return facts, "", err
	}
	if tokens.SHA256 != "" {
		if set, err = fileset.New(append(set, tokens)); err != nil {
			return facts, "", err
		}
	}
	for _, f := range set {
		if f.Name == TokenizerFile {
			facts.Tokenizer = f.SHA256
		}
	}
	facts.Files = set
	return facts, c.Name, nil
}

// SAEOptions are facts that a person adds to what the files say.
type SAEOptions struct {
	ScalingFactor float64 // for expected_average_only_in without activation_scaler.json; 0 = none given
	ModelName     string
	Layer         *int
}

// SAE reads a SAELens folder, checks every weight, and stores its files.
func (l *Library) SAE(ctx context.Context, path string, o SAEOptions) (facts sae.Facts, err error) {
	path, err = l.resolve(path)
	if err != nil {
		return facts, err
	}
	return l.sae(ctx, path, o)
}

func (l *Library) sae(ctx context.Context, path string, o SAEOptions) (facts sae.Facts, err error) {
	var options []checkpoint.SAEOption
	if o.ScalingFactor != 0 {
		options = append(options, checkpoint.WithScalingFactor(o.ScalingFactor))
	}
	s, err := checkpoint.OpenSAE(path, options...)
	if err != nil {
		var missing *checkpoint.ScalingFactorError
		if errors.As(err, &missing) {
			return facts, problem.New(problem.Invalid, "scaling_factor_missing", "%s", err.Error())
		}
		return facts, unreadable("sae", path, err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	c := s.Config
	if o.Layer != nil && c.Layer >= 0 && *o.Layer != c.Layer {
		return facts, problem.New(problem.Invalid, "layer_contradicts_checkpoint", "the request says layer %d, the checkpoint says %s: leave the layer out, or give the right checkpoint", *o.Layer, c.Hook)
	}
	switch c.HookPoint {
	case "resid_pre", "resid_post", "mlp_out", "attn_out":
	default:
		return facts, problem.New(problem.Invalid, "unknown_hook", "the SAE was trained on hook %q, which is not known; known are blocks.L.hook_resid_pre, hook_resid_post, hook_mlp_out and hook_attn_out", c.Hook)
	}
	files := c.Files
	if _, ok := s.Sparsity(); ok {
		files = append(files[:len(files):len(files)], filepath.Join(path, "sparsity.safetensors"))
		facts.HasSparsity = true
		log10, _ := s.Sparsity()
		var l0 float64
		for _, v := range log10 {
			l0 += math.Pow(10, float64(v))
		}
		facts.PublishedL0 = &l0
	}
	facts.Format, facts.FormatVersion, facts.Architecture = c.Format, c.FormatVersion, c.Architecture
	facts.DIn, facts.DSAE, facts.DOut, facts.K = c.DIn, c.DSAE, c.DOut, c.K
	facts.Hook, facts.HookOut, facts.Layer = c.Hook, c.HookOut, c.Layer
	facts.ModelName = c.ModelName
	if facts.ModelName == "" {
		facts.ModelName = o.ModelName
	}
	facts.Normalization, facts.ScalingFactor = c.FileNormalization, c.ScalingFactor
	facts.ApplyBDecToInput, facts.RescaleActsByDecoderNorm = c.ApplyBDecToInput, c.RescaleActsByDecoderNorm
	facts.PrependBOS, facts.ContextLength = c.PrependBOS, c.ContextSize
	if c.SeqposSlice != nil {
		facts.SeqposSlice = &sae.Slice{Start: c.SeqposSlice.Start, Stop: c.SeqposSlice.Stop, Step: c.SeqposSlice.Step}
	}
	facts.ExcludeTokenIDs, facts.ExcludeSpecialTokens = c.ExcludeSpecialTokens.IDs, c.ExcludeSpecialTokens.All
	facts.Signed, facts.DType = c.Signed, c.DType
	if facts.Files, err = l.put(ctx, path, files); err != nil {
		return facts, err
	}
	return facts, nil
}

// Training reads a finished training's checkpoint folder: every folder below it with a cfg.json is an SAE.
func (l *Library) Training(ctx context.Context, path string) ([]training.SAE, error) {
	root, err := l.resolve(path)
	if err != nil {
		return nil, err
	}
	const most = 1000
	var out []training.SAE
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if rel, _ := filepath.Rel(root, p); d.IsDir() && strings.Count(rel, string(filepath.Separator)) > 4 {
			return fs.SkipDir
		}
		if d.IsDir() || d.Name() != "cfg.json" {
			return nil
		}
		if len(out) == most {
			return problem.New(problem.Invalid, "too_many_saes", "the checkpoint folder has more than %d SAEs", most)
		}
		dir := filepath.Dir(p)
		facts, err := l.sae(ctx, dir, SAEOptions{})
		if err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		rel, err := filepath.Rel(root, dir)
		out = append(out, training.SAE{Path: filepath.ToSlash(rel), Facts: facts})
		return err
	})
	if err != nil {
		return nil, unreadable("training", path, err)
	}
	return out, nil
}
