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

// Model reads a HuggingFace folder or a GGUF file, checks every weight, and stores its files. The tokenizer.json
// of a GGUF, and of a SentencePiece model that came without one, is built. The name is what the checkpoint calls itself.
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
	facts = model.Facts{Family: c.Family, Format: "safetensors", Layers: c.Layers, DModel: c.DModel, Vocab: c.Vocab, Context: c.MaxPositions, BOS: c.BOS, EOS: c.EOS,
		Heads: c.Heads * c.DHead, MLP: c.DFF}
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
	var built []byte
	if g := m.GGUF(); g != nil {
		facts.Format, base = "gguf", filepath.Dir(path)
		tok, err := g.Tokenizer()
		if err != nil {
			return facts, "", unreadable("model", path, err)
		}
		if built, err = tokenizer.FromGGUF(tok); err != nil {
			return facts, "", unreadable("model", path, err)
		}
	} else {
		file := filepath.Join(path, TokenizerFile)
		if _, err := os.Stat(file); err == nil {
			files = append(files, file)
		} else if _, err := os.Stat(filepath.Join(path, "tokenizer.model")); err != nil {
			return facts, "", problem.New(problem.Invalid, "tokenizer_missing", "the folder has no %s, and no tokenizer.model to build one from: text cannot be turned into this model's tokens without it", TokenizerFile)
		} else if built, err = tokenizer.Read(path); err != nil {
			return facts, "", unreadable("model", path, err)
		} else {
			files = append(files, filepath.Join(path, "tokenizer.model"))
		}
		for _, extra := range []string{"tokenizer_config.json", "generation_config.json"} {
			if _, err := os.Stat(filepath.Join(path, extra)); err == nil {
				files = append(files, filepath.Join(path, extra))
			}
		}
	}
	if built != nil {
		sum := sha256.Sum256(built)
		tokens.Bytes, tokens.SHA256 = int64(len(built)), hex.EncodeToString(sum[:])
		if err := l.store.Put(ctx, blob.FileKey(tokens.SHA256), bytes.NewReader(built)); err != nil {
			return facts, "", err
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

// SAE reads an SAE in any format that adapters/checkpoint knows, checks every weight, and stores its files. said is what a
// person says where the files do not.
func (l *Library) SAE(ctx context.Context, path string, said sae.Stated) (facts sae.Facts, err error) {
	path, err = l.resolve(path)
	if err != nil {
		return facts, err
	}
	return l.sae(ctx, "", path, said)
}

// HubModelName is the repository that a model's name in an SAE's config means, where the name is TransformerLens's own; else the name.
func HubModelName(name string) string { return checkpoint.HubModelName(name) }

// SAEOptions are facts that a person adds to what the files say.
type SAEOptions = sae.Stated

func stated(s sae.Stated) checkpoint.SAEFacts {
	return checkpoint.SAEFacts{ScalingFactor: s.ScalingFactor, Normalization: s.Normalization, Architecture: s.Architecture, K: s.K, ApplyBDecToInput: s.ApplyBDecToInput,
		ModelName: s.ModelName, Hook: s.Hook, HookOut: s.HookOut, Layer: s.Layer, SkipTransposed: s.SkipTransposed, Repo: s.Repo}
}

// OpenSAE opens an imported SAE whose files lie in a folder: as it was opened when it was imported, whatever the place that
// it had then said about it.
func OpenSAE(dir string, f sae.Facts) (*checkpoint.SAE, error) {
	said := stated(f.Stated)
	// What was imported before origins were recorded had its factor from a file or a person: nobody wrote down which.
	if f.Origins == nil && f.Normalization == checkpoint.NormExpected && f.ScalingFactor != 0 {
		said.ScalingFactor = &f.ScalingFactor
	}
	return checkpoint.OpenSAE(filepath.Join(dir, filepath.FromSlash(f.Open)), checkpoint.WithFacts(said))
}

// sae imports what lies at the path. The files are named relative to root; "" = the SAE's own folder, or some folders above it
// where their names say something about the SAE.
func (l *Library) sae(ctx context.Context, root, path string, said sae.Stated) (facts sae.Facts, err error) {
	s, err := checkpoint.OpenSAE(path, checkpoint.WithFacts(stated(said)))
	if err != nil {
		return facts, contradicted(path, said, err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	c := s.Config
	if c.Hook == "" {
		return facts, problem.New(problem.Invalid, "hook_missing", "the SAE's files do not say which hook it was trained on: give it (hook), such as blocks.8.hook_resid_post")
	}
	if !sae.KnownHook(c.Hook) {
		return facts, problem.New(problem.Invalid, "unknown_hook", "the SAE was trained on hook %q, which is not known; known are hook_embed, %s, and modules of transformers such as model.layers.8.mlp.output", c.Hook, strings.Join(sae.KnownHooks(), ", "))
	}
	files := c.Files
	if _, ok := s.Sparsity(); ok {
		files = append(files[:len(files):len(files)], filepath.Join(folderOf(path), "sparsity.safetensors"))
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
	facts.Normalization, facts.ScalingFactor = c.FileNormalization, c.ScalingFactor
	facts.ApplyBDecToInput, facts.RescaleActsByDecoderNorm = c.ApplyBDecToInput, c.RescaleActsByDecoderNorm
	facts.PrependBOS, facts.ContextLength = c.PrependBOS, c.ContextSize
	if c.SeqposSlice != nil {
		facts.SeqposSlice = &sae.Slice{Start: c.SeqposSlice.Start, Stop: c.SeqposSlice.Stop, Step: c.SeqposSlice.Step}
	}
	facts.ExcludeTokenIDs, facts.ExcludeSpecialTokens = c.ExcludeSpecialTokens.IDs, c.ExcludeSpecialTokens.All
	facts.Signed, facts.DType = c.Signed, c.DType
	facts.FileArchitecture, facts.Transcoder, facts.CenterWritingWeights, facts.ActivationsOnly = c.FileArchitecture, c.Transcoder, c.CenterWritingWeights, c.ActivationsOnly
	facts.Folds, facts.Origins, facts.Notes = c.Folds, c.Origins, c.Notes
	if c.Reshape != "none" {
		facts.Reshape = c.Reshape
	}
	facts.Stated = said
	facts.Stated.Repo, facts.Stated.ModelName = c.Repo, c.ModelName // they may be said beside what is kept
	if root == "" {
		root = folderOf(path)
		if saidByPlace(c.Origins) {
			for range keptFolders {
				root = filepath.Dir(root)
			}
		}
	}
	if facts.Open, err = filepath.Rel(root, path); err != nil {
		return facts, err
	}
	if facts.Open = filepath.ToSlash(facts.Open); facts.Open == "." {
		facts.Open = ""
	}
	if facts.Files, err = l.put(ctx, root, files); err != nil {
		return facts, err
	}
	return facts, nil
}

// keptFolders is how many folders above an SAE keep their names where these say something: layer_20/width_16k/average_l0_71.
const keptFolders = 4

// saidByPlace reports whether some fact comes from the names of files and folders: then the names have to be kept, because the
// files are opened again, elsewhere.
func saidByPlace(origins map[string]string) bool {
	for fact, from := range origins {
		if fact != "repo" && (strings.HasPrefix(from, "the path") || strings.HasPrefix(from, "the folder's name") || strings.HasPrefix(from, "the file's name") || strings.HasPrefix(from, "../")) {
			return true
		}
	}
	return false
}

func folderOf(path string) string {
	if st, err := os.Stat(path); err == nil && !st.IsDir() {
		return filepath.Dir(path)
	}
	return path
}

// contradicted says that a stated layer is not the checkpoint's, where that is what is wrong.
func contradicted(path string, said sae.Stated, err error) error {
	if said.Layer == nil {
		return askedFor(path, err)
	}
	layer := *said.Layer
	said.Layer = nil
	s, other := checkpoint.OpenSAE(path, checkpoint.WithFacts(stated(said)))
	if other != nil {
		return askedFor(path, err)
	}
	c := s.Config
	if other := s.Close(); other != nil || c.Layer == layer {
		return askedFor(path, err)
	}
	return problem.New(problem.Invalid, "layer_contradicts_checkpoint", "the request says layer %d, the checkpoint says %s: leave the layer out, or give the right checkpoint", layer, c.Hook)
}

// askedFor turns a question of the reader into a refusal that names what is missing.
func askedFor(path string, err error) error {
	var scale *checkpoint.ScalingFactorError
	var question *checkpoint.QuestionError
	var ambiguous *checkpoint.AmbiguousError
	switch {
	case errors.As(err, &scale):
		return problem.New(problem.Invalid, "scaling_factor_missing", "%s", err.Error())
	case errors.As(err, &question):
		return problem.New(problem.Invalid, "sae_fact_missing", "%s", err.Error()).With("choices", question.Choices)
	case errors.As(err, &ambiguous):
		return problem.New(problem.Invalid, "sae_ambiguous", "%s", err.Error()).With("choices", ambiguous.Choices)
	}
	return unreadable("sae", path, err)
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
		facts, err := l.sae(ctx, "", dir, sae.Stated{})
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
