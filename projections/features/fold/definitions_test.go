package fold

import (
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestRanksAreThoseOfTheSortedValues(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.OneOf(
			rapid.Uint32Range(1, math.MaxInt32),
			rapid.Uint32Range(0x3f800000, 0x3f8000ff),
			rapid.SampledFrom([]uint32{1, 0x3f800000, 0x7f7fffff}),
		), 1, 700).Draw(t, "float bits")
		ranks := rapid.SliceOfN(rapid.IntRange(0, len(values)-1), 1, 9).Draw(t, "ranks")
		slices.Sort(ranks)
		sorted := slices.Sorted(slices.Values(values))
		var want []uint32
		for _, r := range ranks {
			want = append(want, sorted[r])
		}
		found := make([]uint32, len(ranks))
		selectRanks(values, make([]uint32, 2*len(values)), ranks, found, 31)
		require.Equal(t, want, found)
	})
}

func TestALinearBinIsOpenBelowAndClosedAbove(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		x, top float64
		bin    int
	}{{1, 1, 49}, {0.02, 1, 0}, {math.Nextafter(0.02, 1), 1, 1}, {1e-30, 1, 0}, {5, 50, 4}, {5.0001, 50, 5}, {math.SmallestNonzeroFloat64, 3, 0}} {
		require.Equal(t, tt.bin, linearBin(tt.x, tt.top), "%v of %v", tt.x, tt.top)
	}
}

func TestDensityBordersAreTenADecade(t *testing.T) {
	t.Parallel()
	borders := densityBorders()
	require.Len(t, borders, 121)
	require.Equal(t, 1e-12, borders[0])
	require.Equal(t, 1e-3, borders[90])
	require.Equal(t, 1.0, borders[120])
	for k, b := range borders {
		require.InEpsilon(t, math.Pow(10, float64(k-120)/10), b, 1e-14)
	}
	for _, tt := range []struct {
		density float64
		bin     int
	}{{1, 0}, {0.001, -30}, {math.Nextafter(0.001, 0), -31}, {0.9, -1}, {1e-13, -120}} {
		var s Summary
		s.add(&Latent{Firings: 1, Density: tt.density})
		s.finish()
		require.Equal(t, []DensityBin{{Bin: tt.bin, Latents: 1}}, s.LogDensity, "%v", tt.density)
	}
}

func TestSeqposIsPythonsSlice(t *testing.T) {
	t.Parallel()
	at := func(v int) *int { return &v }
	for _, tt := range []struct {
		name string
		q    Seqpos
		want []int
	}{
		{"all", Seqpos{}, []int{0, 1, 2, 3, 4, 5}},
		{"from the second", Seqpos{Start: at(1)}, []int{1, 2, 3, 4, 5}},
		{"without the last", Seqpos{Stop: at(-1)}, []int{0, 1, 2, 3, 4}},
		{"the last two", Seqpos{Start: at(-2)}, []int{4, 5}},
		{"every second", Seqpos{Start: at(1), Step: 2}, []int{1, 3, 5}},
		{"beyond the end", Seqpos{Start: at(-100), Stop: at(100), Step: 4}, []int{0, 4}},
		{"nothing", Seqpos{Start: at(4), Stop: at(2)}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			counts := Options{SkipFirst: 3, Seqpos: &tt.q}.positions(6)
			var got []int
			for p := range 6 {
				if counts(p) {
					got = append(got, p)
				}
			}
			require.Equal(t, tt.want, got)
		})
	}
}

func TestTraitsOfTokens(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text string
		want traits
	}{
		{" the", isStopWord | endsInWord},
		{"The", isStopWord | continuesWord | endsInWord},
		{"ing", continuesWord | endsInWord},
		{" bank", endsInWord},
		{"'s", continuesWord | endsInWord},
		{" a", isSingleChar | isStopWord | endsInWord},
		{".", isSingleChar | isPunctuation},
		{"...", isPunctuation},
		{"\n\n", isSingleChar | isPunctuation},
		{" 2024", isNumber | endsInWord},
		{"٣٤", isNumber | endsInWord},
		{"3rd", endsInWord},
		{"日", endsInWord},
		{"日本", endsInWord},
		{"の", isSingleChar | endsInWord},
		{"слово", continuesWord | endsInWord},
		{"हिंदी", continuesWord | endsInWord},
		{"\xe6\x97", isPartial},
		{"", isSingleChar | isPunctuation},
	} {
		require.Equal(t, tt.want, traitsOf(tt.text, stopWords()), "%q", tt.text)
	}
}

