package corpus

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/featuremill/featuremill/domain/corpus"
)

// Chunk is a part of a corpus that is built at once and never changes.
type Chunk struct {
	Index     int
	Sequences []corpus.Sequence
	Tokens    int64 // of all sequences, inserted ones included
	Dropped   Dropped
}

// Dropped counts what a chunk leaves out.
type Dropped struct {
	EmptyRows int   // rows with no token
	ShortRows int   // rows none of whose tokens were kept (documents)
	Tokens    int64 // rests that were too short
}

// batchRows is how many rows are in memory as text at once; a sample begins with firstRows, since one long row may do, and
// takes twice as many every time.
const (
	batchRows = 128
	firstRows = 1
)

// Build makes chunk number index of a corpus: rows index × ChunkRows … of the seeded order, each tokenised as a
// whole (special tokens that it spells out are found, none are added) and cut.
//
// Documents: each row is cut into sequences of ContextLength (with its BOS, if any); a rest under MinRest is
// dropped. Packed: rows are joined and cut into full sequences; every sequence begins with the BOS, if any, and
// no separator is put right after it; the last sequence of the chunk is a rest. Sequences stand in the order of
// rows, so that any number of first sequences is a fair sample.
//
// A row of token ids that begins with BOSID already is not given another. The dataset's rows must be text, or
// tok may be nil.
func Build(ctx context.Context, d *Dataset, tok corpus.Tokenizer, o Options, index int) (*Chunk, error) {
	c, err := cut(ctx, d, tok, o, index, batchRows, math.MaxInt64)
	if err != nil {
		return nil, err
	}
	c.finish()
	return c.chunk, nil
}

// First returns the first sequences of chunk 0, at least as many as hold the given number of tokens if there are
// so many: a sample for little work.
func First(ctx context.Context, d *Dataset, tok corpus.Tokenizer, o Options, tokens int64) ([]corpus.Sequence, error) {
	c, err := cut(ctx, d, tok, o, 0, firstRows, tokens)
	if err != nil {
		return nil, err
	}
	if c.chunk.Tokens < tokens {
		c.finish()
	}
	return c.chunk.Sequences, nil
}

// cut reads a chunk's rows, atOnce and then twice as many up to batchRows, until enough tokens stand in sequences.
func cut(ctx context.Context, d *Dataset, tok corpus.Tokenizer, o Options, index, atOnce int, enough int64) (*cutter, error) {
	o, err := o.resolved()
	if err != nil {
		return nil, err
	}
	if index < 0 || index >= Chunks(d) {
		return nil, fmt.Errorf("chunk %d is not in the corpus, which has %d chunks", index, Chunks(d))
	}
	if tok == nil && !d.Tokenised() {
		return nil, errors.New("a dataset of text needs a tokenizer")
	}
	if tok != nil {
		size := int32(tok.VocabularySize())
		if o.PrependBOS && o.BOSID >= size {
			return nil, fmt.Errorf("the BOS id %d is outside the tokenizer's vocabulary of %d", o.BOSID, size)
		}
		if o.SeparatorID != nil && *o.SeparatorID >= size {
			return nil, fmt.Errorf("the separator id %d is outside the tokenizer's vocabulary of %d", *o.SeparatorID, size)
		}
	}

	c := &cutter{options: o, chunk: &Chunk{Index: index}}
	order := newPermutation(uint64(d.Rows()), o.Seed)
	next, last := int64(index)*ChunkRows, min(int64(index+1)*ChunkRows, d.Rows())
	rows := make([]int64, 0, batchRows)
	for next < last && c.chunk.Tokens < enough {
		rows = rows[:0]
		for ; next < last && len(rows) < atOnce; next++ {
			rows = append(rows, int64(order.at(uint64(next))))
		}
		encoded, err := encodeRows(ctx, d, tok, rows)
		if err != nil {
			return nil, err
		}
		for i, e := range encoded {
			c.row(rows[i], e)
		}
		atOnce = min(2*atOnce, batchRows)
	}
	return c, nil
}

// encodeRows returns the rows' tokens. Offsets are nil for rows that came as tokens.
func encodeRows(ctx context.Context, d *Dataset, tok corpus.Tokenizer, rows []int64) ([]corpus.Encoding, error) {
	out := make([]corpus.Encoding, len(rows))
	texts := make([]string, len(rows))
	err := d.Read(ctx, rows, func(k int, r Row) error {
		texts[k], out[k].IDs = r.Text, r.Tokens
		for at, id := range r.Tokens {
			if tok != nil && int(id) >= tok.VocabularySize() {
				return &RowError{Path: d.path, Row: r.Index, Detail: fmt.Sprintf("has the token id %d at %d; the tokenizer's vocabulary has %d", id, at, tok.VocabularySize())}
			}
		}
		return nil
	})
	if err != nil || d.Tokenised() {
		return out, err
	}
	out, err = tok.EncodeBatch(ctx, texts)
	if err != nil {
		return nil, fmt.Errorf("tokenise rows of %s: %w", d.path, err)
	}
	return out, nil
}

