package hub

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// weightKinds are the files that an SAE's weights are kept in.
var weightKinds = []string{".safetensors", ".npz", ".pt", ".pth", ".bin"}

// configKinds are the files that say what the weights mean. Only small ones are taken.
var configKinds = []string{".json", ".yaml", ".yml"}

const maxConfig = 4 << 20

func isWeights(f File) bool { return slices.Contains(weightKinds, path.Ext(f.Path)) }

func isConfig(f File) bool {
	return slices.Contains(configKinds, path.Ext(f.Path)) && f.Size <= maxConfig
}

// accompanying reports whether weights are read beside an SAE's own, and are no SAE themselves.
func accompanying(name string) bool {
	return name == "state.pt" || strings.HasPrefix(name, "sparsity") || strings.HasPrefix(name, "optimizer") || strings.HasPrefix(name, "activation_whitening") || strings.HasPrefix(name, "lr_scheduler")
}

// ChooseSAE chooses the files of an SAE: of a folder, all weights and configs in it and below; of a
// file, that file with what goes with it by name. The configs of the folders above come along: some
// formats keep facts there.
func ChooseSAE(repo Repo, files []File, at string) (Choice, error) {
	if at == "." {
		at = ""
	}
	if i := slices.IndexFunc(files, func(f File) bool { return f.Path == at }); at != "" && i >= 0 {
		return chooseSAEFile(repo, files, files[i])
	}
	out := Choice{Open: at}
	saes := 0
	for _, f := range files {
		inside := at == "" || strings.HasPrefix(f.Path, at+"/")
		switch {
		case inside && isWeights(f):
			out.Files = append(out.Files, f)
			if !accompanying(path.Base(f.Path)) {
				saes++
			}
		case inside && isConfig(f), isConfig(f) && above(f.Path, at):
			out.Files = append(out.Files, f)
		}
	}
	switch {
	case saes == 0 && at == "":
		return Choice{}, failed(Unsuitable, "%s has no SAE: no %s", repo, strings.Join(weightKinds, ", "))
	case saes == 0:
		e := failed(FileNotFound, "%s has no SAE at %s", repo, at)
		if e.Choices = SAEPaths(files); len(e.Choices) > 0 {
			e.Detail += "; it has " + some(e.Choices)
		}
		return Choice{}, e
	}
	var inside []File
	for _, f := range out.Files {
		if !above(f.Path, at) || at == "" {
			inside = append(inside, f)
		}
	}
	if choices := SAEPaths(inside); len(choices) > 1 {
		e := failed(Unsuitable, "%s has %d SAEs at %s: name one of them: %s", repo, len(choices), or(at, "its root"), some(choices))
		e.Choices = choices
		return Choice{}, e
	} else if len(choices) == 1 && !(path.Dir(choices[0]) == or(at, ".") && slices.ContainsFunc(out.Files, func(f File) bool { return isConfig(f) && path.Dir(f.Path) == or(at, ".") })) {
		out.Open = choices[0]
	}
	return out, nil
}

// above reports whether a file lies in a folder on the way to at.
func above(file, at string) bool {
	dir := path.Dir(file)
	return dir == "." && at != "" || strings.HasPrefix(at, dir+"/")
}

var layerWeights = regexp.MustCompile(`^W_(enc|dec)_(\d+)\.safetensors$`)

