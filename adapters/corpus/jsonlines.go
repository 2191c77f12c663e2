package corpus

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// jsonLines is a file with a JSON object a line. Only the rows' places are kept in memory.
type jsonLines struct {
	path    string
	file    *os.File
	offsets []int64 // where each row begins, then where the last one ends
	array   bool    // the rows are the elements of one JSON array
	cols    []column
}

// sampledRows is how many rows say which columns a file of JSON lines has.
const sampledRows = 100

func openJSONLines(path string) (dataFile, error) {
	file, err := openPlain(path)
	if err != nil {
		return nil, err
	}
	j := &jsonLines{path: path, file: file}
	if strings.HasPrefix(extension(path), ".json") && extension(path) != ".jsonl" {
		j.array, err = beginsArray(file)
	}
	if err == nil && j.array {
		err = j.indexArray()
	} else if err == nil {
		err = j.index()
	}
	if err == nil {
		err = j.sample()
	}
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return j, nil
}

// index finds where the rows begin.
func (j *jsonLines) index() error {
	scan := newLineScanner(j.file)
	for scan.next() {
		if scan.blank {
			continue
		}
		if scan.length > maxRowBytes {
			return &FileError{Path: j.path, Detail: fmt.Sprintf("line %d has %d bytes; a row may have %d", scan.line, scan.length, maxRowBytes)}
		}
		j.offsets = append(j.offsets, scan.start)
	}
	if scan.err != nil {
		return fmt.Errorf("read %s: %w", j.path, scan.err)
	}
	j.offsets = append(j.offsets, scan.end)
	return nil
}

// sample reads the first rows for their columns, and the last one, which a truncated file breaks.
func (j *jsonLines) sample() error {
	n := j.rows()
	if n == 0 {
		return nil
	}
	seen := map[string]int{}
	for i := range min(n, sampledRows) {
		line, err := j.line(i)
		if err != nil {
			return err
		}
		row, err := object(line)
		if err != nil {
			return j.notAnObject(i, line, err)
		}
		for _, name := range keys(line) {
			at, ok := seen[name]
			if !ok {
				at = len(j.cols)
				seen[name] = at
				j.cols = append(j.cols, column{name: name, kind: unknownColumn})
			}
			if kind := kindOfJSON(row[name]); kind != unknownColumn && j.cols[at].kind == unknownColumn {
				j.cols[at].kind = kind
			}
		}
	}
	for c := range j.cols {
		if j.cols[c].kind == unknownColumn {
			j.cols[c].kind = textColumn // all null: there is nothing to say against text
		}
	}
	last, err := j.line(n - 1)
	if err != nil {
		return err
	}
	if _, err := object(last); err != nil {
		return j.notAnObject(n-1, last, err)
	}
	return nil
}

const unknownColumn = columnKind(-1)

func (j *jsonLines) notAnObject(i int64, line []byte, err error) error {
	detail := fmt.Sprintf("row %d is not a JSON object: %v", i, err)
	switch {
	case bytes.IndexByte(line, 0) >= 0:
		detail = fmt.Sprintf("row %d holds a NUL byte: this is a binary file, or UTF-16 text (convert it to UTF-8)", i)
	case i == 0 && bytes.HasPrefix(line, []byte("[")):
		detail = "this is one JSON array; name it .json, or write its objects one a line"
	case i == 0 && j.rows() > 1 && bytes.HasPrefix(line, []byte("{")):
		detail = "this is one JSON object over several lines; write the rows' objects one a line, or as one array"
	case i == j.rows()-1 && i > 0:
		detail += " (the file looks truncated)"
	}
	return &FileError{Path: j.path, Detail: detail, Err: err}
}

func (j *jsonLines) name() string      { return j.path }
func (j *jsonLines) rows() int64       { return int64(len(j.offsets) - 1) }
func (j *jsonLines) columns() []column { return j.cols }
func (j *jsonLines) close() error      { return j.file.Close() }

func (j *jsonLines) line(i int64) ([]byte, error) {
	line := make([]byte, j.offsets[i+1]-j.offsets[i])
	if _, err := j.file.ReadAt(line, j.offsets[i]); err != nil {
		return nil, fmt.Errorf("read row %d of %s: %w", i, j.path, err)
	}
	line = bytes.TrimSpace(line)
	if j.array {
		line = bytes.TrimSpace(bytes.TrimSuffix(line, []byte(",")))
	}
	return line, nil
}

