package corpus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/featuremill/featuremill/domain/corpus"
)

// Mode is how rows become sequences.
type Mode string

const (
	// Documents splits each row into sequences of its own.
	Documents Mode = "documents"
	// Packed joins rows with a separator and cuts the stream, so that every sequence is full.
	Packed Mode = "packed"
)

// ChunkRows is the number of rows in a chunk. It is part of every corpus's identity.
const ChunkRows = 1024

// MaxContextLength is the longest sequence: an offset in a sequence has 16 bits in an artifact.
const MaxContextLength = corpus.MaxContextLength

// defaultMinRest is the number of tokens below which the rest of a row is dropped.
const defaultMinRest = 16

// Options fix, with dataset and tokenizer, every token of a corpus.
type Options struct {
	Mode          Mode // empty: Documents
	ContextLength int  // tokens of a sequence, the inserted ones included
	// PrependBOS puts BOSID before the tokens of every sequence, and between rows when packed.
	PrependBOS bool
	BOSID      int32
	// SeparatorID goes between rows when packed. Nil: BOSID if PrependBOS, else nothing.
	SeparatorID *int32
	// MinRest is the number of tokens (inserted ones not counted) that a sequence shorter than ContextLength
	// must have to be kept; 0 is 16, 1 keeps everything.
	MinRest int
	Seed    uint64 // of the order of rows
}

// resolved checks the options and fills in what follows from the others.
func (o Options) resolved() (Options, error) {
	if o.Mode == "" {
		o.Mode = Documents
	}
	if o.Mode != Documents && o.Mode != Packed {
		return o, fmt.Errorf("corpus mode %q is not known: documents and packed are", o.Mode)
	}
	if o.MinRest == 0 {
		o.MinRest = defaultMinRest
	}
	if !o.PrependBOS {
		o.BOSID = 0
	}
	if o.Mode == Documents {
		o.SeparatorID = nil
	} else if o.SeparatorID == nil && o.PrependBOS {
		separator := o.BOSID
		o.SeparatorID = &separator
	}
	switch {
	case o.ContextLength < 1 || o.PrependBOS && o.ContextLength < 2:
		return o, fmt.Errorf("a context length of %d leaves no room for text", o.ContextLength)
	case o.ContextLength > MaxContextLength:
		return o, fmt.Errorf("a context length of %d is more than %d", o.ContextLength, MaxContextLength)
	case o.MinRest < 0:
		return o, fmt.Errorf("min rest is %d; it cannot be negative", o.MinRest)
	case o.BOSID < 0:
		return o, fmt.Errorf("the BOS id is %d; it cannot be negative", o.BOSID)
	case o.SeparatorID != nil && *o.SeparatorID < 0:
		return o, fmt.Errorf("the separator id is %d; it cannot be negative", *o.SeparatorID)
	}
	return o, nil
}

// ID is the corpus's identity: the lower-case hexadecimal sha256 of dataset digest ‖ tokenizer digest ‖ options.
// The options come in one canonical form, so that writing out a default gives the same corpus. A dataset that is
// tokenised already may have the empty tokenizer digest.
func ID(ctx context.Context, d *Dataset, tokenizerDigest string, o Options) (string, error) {
	digest, err := d.Digest(ctx)
	if err != nil {
		return "", err
	}
	return identity(digest, tokenizerDigest, d.TextColumn(), d.maxRows, o)
}

func identity(datasetDigest, tokenizerDigest, textColumn string, maxRows int, o Options) (string, error) {
	o, err := o.resolved()
	if err != nil {
		return "", err
	}
	dataset, err := hex.DecodeString(datasetDigest)
	if err != nil || len(dataset) != sha256.Size {
		return "", fmt.Errorf("the dataset's digest %q is no sha256", datasetDigest)
	}
	tokenizer := make([]byte, sha256.Size)
	if tokenizerDigest != "" {
		if tokenizer, err = hex.DecodeString(tokenizerDigest); err != nil || len(tokenizer) != sha256.Size {
			return "", fmt.Errorf("the tokenizer's digest %q is no sha256", tokenizerDigest)
		}
	}
	canonical, err := json.Marshal(struct {
		Version       int    `json:"version"` // of the way that rows become sequences
		Mode          Mode   `json:"mode"`
		ContextLength int    `json:"context_length"`
		PrependBOS    bool   `json:"prepend_bos"`
		BOSID         int32  `json:"bos_id"`
		SeparatorID   *int32 `json:"separator_id"`
		MinRest       int    `json:"min_rest"`
		Seed          uint64 `json:"seed"`
		ChunkRows     int    `json:"chunk_rows"`
		TextColumn    string `json:"text_column"`
		MaxRows       int    `json:"max_rows"`
	}{1, o.Mode, o.ContextLength, o.PrependBOS, o.BOSID, o.SeparatorID, o.MinRest, o.Seed, ChunkRows, textColumn, maxRows})
	if err != nil {
		return "", fmt.Errorf("write corpus options: %w", err)
	}
	sum := sha256.New()
	sum.Write(dataset)
	sum.Write(tokenizer)
	sum.Write(canonical)
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// Chunks is the number of chunks of a corpus over all rows of a dataset.
func Chunks(d *Dataset) int { return int((d.Rows() + ChunkRows - 1) / ChunkRows) }
