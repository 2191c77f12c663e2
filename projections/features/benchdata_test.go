package features_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/corpus"
	"github.com/featuremill/featuremill/adapters/postings"
	corpora "github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/projections/features"
	"github.com/featuremill/featuremill/projections/features/fold"
)

// made is an extraction that nobody ran: files as a worker writes them, from a seed. Half of a token's
// latents depend on the token, the others are drawn; low latents are dense and high ones rare.
type made struct {
	folder      string
	latents     int
	sequences   int
	perSegment  int
	recorded    []extraction.SegmentRecorded
	postings    int64
	vocabulary  string // sha256
	shardSHA256 string
}

const (
	benchSegments   = 64
	benchLength     = 128
	benchL0         = 40
	benchVocabulary = 49152
)

// make writes about the wanted number of postings.
func makeExtraction(b *testing.B, latents, wanted int) *made {
	b.Helper()
	m := &made{folder: b.TempDir(), latents: latents, perSegment: wanted / benchL0 / benchLength / benchSegments}
	m.sequences = m.perSegment * benchSegments
	r := rand.New(rand.NewPCG(1, 2))
	chunk := corpus.Chunk{}
	for s := range m.sequences {
		tokens := make([]int32, benchLength)
		for i := range tokens {
			u := r.Float64()
			tokens[i] = int32(benchVocabulary * u * u * u)
		}
		chunk.Tokens += benchLength
		chunk.Sequences = append(chunk.Sequences, corpora.Sequence{
			Tokens: tokens, Pieces: []corpora.Piece{{Row: int64(s / 3), CharEnd: 5 * benchLength}}, Inserted: []int{0},
		})
	}
	var file bytes.Buffer
	shard, err := corpus.WriteShard(&file, "c", &chunk)
	require.NoError(b, err)
	m.shardSHA256 = shard.FileSHA256
	require.NoError(b, os.WriteFile(filepath.Join(m.folder, shard.FileSHA256), file.Bytes(), 0o600))

	tokens := make([]corpora.Token, benchVocabulary)
	for i := range tokens {
		tokens[i] = corpora.Token{Piece: fmt.Sprintf("Ġ%c%c%s", 'a'+i%26, 'a'+i/26%26, strconv.FormatInt(int64(i), 36))}
	}
	tokens[0] = corpora.Token{Piece: "<|endoftext|>", Special: true}
	file.Reset()
	m.vocabulary, err = corpus.WriteVocabulary(&file, "t", tokens)
	require.NoError(b, err)
	require.NoError(b, os.WriteFile(filepath.Join(m.folder, m.vocabulary), file.Bytes(), 0o600))

	for segment := range benchSegments {
		m.segment(b, r, segment, chunk.Sequences)
	}
	return m
}

func (m *made) segment(b *testing.B, r *rand.Rand, index int, sequences []corpora.Sequence) {
	b.Helper()
	first := index * m.perSegment
	var drawn, kept postings.Columns
	for s := first; s < first+m.perSegment; s++ {
		for o, token := range sequences[s].Tokens {
			of := rand.New(rand.NewPCG(uint64(token), 3))
			for k := range benchL0 {
				u := r.Float64()
				if k%2 == 0 {
					u = of.Float64()
				}
				u = (float64(k) + u) / benchL0
				drawn.Append(uint32(float64(m.latents)*u*u*u), uint32(s), uint16(o), 0.1+float32(r.ExpFloat64()))
			}
		}
	}
	drawn.Sort(m.latents)
	for i := range drawn.Len() { // a latent fires once on a token
		if i == 0 || drawn.Latent[i] != drawn.Latent[i-1] || drawn.Sequence[i] != drawn.Sequence[i-1] || drawn.Offset[i] != drawn.Offset[i-1] {
			kept.Append(drawn.Latent[i], drawn.Sequence[i], drawn.Offset[i], drawn.Activation[i])
		}
	}
	var file bytes.Buffer
	summary, err := postings.Write(&file, &kept, postings.Metadata{Segment: index, FirstSequence: first, Sequences: m.perSegment, Tokens: m.perSegment * benchLength, Latents: m.latents})
	require.NoError(b, err)
	digest := hex.EncodeToString(summary.File[:])
	require.NoError(b, os.WriteFile(filepath.Join(m.folder, digest), file.Bytes(), 0o600))
	m.postings += summary.Rows
	m.recorded = append(m.recorded, extraction.SegmentRecorded{
		Index: index, FirstSequence: first, Sequences: m.perSegment, Tokens: int64(m.perSegment * benchLength),
		Artifact: extraction.Artifact{FileSHA256: digest, Bytes: summary.Bytes, Postings: summary.Rows},
	})
}

// artifactFile is an artifact with the file below it.
type artifactFile struct {
	*postings.Reader
	*os.File
}

func (a artifactFile) Read(ctx context.Context, from, to uint32, dst *postings.Columns) error {
	return a.Reader.Read(ctx, from, to, dst)
}

// Artifact implements features.Readers.
func (m *made) Artifact(_ context.Context, _ string, _ int, fileSHA256 string) (fold.Artifact, error) {
	f, size, err := m.open(fileSHA256)
	if err != nil {
		return nil, err
	}
	r, err := postings.Open(f, size)
	return artifactFile{r, f}, err
}

func (m *made) open(name string) (*os.File, int64, error) {
	f, err := os.Open(filepath.Join(m.folder, name))
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// Corpus implements features.Readers.
func (m *made) Corpus(_ context.Context, _ string, chunks []features.Chunk) (fold.Corpus, error) {
	s, err := corpus.OpenShardFile(filepath.Join(m.folder, chunks[0].SHA256))
	if err != nil {
		return nil, err
	}
	return corpus.NewCorpus(s)
}

type pieces []corpora.Token

func (p pieces) Len() int              { return len(p) }
func (p pieces) Piece(id int32) string { return p[id].Piece }
func (p pieces) Special(id int32) bool { return p[id].Special }

// Vocabulary implements features.Readers.
func (m *made) Vocabulary(_ context.Context, sha256 string) (fold.Vocabulary, error) {
	f, size, err := m.open(sha256)
	if err != nil {
		return nil, err
	}
	tokens, _, err := corpus.ReadVocabulary(f, size)
	return pieces(tokens), errors.Join(err, f.Close())
}

// Merge implements features.Readers.
func (m *made) Merge(context.Context, []fold.Artifact) (fold.Artifact, error) {
	return nil, errors.New("64 artifacts are not merged")
}