func (j *jsonLines) reader(name string, tokens bool) (rowReader, error) {
	return &jsonReader{file: j, column: name, tokens: tokens}, nil
}

type jsonReader struct {
	file   *jsonLines
	column string
	tokens bool
}

func (r *jsonReader) close() error { return nil }

func (r *jsonReader) read(i int64, other bool) (Row, error) {
	line, err := r.file.line(i)
	if err != nil {
		return Row{}, err
	}
	fields, err := object(line)
	if err != nil {
		return Row{}, fmt.Errorf("is not a JSON object: %w", err)
	}
	var row Row
	if value, ok := fields[r.column]; ok {
		if r.tokens {
			if err := json.Unmarshal(value, &row.Tokens); err != nil {
				return Row{}, fmt.Errorf("has no list of token ids in %q: %w", r.column, err)
			}
			if at := slices.IndexFunc(row.Tokens, func(id int32) bool { return id < 0 }); at >= 0 {
				return Row{}, fmt.Errorf("has the negative token id %d at %d", row.Tokens[at], at)
			}
		} else if err := json.Unmarshal(value, &row.Text); err != nil {
			return Row{}, fmt.Errorf("has no text in %q: %w", r.column, err)
		}
	}
	if other {
		delete(fields, r.column)
		row.Other = make(map[string]any, len(fields))
		for name, value := range fields {
			row.Other[name] = jsonValue(value)
		}
	}
	return row, nil
}

// object reads a line's fields. Broken UTF-8 is mended first, so that all kinds of files mend it alike.
func object(line []byte) (map[string]json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal([]byte(validText(line)), &fields); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) {
			return nil, fmt.Errorf("it is a JSON %s", kind.Value)
		}
		return nil, err
	}
	if fields == nil {
		return nil, errors.New("it is null")
	}
	return fields, nil
}

// keys returns the fields of a valid object in their order.
func keys(line []byte) []string {
	var out []string
	d := json.NewDecoder(strings.NewReader(validText(line)))
	_, _ = d.Token()
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return out
		}
		out = append(out, fmt.Sprint(name))
		var skip json.RawMessage
		if d.Decode(&skip) != nil {
			return out
		}
	}
	return out
}

func kindOfJSON(value json.RawMessage) columnKind {
	switch {
	case len(value) == 0 || string(value) == "null":
		return unknownColumn
	case value[0] == '"':
		return textColumn
	case value[0] == '[':
		var ids []int64
		if json.Unmarshal(value, &ids) != nil {
			return otherColumn
		}
		return idsColumn
	}
	return otherColumn
}

func jsonValue(raw json.RawMessage) any {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var value any
	if d.Decode(&value) != nil {
		return nil
	}
	return plainNumbers(value)
}

// plainNumbers turns numbers into int64 where they are whole and fit, else float64.
func plainNumbers(value any) any {
	switch v := value.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	case []any:
		for i := range v {
			v[i] = plainNumbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = plainNumbers(v[k])
		}
	}
	return value
}

// lineScanner finds lines without keeping them.
type lineScanner struct {
	in     *bufio.Reader
	line   int64 // counted from 1
	start  int64
	length int64 // with its end of line
	end    int64
	blank  bool // nothing but white space
	nul    bool // a NUL byte was seen in this line
	err    error
}

func newLineScanner(r io.Reader) *lineScanner {
	s := &lineScanner{in: bufio.NewReaderSize(r, 1<<20)}
	if mark, _ := s.in.Peek(3); string(mark) == "\ufeff" {
		_, _ = s.in.Discard(3)
		s.end = 3
	}
	return s
}

func (s *lineScanner) next() bool {
	s.start, s.length, s.blank, s.nul = s.end, 0, true, false
	for s.err == nil {
		part, err := s.in.ReadSlice('\n')
		s.length += int64(len(part))
		s.end += int64(len(part))
		s.blank = s.blank && len(bytes.TrimSpace(part)) == 0
		s.nul = s.nul || bytes.IndexByte(part, 0) >= 0
		switch {
		case err == nil:
			s.line++
			return true
		case err == io.EOF:
			s.err = io.EOF
			s.line++
			if s.length > 0 {
				s.err = nil
				s.in.Reset(strings.NewReader(""))
				return true
			}
		case !errors.Is(err, bufio.ErrBufferFull):
			s.err = err
		}
	}
	if errors.Is(s.err, io.EOF) {
		s.err = nil
	}
	return false
}
