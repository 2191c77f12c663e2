package torch

import "fmt"

// packed is a batch of sequences as rows of one matrix.
type packed struct {
	sequences [][]int32
	ids       []int32 // one a row
	positions []int32 // inside the sequence, one a row
	starts    []int64 // row of each sequence's first token
	lengths   []int64
	padded    int64 // rows a sequence takes; 0 = as many as it has tokens
}

// pack lays sequences end to end, or padded to the longest. Padding is at the right, where a causal
// model never looks from a real token.
func pack(sequences [][]int32, padded bool) *packed {
	b := &packed{sequences: sequences}
	if padded {
		for _, ids := range sequences {
			b.padded = max(b.padded, int64(len(ids)))
		}
	}
	for _, ids := range sequences {
		b.starts = append(b.starts, int64(len(b.ids)))
		b.lengths = append(b.lengths, int64(len(ids)))
		b.ids = append(b.ids, ids...)
		for i := range ids {
			b.positions = append(b.positions, int32(i))
		}
		for i := int64(len(ids)); i < b.padded; i++ {
			b.ids = append(b.ids, 0)
			b.positions = append(b.positions, int32(i))
		}
	}
	return b
}

// index is each row's position, as libtorch selects by.
func (b *packed) index() []int64 {
	out := make([]int64, len(b.positions))
	for i, p := range b.positions {
		out[i] = int64(p)
	}
	return out
}

func (b *packed) rows() int64 { return int64(len(b.ids)) }

func (b *packed) longest() int {
	n := int64(0)
	for _, l := range b.lengths {
		n = max(n, l)
	}
	return int(max(n, b.padded))
}

// TokenError is an id outside the model's vocabulary.
type TokenError struct {
	Sequence, Offset int
	ID               int32
	Vocab            int
}

func (e *TokenError) Error() string {
	return fmt.Sprintf("token id %d (sequence %d, offset %d) is outside the model's vocabulary of %d", e.ID, e.Sequence, e.Offset, e.Vocab)
}

// LengthError is a sequence longer than the model has learned positions for.
type LengthError struct{ Tokens, Positions int }

func (e *LengthError) Error() string {
	return fmt.Sprintf("a sequence has %d tokens, and the model learned %d positions: nothing stands for the others", e.Tokens, e.Positions)
}

func checkIDs(sequences [][]int32, vocab int) error {
	for i, ids := range sequences {
		for j, id := range ids {
			if id < 0 || int(id) >= vocab {
				return &TokenError{Sequence: i, Offset: j, ID: id, Vocab: vocab}
			}
		}
	}
	return nil
}

// groups cuts a batch into runs of sequences of at most `tokens` tokens (one sequence may be
// longer): what the batch's workspace is sized by. It depends on the batch alone, so results do.
func groups(sequences [][]int32, tokens int) [][2]int {
	var out [][2]int
	start, sum := 0, 0
	for i, ids := range sequences {
		if i > start && sum+len(ids) > tokens {
			out = append(out, [2]int{start, i})
			start, sum = i, 0
		}
		sum += len(ids)
	}
	if start < len(sequences) {
		out = append(out, [2]int{start, len(sequences)})
	}
	return out
}
