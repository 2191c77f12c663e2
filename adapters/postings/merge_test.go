package postings_test

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/adapters/postings"
)

// segments cuts drawn postings into artifacts at drawn borders and returns them with the artifact of the whole.
func segments(t *rapid.T) (parts []*postings.Reader, whole *postings.Columns, meta postings.Metadata) {
	latents := rapid.IntRange(1, 12).Draw(t, "latents")
	sizes := rapid.SliceOfN(rapid.IntRange(1, 4), 1, 6).Draw(t, "sequences of each segment")
	whole = &postings.Columns{}
	meta = postings.Metadata{Extraction: "e", Latents: latents}
	for i, sequences := range sizes {
		m := postings.Metadata{Extraction: "e", Segment: i, FirstSequence: meta.Sequences, Sequences: sequences, Tokens: 4 * sequences, Latents: latents}
		c := &postings.Columns{}
		for s := meta.Sequences; s < meta.Sequences+sequences; s++ {
			for o := range uint16(4) {
				if rapid.Bool().Draw(t, "sink") {
					m.Sinks = append(m.Sinks, postings.TokenRef{Sequence: uint32(s), Offset: o})
				}
				for l := range uint32(latents) {
					if v := rapid.IntRange(0, 3).Draw(t, "activation"); v > 0 {
						c.Append(l, uint32(s), o, float32(v))
						whole.Append(l, uint32(s), o, float32(v))
					}
				}
			}
		}
		c.Sort(latents)
		var buf bytes.Buffer
		_, err := postings.Write(&buf, c, m)
		require.NoError(t, err)
		r, err := postings.Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
		require.NoError(t, err)
		parts = append(parts, r)
		meta.Sequences += sequences
		meta.Tokens += m.Tokens
		meta.Sinks = append(meta.Sinks, m.Sinks...)
	}
	whole.Sort(latents)
	return parts, whole, meta
}

func TestMergingIsAssociative(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		parts, whole, meta := segments(t)
		var direct bytes.Buffer
		want, err := postings.Write(&direct, whole, meta)
		require.NoError(t, err)

		for len(parts) > 1 || rapid.Bool().Draw(t, "merge a single run again") {
			from := rapid.IntRange(0, len(parts)-1).Draw(t, "from")
			to := rapid.IntRange(from, len(parts)-1).Draw(t, "to") + 1
			run := make([]postings.Source, 0, to-from)
			for _, p := range parts[from:to] {
				run = append(run, p)
			}
			var buf bytes.Buffer
			_, err := postings.Merge(context.Background(), &buf, run...)
			require.NoError(t, err)
			merged, err := postings.Open(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
			require.NoError(t, err)
			parts = append(parts[:from:from], append([]*postings.Reader{merged}, parts[to:]...)...)
			if len(parts) == 1 {
				require.Equal(t, direct.Bytes(), buf.Bytes(), "the same file as all postings written at once")
			}
		}
		var last bytes.Buffer
		got, err := postings.Merge(context.Background(), &last, parts[0])
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}

func TestMergeTakesTheSourcesInTheOrderOfTheirSequences(t *testing.T) {
	t.Parallel()
	a, am := sample(1, 40, 0, 8, 16, 1000)
	b, bm := sample(2, 40, 8, 8, 16, 1000)
	fa, _ := write(t, a, am)
	fb, _ := write(t, b, bm)
	var ab, ba bytes.Buffer
	_, err := postings.Merge(context.Background(), &ab, open(t, fa), open(t, fb))
	require.NoError(t, err)
	_, err = postings.Merge(context.Background(), &ba, open(t, fb), open(t, fa))
	require.NoError(t, err)
	require.Equal(t, ab.Bytes(), ba.Bytes())
	require.Equal(t, int64(a.Len()+b.Len()), open(t, ab.Bytes()).Rows())
}

func TestMergeRefusesWhatDoesNotBelongTogether(t *testing.T) {
	t.Parallel()
	a, m := sample(1, 40, 0, 8, 16, 1000)
	base, _ := write(t, a, m)
	for _, tt := range []struct {
		name   string
		change func(m *postings.Metadata)
		wants  string
	}{
		{"segments that overlap", func(m *postings.Metadata) { m.Sequences = 9 }, "before the end"},
		{"segments of different width", func(m *postings.Metadata) { m.FirstSequence, m.Latents = 8, 41 }, "latents"},
		{"segments of two extractions", func(m *postings.Metadata) { m.FirstSequence, m.Extraction = 8, "other" }, "extraction"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			other := m
			other.Sinks = nil
			tt.change(&other)
			file, _ := write(t, &postings.Columns{}, other)
			_, err := postings.Merge(context.Background(), &bytes.Buffer{}, open(t, base), open(t, file))
			require.ErrorContains(t, err, tt.wants)
		})
	}
	_, err := postings.Merge(context.Background(), &bytes.Buffer{})
	require.ErrorContains(t, err, "nothing to merge")
}

func TestARunFileLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	a, am := sample(1, 40, 0, 8, 16, 1000)
	b, bm := sample(2, 40, 8, 8, 16, 1000)
	fa, _ := write(t, a, am)
	fb, _ := write(t, b, bm)
	run, err := postings.CreateRun(context.Background(), folder, open(t, fa), open(t, fb))
	require.NoError(t, err)
	require.Equal(t, a.Len()+b.Len(), readAll(t, run.Reader).Len())
	left, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Empty(t, left)
	require.NoError(t, run.Close())

	_, err = postings.CreateRun(context.Background(), folder, open(t, fa), open(t, fa))
	require.ErrorContains(t, err, "before the end")
	_, err = postings.CreateRun(context.Background(), folder+"/missing", open(t, fa))
	require.ErrorContains(t, err, "create run file")
}