// cutter turns encoded rows, in their order, into the sequences of a chunk.
type cutter struct {
	options Options
	chunk   *Chunk
	open    corpus.Sequence // the sequence that packing fills
	text    int             // its tokens that are not inserted
}

func (c *cutter) row(row int64, e corpus.Encoding) {
	o := c.options
	if e.Offsets == nil && o.PrependBOS && len(e.IDs) > 0 && e.IDs[0] == o.BOSID {
		e.IDs = e.IDs[1:] // every sequence gets its own
	}
	switch {
	case len(e.IDs) == 0:
		c.chunk.Dropped.EmptyRows++
	case o.Mode == Packed:
		c.pack(row, e)
	default:
		c.split(row, e)
	}
}

// split cuts one row into sequences of its own.
func (c *cutter) split(row int64, e corpus.Encoding) {
	room := c.options.ContextLength
	if c.options.PrependBOS {
		room--
	}
	kept, covered := false, int64(0)
	for from := 0; from < len(e.IDs); from += room {
		to := min(from+room, len(e.IDs))
		if to-from < room && to-from < c.options.MinRest {
			c.chunk.Dropped.Tokens += int64(to - from)
			break
		}
		s := corpus.Sequence{Tokens: make([]int32, 0, to-from+1)}
		if c.options.PrependBOS {
			s.Tokens, s.Inserted = append(s.Tokens, c.options.BOSID), []int{0}
		}
		s.Pieces = []corpus.Piece{piece(len(s.Tokens), row, e, from, to, &covered)}
		s.Tokens = append(s.Tokens, e.IDs[from:to]...)
		c.emit(s)
		kept = true
	}
	if !kept {
		c.chunk.Dropped.ShortRows++
	}
}

// pack adds one row to the stream.
func (c *cutter) pack(row int64, e corpus.Encoding) {
	if c.text > 0 && c.options.SeparatorID != nil {
		c.insert(*c.options.SeparatorID)
	}
	covered := int64(0)
	for from := 0; from < len(e.IDs); {
		if len(c.open.Tokens) == 0 {
			c.open.Tokens = make([]int32, 0, c.options.ContextLength)
			if c.options.PrependBOS {
				c.insert(c.options.BOSID)
			}
		}
		to := min(from+c.options.ContextLength-len(c.open.Tokens), len(e.IDs))
		c.open.Pieces = append(c.open.Pieces, piece(len(c.open.Tokens), row, e, from, to, &covered))
		c.open.Tokens = append(c.open.Tokens, e.IDs[from:to]...)
		c.text += to - from
		c.flushFull()
		from = to
	}
}

func (c *cutter) insert(id int32) {
	c.open.Inserted = append(c.open.Inserted, len(c.open.Tokens))
	c.open.Tokens = append(c.open.Tokens, id)
	c.flushFull()
}

func (c *cutter) flushFull() {
	if len(c.open.Tokens) == c.options.ContextLength {
		c.emit(c.open)
		c.open, c.text = corpus.Sequence{}, 0
	}
}

// finish keeps or drops the sequence that packing left open: nothing crosses a chunk.
func (c *cutter) finish() {
	if c.text >= c.options.MinRest {
		c.emit(c.open)
	} else {
		c.chunk.Dropped.Tokens += int64(c.text)
	}
}

func (c *cutter) emit(s corpus.Sequence) {
	c.chunk.Sequences = append(c.chunk.Sequences, s)
	c.chunk.Tokens += int64(len(s.Tokens))
}

// piece describes tokens [from, to) of a row. Several tokens can make up one character: when a cut goes through
// it, the character belongs to the piece with its first token, so that no character is in two pieces.
// covered is where the row's pieces so far end.
func piece(token int, row int64, e corpus.Encoding, from, to int, covered *int64) corpus.Piece {
	p := corpus.Piece{Token: token, Row: row, CharStart: -1, CharEnd: -1}
	if e.Offsets == nil {
		return p
	}
	p.CharStart = max(int64(e.Offsets[from][0]), *covered)
	p.CharEnd = p.CharStart
	for _, o := range e.Offsets[from:to] {
		p.CharEnd = max(p.CharEnd, int64(o[1]))
	}
	*covered = p.CharEnd
	return p
}
