package corpus

import (
	"fmt"
	"strings"
)

// FileError says that a file cannot be used as what it was taken for.
type FileError struct {
	Path   string
	Detail string
	Err    error // may be nil
}

func (e *FileError) Error() string {
	if e.Path == "" {
		return e.Detail
	}
	return e.Path + ": " + e.Detail
}

func (e *FileError) Unwrap() error { return e.Err }

// MissingColumnError says that a dataset does not have the column with its text.
type MissingColumnError struct {
	Path    string
	Column  string   // empty when none was asked for and none could be chosen
	Columns []string // those that there are
}

func (e *MissingColumnError) Error() string {
	have := "it has no columns"
	if len(e.Columns) > 0 {
		have = "its columns are " + strings.Join(e.Columns, ", ")
	}
	if e.Column == "" {
		return fmt.Sprintf("%s: which column is the text? %s; name one with the text column option", e.Path, have)
	}
	return fmt.Sprintf("%s: there is no column %q; %s", e.Path, e.Column, have)
}

// RowError says that a row of a dataset cannot be read.
type RowError struct {
	Path   string
	Row    int64 // counted from 0 in the whole dataset
	Detail string
	Err    error // may be nil
}

func (e *RowError) Error() string { return fmt.Sprintf("%s: row %d %s", e.Path, e.Row, e.Detail) }

func (e *RowError) Unwrap() error { return e.Err }
