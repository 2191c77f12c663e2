package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
)

const (
	maxConfig = 4 << 20  // bytes of a config.json or cfg.json
	maxScaler = 64 << 10 // bytes of an activation_scaler.json
	maxIndex  = 64 << 20 // bytes of a model.safetensors.index.json
)

// document is a JSON object read field by field. The first field of the wrong kind sticks as the error, so that a reader asks
// for all it needs and checks once. A null counts as absent, as it does for the libraries that write these files.
type document struct {
	path   string
	within string // "metadata." for a nested object
	fields map[string]json.RawMessage
	err    *error
}

func readDocument(path string, limit int64) (document, error) {
	data, err := readLimited(path, limit)
	if err != nil {
		return document{}, err
	}
	return parseDocument(path, data)
}

func parseDocument(path string, data []byte) (document, error) {
	d := document{path: path, err: new(error)}
	if err := json.Unmarshal(data, &d.fields); err != nil {
		return d, &FormatError{Path: path, Fact: fmt.Sprintf("it is not a JSON object: %v", err)}
	}
	if d.fields == nil {
		return d, &FormatError{Path: path, Fact: "it is not a JSON object but null"}
	}
	return d, nil
}

func readLimited(path string, limit int64) ([]byte, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, missing(path, err)
	}
	defer func() { _ = f.Close() }() // only read
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return nil, &FormatError{Path: path, Fact: "the file is larger than any such file", Want: fmt.Sprintf("at most %d bytes", limit)}
	}
	return data, nil
}

// name is the file's, for a note of where a fact came from.
func (d document) name() string { return filepath.Base(d.path) }

func (d document) failed() error { return *d.err }

func (d document) fail(key, want string) {
	if *d.err == nil {
		text := d.fields[key]
		if len(text) > 80 {
			text = append(bytes.Clone(text[:80]), "…"...)
		}
		fact := fmt.Sprintf("%s%s is %s", d.within, key, text)
		if len(text) == 0 {
			fact = fmt.Sprintf("%s%s is missing", d.within, key)
		}
		*d.err = &FormatError{Path: d.path, Fact: fact, Want: want}
	}
}

func (d document) has(key string) bool {
	raw, ok := d.fields[key]
	return ok && !bytes.Equal(raw, []byte("null"))
}

// isNull tells a key that is null from one that is not there: some mean "none", and the absent key a default.
func (d document) isNull(key string) bool { return bytes.Equal(d.fields[key], []byte("null")) }

// unsupported is fail for what is well formed and not implemented.
func (d document) unsupported(kind, name string, supported ...string) {
	if *d.err == nil {
		*d.err = &UnsupportedError{Path: d.path, Kind: kind, Name: name, Supported: supported}
	}
}

// first gives the first of several spellings that is there.
func (d document) first(keys ...string) string {
	for _, k := range keys {
		if d.has(k) {
			return k
		}
	}
	return keys[0]
}

func (d document) decode(key, want string, into any) bool {
	if !d.has(key) {
		return false
	}
	if err := json.Unmarshal(d.fields[key], into); err != nil {
		d.fail(key, want)
		return false
	}
	return true
}

func (d document) text(key, otherwise string) string {
	out := otherwise
	d.decode(key, "a string", &out)
	return out
}

func (d document) flag(key string, otherwise bool) bool {
	out := otherwise
	d.decode(key, "true or false", &out)
	return out
}

func (d document) number(key string, otherwise float64) float64 {
	out := otherwise
	d.decode(key, "a number", &out)
	return out
}

// maxSize bounds every size read from a configuration: products of three of them, and of two with a float's width, stay addressable.
const maxSize = 1 << 28

// size reads a whole number from least to maxSize; 32.0 passes for 32, as in Python.
func (d document) size(key string, least, otherwise int) int {
	if !d.has(key) {
		return otherwise
	}
	var x float64
	want := fmt.Sprintf("a whole number of at least %d", least)
	if !d.decode(key, want, &x) {
		return otherwise
	}
	if x != math.Trunc(x) || x < float64(least) || x > maxSize {
		d.fail(key, want)
		return otherwise
	}
	return int(x)
}

func (d document) integers(key string) []int {
	var out []int
	d.decode(key, "a list of whole numbers", &out)
	return out
}

// object is empty when the key is absent.
func (d document) object(key string) document {
	in := document{path: d.path, within: d.within + key + ".", err: d.err}
	d.decode(key, "an object", &in.fields)
	return in
}
