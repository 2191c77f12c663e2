package checkpoint

import (
	"encoding/json"
	"fmt"

	"go.yaml.in/yaml/v3"
)

// maxYAML bounds the configurations that some SAEs have as YAML.
const maxYAML = 1 << 20

// readYAML reads a YAML mapping as a document. Anchors are refused: a configuration has no use for them, and a few lines of them
// can stand for gigabytes.
func readYAML(path string) (document, error) {
	data, err := readLimited(path, maxYAML)
	if err != nil {
		return document{}, err
	}
	return parseYAML(path, data)
}

func parseYAML(path string, data []byte) (document, error) {
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return document{}, &FormatError{Path: path, Fact: fmt.Sprintf("it is not YAML: %v", err)}
	}
	if len(root.Content) != 1 {
		return document{}, &FormatError{Path: path, Fact: "it is empty", Want: "a mapping"}
	}
	value, err := plainYAML(root.Content[0], 0)
	if err != nil {
		return document{}, &FormatError{Path: path, Fact: err.Error(), Want: "a mapping of names to plain values"}
	}
	text, err := json.Marshal(value)
	if err != nil {
		return document{}, &FormatError{Path: path, Fact: fmt.Sprintf("it holds what JSON cannot: %v", err), Want: "numbers, text, lists and mappings"}
	}
	return parseDocument(path, text)
}

func plainYAML(n *yaml.Node, depth int) (any, error) {
	const deepest = 20
	if depth > deepest {
		return nil, fmt.Errorf("it is nested more than %d deep", deepest)
	}
	switch n.Kind {
	case yaml.MappingNode:
		out := map[string]any{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			v, err := plainYAML(n.Content[i+1], depth+1)
			if err != nil {
				return nil, err
			}
			out[n.Content[i].Value] = v
		}
		return out, nil
	case yaml.SequenceNode:
		out := make([]any, 0, len(n.Content))
		for _, item := range n.Content {
			v, err := plainYAML(item, depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, v)
		}
		return out, nil
	case yaml.ScalarNode:
		switch n.ShortTag() {
		case "!!null", "!!bool", "!!int", "!!float":
			var v any
			if err := n.Decode(&v); err != nil {
				return nil, fmt.Errorf("line %d: %w", n.Line, err)
			}
			return v, nil
		}
		return n.Value, nil
	}
	return nil, fmt.Errorf("line %d: an anchor, or something else that is no plain value", n.Line)
}
