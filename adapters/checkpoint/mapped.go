package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// mapped is a file mapped read-only. The kernel loads pages as they are touched, so a model larger than memory opens at once.
// Cutting the file short while it is mapped kills the reader (SIGBUS): files are imported by copy, never changed in place.
type mapped struct {
	path string
	data []byte

	mu     sync.RWMutex
	closed bool
}

func mapFile(path string) (*mapped, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, missing(path, err)
	}
	defer func() { _ = f.Close() }() // only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &FormatError{Path: path, Fact: "it is not a regular file"}
	}
	if info.Size() == 0 {
		return &mapped{path: path}, nil
	}
	if int64(int(info.Size())) != info.Size() {
		return nil, &FormatError{Path: path, Fact: fmt.Sprintf("it has %d bytes, more than this machine can address", info.Size())}
	}
	data, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	return &mapped{path: path, data: data}, nil
}

// use runs f unless the file is closed. Views made inside outlive it: they end with close, which the owner decides.
func (m *mapped) use(f func() error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return fmt.Errorf("%s: %w", m.path, ErrClosed)
	}
	return f()
}

func (m *mapped) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	data := m.data
	m.data = nil
	if data == nil {
		return nil
	}
	return syscall.Munmap(data)
}

// missing keeps fs.ErrNotExist visible and says which file it is about.
func missing(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: the file is missing: %w", path, fs.ErrNotExist)
	}
	return err
}
