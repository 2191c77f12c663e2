package checkpoint

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
)

// zipArchive is a zip file in memory: npz and torch files are such. It reads the directory itself, so that what is stored stays
// a view of the map and no claim of the file is believed before the bytes are there (PKWARE APPNOTE 6.3.9).
type zipArchive struct {
	path    string
	data    []byte
	entries []zipEntry
	budget  uint64 // bytes that may still be given for what is not a view
	read    map[string][]byte
}

type zipEntry struct {
	name         string
	method       uint16
	packed, size uint64
	at           uint64 // of the local header
	crc          uint32
}

const (
	zipStored, zipDeflate = 0, 8
	maxZipEntries         = 100_000
	spareBudget           = 48 << 20 // beside four times the file: with what the directory and the readers need, under 64 MiB
)

// openZip checks the directory: every entry lies inside the file, and all of them together claim no more than a real archive of
// weights would. Floats hardly shrink, so a file that claims more than four times its size is a bomb.
func openZip(path string, data []byte) (*zipArchive, error) {
	a := &zipArchive{path: path, data: data, budget: 4*uint64(len(data)) + spareBudget, read: map[string][]byte{}}
	from, count, err := a.directory()
	if err != nil {
		return nil, err
	}
	claimed := uint64(0)
	names := make(map[string]bool, min(count, maxZipEntries))
	for range count {
		e, next, err := a.entry(from)
		if err != nil {
			return nil, err
		}
		if names[e.name] {
			return nil, a.broken(fmt.Sprintf("the archive has %q twice", e.name), "every name once")
		}
		names[e.name] = true
		if claimed += e.size; claimed > a.budget {
			return nil, a.broken(fmt.Sprintf("the archive has %d bytes and claims to hold more than %d", len(data), a.budget), "weights, which hardly shrink; this is a zip bomb")
		}
		a.entries = append(a.entries, e)
		from = next
	}
	return a, nil
}

// directory finds where the list of entries begins and how long it is: a record at the end of the file, behind at most 64 KiB of
// comment, which for large files points to a wider one.
func (a *zipArchive) directory() (from, count uint64, err error) {
	const size, wide = 22, 56
	le, data := binary.LittleEndian, a.data
	at := -1
	for i := len(data) - size; i >= 0 && i >= len(data)-size-math.MaxUint16; i-- {
		if le.Uint32(data[i:]) == 0x06054b50 {
			at = i
			break
		}
	}
	if at < 0 {
		return 0, 0, a.broken("the end of a zip archive is missing", "a whole file; this one is cut short, or no zip archive")
	}
	count, from = uint64(le.Uint16(data[at+10:])), uint64(le.Uint32(data[at+16:]))
	if locator := at - 20; (count == math.MaxUint16 || from == math.MaxUint32) && locator >= 0 && le.Uint32(data[locator:]) == 0x07064b50 {
		w := le.Uint64(data[locator+8:])
		if w > uint64(len(data)) || uint64(len(data))-w < wide || le.Uint32(data[w:]) != 0x06064b50 {
			return 0, 0, a.broken("the wide end record of the zip archive is not where the file says", "a whole file")
		}
		count, from = le.Uint64(data[w+32:]), le.Uint64(data[w+48:])
	}
	if count > maxZipEntries {
		return 0, 0, a.broken(fmt.Sprintf("the archive claims %d entries", count), fmt.Sprintf("at most %d", maxZipEntries))
	}
	return from, count, nil
}

