package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"time"
	"unsafe"
)

// tapFiles keeps what forward passes gave in files, for the other SAEs of a batch: a pass of 1,024 tokens is one file of a few
// megabytes. Reading one takes about a hundredth of the pass. What is torn or rotten has another checksum and is computed again.
type tapFiles struct {
	folder string
	limit  int64 // bytes; when they are used up no more is stored
	used   int64
}

const (
	tapLimit = 16 << 30
	tapAge   = time.Hour // a batch reads a file again long before
)

// openTaps makes the folder, and removes what no batch will ask for again.
func openTaps(folder string, limit int64) (*tapFiles, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	t := &tapFiles{folder: folder, limit: limit}
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			return nil
		}
		var info fs.FileInfo
		if err == nil {
			info, err = entry.Info()
		}
		switch {
		case err == nil && time.Since(info.ModTime()) > tapAge:
			err = os.Remove(path)
		case err == nil:
			t.used += info.Size()
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // another worker cleans, too
		}
		return err
	})
	return t, err
}

func (t *tapFiles) path(key [sha256.Size]byte) string {
	return filepath.Join(t.folder, hex.EncodeToString(key[:]))
}

// Load implements torch.Taps.
func (t *tapFiles) Load(key [sha256.Size]byte, x []float32) bool {
	data, err := os.ReadFile(t.path(key))
	if err != nil || len(data) != 4+4*len(x) || len(x) == 0 || binary.LittleEndian.Uint32(data) != crc32.Checksum(data[4:], crc32.MakeTable(crc32.Castagnoli)) {
		return false
	}
	copy(bytesOf(x), data[4:])
	now := time.Now()
	_ = os.Chtimes(t.path(key), now, now) // it is still in use; if that cannot be said, it goes sooner
	return true
}

// Store implements torch.Taps. What cannot be stored is computed again by whoever wants it.
func (t *tapFiles) Store(key [sha256.Size]byte, x []float32) {
	size := int64(4 + 4*len(x))
	if len(x) == 0 || t.used+size > t.limit {
		return
	}
	file, err := os.CreateTemp(t.folder, "storing-")
	if err != nil {
		return
	}
	data := bytesOf(x)
	_, err = file.Write(binary.LittleEndian.AppendUint32(nil, crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))))
	if err == nil {
		_, err = file.Write(data)
	}
	if closed := file.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(file.Name(), t.path(key))
	}
	if err != nil {
		_ = os.Remove(file.Name()) // a disk that is full must not stay so because of us
		return
	}
	t.used += size
}

// bytesOf views floats as the bytes that they are on this machine, the only one that reads the files.
func bytesOf(x []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), 4*len(x))
}
