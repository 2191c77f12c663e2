package corpus

import (
	"fmt"
	"os"
	"sort"
	"sync"
	"syscall"
)

// arrowFile is a file of Arrow record batches, in the streaming format or in the file format (which is the
// streaming one with a table of contents behind, that is not needed here). The file is mapped, and only the wanted
// column is decoded: of a batch that is not compressed, only the pages of the rows that are asked for.
type arrowFile struct {
	path     string
	mu       sync.RWMutex // the mapping goes with close
	data     []byte
	messages arrowMessages
	starts   []int64 // first row of each batch
	n        int64
	cols     []column
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
	for _, f := range a.messages.fields {
		a.cols = append(a.cols, column{name: f.name, kind: f.columnKind()})
	}
	return nil
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
	file    *arrowFile
	column  int
	tokens  bool
	batch   int
	columns []arrowColumn
}

func (r *arrowReader) close() error { return nil }

func (r *arrowReader) read(i int64, other bool) (row Row, err error) {
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
	at := i - a.starts[batch]
	if r.tokens {
		row.Tokens, err = r.columns[r.column].ids(at)
	} else {
		row.Text, err = r.columns[r.column].text(at)
	}
	if err == nil && other {
		row.Other = map[string]any{}
		for c := range r.columns {
			if c != r.column {
				if value, ok := r.columns[c].value(at); ok {
					row.Other[a.cols[c].name] = value
				}
			}
		}
	}
	return row, err
}

func (r *arrowReader) load(batch int) error {
	m := r.file.messages
	columns, err := m.batches[batch].columns(m.fields)
	if err != nil {
		return err
	}
	for c := range columns {
		f := columns[c].field
		if f.index == nil {
			continue
		}
		if b, ok := m.dicts[f.dict]; ok {
			f.index = nil
			values, err := b.columns([]arrowField{f})
			if err != nil {
				return fmt.Errorf("the dictionary of %q: %w", f.name, err)
			}
			columns[c].values = &values[0]
		}
	}
	r.columns, r.batch = columns, batch
	return nil
}
