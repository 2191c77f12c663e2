package hub

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// DataChoice is the data of one config and split, in the order of its rows.
type DataChoice struct {
	Files  []File
	Kind   string // .parquet, .arrow, .jsonl, .json, .txt: what the names end in, without .gz and .zst
	Config string // "" = the repository has no configs
	Split  string
}

// dataKinds are the kinds of data in the order in which they are preferred.
var dataKinds = []string{".parquet", ".arrow", ".jsonl", ".json", ".txt"}

// metadata are JSON files that describe a dataset and hold none of its rows.
var metadata = []string{"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json", "metadata.json", "package.json"}

// kindOf is the kind of a data file, "" of any other.
func kindOf(name string) string {
	name = strings.ToLower(path.Base(name))
	for _, packed := range []string{".gz", ".zst"} {
		if cut, ok := strings.CutSuffix(name, packed); ok {
			if ext := path.Ext(cut); ext == ".jsonl" || ext == ".ndjson" || ext == ".json" {
				return ".jsonl"
			}
			return ""
		}
	}
	switch ext := path.Ext(name); ext {
	case ".parquet", ".arrow", ".jsonl":
		return ext
	case ".ndjson":
		return ".jsonl"
	case ".json":
		if slices.Contains(metadata, name) || strings.HasPrefix(name, ".") {
			return ""
		}
		return ext
	case ".txt":
		if strings.HasPrefix(name, "readme") || strings.HasPrefix(name, "license") || name == "requirements.txt" {
			return ""
		}
		return ext
	}
	return ""
}

// dataConfig is one config of a dataset's card.
type dataConfig struct {
	name     string
	isDef    bool
	patterns map[string][]string // split → patterns
	splits   []string            // in order
}

// ChooseData chooses the data files of a config and a split; "" = the default config, and train or the
// only split. card is the repository's README.md; its configs decide where it has any, else the names of the files do.
func ChooseData(repo Repo, files []File, card []byte, config, split string) (DataChoice, error) {
	configs, err := cardConfigs(card)
	if err != nil {
		return DataChoice{}, failed(Unsuitable, "the card of %s cannot be read: %w", repo, err)
	}
	var bySplit map[string][]File
	out := DataChoice{Config: config}
	if len(configs) > 0 {
		c, err := pickConfig(repo, configs, config)
		if err != nil {
			return DataChoice{}, err
		}
		out.Config = c.name
		bySplit = map[string][]File{}
		for _, name := range c.splits {
			for _, f := range files {
				if kindOf(f.Path) != "" && slices.ContainsFunc(c.patterns[name], func(p string) bool { return matches(p, f.Path) }) {
					bySplit[name] = append(bySplit[name], f)
				}
			}
		}
	} else if bySplit, err = splitByName(repo, files, config); err != nil {
		return DataChoice{}, err
	}
	var splits []string
	for name, found := range bySplit {
		if len(found) > 0 {
			splits = append(splits, name)
		}
	}
	slices.Sort(splits)
	switch {
	case len(splits) == 0:
		return DataChoice{}, failed(Unsuitable, "%s has no data that can be read: no .parquet, .arrow, .json, .jsonl (.gz, .zst) or .txt%s", repo, ofConfig(out.Config))
	case split == "" && slices.Contains(splits, "train"):
		out.Split = "train"
	case split == "" && len(splits) == 1:
		out.Split = splits[0]
	case split == "" || !slices.Contains(splits, split):
		what := "has no split " + split
		if split == "" {
			what = "has several splits and none is called train: name one"
		}
		e := failed(Unsuitable, "%s %s%s; it has %s", repo, what, ofConfig(out.Config), strings.Join(splits, ", "))
		e.Choices = splits
		return DataChoice{}, e
	default:
		out.Split = split
	}
	for _, kind := range dataKinds { // the same rows may be there in several kinds
		for _, f := range bySplit[out.Split] {
			if kindOf(f.Path) == kind {
				out.Files, out.Kind = append(out.Files, f), kind
			}
		}
		if len(out.Files) > 0 {
			break
		}
	}
	slices.SortStableFunc(out.Files, func(a, b File) int { return natural(a.Path, b.Path) })
	return out, nil
}

