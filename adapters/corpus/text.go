package corpus

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// textFile is one .txt file: paragraphs between blank lines, or lines if there is no blank one.
type textFile struct {
	path string
	file *os.File
	rowz [][2]int64 // from, to
}

func openText(path string) (dataFile, error) {
	file, err := openPlain(path)
	if err != nil {
		return nil, err
	}
	t := &textFile{path: path, file: file}
	if err := t.index(); err != nil {
		_ = file.Close()
		return nil, err
	}
	return t, nil
}

func (t *textFile) index() error {
	var lines, paragraphs [][2]int64
	separated, apart := false, true
	scan := newLineScanner(t.file)
	for scan.next() {
		if scan.nul {
			return binaryText(t.path, fmt.Sprintf("line %d", scan.line))
		}
		if scan.blank {
			apart = true
			continue
		}
		lines = append(lines, [2]int64{scan.start, scan.end})
		if apart {
			separated = separated || len(paragraphs) > 0
			paragraphs = append(paragraphs, [2]int64{scan.start, scan.end})
		} else {
			paragraphs[len(paragraphs)-1][1] = scan.end
		}
		apart = false
	}
	if scan.err != nil {
		return fmt.Errorf("read %s: %w", t.path, scan.err)
	}
	t.rowz = lines
	if separated {
		t.rowz = paragraphs
	}
	for i, row := range t.rowz {
		if row[1]-row[0] > maxRowBytes {
			return &FileError{Path: t.path, Detail: fmt.Sprintf("row %d has %d bytes; a row may have %d", i, row[1]-row[0], maxRowBytes)}
		}
	}
	return nil
}

func binaryText(path, where string) error {
	return &FileError{Path: path, Detail: where + " holds a NUL byte: this is a binary file, or UTF-16 text (convert it to UTF-8)"}
}

func (t *textFile) name() string                           { return t.path }
func (t *textFile) rows() int64                            { return int64(len(t.rowz)) }
func (t *textFile) columns() []column                      { return []column{{name: "text"}} }
func (t *textFile) reader(string, bool) (rowReader, error) { return (*textReader)(t), nil }
func (t *textFile) close() error                           { return t.file.Close() }

type textReader textFile

func (r *textReader) close() error { return nil }

func (r *textReader) read(i int64, other bool) (Row, error) {
	text := make([]byte, r.rowz[i][1]-r.rowz[i][0])
	if _, err := r.file.ReadAt(text, r.rowz[i][0]); err != nil {
		return Row{}, fmt.Errorf("cannot be read: %w", err)
	}
	row := Row{Text: validText(bytes.TrimRight(text, "\r\n"))}
	if other {
		row.Other = map[string]any{}
	}
	return row, nil
}

// textFolder is a folder of .txt files, each a row.
type textFolder struct {
	root  string
	paths []string
}

func newTextFolder(root string, paths []string) (dataFile, error) {
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return nil, fmt.Errorf("open dataset: %w", err)
		}
		if info.Size() > maxRowBytes {
			return nil, &FileError{Path: p, Detail: fmt.Sprintf("in a folder of text files each file is a row, and this one has %d bytes; a row may have %d", info.Size(), maxRowBytes)}
		}
	}
	return &textFolder{root: root, paths: paths}, nil
}

func (t *textFolder) name() string      { return t.root }
func (t *textFolder) rows() int64       { return int64(len(t.paths)) }
func (t *textFolder) columns() []column { return []column{{name: "text"}, {name: "file"}} }
func (t *textFolder) reader(name string, _ bool) (rowReader, error) {
	return &folderReader{t, name}, nil
}
func (t *textFolder) close() error { return nil }

// readText returns all of a text file that is one row.
func readText(path string) ([]byte, error) {
	file, err := openPlain(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.NewSectionReader(file, 0, maxRowBytes+1))
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	if len(data) > maxRowBytes {
		return nil, fmt.Errorf("has more than the %d bytes that a row may have", maxRowBytes)
	}
	return data, nil
}

type folderReader struct {
	*textFolder
	column string
}

func (r *folderReader) read(i int64, other bool) (Row, error) {
	path := r.paths[i]
	data, err := readText(path)
	if err != nil {
		return Row{}, err
	}
	if bytes.IndexByte(data, 0) >= 0 {
		return Row{}, binaryText(path, "it")
	}
	file, err := filepath.Rel(r.root, path)
	if err != nil {
		file = path
	}
	text := strings.TrimSpace(validText(bytes.TrimPrefix(data, []byte("\ufeff"))))
	if r.column == "file" {
		text, file = file, text
	}
	row := Row{Text: text}
	if other {
		row.Other = map[string]any{map[bool]string{true: "text", false: "file"}[r.column == "file"]: file}
	}
	return row, nil
}
