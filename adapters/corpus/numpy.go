package corpus

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// numpyFile is a .npy array of integers [rows, tokens].
type numpyFile struct {
	path      string
	file      *os.File
	data      int64 // where the numbers begin
	n, tokens int64
	width     int
	signed    bool
	order     binary.ByteOrder
}

func openNumpy(path string) (dataFile, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open dataset: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("open dataset: %w", err)
	}
	n := &numpyFile{path: path, file: file}
	if err := n.header(file, info.Size()); err != nil {
		_ = file.Close()
		return nil, err
	}
	return n, nil
}

var (
	numpyType    = regexp.MustCompile(`'descr'\s*:\s*'([<>|=])([a-z])(\d+)'`)
	numpyFortran = regexp.MustCompile(`'fortran_order'\s*:\s*True`)
	numpyShape   = regexp.MustCompile(`'shape'\s*:\s*\(([^)]*)\)`)
)

// header reads the magic, the version, and the Python dict that follows (numpy.lib.format).
func (f *numpyFile) header(r io.ReaderAt, size int64) error {
	refuse := func(format string, args ...any) error {
		return &FileError{Path: f.path, Detail: "not a .npy array of token ids: " + fmt.Sprintf(format, args...)}
	}
	head := make([]byte, min(size, 12))
	if _, err := r.ReadAt(head, 0); err != nil && err != io.EOF {
		return fmt.Errorf("read %s: %w", f.path, err)
	}
	if len(head) < 12 || string(head[:6]) != "\x93NUMPY" {
		return refuse("it does not begin as one")
	}
	start, length := int64(10), int64(binary.LittleEndian.Uint16(head[8:]))
	if head[6] >= 2 {
		start, length = 12, int64(binary.LittleEndian.Uint32(head[8:]))
	}
	if length > 1<<16 || start+length > size {
		return refuse("its header of %d bytes does not fit into the file's %d", length, size)
	}
	dict := make([]byte, length)
	if _, err := r.ReadAt(dict, start); err != nil {
		return fmt.Errorf("read %s: %w", f.path, err)
	}
	f.data = start + length

	kind := numpyType.FindSubmatch(dict)
	if kind == nil {
		return refuse("its header names no plain type: %q", dict)
	}
	f.order, f.signed = binary.LittleEndian, kind[2][0] == 'i'
	if kind[1][0] == '>' {
		f.order = binary.BigEndian
	}
	width, err := strconv.Atoi(string(kind[3]))
	if err != nil || (kind[2][0] != 'i' && kind[2][0] != 'u') || (width != 1 && width != 2 && width != 4 && width != 8) {
		return refuse("its numbers are %s%s, not integers", kind[2], kind[3])
	}
	f.width = width
	if numpyFortran.Match(dict) {
		return refuse("it is stored by columns; save it with numpy.ascontiguousarray")
	}
	shape := numpyShape.FindSubmatch(dict)
	if shape == nil {
		return refuse("its header has no shape: %q", dict)
	}
	var sides []int64
	for part := range strings.SplitSeq(string(shape[1]), ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		side, err := strconv.ParseInt(part, 10, 64)
		if err != nil || side < 0 {
			return refuse("its shape is (%s)", shape[1])
		}
		sides = append(sides, side)
	}
	if len(sides) != 2 {
		return refuse("its shape is (%s), not [rows, tokens]", shape[1])
	}
	f.n, f.tokens = sides[0], sides[1]
	if f.tokens > 0 && f.n > (math.MaxInt64>>8)/f.tokens || f.tokens*int64(width) > maxRowBytes || f.n > 0 && f.tokens == 0 {
		return refuse("its shape is (%s)", shape[1])
	}
	if need := f.data + f.n*f.tokens*int64(width); need > size {
		return refuse("it is truncated: a shape of (%s) needs %d bytes and the file has %d", shape[1], need, size)
	}
	return nil
}

func (f *numpyFile) name() string      { return f.path }
func (f *numpyFile) rows() int64       { return f.n }
func (f *numpyFile) columns() []column { return []column{{name: tokensColumn, kind: idsColumn}} }
func (f *numpyFile) close() error      { return f.file.Close() }

func (f *numpyFile) reader(string, bool) (rowReader, error) { return (*numpyReader)(f), nil }

type numpyReader numpyFile

func (r *numpyReader) close() error { return nil }

func (r *numpyReader) read(i int64, other bool) (Row, error) {
	raw := make([]byte, r.tokens*int64(r.width))
	if _, err := r.file.ReadAt(raw, r.data+i*int64(len(raw))); err != nil {
		return Row{}, fmt.Errorf("cannot be read: %w", err)
	}
	row := Row{Tokens: make([]int32, r.tokens)}
	for t := range row.Tokens {
		b := raw[t*r.width:]
		var id uint64
		switch r.width {
		case 1:
			id = uint64(b[0])
		case 2:
			id = uint64(r.order.Uint16(b))
		case 4:
			id = uint64(r.order.Uint32(b))
		case 8:
			id = r.order.Uint64(b)
		}
		if shift := 64 - 8*r.width; r.signed && int64(id<<shift)>>shift < 0 {
			return Row{}, fmt.Errorf("has the negative token id %d at %d", int64(id<<shift)>>shift, t)
		}
		if id > math.MaxInt32 {
			return Row{}, fmt.Errorf("has the token id %d at %d, which no vocabulary has", id, t)
		}
		row.Tokens[t] = int32(id)
	}
	if other {
		row.Other = map[string]any{}
	}
	return row, nil
}