func ofConfig(name string) string {
	if name == "" {
		return ""
	}
	return " in config " + name
}

func pickConfig(repo Repo, configs []dataConfig, name string) (dataConfig, error) {
	all := make([]string, len(configs))
	for i, c := range configs {
		all[i] = c.name
		if c.name == name || name == "" && (c.isDef || c.name == "default" || len(configs) == 1) {
			return c, nil
		}
	}
	what := "has no config " + name
	if name == "" {
		what = "has several configs and no default one: name one"
	}
	e := failed(Unsuitable, "%s %s; it has %s", repo, what, some(all))
	e.Choices = all
	return dataConfig{}, e
}

// cardConfigs reads the configs of a card's front matter.
func cardConfigs(card []byte) ([]dataConfig, error) {
	front, ok := frontMatter(card)
	if !ok {
		return nil, nil
	}
	var doc struct {
		Configs []struct {
			Name    string    `yaml:"config_name"`
			Default bool      `yaml:"default"`
			Dir     string    `yaml:"data_dir"`
			Files   yaml.Node `yaml:"data_files"`
		} `yaml:"configs"`
	}
	if err := yaml.Unmarshal(front, &doc); err != nil {
		return nil, err
	}
	var out []dataConfig
	for _, c := range doc.Configs {
		d := dataConfig{name: c.Name, isDef: c.Default, patterns: map[string][]string{}}
		add := func(split string, patterns []string) {
			if _, there := d.patterns[split]; !there {
				d.splits = append(d.splits, split)
			}
			for _, p := range patterns {
				d.patterns[split] = append(d.patterns[split], path.Join(c.Dir, p))
			}
		}
		patterns, bySplit, err := dataFiles(c.Files)
		switch {
		case err != nil:
			return nil, err
		case len(bySplit) > 0:
			for _, s := range bySplit {
				add(s.split, s.patterns)
			}
		case len(patterns) > 0:
			add("train", patterns)
		case c.Dir != "":
			add("train", []string{"**"})
		}
		out = append(out, d)
	}
	return out, nil
}

type splitPatterns struct {
	split    string
	patterns []string
}

// dataFiles reads data_files: a pattern, a list of them, a map from split, or a list of {split, path}.
func dataFiles(n yaml.Node) (patterns []string, bySplit []splitPatterns, err error) {
	switch n.Kind {
	case 0:
		return nil, nil, nil
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			p, err := oneOrMany(*n.Content[i+1])
			if err != nil {
				return nil, nil, err
			}
			bySplit = append(bySplit, splitPatterns{n.Content[i].Value, p})
		}
		return nil, bySplit, nil
	case yaml.SequenceNode:
		if len(n.Content) > 0 && n.Content[0].Kind == yaml.MappingNode {
			for _, item := range n.Content {
				var one struct {
					Split string    `yaml:"split"`
					Path  yaml.Node `yaml:"path"`
				}
				if err := item.Decode(&one); err != nil {
					return nil, nil, err
				}
				p, err := oneOrMany(one.Path)
				if err != nil {
					return nil, nil, err
				}
				bySplit = append(bySplit, splitPatterns{or(one.Split, "train"), p})
			}
			return nil, bySplit, nil
		}
	}
	patterns, err = oneOrMany(n)
	return patterns, nil, err
}

func oneOrMany(n yaml.Node) ([]string, error) {
	if n.Kind == 0 {
		return nil, nil
	}
	var one string
	if n.Kind == yaml.ScalarNode {
		err := n.Decode(&one)
		return []string{one}, err
	}
	var many []string
	err := n.Decode(&many)
	return many, err
}

func frontMatter(card []byte) ([]byte, bool) {
	text := strings.ReplaceAll(string(card), "\r\n", "\n")
	rest, ok := strings.CutPrefix(strings.TrimPrefix(text, "\ufeff"), "---\n")
	if !ok {
		return nil, false
	}
	front, _, ok := strings.Cut(rest, "\n---")
	return []byte(front), ok
}

