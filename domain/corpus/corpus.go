// Package corpus is the aggregate of a corpus: a dataset tokenised by one tokenizer with one set of
// options, in chunks. A chunk never changes; a corpus may get more of them. The package also owns
// what a sequence is. Decide does no I/O.
package corpus

import (
	"sync/atomic"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/problem"
)

// Stream is the name of a corpus's stream.
func Stream(id string) string { return "corpus-" + id }

// Mode says how rows become sequences.
type Mode string

// The modes: a row split into sequences, or rows joined and cut.
const (
	Documents Mode = "documents"
	Packed    Mode = "packed"
)

// MaxContextLength is the longest sequence: an offset in a sequence has 16 bits in an artifact.
const MaxContextLength = 1 << 16

// Options is everything but the dataset and the tokenizer that a corpus depends on.
type Options struct {
	Mode          Mode   `json:"mode"`
	ContextLength int    `json:"context_length"`
	PrependBOS    bool   `json:"prepend_bos"`
	BOS           int32  `json:"bos"`  // the token that is inserted; −1 where none is
	Seed          uint64 `json:"seed"` // of the order of the rows
}

// Requested says that a corpus should have at least so many sequences. It opens the work on chunk FirstChunk.
type Requested struct {
	ID              string  `json:"id"`
	DatasetID       string  `json:"dataset_id"`
	DatasetDigest   string  `json:"dataset_digest"`
	TokenizerSHA256 string  `json:"tokenizer_sha256"`
	ModelID         string  `json:"model_id"` // whose files hold the tokenizer
	Options         Options `json:"options"`
	Sequences       int     `json:"sequences"`
	FirstChunk      int     `json:"first_chunk"`
}

// ChunkBuilt says that a chunk is stored. More says that the next chunk is to be built.
type ChunkBuilt struct {
	Chunk         int    `json:"chunk"`
	FirstSequence int    `json:"first_sequence"`
	Sequences     int    `json:"sequences"`
	Tokens        int64  `json:"tokens"`
	Rows          int64  `json:"rows"`
	SHA256        string `json:"sha256"`
	Bytes         int64  `json:"bytes"`
	More          bool   `json:"more"`
}

// Ready says that what was requested is there. Exhausted says that the dataset has no more rows.
type Ready struct {
	Sequences        int    `json:"sequences"`
	Tokens           int64  `json:"tokens"`
	Chunks           int    `json:"chunks"`
	VocabularySHA256 string `json:"vocabulary_sha256"`
	Exhausted        bool   `json:"exhausted"`
}

// Failed says that a chunk could not be built.
type Failed struct {
	Chunk  int    `json:"chunk"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// Clean implements event.Cleaner.
func (f Failed) Clean() event.Data {
	f.Detail = event.CleanText(f.Detail)
	return f
}

// The type names, for ever.
func (Requested) EventType() string  { return "CorpusRequested" }
func (ChunkBuilt) EventType() string { return "CorpusChunkBuilt" }
func (Ready) EventType() string      { return "CorpusReady" }
func (Failed) EventType() string     { return "CorpusFailed" }

// State is a folded corpus.
type State struct {
	Request   Requested
	Wanted    int
	Building  bool
	IsReady   bool
	Failure   *Failed
	Chunks    []ChunkBuilt
	Sequences int
	Tokens    int64
	Rows      int64
	Done      Ready

	owned *atomic.Int64 // of the elements behind Chunks, those that a state has; the next one is free
}

// grown is a list of chunks with one more. Those that have the old list still have it: an element behind it is written once,
// by whoever takes it first, and everybody else makes a copy. A corpus of n chunks is folded in the time of n.
func grown(list []ChunkBuilt, owned *atomic.Int64, c ChunkBuilt) ([]ChunkBuilt, *atomic.Int64) {
	n := len(list)
	if owned == nil || n == cap(list) || !owned.CompareAndSwap(int64(n), int64(n+1)) {
		list = append(make([]ChunkBuilt, 0, max(8, 2*n)), list...)
		owned = &atomic.Int64{}
		owned.Store(int64(n + 1))
	}
	return append(list, c), owned
}

// Evolve folds one event.
func (s State) Evolve(d event.Data) State {
	switch e := d.(type) {
	case Requested:
		s.Request, s.Building, s.IsReady, s.Failure = e, true, false, nil
		s.Wanted = max(s.Wanted, e.Sequences)
	case ChunkBuilt:
		s.Chunks, s.owned = grown(s.Chunks, s.owned, e)
		s.Sequences += e.Sequences
		s.Tokens += e.Tokens
		s.Rows += e.Rows
	case Ready:
		s.Building, s.IsReady, s.Done = false, true, e
	case Failed:
		s.Building, s.Failure = false, &e
	}
	return s
}

// Has reports whether so many sequences are there, or all that the dataset gives.
func (s State) Has(sequences int) bool {
	return s.IsReady && (s.Sequences >= sequences || s.Done.Exhausted)
}

// DecideRequest asks for more chunks unless they are there or on the way.
func (s State) DecideRequest(c Requested) ([]event.Data, error) {
	if s.Has(c.Sequences) || s.Building && s.Wanted >= c.Sequences {
		return nil, nil
	}
	if s.Building { // ask again when this round is ready: one builder at a time keeps chunks in order
		return nil, nil
	}
	c.FirstChunk = len(s.Chunks)
	return []event.Data{c}, nil
}

// RecordChunk is the result of building one chunk.
type RecordChunk struct {
	Chunk            ChunkBuilt
	Exhausted        bool // no rows after this chunk
	VocabularySHA256 string
}

// DecideChunk records a chunk in order, and that the corpus is ready when it is.
func (s State) DecideChunk(c RecordChunk) ([]event.Data, error) {
	if n := c.Chunk.Chunk; n < len(s.Chunks) {
		if s.Chunks[n].SHA256 == c.Chunk.SHA256 {
			return nil, nil // the same result again: a redelivery
		}
		return nil, problem.New(problem.Conflict, "corpus_chunk_mismatch", "chunk %d of corpus %s is recorded as %s and was now built as %s: building is not deterministic", n, s.Request.ID, s.Chunks[n].SHA256, c.Chunk.SHA256)
	} else if n > len(s.Chunks) || !s.Building {
		return nil, problem.New(problem.Conflict, "corpus_chunk_order", "chunk %d of corpus %s was not asked for; the next is %d", n, s.Request.ID, len(s.Chunks))
	}
	e := c.Chunk
	e.FirstSequence = s.Sequences
	done := c.Exhausted || s.Sequences+e.Sequences >= s.Wanted
	e.More = !done
	out := []event.Data{e}
	if done {
		out = append(out, Ready{Sequences: s.Sequences + e.Sequences, Tokens: s.Tokens + e.Tokens, Chunks: len(s.Chunks) + 1, VocabularySHA256: c.VocabularySHA256, Exhausted: c.Exhausted})
	}
	return out, nil
}

// DecideFail records that a chunk could not be built.
func (s State) DecideFail(c Failed) ([]event.Data, error) {
	if !s.Building {
		return nil, nil
	}
	return []event.Data{c}, nil
}
