package corpus

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// What a compressed file may expand to: prose shrinks to a third or a fifth, logs to a hundredth; more than this is
// a bomb.
const (
	maxExpansion   = 200
	expansionFloor = 64 << 20
)

// maxZstdWindow bounds the memory that a zstd file can ask for; ordinary levels need 8 MiB.
const maxZstdWindow = 32 << 20

// compressionOf returns .gz, .zst or nothing.
func compressionOf(path string) string {
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".gz", ".zst":
		return ext
	}
	return ""
}

// openPlain opens a file for reading at any place. A compressed one is written out to a temporary file first (in
// $TMPDIR; it has no name, so nothing is left behind), because rows are read in a random order.
func openPlain(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open dataset: %w", err)
	}
	if compressionOf(path) == "" {
		return file, nil
	}
	defer file.Close()
	plain, err := os.CreateTemp("", "featuremill-dataset-*")
	if err != nil {
		return nil, fmt.Errorf("open dataset: %w", err)
	}
	if err = os.Remove(plain.Name()); err == nil {
		err = expand(plain, file, path)
	}
	if err == nil {
		_, err = plain.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = plain.Close()
		return nil, err
	}
	return plain, nil
}

// expand writes a compressed file's contents to out.
func expand(out io.Writer, file *os.File, path string) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("open dataset: %w", err)
	}
	broken := func(err error) error {
		detail := fmt.Sprintf("not a readable %s file: %v", compressionOf(path), err)
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
			detail = fmt.Sprintf("the %s file is truncated (it has %d bytes)", compressionOf(path), info.Size())
		}
		if errors.Is(err, zstd.ErrWindowSizeExceeded) {
			detail = fmt.Sprintf("it was compressed with a window above %d MiB (zstd --long or --ultra): unpack it first", maxZstdWindow>>20)
		}
		return &FileError{Path: path, Detail: detail, Err: err}
	}
	var in io.Reader
	if compressionOf(path) == ".gz" {
		z, err := gzip.NewReader(bufio.NewReaderSize(file, 1<<18))
		if err != nil {
			return broken(err)
		}
		defer z.Close()
		in = z
	} else {
		z, err := zstd.NewReader(file, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return broken(err)
		}
		defer z.Close()
		in = z
	}
	limit := expansionFloor + maxExpansion*info.Size()
	source := &readErrors{Reader: io.LimitReader(in, limit+1)}
	n, err := io.Copy(out, source)
	switch {
	case source.err != nil:
		return broken(source.err)
	case err != nil:
		return fmt.Errorf("expand %s into %s: %w", path, os.TempDir(), err)
	case n > limit:
		return &FileError{Path: path, Detail: fmt.Sprintf("its %d bytes expand to more than %d (%d × their number and 64 MiB): unpack it yourself if that is meant", info.Size(), limit, maxExpansion)}
	}
	return nil
}

// readErrors keeps a reader's error apart from the writer's.
type readErrors struct {
	io.Reader
	err error
}

func (r *readErrors) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		r.err = err
	}
	return n, err
}
