package corpus

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
)

// beginsArray reports whether a JSON file is one array.
func beginsArray(file *os.File) (bool, error) {
	in := bufio.NewReader(io.NewSectionReader(file, 0, 1<<62))
	if mark, _ := in.Peek(3); string(mark) == "\ufeff" {
		_, _ = in.Discard(3)
	}
	for {
		c, err := in.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("read %s: %w", file.Name(), err)
		case c != ' ' && c != '\t' && c != '\r' && c != '\n':
			return c == '[', nil
		}
	}
}

// indexArray finds where the elements of an array begin, without keeping them.
func (j *jsonLines) indexArray() error {
	in := bufio.NewReaderSize(io.NewSectionReader(j.file, 0, 1<<62), 1<<20)
	refuse := func(format string, args ...any) error {
		return &FileError{Path: j.path, Detail: fmt.Sprintf(format, args...)}
	}
	depth, between := 0, true // between elements: the next byte that is no space begins one
	quoted, escaped := false, false
	for at := int64(0); ; at++ {
		c, err := in.ReadByte()
		if errors.Is(err, io.EOF) {
			return refuse("the JSON array does not end (the file looks truncated)")
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", j.path, err)
		}
		if n := len(j.offsets); n > 0 && at-j.offsets[n-1] > maxRowBytes {
			return refuse("row %d has more than the %d bytes that a row may have", n-1, maxRowBytes)
		}
		if quoted {
			switch {
			case escaped:
				escaped = false
			case c == '\\':
				escaped = true
			case c == '"':
				quoted = false
			}
			continue
		}
		if depth == 1 && between && c > ' ' && c != ']' {
			j.offsets = append(j.offsets, at)
			between = false
		}
		switch c {
		case '"':
			quoted = true
		case '[', '{':
			depth++
		case ']', '}':
			if depth--; depth == 0 {
				j.offsets = append(j.offsets, at)
				return nil
			}
		case ',':
			between = between || depth == 1
		}
	}
}
