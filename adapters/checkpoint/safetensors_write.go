package checkpoint

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// WriteSafetensors writes a file that appears whole or not at all: a temporary name in the same folder, synced, then renamed.
// Wide dtypes come first, so that every tensor lies aligned to its element.
func WriteSafetensors(path string, tensors []Tensor, metadata map[string]string) (err error) {
	ordered := slices.Clone(tensors)
	slices.SortStableFunc(ordered, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(b.DType.Bits(), a.DType.Bits()), cmp.Compare(a.Name, b.Name))
	})
	header, err := safetensorsHeader(path, ordered, metadata)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := writeAll(w, header, ordered); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := f.Chmod(0o644); err != nil { // CreateTemp makes files that only the owner reads
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func safetensorsHeader(path string, ordered []Tensor, metadata map[string]string) ([]byte, error) {
	type entry struct {
		DType   DType  `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	header := make(map[string]any, len(ordered)+1)
	if len(metadata) > 0 {
		header[metadataKey] = metadata
	}
	offset := 0
	for _, t := range ordered {
		if _, twice := header[t.Name]; twice || t.Name == metadataKey {
			return nil, &FormatError{Path: path, Fact: fmt.Sprintf("the name %q cannot be written", t.Name), Want: "every name once, and none called " + metadataKey}
		}
		if _, err := t.checkedElements(); err != nil {
			return nil, err
		}
		shape := t.Shape
		if shape == nil {
			shape = []int{}
		}
		header[t.Name] = entry{t.DType, shape, [2]int{offset, offset + len(t.Data)}}
		offset += len(t.Data)
	}
	text, err := json.Marshal(header)
	if err != nil {
		return nil, err
	}
	for len(text)%8 != 0 {
		text = append(text, ' ')
	}
	if len(text) > maxHeader {
		return nil, &FormatError{Path: path, Fact: fmt.Sprintf("the header would have %d bytes", len(text)), Want: fmt.Sprintf("at most %d", maxHeader)}
	}
	return text, nil
}

func writeAll(w io.Writer, header []byte, tensors []Tensor) error {
	if _, err := w.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))); err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return err
	}
	for _, t := range tensors {
		if _, err := w.Write(t.Data); err != nil {
			return err
		}
	}
	return nil
}
