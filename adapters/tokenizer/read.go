package tokenizer

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// Read returns the tokenizer.json of a model: path is that file, a folder that has it, or what it can be built
// from: a .gguf file, a SentencePiece tokenizer.model, or a folder that has only the latter.
func Read(path string) ([]byte, error) {
	if strings.EqualFold(filepath.Ext(path), ".gguf") {
		return readGGUF(path)
	}
	if strings.EqualFold(filepath.Ext(path), ".model") {
		return fromModelFile(path)
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		folder := path
		path = filepath.Join(folder, "tokenizer.json")
		if _, err := os.Stat(path); os.IsNotExist(err) {
			model := filepath.Join(folder, "tokenizer.model")
			if _, err := os.Stat(model); err == nil {
				return fromModelFile(model)
			}
			return nil, fmt.Errorf("the folder %s has no tokenizer.json (and no tokenizer.model to build one from): %w", folder, os.ErrNotExist)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read tokenizer: %w", err)
	}
	return data, nil
}

func readGGUF(path string) ([]byte, error) {
	g, err := checkpoint.OpenGGUF(path)
	if err != nil {
		return nil, fmt.Errorf("read tokenizer: %w", err)
	}
	defer g.Close()
	facts, err := g.Tokenizer()
	if err != nil {
		return nil, fmt.Errorf("read tokenizer: %w", err)
	}
	data, err := FromGGUF(facts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}
