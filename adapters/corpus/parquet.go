package corpus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sort"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"
)

// parquetFile is a Parquet dataset. Row groups are read as they are asked for, and only the wanted column.
type parquetFile struct {
	path   string
	file   *os.File
	in     *parquet.File
	groups []parquet.RowGroup
	starts []int64 // first row of each group
	cols   []column
}

func openParquet(path string) (dataFile, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open dataset: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("open dataset: %w", err)
	}
	in, err := openParquetFile(path, file, info.Size())
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	p := &parquetFile{path: path, file: file, in: in, groups: in.RowGroups()}
	var rows int64
	for _, g := range p.groups {
		p.starts = append(p.starts, rows)
		rows += g.NumRows()
	}
	for _, field := range in.Schema().Fields() {
		p.cols = append(p.cols, column{name: field.Name(), kind: kindOfParquet(field)})
	}
	return p, nil
}

// maxFooterBytes bounds what a Parquet file's footer can make the library allocate.
const maxFooterBytes = 256 << 20

// openParquetFile is parquet.OpenFile for files from strangers: the library takes the footer's length as it is
// written, and panics on some broken files.
func openParquetFile(path string, r io.ReaderAt, size int64, options ...parquet.FileOption) (in *parquet.File, err error) {
	defer recovered(&err)
	unreadable := func(err error) error {
		return &FileError{Path: path, Detail: fmt.Sprintf("not a readable Parquet file (%d bytes; truncated?): %v", size, err), Err: err}
	}
	var tail [8]byte
	if size < 12 {
		return nil, unreadable(io.ErrUnexpectedEOF)
	}
	if _, err := r.ReadAt(tail[:], size-8); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if footer := int64(binary.LittleEndian.Uint32(tail[:])); footer > min(size-12, maxFooterBytes) {
		return nil, unreadable(fmt.Errorf("its end asks for a footer of %d bytes", footer))
	}
	if in, err = parquet.OpenFile(r, size, options...); err != nil {
		return nil, unreadable(err)
	}
	return in, nil
}

func recovered(err *error) {
	if p := recover(); p != nil {
		*err = &FileError{Detail: fmt.Sprintf("broken Parquet file: %v", p)}
	}
}

func kindOfParquet(field parquet.Node) columnKind {
	if field.Leaf() {
		switch kind := field.Type().Kind(); {
		case kind == parquet.ByteArray && !field.Repeated() && holdsText(field.Type().LogicalType()):
			return textColumn
		case field.Repeated() && (kind == parquet.Int32 || kind == parquet.Int64):
			return idsColumn
		}
		return otherColumn
	}
	// LIST: a group with one repeated group or field, with one integer inside.
	lists := 0
	for !field.Leaf() {
		inner := field.Fields()
		if len(inner) != 1 {
			return otherColumn
		}
		field = inner[0]
		if field.Repeated() {
			lists++
		}
	}
	if kind := field.Type().Kind(); lists == 1 && (kind == parquet.Int32 || kind == parquet.Int64) {
		return idsColumn
	}
	return otherColumn
}

// holdsText is for byte arrays; old writers did not mark text as such.
func holdsText(logical *format.LogicalType) bool {
	if logical == nil {
		return true
	}
	switch logical.Value.(type) {
	case nil, *format.StringType, *format.JsonType, *format.EnumType:
		return true
	}
	return false
}

func (p *parquetFile) name() string      { return p.path }
func (p *parquetFile) rows() int64       { return p.in.NumRows() }
func (p *parquetFile) columns() []column { return p.cols }
func (p *parquetFile) close() error      { return p.file.Close() }

func (p *parquetFile) reader(name string, tokens bool) (_ rowReader, err error) {
	defer recovered(&err)
	for _, field := range p.in.Schema().Fields() {
		if field.Name() != name {
			continue
		}
		only := parquet.NewSchema(p.in.Schema().Name(), parquet.Group{name: field})
		conversion, err := parquet.Convert(only, p.in.Schema())
		if err != nil {
			return nil, &FileError{Path: p.path, Detail: fmt.Sprintf("column %q cannot be read alone: %v", name, err), Err: err}
		}
		return &parquetReader{file: p, column: name, tokens: tokens, only: conversion, group: -1}, nil
	}
	return nil, &MissingColumnError{Path: p.path, Column: name, Columns: names(p.cols)}
}

