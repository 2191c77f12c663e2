package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	configFile = "config.json"
	singleFile = "model.safetensors"
	indexFile  = "model.safetensors.index.json"
)

// openFolder opens a Hugging Face folder.
func openFolder(folder string) (_ *Model, err error) {
	d, err := readDocument(filepath.Join(folder, configFile), maxConfig)
	if err != nil {
		return nil, err
	}
	config, f, err := modelFromJSON(d)
	if err != nil {
		return nil, err
	}
	m := &Model{config: config, files: []string{d.path}}
	defer func() {
		if err != nil {
			_ = m.Close()
		}
	}()
	found, err := m.openShards(folder)
	if err != nil {
		return nil, err
	}
	return m, m.bind(f, found)
}

// openShards maps the weight files and says which of them has which tensor.
func (m *Model) openShards(folder string) (map[string]*Safetensors, error) {
	found := map[string]*Safetensors{}
	single := filepath.Join(folder, singleFile)
	if _, err := os.Stat(single); err == nil {
		s, err := m.openShard(single)
		if err != nil {
			return nil, err
		}
		for _, name := range s.Names() {
			found[name] = s
		}
		return found, nil
	}
	index := filepath.Join(folder, indexFile)
	parts, err := readIndex(index)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noWeights(folder)
	}
	if err != nil {
		return nil, err
	}
	m.files = append(m.files, index)
	shards := map[string]*Safetensors{}
	for _, part := range parts {
		s := shards[part.file]
		if s == nil {
			if s, err = m.openShard(filepath.Join(folder, part.file)); err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					err = fmt.Errorf("%s names the shard %s: %w", index, part.file, err)
				}
				return nil, err
			}
			shards[part.file] = s
		}
		if _, ok := s.entries[part.tensor]; !ok {
			return nil, &MissingTensorError{Path: s.Path(), Tensors: []string{part.tensor}, Why: indexFile + " says that it is in this file"}
		}
		found[part.tensor] = s
	}
	return found, onceOnly(index, shards, found)
}

// onceOnly refuses a tensor that two shards have: which of them a reader takes depends on the reader.
func onceOnly(index string, shards map[string]*Safetensors, found map[string]*Safetensors) error {
	for _, file := range slices.Sorted(maps.Keys(shards)) {
		for _, name := range shards[file].names {
			if named := found[name]; named != nil && named != shards[file] {
				return &FormatError{Path: index, Fact: fmt.Sprintf("tensor %q is in %s and in %s", name, filepath.Base(named.Path()), file), Want: "every tensor in one shard"}
			}
		}
	}
	return nil
}

func (m *Model) openShard(path string) (*Safetensors, error) {
	s, err := OpenSafetensors(path)
	if err != nil {
		return nil, err
	}
	m.close = append(m.close, s.Close)
	m.files = append(m.files, path)
	return s, nil
}

// weightMap is an object of strings that names nothing twice.
type weightMap map[string]string

func (w *weightMap) UnmarshalJSON(data []byte) error {
	*w = weightMap{}
	dec := json.NewDecoder(bytes.NewReader(data))
	if _, err := dec.Token(); err != nil || data[0] != '{' {
		return errors.New("weight_map is not an object")
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		tensor, _ := key.(string) // inside an object, what comes before a value is a string
		var file string
		if err := dec.Decode(&file); err != nil {
			return fmt.Errorf("weight_map of %q: %w", tensor, err)
		}
		if _, twice := (*w)[tensor]; twice {
			return fmt.Errorf("weight_map names %q twice", tensor)
		}
		(*w)[tensor] = file
	}
	return nil
}

type indexPart struct{ tensor, file string }