func chooseSAEFile(repo Repo, files []File, f File) (Choice, error) {
	if !isWeights(f) {
		if dir := path.Dir(f.Path); isConfig(f) { // the config of an SAE means the SAE
			if dir == "." {
				dir = ""
			}
			return ChooseSAE(repo, files, dir)
		}
		return Choice{}, failed(Unsuitable, "%s of %s is no SAE: want a folder, or a file of %s", f.Path, repo, strings.Join(weightKinds, ", "))
	}
	out := Choice{Files: []File{f}, Open: f.Path}
	pair := "" // the decoder lies in a file of its own
	if m := layerWeights.FindStringSubmatch(path.Base(f.Path)); m != nil {
		other := map[string]string{"enc": "dec", "dec": "enc"}[m[1]]
		pair = path.Join(path.Dir(f.Path), "W_"+other+"_"+m[2]+".safetensors")
	}
	alone := 0
	for _, g := range files {
		if path.Dir(g.Path) == path.Dir(f.Path) && isWeights(g) && !accompanying(path.Base(g.Path)) {
			alone++
		}
	}
	for _, g := range files {
		beside := path.Dir(g.Path) == path.Dir(f.Path)
		switch {
		case g.Path == f.Path:
		case g.Path == pair, isConfig(g) && (beside || above(g.Path, f.Path)),
			beside && alone == 1 && isWeights(g) && accompanying(path.Base(g.Path)): // the sparsity of the only SAE here
			out.Files = append(out.Files, g)
		}
	}
	return out, nil
}

// SAEPaths lists what can be asked for as one SAE: the folder of weights that have it to themselves,
// else the file.
func SAEPaths(files []File) []string {
	perFolder := map[string][]string{}
	for _, f := range files {
		name := path.Base(f.Path)
		if m := layerWeights.FindStringSubmatch(name); m != nil && m[1] == "dec" {
			continue // its encoder stands for both
		}
		if !isWeights(f) || accompanying(name) || shard.MatchString(name) || strings.HasPrefix(name, "pytorch_model") || strings.HasPrefix(name, "training_args") || name == "adapter_model.safetensors" {
			continue
		}
		dir := path.Dir(f.Path)
		perFolder[dir] = append(perFolder[dir], f.Path)
	}
	var out []string
	for dir, weights := range perFolder {
		base := path.Base(dir)
		switch {
		case len(weights) == 1 && dir != "." && base == "checkpoints": // Llama Scope: the folder above has its hyperparameters
			out = append(out, path.Dir(dir))
		case len(weights) == 1 && dir != ".":
			out = append(out, dir)
		default:
			out = append(out, weights...)
		}
	}
	slices.SortFunc(out, natural)
	return slices.Compact(out)
}

// natural compares with numbers as numbers: layer_2 comes before layer_10.
func natural(a, b string) int {
	for a != "" && b != "" {
		i, j := digits(a), digits(b)
		if i > 0 && j > 0 {
			x, y := strings.TrimLeft(a[:i], "0"), strings.TrimLeft(b[:j], "0")
			if len(x) != len(y) {
				return len(x) - len(y)
			}
			if x != y {
				return strings.Compare(x, y)
			}
			a, b = a[i:], b[j:]
			continue
		}
		if a[0] != b[0] {
			return int(a[0]) - int(b[0])
		}
		a, b = a[1:], b[1:]
	}
	return len(a) - len(b)
}

func digits(s string) int {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	return n
}

func some(all []string) string {
	const most = 12
	if len(all) <= most {
		return strings.Join(all, ", ")
	}
	return strings.Join(all[:most], ", ") + " and " + strconv.Itoa(len(all)-most) + " more"
}

// SAEHint is what an SAE's place says about it; its files decide.
type SAEHint struct {
	Layer    *int
	Features *int
}

var (
	layerHint = regexp.MustCompile(`(?i)(?:^|[/._-])(?:blocks\.|layers?[._-]?|l|resid_post_layer_)(\d{1,3})(?:[/._-]|r[-_x/]|$)`)
	widthHint = regexp.MustCompile(`(?i)(?:width|w)[_-]?(\d{1,4})([km])(?:[/._-]|$)`)
)

// HintOf reads layer and width in a path such as layer_20/width_16k/average_l0_71.
func HintOf(p string) (h SAEHint) {
	if m := layerHint.FindStringSubmatch(p); m != nil {
		n, _ := strconv.Atoi(m[1])
		h.Layer = &n
	}
	if m := widthHint.FindStringSubmatch(p); m != nil {
		n, _ := strconv.Atoi(m[1])
		n <<= 10
		if strings.EqualFold(m[2], "m") {
			n <<= 10
		}
		h.Features = &n
	}
	return h
}
