package checkpoint

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
)

// maxHeader is the format's own limit on the JSON header.
const maxHeader = 100_000_000

const metadataKey = "__metadata__"

// Safetensors is an open safetensors file, memory-mapped read-only.
type Safetensors struct {
	file     *mapped
	names    []string
	entries  map[string]safetensorsEntry
	metadata map[string]string
}

type safetensorsEntry struct {
	dtype    DType
	shape    []int
	from, to int // in the file
}

// OpenSafetensors maps a file and checks its whole header: lengths, names, dtypes, shapes, and that the tensors cover the data
// without holes or overlaps. What breaks a rule is a FormatError.
func OpenSafetensors(path string) (*Safetensors, error) {
	file, err := mapFile(path)
	if err != nil {
		return nil, err
	}
	s := &Safetensors{file: file}
	if err := s.parse(); err != nil {
		_ = file.close()
		return nil, err
	}
	return s, nil
}

// Path is absolute.
func (s *Safetensors) Path() string { return s.file.path }

// Names in the order of their data.
func (s *Safetensors) Names() []string { return slices.Clone(s.names) }

// Metadata is the header's __metadata__.
func (s *Safetensors) Metadata() map[string]string { return maps.Clone(s.metadata) }

// Tensor is a view of the map, valid until Close. A name that is not there is a MissingTensorError.
func (s *Safetensors) Tensor(name string) (Tensor, error) {
	e, ok := s.entries[name]
	if !ok {
		return Tensor{}, &MissingTensorError{Path: s.file.path, Tensors: []string{name}, Why: "the file has " + abridged(s.names)}
	}
	t := Tensor{Name: name, DType: e.dtype, Shape: slices.Clone(e.shape)}
	err := s.file.use(func() error {
		t.Data = s.file.data[e.from:e.to:e.to]
		return nil
	})
	return t, err
}

// Close ends every view that was handed out.
func (s *Safetensors) Close() error { return s.file.close() }

func (s *Safetensors) parse() error {
	data := s.file.data
	if len(data) < 8 {
		return s.broken(fmt.Sprintf("the file has %d bytes", len(data)), "at least the 8 bytes of a header length")
	}
	length := binary.LittleEndian.Uint64(data)
	switch {
	case length > maxHeader:
		return s.broken(fmt.Sprintf("the header claims %d bytes", length), fmt.Sprintf("at most %d; is this a safetensors file?", maxHeader))
	case length > uint64(len(data)-8):
		return s.broken(fmt.Sprintf("the header claims %d bytes and only %d follow", length, len(data)-8), "a whole file; this one is cut short")
	}
	header, body := data[8:8+length], data[8+length:]
	if err := s.parseHeader(header); err != nil {
		return err
	}
	return s.place(8+int(length), len(body))
}

func (s *Safetensors) parseHeader(header []byte) error {
	if len(header) == 0 || header[0] != '{' {
		return s.broken("the header does not begin with {", "a JSON object")
	}
	s.entries, s.metadata = map[string]safetensorsEntry{}, map[string]string{}
	dec := json.NewDecoder(bytes.NewReader(header))
	if _, err := dec.Token(); err != nil {
		return s.notJSON(err)
	}
	seenMetadata := false
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return s.notJSON(err)
		}
		name, _ := token.(string) // inside an object, what comes before a value is a string
		if name == metadataKey {
			if seenMetadata {
				return s.broken("the header has "+metadataKey+" twice", "one")
			}
			seenMetadata = true
			if err := dec.Decode(&s.metadata); err != nil {
				return s.broken(metadataKey+" is not a map of strings", "an object of strings")
			}
			continue
		}
		if _, twice := s.entries[name]; twice {
			return s.broken(fmt.Sprintf("the header names the tensor %q twice", name), "every name once")
		}
		entry, err := s.parseEntry(dec, name)
		if err != nil {
			return err
		}
		s.entries[name] = entry
		s.names = append(s.names, name)
	}
	if _, err := dec.Token(); err != nil {
		return s.notJSON(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return s.broken("something follows the header's JSON object", "spaces only")
	}
	return nil
}