// readIndex gives the weight map in the order of files, then names.
func readIndex(path string) ([]indexPart, error) {
	data, err := readLimited(path, maxIndex)
	if err != nil {
		return nil, err
	}
	var index struct {
		Map weightMap `json:"weight_map"`
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, &FormatError{Path: path, Fact: fmt.Sprintf("it is not an index: %v", err), Want: `an object with "weight_map": {tensor: file}`}
	}
	if len(index.Map) == 0 {
		return nil, &FormatError{Path: path, Fact: "it has no weight_map", Want: `"weight_map": {tensor: file}`}
	}
	parts := make([]indexPart, 0, len(index.Map))
	for tensor, file := range index.Map {
		// A shard lies beside its index; anything else could name a file that has no business here.
		if file != filepath.Base(file) || !filepath.IsLocal(file) || strings.ContainsAny(file, `/\`) || !strings.HasSuffix(file, ".safetensors") {
			return nil, &FormatError{Path: path, Fact: fmt.Sprintf("tensor %q is said to be in %q", tensor, file), Want: "the name of a .safetensors file in the same folder"}
		}
		parts = append(parts, indexPart{tensor, file})
	}
	slices.SortFunc(parts, func(a, b indexPart) int {
		if c := strings.Compare(a.file, b.file); c != 0 {
			return c
		}
		return strings.Compare(a.tensor, b.tensor)
	})
	return parts, nil
}

// noWeights says what would be right, and what to do with the formats that are not read.
func noWeights(folder string) error {
	want := singleFile + ", or " + indexFile + " with its shards"
	for _, other := range []string{"pytorch_model.bin", "pytorch_model.bin.index.json"} {
		if _, err := os.Stat(filepath.Join(folder, other)); err == nil {
			return &UnsupportedError{Path: folder, Kind: "weight file", Name: other, Supported: []string{want}}
		}
	}
	return fmt.Errorf("%s: there are no weights; expected %s: %w", folder, want, fs.ErrNotExist)
}

// bind finds every tensor that the decoder needs, and checks its shape and dtype.
func (m *Model) bind(f family, found map[string]*Safetensors) error {
	weights := m.files[len(m.files)-1]
	if m.config.Layers > len(found) { // before a list is made by the configuration's claim
		return &FormatError{Path: m.files[0], Fact: fmt.Sprintf("num_hidden_layers is %d and the weights have %d tensors in all", m.config.Layers, len(found)), Want: "the configuration of these weights"}
	}
	names, body := f.modules, f.modules.Bodies[0]
	for _, b := range names.Bodies {
		if _, ok := found[b+names.Embedding+".weight"]; ok {
			body = b
			break
		}
	}
	beyond := body + names.Layers + "." + itoa(m.config.Layers) + "."
	for name := range found {
		if strings.HasPrefix(name, beyond) {
			return &FormatError{Path: m.files[0], Fact: fmt.Sprintf("the configuration says %d layers and the weights have %s", m.config.Layers, name), Want: "the configuration of these weights"}
		}
	}
	m.wanted = f.parameters(m.config, f.storage)
	m.load = make(map[string]func() (Tensor, error), len(m.wanted))
	var absent []string
	for _, w := range m.wanted {
		name := names.inHuggingFace(w, body, f.storage)
		if w.role == roleHead && w.leaf == ".weight" && m.config.TiedEmbeddings {
			name = body + names.Embedding + w.leaf
		}
		s, ok := found[name]
		if !ok && w.role == roleHead {
			name = strings.TrimSuffix(body, "model.") + name
			s, ok = found[name]
		}
		if !ok {
			if absent = append(absent, names.inHuggingFace(w, names.Bodies[0], f.storage)); w.role == roleHead {
				absent[len(absent)-1] = w.name
			}
			continue
		}
		e := s.entries[name]
		if !slices.Equal(e.shape, w.from.shape) {
			return &ShapeError{Path: s.Path(), Tensor: name, Found: e.shape, Want: w.from.shape, Why: w.fileWhy()}
		}
		if !e.dtype.isFloat() {
			return &UnsupportedError{Path: s.Path(), Kind: "dtype of tensor " + name, Name: string(e.dtype), Supported: floatNames()}
		}
		m.load[w.name] = func() (Tensor, error) {
			t, err := s.Tensor(name)
			if err != nil {
				return t, err
			}
			return w.from.take(t, w.shape)
		}
	}
	if absent = slices.Compact(absent); len(absent) > 0 {
		why := ""
		if absent[0] == names.Head+".weight" {
			why = "tie_word_embeddings is false, so the head needs weights of its own"
		}
		return &MissingTensorError{Path: weights, Tensors: absent, Why: why}
	}
	return nil
}
