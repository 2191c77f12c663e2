package hub

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Choice is what is fetched for one thing, and where it is opened below the snapshot's folder.
type Choice struct {
	Files []File
	Open  string // a file or a folder; "" = the snapshot's folder itself
}

// Bytes is the size of all files.
func (c Choice) Bytes() int64 {
	var n int64
	for _, f := range c.Files {
		n += f.Size
	}
	return n
}

var shard = regexp.MustCompile(`^(.+)-\d{5}-of-(\d{5})(\.safetensors|\.gguf)$`)

// besides are the small files that a model in safetensors is read with.
var besides = []string{"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "model.safetensors.index.json"}

// ChooseModel chooses the files of a model: a GGUF file if at names one, else config, tokenizer and
// safetensors of the folder at ("" = the root), else the only GGUF there is. quantization picks a GGUF
// by its name, such as Q8_0 or Q4; "" = any.
func ChooseModel(repo Repo, files []File, at, quantization string) (Choice, error) {
	if i := slices.IndexFunc(files, func(f File) bool { return f.Path == at }); at != "" && i >= 0 {
		return oneFile(repo, files[i], quantization)
	}
	here := func(f File) bool { return path.Dir(f.Path) == or(at, ".") }
	var weights, gguf, others []File
	out := Choice{Open: at}
	for _, f := range files {
		name := path.Base(f.Path)
		switch {
		case strings.HasSuffix(name, ".gguf") && (at == "" || strings.HasPrefix(f.Path, at+"/")):
			gguf = append(gguf, f)
		case !here(f):
		case slices.Contains(besides, name):
			others = append(others, f)
		case name == "model.safetensors" || strings.HasPrefix(name, "model-") && shard.MatchString(name):
			weights = append(weights, f)
		}
	}
	if quantization == "" && len(weights) > 0 {
		if i := slices.IndexFunc(weights, func(f File) bool { return path.Base(f.Path) == "model.safetensors" }); i >= 0 && len(weights) > 1 {
			weights = weights[i : i+1] // as transformers takes it: the whole one, where both are there
			others = slices.DeleteFunc(others, func(f File) bool { return strings.HasSuffix(f.Path, ".index.json") })
		}
		out.Files = slices.Concat(others, weights)
		return out, completeModel(repo, out.Files, weights)
	}
	return chooseGGUF(repo, gguf, files, quantization)
}

func oneFile(repo Repo, f File, quantization string) (Choice, error) {
	name := path.Base(f.Path)
	switch {
	case !strings.HasSuffix(name, ".gguf"):
		return Choice{}, failed(Unsuitable, "%s of %s is no model: name a .gguf file, or a folder with config.json and safetensors", f.Path, repo)
	case shard.MatchString(name):
		return Choice{}, failed(Unsuitable, "%s of %s is a part of a split GGUF, which cannot be read: take one that is whole, or safetensors", f.Path, repo)
	case quantization != "" && !quantized(name, quantization):
		return Choice{}, failed(Unsuitable, "%s of %s is not %s by its name", f.Path, repo, quantization)
	}
	return Choice{Files: []File{f}, Open: f.Path}, nil
}

func completeModel(repo Repo, all, weights []File) error {
	has := func(name string) bool {
		return slices.ContainsFunc(all, func(f File) bool { return path.Base(f.Path) == name })
	}
	for _, name := range []string{"config.json", "tokenizer.json"} {
		if !has(name) {
			return failed(Unsuitable, "%s has safetensors but no %s beside them: a model cannot be run without it", repo, name)
		}
	}
	m := shard.FindStringSubmatch(path.Base(weights[0].Path))
	if m == nil {
		return nil
	}
	switch {
	case !has("model.safetensors.index.json"):
		return failed(Unsuitable, "%s has its weights in parts but no model.safetensors.index.json", repo)
	case m[2] != fmt.Sprintf("%05d", len(weights)):
		return failed(Unsuitable, "%s has %d of the %s parts of its weights", repo, len(weights), strings.TrimLeft(m[2], "0"))
	}
	return nil
}

func chooseGGUF(repo Repo, gguf, all []File, quantization string) (Choice, error) {
	var fitting []File
	for _, f := range gguf {
		if name := path.Base(f.Path); !shard.MatchString(name) && !strings.HasPrefix(strings.ToLower(name), "mmproj") && (quantization == "" || quantized(name, quantization)) {
			fitting = append(fitting, f)
		}
	}
	switch {
	case len(fitting) == 1:
		return Choice{Files: fitting, Open: fitting[0].Path}, nil
	case len(fitting) > 1:
		e := failed(Unsuitable, "%s has %d GGUF files that fit: name one of them after the repository (hf:%s:FILE): %s", repo, len(fitting), repo.ID, names(fitting))
		e.Choices = paths(fitting)
		return Choice{}, e
	case quantization != "" && len(gguf) > 0:
		e := failed(Unsuitable, "%s has no whole GGUF of %s; it has %s", repo, quantization, names(gguf))
		e.Choices = paths(gguf)
		return Choice{}, e
	case quantization != "":
		return Choice{}, failed(Unsuitable, "%s has no GGUF, and weights are not quantised here: leave the quantization out to take them as they are published", repo)
	case slices.ContainsFunc(all, func(f File) bool { return strings.HasSuffix(f.Path, ".bin") || strings.HasSuffix(f.Path, ".pth") }):
		return Choice{}, failed(Unsuitable, "%s has weights as pickles only (.bin): a model is read from safetensors or GGUF; many have a branch with them (refs/convert/safetensors, refs/pr/…)", repo)
	}
	return Choice{}, failed(Unsuitable, "%s has no model.safetensors and no GGUF", repo)
}

// quantized reports whether a GGUF's name says this quantization: Q4 fits model-Q4_K_M.gguf, Q8_0 model.q8_0.gguf.
func quantized(name, quantization string) bool {
	want := strings.ToLower(quantization)
	for _, part := range strings.FieldsFunc(strings.ToLower(strings.TrimSuffix(name, ".gguf")), func(r rune) bool { return r == '-' || r == '.' }) {
		if part == want || strings.HasPrefix(part, want+"_") || part == "i"+want || strings.HasPrefix(part, "i"+want+"_") {
			return true
		}
	}
	return false
}

func paths(files []File) []string {
	out := make([]string, len(files))
	for i, f := range files {
		out[i] = f.Path
	}
	return out
}

// names lists some files for people.
func names(files []File) string {
	const most = 12
	all := paths(files)
	if len(all) <= most {
		return strings.Join(all, ", ")
	}
	return strings.Join(all[:most], ", ") + fmt.Sprintf(" and %d more", len(all)-most)
}