// entry reads one line of the directory.
func (a *zipArchive) entry(at uint64) (e zipEntry, next uint64, err error) {
	const size = 46
	le, data := binary.LittleEndian, a.data
	if at > uint64(len(data)) || uint64(len(data))-at < size || le.Uint32(data[at:]) != 0x02014b50 {
		return e, 0, a.broken(fmt.Sprintf("the archive's directory is broken at byte %d", at), "a whole file")
	}
	h := data[at:]
	e = zipEntry{method: le.Uint16(h[10:]), crc: le.Uint32(h[16:]), packed: uint64(le.Uint32(h[20:])), size: uint64(le.Uint32(h[24:])), at: uint64(le.Uint32(h[42:]))}
	name, extra, comment := uint64(le.Uint16(h[28:])), uint64(le.Uint16(h[30:])), uint64(le.Uint16(h[32:]))
	if uint64(len(h)) < size+name+extra+comment {
		return e, 0, a.broken("a line of the archive's directory is cut short", "a whole file")
	}
	e.name = string(h[size : size+name])
	e.widen(h[size+name : size+name+extra])
	switch {
	case le.Uint16(h[8:])&1 != 0:
		return e, 0, a.broken(fmt.Sprintf("entry %q is encrypted", e.name), "weights that anyone can read")
	case e.method != zipStored && e.method != zipDeflate:
		return e, 0, &UnsupportedError{Path: a.path, Kind: "zip compression of " + e.name, Name: fmt.Sprint(e.method), Supported: []string{"stored", "deflate"}}
	case e.at > uint64(len(data)) || e.packed > uint64(len(data))-e.at:
		return e, 0, a.broken(fmt.Sprintf("entry %q lies beyond the end of the file", e.name), "a whole file; this one is cut short")
	case e.method == zipStored && e.packed != e.size:
		return e, 0, a.broken(fmt.Sprintf("entry %q is stored in %d bytes and claims %d", e.name, e.packed, e.size), "the same number twice")
	}
	return e, at + size + name + extra + comment, nil
}

// widen takes the 64-bit sizes from the extra field where the 32-bit ones are full.
func (e *zipEntry) widen(extra []byte) {
	le := binary.LittleEndian
	for len(extra) >= 4 {
		id, size := le.Uint16(extra), int(le.Uint16(extra[2:]))
		if size > len(extra)-4 {
			return
		}
		field := extra[4 : 4+size]
		extra = extra[4+size:]
		if id != 1 {
			continue
		}
		for _, value := range []*uint64{&e.size, &e.packed, &e.at} {
			if *value == math.MaxUint32 && len(field) >= 8 {
				*value, field = le.Uint64(field), field[8:]
			}
		}
		return
	}
}

// content gives an entry's bytes: a view where it is stored, else inflated once. What does not have the size and the checksum
// that the directory claims is refused.
func (a *zipArchive) content(name string) ([]byte, error) {
	if data, ok := a.read[name]; ok {
		return data, nil
	}
	i := slices.IndexFunc(a.entries, func(e zipEntry) bool { return e.name == name })
	if i < 0 {
		return nil, a.broken(fmt.Sprintf("the archive has no %q", name), "it")
	}
	e := a.entries[i]
	const header = 30
	le, local := binary.LittleEndian, a.data[e.at:]
	if len(local) < header || le.Uint32(local) != 0x04034b50 {
		return nil, a.broken(fmt.Sprintf("entry %q does not begin where the directory says", name), "a whole file")
	}
	skip := header + uint64(le.Uint16(local[26:])) + uint64(le.Uint16(local[28:]))
	if skip > uint64(len(local)) || e.packed > uint64(len(local))-skip {
		return nil, a.broken(fmt.Sprintf("entry %q lies beyond the end of the file", name), "a whole file; this one is cut short")
	}
	data := local[skip : skip+e.packed : skip+e.packed]
	if e.method == zipDeflate {
		var err error
		if data, err = a.inflate(e, data); err != nil {
			return nil, err
		}
	}
	if crc32.ChecksumIEEE(data) != e.crc {
		return nil, a.broken(fmt.Sprintf("the checksum of entry %q is wrong", name), "the file as it was published; this copy is damaged")
	}
	a.read[name] = data
	return data, nil
}

func (a *zipArchive) inflate(e zipEntry, packed []byte) ([]byte, error) {
	if err := a.spend(e.size); err != nil {
		return nil, err
	}
	r := flate.NewReader(bytes.NewReader(packed))
	data := make([]byte, e.size)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, a.broken(fmt.Sprintf("entry %q cannot be inflated to the %d bytes that the directory claims: %v", e.name, e.size, err), "a whole file")
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return nil, a.broken(fmt.Sprintf("entry %q inflates to more than the %d bytes that the directory claims", e.name, e.size), "weights; this is a zip bomb")
	}
	return data, nil
}

// spend counts memory that is given because of what the file says.
func (a *zipArchive) spend(size uint64) error {
	if size > a.budget {
		return a.broken(fmt.Sprintf("the file has %d bytes and its tensors would take more than four times that", len(a.data)), "weights that are in the file")
	}
	a.budget -= size
	return nil
}

func (a *zipArchive) broken(fact, want string) error {
	return &FormatError{Path: a.path, Fact: fact, Want: want}
}
