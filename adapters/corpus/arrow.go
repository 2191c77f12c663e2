package corpus

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sort"
	"sync"
	"syscall"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	arrowmemory "github.com/apache/arrow-go/v18/arrow/memory"
)

// arrowFile is a file of Arrow record batches, in the streaming format or in the file format (which is the
// streaming one with a table of contents behind, that is not needed here). The file is mapped: of a batch that is
// not compressed only the pages of the rows that are asked for are read.
type arrowFile struct {
	path     string
	mu       sync.RWMutex // the mapping goes with close
	data     []byte
	messages arrowMessages
	starts   []int64 // first row of each batch
	n        int64
	cols     []column
	fields   []arrow.Field
}

func openArrow(path string) (_ dataFile, err error) {
	a := &arrowFile{path: path}
	if a.data, err = mapDataset(path); err != nil {
		return nil, err
	}
	if err := a.index(); err != nil {
		_ = a.close()
		return nil, err
	}
	return a, nil
}

func mapDataset(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open dataset: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("open dataset: %w", err)
	}
	if info.Size() == 0 || int64(int(info.Size())) != info.Size() {
		return nil, &FileError{Path: path, Detail: fmt.Sprintf("not a readable Arrow file (%d bytes)", info.Size())}
	}
	data, err := syscall.Mmap(int(file.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return data, nil
}

// index finds the batches, and the columns by the schema.
func (a *arrowFile) index() error {
	var err error
	if a.messages, err = findMessages(a.data); err != nil {
		return &FileError{Path: a.path, Detail: "not a readable Arrow file: " + err.Error(), Err: err}
	}
	for _, b := range a.messages.batches {
		a.starts = append(a.starts, a.n)
		a.n += b.rows
	}
	in, err := a.messages.read(a.data, -1)
	if err != nil {
		return &FileError{Path: a.path, Detail: "not a readable Arrow file: " + err.Error(), Err: err}
	}
	defer in.Release()
	a.fields = in.Schema().Fields()
	for _, f := range a.fields {
		a.cols = append(a.cols, column{name: f.Name, kind: kindOfArrow(f.Type)})
	}
	return nil
}

func kindOfArrow(t arrow.DataType) columnKind {
	if d, ok := t.(*arrow.DictionaryType); ok {
		t = d.ValueType
	}
	switch t.ID() {
	case arrow.STRING, arrow.LARGE_STRING, arrow.STRING_VIEW:
		return textColumn
	case arrow.LIST, arrow.LARGE_LIST, arrow.FIXED_SIZE_LIST:
		if l, ok := t.(arrow.ListLikeType); ok && arrow.IsInteger(l.Elem().ID()) {
			return idsColumn
		}
	}
	return otherColumn
}

func (a *arrowFile) name() string      { return a.path }
func (a *arrowFile) rows() int64       { return a.n }
func (a *arrowFile) columns() []column { return a.cols }

func (a *arrowFile) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	data := a.data
	a.data = nil
	if data == nil {
		return nil
	}
	if err := syscall.Munmap(data); err != nil {
		return fmt.Errorf("close %s: %w", a.path, err)
	}
	return nil
}

func (a *arrowFile) reader(name string, tokens bool) (rowReader, error) {
	for at, c := range a.cols {
		if c.name == name {
			return &arrowReader{file: a, column: at, tokens: tokens, batch: -1}, nil
		}
	}
	return nil, &MissingColumnError{Path: a.path, Column: name, Columns: names(a.cols)}
}

type arrowReader struct {
	file   *arrowFile
	column int
	tokens bool
	batch  int
	record arrow.RecordBatch
}

func (r *arrowReader) close() error {
	if r.record != nil {
		r.record.Release()
		r.record, r.batch = nil, -1
	}
	return nil
}

func (r *arrowReader) read(i int64, other bool) (row Row, err error) {
	defer recoveredArrow(&err)
	a := r.file
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.data == nil {
		return Row{}, os.ErrClosed
	}
	batch := sort.Search(len(a.starts), func(b int) bool { return a.starts[b] > i }) - 1
	if batch != r.batch {
		if err := r.load(batch); err != nil {
			return Row{}, fmt.Errorf("cannot be read: %w", err)
		}
	}
	at := int(i - a.starts[batch])
	if r.tokens {
		row.Tokens, err = arrowIDs(r.record.Column(r.column), at)
	} else {
		row.Text, err = arrowText(r.record.Column(r.column), at)
	}
	if err == nil && other {
		row.Other = map[string]any{}
		for c, f := range a.fields {
			if c != r.column {
				if value, ok := arrowValue(r.record.Column(c), at, 0); ok {
					row.Other[f.Name] = value
				}
			}
		}
	}
	return row, err
}

func (r *arrowReader) load(batch int) error {
	if err := r.close(); err != nil {
		return err
	}
	in, err := r.file.messages.read(r.file.data, batch)
	if err != nil {
		return err
	}
	defer in.Release()
	record, err := in.Read()
	if err != nil {
		return err
	}
	if record.NumRows() != r.file.messages.batches[batch].rows || int(record.NumCols()) != len(r.file.cols) {
		return errors.New("the batch is not what the schema says")
	}
	record.Retain()
	r.record, r.batch = record, batch
	return nil
}