func (s *Safetensors) parseEntry(dec *json.Decoder, name string) (safetensorsEntry, error) {
	var raw struct {
		DType   *string  `json:"dtype"`
		Shape   []uint64 `json:"shape"`
		Offsets []uint64 `json:"data_offsets"`
	}
	if err := dec.Decode(&raw); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) || errors.Is(err, io.ErrUnexpectedEOF) {
			return safetensorsEntry{}, s.notJSON(err)
		}
		return safetensorsEntry{}, s.broken(fmt.Sprintf("tensor %q: %v", name, err), `{"dtype", "shape", "data_offsets"} with whole numbers ≥ 0`)
	}
	if raw.DType == nil || raw.Shape == nil || len(raw.Offsets) != 2 {
		return safetensorsEntry{}, s.broken(fmt.Sprintf("tensor %q lacks a dtype, a shape or two data_offsets", name), `{"dtype", "shape", "data_offsets": [from, to]}`)
	}
	entry := safetensorsEntry{dtype: DType(*raw.DType), shape: make([]int, len(raw.Shape))}
	for i, dim := range raw.Shape {
		if dim > math.MaxInt {
			return safetensorsEntry{}, s.broken(fmt.Sprintf("tensor %q has the dimension %d", name, dim), "a dimension that fits an int64")
		}
		entry.shape[i] = int(dim)
	}
	size, _, err := sizeOf(entry.dtype, entry.shape)
	if err != nil {
		return safetensorsEntry{}, s.broken(fmt.Sprintf("tensor %q: %v", name, err), "")
	}
	from, to := raw.Offsets[0], raw.Offsets[1]
	if from > to || to > math.MaxInt || to-from != uint64(size) {
		return safetensorsEntry{}, s.broken(fmt.Sprintf("tensor %q has the data_offsets [%d, %d]", name, from, to),
			fmt.Sprintf("%d bytes, as %s %v has", size, entry.dtype, entry.shape))
	}
	entry.from, entry.to = int(from), int(to)
	return entry, nil
}

// place checks that the tensors follow one another without a gap to the very end, and makes the offsets absolute.
func (s *Safetensors) place(start, length int) error {
	slices.SortFunc(s.names, func(a, b string) int {
		x, y := s.entries[a], s.entries[b]
		if x.from != y.from {
			return x.from - y.from
		}
		if x.to != y.to {
			return x.to - y.to
		}
		return strings.Compare(a, b)
	})
	end, before := 0, "the start of the data"
	for _, name := range s.names {
		e := s.entries[name]
		switch {
		case e.from < end:
			return s.broken(fmt.Sprintf("tensor %q begins at %d, inside %s, which ends at %d", name, e.from, before, end), "tensors that do not overlap")
		case e.from > end:
			return s.broken(fmt.Sprintf("tensor %q begins at %d and %s ends at %d", name, e.from, before, end), "no hole between them")
		}
		end, before = e.to, fmt.Sprintf("tensor %q", name)
		if end > length {
			return s.broken(fmt.Sprintf("tensor %q ends at byte %d of the data and the file has %d", name, end, length), "a whole file; this one is cut short")
		}
		e.from, e.to = e.from+start, e.to+start
		s.entries[name] = e
	}
	if end != length {
		return s.broken(fmt.Sprintf("%d bytes follow the last tensor", length-end), "nothing after it")
	}
	return nil
}

func (s *Safetensors) broken(fact, want string) error {
	return &FormatError{Path: s.file.path, Fact: fact, Want: want}
}

func (s *Safetensors) notJSON(err error) error {
	return s.broken(fmt.Sprintf("the header is not JSON: %v", err), "")
}

// abridged lists a few names for a message.
func abridged(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	if len(names) > 8 {
		return fmt.Sprintf("%s, … (%d in all)", strings.Join(names[:8], ", "), len(names))
	}
	return strings.Join(names, ", ")
}