// matches is a glob in which ** crosses folders; a pattern that names a folder means all in it.
func matches(pattern, name string) bool {
	if len(pattern) > 1000 {
		return false
	}
	pattern = strings.TrimPrefix(path.Clean(pattern), "./")
	var b strings.Builder
	b.WriteString("^")
	for i := 0; i < len(pattern); i++ {
		switch c := pattern[i]; {
		case strings.HasPrefix(pattern[i:], "**/"):
			b.WriteString("(?:.*/)?")
			i += 2
		case strings.HasPrefix(pattern[i:], "**"):
			b.WriteString(".*")
			i++
		case c == '*':
			b.WriteString("[^/]*")
		case c == '?':
			b.WriteString("[^/]")
		case c == '[':
			end := strings.IndexByte(pattern[i:], ']')
			if end < 2 {
				b.WriteString(regexp.QuoteMeta("["))
				continue
			}
			class := pattern[i+1 : i+end]
			if class[0] == '!' {
				class = "^" + class[1:]
			}
			b.WriteString("[" + strings.ReplaceAll(class, `\`, `\\`) + "]")
			i += end
		default:
			b.WriteString(regexp.QuoteMeta(string(c)))
		}
	}
	b.WriteString("(?:/.*)?$")
	re, err := regexp.Compile(b.String())
	return err == nil && re.MatchString(name)
}

// splitWords are the words in names that say which split a file belongs to.
var splitWords = map[string][]string{
	"train":      {"train", "training"},
	"test":       {"test", "testing", "eval", "evaluation"},
	"validation": {"validation", "valid", "val", "dev"},
}

var numbered = regexp.MustCompile(`^([A-Za-z0-9_.]+)-\d{5}-of-\d{5}`)

// splitByName finds splits in the names of folders and files. Files without such a word are train, unless
// other files have one.
func splitByName(repo Repo, files []File, config string) (map[string][]File, error) {
	var data []File
	folders := map[string]bool{}
	for _, f := range files {
		if kindOf(f.Path) == "" {
			continue
		}
		data = append(data, f)
		if top, _, ok := strings.Cut(f.Path, "/"); ok && top != "data" && splitOf(top) == "" {
			folders[top] = true
		}
	}
	if config == "" && len(folders) > 1 && !slices.ContainsFunc(data, func(f File) bool { return !strings.Contains(f.Path, "/") || strings.HasPrefix(f.Path, "data/") }) {
		all := make([]string, 0, len(folders))
		for name := range folders {
			all = append(all, name)
		}
		slices.SortFunc(all, natural)
		e := failed(Unsuitable, "%s has its data in several folders and no card that explains them: name one of them as the config: %s", repo, some(all))
		e.Choices = all
		return nil, e
	}
	named, unnamed := map[string][]File{}, []File(nil)
	for _, f := range data {
		if config != "" && !strings.HasPrefix(f.Path, config+"/") && !strings.HasPrefix(f.Path, "data/"+config+"/") {
			continue
		}
		split := ""
		for _, part := range strings.Split(f.Path, "/") {
			if s := splitOf(part); s != "" {
				split = s
			}
		}
		if split == "" {
			unnamed = append(unnamed, f)
		} else {
			named[split] = append(named[split], f)
		}
	}
	if len(named) == 0 {
		return map[string][]File{"train": unnamed}, nil
	}
	return named, nil
}

func splitOf(part string) string {
	if m := numbered.FindStringSubmatch(part); m != nil {
		for split, words := range splitWords {
			if slices.Contains(words, m[1]) {
				return split
			}
		}
		return m[1]
	}
	for _, word := range strings.FieldsFunc(strings.ToLower(part), func(r rune) bool { return strings.ContainsRune("-_. 0123456789[]()", r) }) {
		for split, words := range splitWords {
			if slices.Contains(words, word) {
				return split
			}
		}
	}
	return ""
}