// recoveredArrow is for what a broken file makes the library do.
func recoveredArrow(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("cannot be read: broken Arrow file: %v", p)
	}
}

func arrowText(values arrow.Array, i int) (string, error) {
	if values.IsNull(i) {
		return "", nil
	}
	var text string
	switch v := values.(type) {
	case *array.String:
		text = v.Value(i)
	case *array.LargeString:
		text = v.Value(i)
	case *array.StringView:
		text = v.Value(i)
	case *array.Dictionary:
		return arrowText(v.Dictionary(), v.GetValueIndex(i))
	default:
		return "", fmt.Errorf("has no text but %s", values.DataType())
	}
	if len(text) > maxRowBytes {
		return "", fmt.Errorf("has a text of %d bytes; a row may have %d", len(text), maxRowBytes)
	}
	return validText([]byte(text)), nil // a copy: the mapping does not outlive the dataset
}

func arrowIDs(values arrow.Array, i int) ([]int32, error) {
	list, ok := values.(array.ListLike)
	if !ok {
		return nil, fmt.Errorf("has no list of token ids but %s", values.DataType())
	}
	if list.IsNull(i) {
		return nil, nil
	}
	from, to := list.ValueOffsets(i)
	items := list.ListValues()
	if from < 0 || to < from || to > int64(items.Len()) || to-from > maxRowBytes/4 {
		return nil, fmt.Errorf("is a list from %d to %d of %d token ids", from, to, items.Len())
	}
	ids := make([]int32, to-from)
	for t := range ids {
		at := int(from) + t
		if items.IsNull(at) {
			return nil, fmt.Errorf("has no token id at %d", t)
		}
		id, ok := arrowInteger(items, at)
		if !ok || id < 0 || id > math.MaxInt32 {
			return nil, fmt.Errorf("has the token id %s at %d, which no vocabulary has", items.ValueStr(at), t)
		}
		ids[t] = int32(id)
	}
	return ids, nil
}

func arrowInteger(values arrow.Array, i int) (int64, bool) {
	switch v := values.(type) {
	case *array.Int8:
		return int64(v.Value(i)), true
	case *array.Int16:
		return int64(v.Value(i)), true
	case *array.Int32:
		return int64(v.Value(i)), true
	case *array.Int64:
		return v.Value(i), true
	case *array.Uint8:
		return int64(v.Value(i)), true
	case *array.Uint16:
		return int64(v.Value(i)), true
	case *array.Uint32:
		return int64(v.Value(i)), true
	case *array.Uint64:
		return int64(v.Value(i)), v.Value(i) <= math.MaxInt64
	}
	return 0, false
}

// arrowValue is a value as Row.Other has them; false leaves it out.
func arrowValue(values arrow.Array, i, depth int) (any, bool) {
	if values.IsNull(i) {
		return nil, true
	}
	if n, ok := arrowInteger(values, i); ok {
		return n, true
	}
	switch v := values.(type) {
	case *array.Boolean:
		return v.Value(i), true
	case *array.Float32:
		return float64(v.Value(i)), true
	case *array.Float64:
		return v.Value(i), true
	case *array.String, *array.LargeString, *array.StringView, *array.Dictionary:
		text, err := arrowText(v, i)
		return text, err == nil
	case *array.Struct:
		fields, out := v.DataType().(*arrow.StructType).Fields(), map[string]any{}
		for f := range fields {
			if value, ok := arrowValue(v.Field(f), i, depth+1); ok && depth < 8 {
				out[fields[f].Name] = value
			}
		}
		return out, true
	case array.ListLike:
		from, to := v.ValueOffsets(i)
		items := v.ListValues()
		if from < 0 || to < from || to > int64(items.Len()) || to-from > 1<<16 || depth > 8 {
			return nil, false
		}
		out := make([]any, 0, to-from)
		for at := from; at < to; at++ {
			value, _ := arrowValue(items, int(at), depth+1)
			out = append(out, value)
		}
		return out, true
	}
	return values.ValueStr(i), true
}

// arrowSource serves a schema, the dictionaries and one batch to the library, out of the mapping.
type arrowSource struct {
	data []byte
	next []arrowMessage
}

func (s *arrowSource) Retain()  {}
func (s *arrowSource) Release() {}
func (s *arrowSource) Message() (*ipc.Message, error) {
	if len(s.next) == 0 {
		return nil, errors.New("the file ends")
	}
	m := s.next[0]
	s.next = s.next[1:]
	return ipc.NewMessage(arrowmemory.NewBufferBytes(s.data[m.meta:m.body]), arrowmemory.NewBufferBytes(s.data[m.body:m.end])), nil
}

// boundedMemory lets a compressed batch expand so far and no further.
type boundedMemory struct {
	arrowmemory.Allocator
	left int64
}

func (b *boundedMemory) take(n int) {
	if b.left -= int64(n); n < 0 || b.left < 0 {
		panic("a compressed batch expands to far more than its size")
	}
}

func (b *boundedMemory) Allocate(n int) []byte {
	b.take(n)
	return b.Allocator.Allocate(n)
}

func (b *boundedMemory) Reallocate(n int, old []byte) []byte {
	b.take(n - min(n, len(old)))
	return b.Allocator.Reallocate(n, old)
}
