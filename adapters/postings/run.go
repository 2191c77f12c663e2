package postings

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
)

// Run is a run file on the local disk: the artifacts of several segments merged, a cache that ends with its
// reader.
type Run struct {
	*Reader
	file *os.File
}

// CreateRun merges sources into an unnamed file in folder: its space is given back by Close, or by the system if
// the process dies.
func CreateRun(ctx context.Context, folder string, sources ...Source) (*Run, error) {
	file, err := os.CreateTemp(folder, "run-*.parquet")
	if err != nil {
		return nil, fmt.Errorf("create run file: %w", err)
	}
	run := &Run{file: file}
	if err := os.Remove(file.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("create run file: %w", err), run.Close())
	}
	buffered := bufio.NewWriterSize(file, 1<<20)
	summary, err := Merge(ctx, buffered, sources...)
	if err == nil {
		err = buffered.Flush()
	}
	if err == nil {
		run.Reader, err = Open(file, summary.Bytes)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create run file: %w", err), run.Close())
	}
	return run, nil
}

// Close frees the file.
func (r *Run) Close() error {
	if err := r.file.Close(); err != nil {
		return fmt.Errorf("close run file: %w", err)
	}
	return nil
}
