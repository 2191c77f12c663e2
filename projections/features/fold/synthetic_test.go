package fold_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/featuremill/featuremill/adapters/postings"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/projections/features/fold"
)

// memoryCorpus is a corpus in memory.
type memoryCorpus []corpus.Sequence

func (c memoryCorpus) Sequences() int                          { return len(c) }
func (c memoryCorpus) Sequence(i int) (corpus.Sequence, error) { return c[i], nil }

// memoryVocabulary is a vocabulary in memory.
type memoryVocabulary struct {
	Pieces   []string `json:"pieces"`
	Specials []int32  `json:"specials"`
}

func (v memoryVocabulary) Len() int              { return len(v.Pieces) }
func (v memoryVocabulary) Piece(id int32) string { return v.Pieces[id] }
func (v memoryVocabulary) Special(id int32) bool {
	for _, s := range v.Specials {
		if s == id {
			return true
		}
	}
	return false
}

// memoryArtifact is an artifact in memory.
type memoryArtifact struct {
	rows postings.Columns
	meta postings.Metadata
}

func (a *memoryArtifact) Span() (int, int) { return a.meta.FirstSequence, a.meta.Sequences }
func (a *memoryArtifact) Latents() int     { return a.meta.Latents }
func (a *memoryArtifact) EachSink(visit func(uint32, uint16)) {
	for _, s := range a.meta.Sinks {
		visit(s.Sequence, s.Offset)
	}
}

func (a *memoryArtifact) Scan(_ context.Context, from, to uint32, visit func([]uint32, []uint32, []uint16, []float32) error) error {
	for i, l := range a.rows.Latent {
		if l < from || l >= to {
			continue
		}
		if err := visit(a.rows.Latent[i:i+1], a.rows.Sequence[i:i+1], a.rows.Offset[i:i+1], a.rows.Activation[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// world is a corpus with all its postings, before they are cut into segments.
type world struct {
	vocabulary memoryVocabulary
	corpus     memoryCorpus
	latents    int
	rows       []event
	sinks      []postings.TokenRef
}

type event struct {
	latent, sequence uint32
	offset           uint16
	activation       float32
}

// artifacts cuts the world before the given sequences and drops the segments of which keep says no.
func (w world) artifacts(cuts []int, keep func(segment int) bool) []*memoryArtifact {
	var artifacts []*memoryArtifact
	borders := append(append([]int{0}, cuts...), len(w.corpus))
	row, sink := 0, 0
	for i := range len(borders) - 1 {
		a := &memoryArtifact{meta: postings.Metadata{Extraction: "e", Segment: i, FirstSequence: borders[i], Sequences: borders[i+1] - borders[i], Latents: w.latents}}
		for ; sink < len(w.sinks) && int(w.sinks[sink].Sequence) < borders[i+1]; sink++ {
			a.meta.Sinks = append(a.meta.Sinks, w.sinks[sink])
		}
		for ; row < len(w.rows) && int(w.rows[row].sequence) < borders[i+1]; row++ {
			r := w.rows[row]
			a.rows.Append(r.latent, r.sequence, r.offset, r.activation)
		}
		for _, s := range w.corpus[borders[i]:borders[i+1]] {
			a.meta.Tokens += len(s.Tokens)
		}
		a.rows.Sort(w.latents)
		if keep == nil || keep(i) {
			artifacts = append(artifacts, a)
		}
	}
	return artifacts
}

func (w world) input(o fold.Options, artifacts []*memoryArtifact) fold.Input {
	in := fold.Input{Corpus: w.corpus, Vocabulary: w.vocabulary, Latents: w.latents, Options: o}
	for _, a := range artifacts {
		in.Artifacts = append(in.Artifacts, a)
	}
	return in
}

// pieces are tokens of every sort that the filters know, in GPT-2's alphabet.
func pieces() memoryVocabulary {
	v := memoryVocabulary{Pieces: []string{"<|endoftext|>", "<|im_start|>"}, Specials: []int32{0, 1}}
	v.Pieces = append(v.Pieces, ".", ",", "Ġ", "Ċ", "ĊĊ", "?!", "Ġ—", "Ã", "æĹ", "¥", "æĹ¥", "æĹ¥æľ¬", "ãģ®", "Ġ12", "7", "2024", "Ġa", "A", "I", "'s", "ing", "ed", "tion", "Ã©e", "Ġthe", "The", "Ġof", "Ġand", "Ġto")
	for i := range 90 {
		v.Pieces = append(v.Pieces, fmt.Sprintf("Ġw%c%c", 'a'+i%26, 'a'+i/26), fmt.Sprintf("x%c%c", 'a'+i%26, 'a'+i/26))
	}
	return v
}

// synthetic makes a small world with what is hard about real ones: rows out of order, documents over several
// sequences, several documents in a sequence, boilerplate, equal activations, sinks, dead, rare and dense latents.
func synthetic(seed uint64, documents, latents int) world {
	r := rand.New(rand.NewPCG(seed, 0x5eed))
	w := world{vocabulary: pieces(), latents: latents}
	n := int32(len(w.vocabulary.Pieces))
	boilerplate := make([]int32, 12)
	for i := range boilerplate {
		boilerplate[i] = 40 + r.Int32N(n-40)
	}
	const context = 32
	rows := r.Perm(documents * 3)[:documents]
	var packed corpus.Sequence
	for d, row := range rows {
		tokens := make([]int32, 8+r.IntN(70))
		for i := range tokens {
			u := r.Float64()
			tokens[i] = 1 + int32(float64(n-1)*u*u)
		}
		if d%4 == 0 {
			copy(tokens[min(len(tokens)-8, 3):], boilerplate)
		}
		if d%3 == 1 { // packed: several documents in a sequence, a separator before each
			if len(packed.Tokens)+len(tokens)+1 > 80 {
				w.corpus = append(w.corpus, packed)
				packed = corpus.Sequence{}
			}
			packed.Inserted = append(packed.Inserted, len(packed.Tokens))
			packed.Tokens = append(packed.Tokens, 0)
			packed.Pieces = append(packed.Pieces, corpus.Piece{Token: len(packed.Tokens), Row: int64(row), CharEnd: 10})
			packed.Tokens = append(packed.Tokens, tokens...)
			continue
		}
		for len(tokens) > 0 { // split: a document over several sequences, each with a BOS
			take := min(len(tokens), context-1)
			w.corpus = append(w.corpus, corpus.Sequence{
				Tokens:   append([]int32{0}, tokens[:take]...),
				Pieces:   []corpus.Piece{{Token: 1, Row: int64(row), CharEnd: 10}},
				Inserted: []int{0},
			})
			tokens = tokens[take:]
		}
	}
	if len(packed.Tokens) > 0 {
		w.corpus = append(w.corpus, packed)
	}
	for s, sequence := range w.corpus {
		for o, id := range sequence.Tokens {
			if o == 0 || id == 26 && r.IntN(3) == 0 || r.IntN(60) == 0 {
				w.sinks = append(w.sinks, postings.TokenRef{Sequence: uint32(s), Offset: uint16(o)})
			}
			for l := range latents {
				rate := 0.3 * math.Pow(0.8, float64(l))
				if int(id)%latents == l {
					rate = 0.8
				}
				if l%11 == 7 || r.Float64() >= rate {
					continue // dead, or silent here
				}
				a := float32(math.Exp(r.NormFloat64()))
				if l%3 == 0 {
					a = float32(math.Ceil(float64(a))) // many equal ones
				}
				w.rows = append(w.rows, event{uint32(l), uint32(s), uint16(o), a})
			}
		}
	}
	return w
}