type parquetReader struct {
	file   *parquetFile
	column string
	tokens bool
	only   parquet.Conversion
	group  int
	rows   parquet.Rows
	at     int64 // next row of the group
}

// near is how many rows are read and thrown away rather than sought: a seek decodes its page anew.
const near = 64

func (r *parquetReader) close() error {
	if r.rows == nil {
		return nil
	}
	return r.rows.Close()
}

func (r *parquetReader) read(i int64, other bool) (row Row, err error) {
	defer recovered(&err)
	starts := r.file.starts
	group := sort.Search(len(starts), func(g int) bool { return starts[g] > i }) - 1
	if group != r.group {
		if err := r.close(); err != nil {
			return Row{}, fmt.Errorf("cannot be read: %w", err)
		}
		r.rows = parquet.ConvertRowGroup(r.file.groups[group], r.only).Rows()
		r.group, r.at = group, 0
	}
	values, err := r.value(i - starts[group])
	if err != nil {
		return Row{}, fmt.Errorf("cannot be read: %w", err)
	}
	if r.tokens {
		row.Tokens, err = tokenIDs(values)
	} else if len(values) > 0 && !values[0].IsNull() {
		row.Text = validText(values[0].ByteArray())
	}
	if err == nil && other {
		row.Other, err = r.others(group, i-starts[group])
	}
	return row, err
}

// value reads one row of the wanted column.
func (r *parquetReader) value(i int64) (parquet.Row, error) {
	if i < r.at || i > r.at+near {
		if err := r.rows.SeekToRow(i); err != nil {
			return nil, err
		}
		r.at = i
	}
	var buffer [1]parquet.Row
	for {
		n, err := r.rows.ReadRows(buffer[:])
		if n == 0 {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		r.at++
		if r.at > i {
			return buffer[0], nil
		}
		buffer[0] = buffer[0][:0]
	}
}

func tokenIDs(values parquet.Row) ([]int32, error) {
	if len(values) == 1 && values[0].IsNull() {
		return nil, nil // an empty list, or none
	}
	ids := make([]int32, len(values))
	for t, v := range values {
		id := v.Int64()
		if v.Kind() == parquet.Int32 {
			id = int64(v.Int32())
		}
		switch {
		case v.IsNull():
			return nil, fmt.Errorf("has no token id at %d", t)
		case id < 0 || id > math.MaxInt32:
			return nil, fmt.Errorf("has the token id %d at %d, which no vocabulary has", id, t)
		}
		ids[t] = int32(id)
	}
	return ids, nil
}

// others reads the row's other columns: single values, and lists of them.
func (r *parquetReader) others(group int, i int64) (map[string]any, error) {
	rows := r.file.groups[group].Rows()
	defer rows.Close()
	if err := rows.SeekToRow(i); err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	var buffer [1]parquet.Row
	if n, err := rows.ReadRows(buffer[:]); n == 0 {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	out := map[string]any{}
	leaf := 0
	for _, field := range r.file.in.Schema().Fields() {
		first := leaf
		leaf += leaves(field)
		if field.Name() == r.column || leaf != first+1 {
			continue // structs with several fields are left out
		}
		var list []any
		for _, v := range buffer[0] {
			if v.Column() == first {
				list = append(list, plainValue(v))
			}
		}
		switch {
		case field.Leaf() && !field.Repeated() && len(list) == 1:
			out[field.Name()] = list[0]
		case len(list) == 1 && list[0] == nil:
			out[field.Name()] = []any{}
		default:
			out[field.Name()] = list
		}
	}
	return out, nil
}

func leaves(n parquet.Node) int {
	if n.Leaf() {
		return 1
	}
	count := 0
	for _, f := range n.Fields() {
		count += leaves(f)
	}
	return count
}

func plainValue(v parquet.Value) any {
	if v.IsNull() {
		return nil
	}
	switch v.Kind() {
	case parquet.Boolean:
		return v.Boolean()
	case parquet.Int32:
		return int64(v.Int32())
	case parquet.Int64:
		return v.Int64()
	case parquet.Float:
		return float64(v.Float())
	case parquet.Double:
		return v.Double()
	case parquet.ByteArray, parquet.FixedLenByteArray:
		return validText(v.ByteArray())
	default:
		return v.String()
	}
}