type pieceList []string

func (p pieceList) Len() int              { return len(p) }
func (p pieceList) Piece(id int32) string { return p[id] }
func (p pieceList) Special(int32) bool    { return false }

func TestTheAlphabetIsFoundByWhatMostPiecesLookLike(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		v    pieceList
		want alphabet
		text map[string]string
	}{
		{"byte level", pieceList{"Ġthe", "Ġof", "▁", "ing"}, byteLevel, map[string]string{"Ġthe": " the", "Ċ": "\n", "Ã©": "é", "ing": "ing"}},
		{"sentence piece", pieceList{"▁the", "▁of", "Ġ", "ing"}, sentencePiece, map[string]string{"▁the": " the", "<0x0A>": "\n", "<0xE6>": "\xe6", "<0xZZ>": "<0xZZ>"}},
		{"word piece", pieceList{"the", "##ing", "##ed"}, wordPiece, map[string]string{"the": " the", "##ing": "ing"}},
		{"plain", pieceList{" the", "ing"}, plain, map[string]string{" the": " the", "ing": "ing"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, tt.want, alphabetOf(tt.v))
			for piece, want := range tt.text {
				require.Equal(t, want, text(piece, tt.want, byteLevelBytes()))
			}
		})
	}
}

func TestTheInterpretabilityScoreIsTheOldFormula(t *testing.T) {
	t.Parallel()
	window := func(a ...float32) Example { return Example{Kind: Top, Activations: a} }
	require.Zero(t, interpretability([]Example{window(1, 0)}), "one example is too few")
	require.InDelta(t, 1, interpretability([]Example{window(0, 5, 0, 0, 0), window(0, 2, 0, 0, 0)}), 1e-12)
	require.InDelta(t, 0.3, interpretability([]Example{window(0, 5, 0, 0, 0), window(2, 0, 0, 0, 0)}), 1e-12)
	require.InDelta(t, 0.7, interpretability([]Example{window(1, 1), window(1, 1)}), 1e-12)
	require.InDelta(t, 0.7/math.Sqrt2+0.3*max(0, (1-0.75)/0.7), interpretability([]Example{window(1, 1), window(1, 0)}), 1e-12)
}

func TestTheHashIsTheOneThatTheDefinitionsName(t *testing.T) {
	t.Parallel()
	require.Equal(t, hash(7, 1, 2), mix(mix(mix(7+0x9e3779b97f4a7c15)^(1+0x9e3779b97f4a7c15))^(2+0x9e3779b97f4a7c15)))
	require.Equal(t, uint64(0xe220a8397b1dcdaf), hash(0), "the first output of SplitMix64 with seed 0")
}

func TestBitmapCounts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		ones := rapid.SliceOfN(rapid.Bool(), 1, 300).Draw(t, "bits")
		var b bitmap
		b.resize(int64(len(ones)))
		for i, one := range ones {
			if one {
				b.set(int64(i))
			}
		}
		from := rapid.IntRange(0, len(ones)).Draw(t, "from")
		to := rapid.IntRange(from, len(ones)).Draw(t, "to")
		want := 0
		for i := from; i < to; i++ {
			if ones[i] {
				require.Equal(t, int64(i), b.nth(int64(from), want))
				want++
			}
		}
		require.Equal(t, want, b.count(int64(from), int64(to)))
	})
}

func TestTheSmallestAreThoseOfTheSortedKeys(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.SliceOfN(rapid.OneOf(rapid.Uint64(), rapid.Uint64Range(0, 5)), 0, 600).Draw(t, "keys")
		n := rapid.IntRange(0, 700).Draw(t, "n")
		sorted := slices.Sorted(slices.Values(keys))
		got := smallest(keys, n)
		require.Len(t, got, min(n, len(keys)))
		for i, k := range got {
			require.Equal(t, sorted[i], k)
		}
	})
}
