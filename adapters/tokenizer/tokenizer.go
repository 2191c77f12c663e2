package tokenizer

// #cgo CFLAGS: -I${SRCDIR}/rust
// #cgo LDFLAGS: -lfeaturemill_tokenizer -lm -ldl -lpthread
// #include "featuremill_tokenizer.h"
import "C"

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sync/errgroup"

	"github.com/featuremill/featuremill/domain/corpus"
)

// ErrClosed is returned by every method of a closed Tokenizer.
var ErrClosed = errors.New("tokenizer is closed")

// Tokenizer is a loaded tokenizer.json. It is safe for concurrent use; Close waits for calls that run.
type Tokenizer struct {
	mu         sync.RWMutex
	handle     *C.fm_tokenizer
	vocabulary []corpus.Token
	digest     string
}

var _ corpus.Tokenizer = (*Tokenizer)(nil)

// Load is LoadBytes of what Read finds at path.
func Load(path string) (*Tokenizer, error) {
	data, err := Read(path)
	if err != nil {
		return nil, err
	}
	t, err := LoadBytes(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// LoadBytes loads the contents of a tokenizer.json; padding and truncation set in it are ignored. What cannot be
// used is a *FormatError.
func LoadBytes(data []byte) (*Tokenizer, error) {
	look, err := inspect(data)
	if err != nil {
		return nil, err
	}
	var handle *C.fm_tokenizer
	var failure C.fm_bytes
	ok := C.fm_tokenizer_new((*C.uint8_t)(unsafe.SliceData(data)), C.size_t(len(data)), &handle, &failure) //nolint:gocritic // the comparison is in the code that cgo generates
	runtime.KeepAlive(data)
	if !ok {
		return nil, &FormatError{Detail: take(failure)}
	}
	sum := sha256.Sum256(data)
	t := &Tokenizer{handle: handle, digest: hex.EncodeToString(sum[:])}
	if t.vocabulary, err = readVocabulary(handle, look); err != nil {
		_ = t.Close()
		return nil, err
	}
	return t, nil
}

// Digest is the lower-case hexadecimal sha256 of the tokenizer.json.
func (t *Tokenizer) Digest() string { return t.digest }

// VocabularySize is one more than the largest token id. A model's embedding may have more rows than that.
func (t *Tokenizer) VocabularySize() int { return len(t.vocabulary) }

// Vocabulary returns all tokens by id. The slice is shared: do not change it.
func (t *Tokenizer) Vocabulary() []corpus.Token { return t.vocabulary }

// Encode tokenises a text. With addSpecial the tokenizer's template is applied, which may add a BOS.
// Bytes that are no UTF-8 are read as U+FFFD, one for each maximal broken part.
func (t *Tokenizer) Encode(text string, addSpecial bool) (corpus.Encoding, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.handle == nil {
		return corpus.Encoding{}, ErrClosed
	}
	var out C.fm_encoding
	var failure C.fm_bytes
	ok := C.fm_encode(t.handle, (*C.uint8_t)(unsafe.StringData(text)), C.size_t(len(text)), C.bool(addSpecial), &out, &failure) //nolint:gocritic // the comparison is in the code that cgo generates
	runtime.KeepAlive(text)
	if !ok {
		return corpus.Encoding{}, fmt.Errorf("encode text of %d bytes: %s", len(text), take(failure))
	}
	defer C.fm_encoding_free(out.owner)

	n := int(out.len)
	ids, offsets := unsafe.Slice((*int32)(unsafe.Pointer(out.ids)), n), unsafe.Slice((*[2]int32)(unsafe.Pointer(out.offsets)), n)
	e := corpus.Encoding{IDs: make([]int32, n), Offsets: make([][2]int32, n), Special: make([]bool, n)}
	copy(e.IDs, ids)
	copy(e.Offsets, offsets)
	for i, special := range unsafe.Slice((*uint32)(unsafe.Pointer(out.special)), n) {
		e.Special[i] = special != 0
	}
	return e, nil
}

// EncodeBatch encodes texts on all cores, without adding special tokens.
func (t *Tokenizer) EncodeBatch(ctx context.Context, texts []string) ([]corpus.Encoding, error) {
	out := make([]corpus.Encoding, len(texts))
	workers, running := errgroup.WithContext(ctx)
	workers.SetLimit(runtime.GOMAXPROCS(0))
	for i, text := range texts {
		workers.Go(func() error {
			if err := running.Err(); err != nil {
				return err
			}
			e, err := t.Encode(text, false)
			out[i] = e
			return err
		})
	}
	if err := workers.Wait(); err != nil {
		return nil, err
	}
	return out, nil
}

// Close frees the library's memory. Closing twice is fine.
func (t *Tokenizer) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.handle != nil {
		C.fm_tokenizer_free(t.handle)
		t.handle = nil
	}
	return nil
}

// readVocabulary parses fm_vocabulary's records: id uint32, special uint8, length uint32, piece.
func readVocabulary(handle *C.fm_tokenizer, look appearance) ([]corpus.Token, error) {
	var out, failure C.fm_bytes
	if !C.fm_vocabulary(handle, &out, &failure) { //nolint:gocritic // the comparison is in the code that cgo generates
		return nil, &FormatError{Detail: take(failure)}
	}
	records := []byte(take(out))
	var tokens []corpus.Token
	for len(records) >= 9 {
		id, special, length := binary.LittleEndian.Uint32(records), records[4] != 0, int(binary.LittleEndian.Uint32(records[5:]))
		piece := string(records[9 : 9+length])
		records = records[9+length:]
		if id >= maxVocabulary {
			return nil, &FormatError{Detail: fmt.Sprintf("token %q has the id %d; ids of %d and more are refused", piece, id, maxVocabulary)}
		}
		if int(id) >= len(tokens) {
			tokens = append(tokens, make([]corpus.Token, int(id)+1-len(tokens))...)
		}
		tokens[id] = look.token(piece, special)
	}
	return tokens, nil
}

// take copies the library's bytes into a string and frees them.
func take(b C.fm_bytes) string {
	defer C.fm_bytes_free(b)
	return C.GoStringN((*C.char)(unsafe.Pointer(b.data)), C.int(b.len))
}
