package tokenizer

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// Read returns the tokenizer.json of a model: path is that file, a folder that has it, or a .gguf file, whose
// tokenizer is rebuilt.
func Read(path string) ([]byte, error) {
	if strings.EqualFold(filepath.Ext(path), ".gguf") {
		return readGGUF(path)
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		folder := path
		path = filepath.Join(folder, "tokenizer.json")
		if _, err := os.Stat(path); os.IsNotExist(err) {
			return nil, fmt.Errorf("the folder %s has no tokenizer.json (fast tokenizer): %w", folder, os.ErrNotExist)
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
