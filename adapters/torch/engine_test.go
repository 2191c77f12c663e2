package torch

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/postings"
)

const tinyWidth = 32 // d_model of the tiny Llamas

func random(seed uint64, n int, scale float64) []float32 {
	r := rand.New(rand.NewPCG(seed, 1))
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(r.NormFloat64() * scale)
	}
	return out
}

// randomSAE fits the tiny Llamas.
func randomSAE(architecture string, latents, k int) *checkpoint.SAE {
	s := &checkpoint.SAE{
		Config: checkpoint.SAEConfig{
			Architecture: architecture, DIn: tinyWidth, DSAE: latents, DOut: tinyWidth, K: k,
			Normalization: checkpoint.NormNone, ApplyBDecToInput: true, Hook: "blocks.1.hook_resid_post",
		},
		WEnc: random(1, tinyWidth*latents, 0.2), BEnc: random(2, latents, 0.1),
		WDec: random(3, tinyWidth*latents, 0.2), BDec: random(4, tinyWidth, 0.1),
	}
	switch architecture {
	case "jumprelu":
		s.Threshold = random(5, latents, 0.3)
	case "gated":
		s.BEnc, s.BGate, s.BMag, s.RMag = nil, random(2, latents, 0.1), random(5, latents, 0.1), random(6, latents, 0.3)
	case "matching_pursuit":
		s.WEnc, s.BEnc, s.Pursuit = nil, nil, &checkpoint.Pursuit{ResidualThreshold: 0.5, MaxIterations: 9, StopOnDuplicateSupport: true}
		for i := range latents {
			row := s.WDec[i*tinyWidth:][:tinyWidth]
			size := norm(row)
			for j := range row {
				row[j] /= float32(size)
			}
		}
	case "temporal":
		s.WEnc, s.BEnc = nil, nil
		layer := checkpoint.TemporalLayer{
			KWeight: random(10, latents*latents/4, 0.2), QWeight: random(11, latents*latents/4, 0.2),
			VWeight: random(12, latents*latents, 0.1), CWeight: random(13, latents*latents, 0.1), CBias: random(14, latents, 0.1),
		}
		s.Temporal = &checkpoint.Temporal{Layers: []checkpoint.TemporalLayer{layer}, Heads: 2, BottleneckDim: latents / 4, TopK: k, Lambda: 1.0 / (4 * tinyWidth), Tied: true}
	}
	return s
}

func loadSAE(t *testing.T, s *checkpoint.SAE) *SAE {
	t.Helper()
	a, err := testRuntime.LoadSAE(t.Context(), s)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	return a
}

var claimedHook = Hook{Layer: 1, Point: ResidPost}

func tinyEngine(t *testing.T, s *checkpoint.SAE) *Engine {
	t.Helper()
	e, err := NewEngine(openModel(t, "testdata/llama-untied-llama3"), loadSAE(t, s), claimedHook)
	require.NoError(t, err)
	return e
}

func randomSequences(seed uint64, lengths ...int) [][]int32 {
	r := rand.New(rand.NewPCG(seed, 7))
	out := make([][]int32, len(lengths))
	for i, n := range lengths {
		for range n {
			out[i] = append(out[i], int32(r.IntN(97)))
		}
	}
	return out
}

// plainFirings is the encode of one vector in plain float64 Go: the oracle.
func plainFirings(s *checkpoint.SAE, x []float32) map[uint32]float64 {
	c := s.Config
	type candidate struct {
		latent uint32
		z      float64
	}
	var fires []candidate
	u := make([]float64, len(x))
	for i, v := range x {
		u[i] = float64(v)
		if c.ApplyBDecToInput {
			u[i] -= float64(s.BDec[i])
		}
	}
	if s.Pursuit != nil {
		return plainPursuit(s, u)
	}
	for j := range c.DSAE {
		z := 0.0
		for i, v := range u {
			z += v * float64(s.WEnc[i*c.DSAE+j])
		}
		if s.BGate != nil {
			if z+float64(s.BGate[j]) <= 0 {
				continue
			}
			z = z*math.Exp(float64(s.RMag[j])) + float64(s.BMag[j])
		} else {
			z += float64(s.BEnc[j])
		}
		if z > 0 && (s.Threshold == nil || z > float64(s.Threshold[j])) {
			fires = append(fires, candidate{uint32(j), z})
		}
	}
	if c.Architecture == "groupmax" {
		best := map[uint32]candidate{}
		for _, f := range fires {
			group := f.latent / uint32(c.DSAE/c.K)
			if f.z > best[group].z {
				best[group] = f
			}
		}
		fires = slices.Collect(maps.Values(best))
	}
	if c.K > 0 && len(fires) > c.K {
		sort.SliceStable(fires, func(a, b int) bool { return fires[a].z > fires[b].z })
		fires = fires[:c.K]
	}
	out := map[uint32]float64{}
	for _, f := range fires {
		out[f.latent] = f.z
	}
	return out
}

func plainPursuit(s *checkpoint.SAE, left []float64) map[uint32]float64 {
	out := map[uint32]float64{}
	for range s.Pursuit.MaxIterations {
		best, most := 0, 0.0
		for j := range s.Config.DSAE {
			along := 0.0
			for i, v := range left {
				along += v * float64(s.WDec[j*tinyWidth+i])
			}
			if along > most {
				best, most = j, along
			}
		}
		_, again := out[uint32(best)]
		if most > 0 {
			out[uint32(best)] += most
		}
		size := 0.0
		for i := range left {
			left[i] -= most * float64(s.WDec[best*tinyWidth+i])
			size += left[i] * left[i]
		}
		if again || most == 0 || math.Sqrt(size) < s.Pursuit.ResidualThreshold {
			break
		}
	}
	return out
}

func TestBatchGivesTheSparsePostingsOfEveryToken(t *testing.T) {
	for _, architecture := range []string{"standard", "topk", "jumprelu", "gated", "groupmax", "matching_pursuit"} {
		t.Run(architecture, func(t *testing.T) {
			k := 0
			if architecture == "topk" || architecture == "groupmax" {
				k = 10
			}
			source := randomSAE(architecture, 300, k)
			e := tinyEngine(t, source)
			sequences := randomSequences(3, 40, 1, 130, 7, 0, 64)
			a, err := e.model.Activations(t.Context(), sequences, []Hook{claimedHook}, false)
			require.NoError(t, err)
			x := a.Hooks[claimedHook]

			for _, c := range []struct { // in one forward and in several, with kernels and without
				tokens  int
				exec    executor
				encoder encoder
			}{
				{forwardTokens, e.model.exec, e.sae.encoder},
				{50, e.model.exec, e.sae.encoder},
				{50, &composed{m: e.model}, &composedEncoder{a: e.sae}},
			} {
				e.model.tokensPerForward, e.model.exec, e.sae.encoder = c.tokens, c.exec, c.encoder
				e.sae.chunkTokens = int64(c.tokens / 2)
				var out postings.Columns
				norms, err := e.Batch(t.Context(), sequences, 1000, &out)
				require.NoError(t, err)
				row := 0
				for i, ids := range sequences {
					require.Len(t, norms[i], len(ids))
					for j := range ids {
						vector := x[(i*a.Seq+j)*tinyWidth:][:tinyWidth]
						want := plainFirings(source, vector)
						last := -1
						for ; row < out.Len() && out.Sequence[row] == uint32(1000+i) && out.Offset[row] == uint16(j); row++ {
							require.Greater(t, int(out.Latent[row]), last, "latents ascend")
							last = int(out.Latent[row])
							require.InDelta(t, want[out.Latent[row]], out.Activation[row], 1e-4)
							delete(want, out.Latent[row])
						}
						for latent, z := range want {
							require.Less(t, z, 1e-4, "latent %d did not fire", latent) // at its boundary
						}
						require.InDelta(t, norm(vector), norms[i][j], 1e-3)
					}
				}
				require.Equal(t, out.Len(), row)
			}
		})
	}
}

func TestATemporalSAESeesEachSequenceByItself(t *testing.T) {
	source := randomSAE("temporal", 64, 7)
	e := tinyEngine(t, source)
	sequences := randomSequences(3, 40, 1, 130, 7, 0, 64)
	a, err := e.model.Activations(t.Context(), sequences, []Hook{claimedHook}, false)
	require.NoError(t, err)
	for _, exec := range []executor{e.model.exec, &composed{m: e.model}} { // end to end, and padded
		e.model.exec = exec
		var out postings.Columns
		_, err = e.Batch(t.Context(), sequences, 0, &out)
		require.NoError(t, err)
		row := 0
		for i, ids := range sequences {
			want, err := e.sae.Encode(t.Context(), a.Hooks[claimedHook][i*a.Seq*tinyWidth:][:len(ids)*tinyWidth], len(ids))
			require.NoError(t, err)
			for at, v := range want.Acts {
				if v == 0 {
					continue
				}
				require.Equal(t, []int{i, at / 64, at % 64}, []int{int(out.Sequence[row]), int(out.Offset[row]), int(out.Latent[row])})
				require.InDelta(t, v, out.Activation[row], 1e-4)
				row++
			}
		}
		require.Equal(t, out.Len(), row)
		require.NotZero(t, row)
	}
}

func norm(x []float32) float64 {
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	return math.Sqrt(sum)
}

func TestTheSameBatchGivesTheSameBits(t *testing.T) {
	e := tinyEngine(t, randomSAE("topk", 300, 9))
	sequences := randomSequences(4, 100, 90, 3, 128)
	var first postings.Columns
	_, err := e.Batch(t.Context(), sequences, 0, &first)
	require.NoError(t, err)
	require.NotZero(t, first.Len())
	for range 5 {
		_, err = e.Batch(t.Context(), randomSequences(5, 17, 60), 0, new(postings.Columns)) // other work between
		require.NoError(t, err)
		var again postings.Columns
		_, err = e.Batch(t.Context(), sequences, 0, &again)
		require.NoError(t, err)
		require.Equal(t, first, again)
	}
}

func TestEqualValuesAtTheKthPlaceTakeTheLowestLatents(t *testing.T) {
	s := randomSAE("topk", 600, 5)
	// Latents 100 … 599 are copies of one, 3 stands out: 3 and the first four copies fire.
	for i := range tinyWidth {
		for j := range 600 {
			switch {
			case j == 3:
				s.WEnc[i*600+j] = 2
			case j < 100:
				s.WEnc[i*600+j] = -1
			default:
				s.WEnc[i*600+j] = 1
			}
		}
	}
	clear(s.BEnc)
	clear(s.BDec)
	x := make([]float32, tinyWidth)
	for i := range x {
		x[i] = 0.5
	}
	a := loadSAE(t, s)
	for _, e := range []encoder{a.encoder, &composedEncoder{a: a}} {
		t.Run(fmt.Sprintf("%T", e), func(t *testing.T) {
			require.NoError(t, testRuntime.do(t.Context(), func(sc *scope) error {
				f := e.fire(sc, sc.floats(x, 1, tinyWidth))
				require.NoError(t, sc.err)
				latents, _ := f.token(0)
				require.Equal(t, []uint32{3, 100, 101, 102, 103}, latents)
				return nil
			}))
		})
	}
}

// The choice of the k largest is our own code: any row, any k, many ties.
func TestTopKIsAStableSortByValueThenLatent(t *testing.T) {
	s := randomSAE("topk", 0, 1)
	rapid.Check(t, func(r *rapid.T) {
		width := rapid.IntRange(1, 1500).Draw(r, "width")
		k := rapid.IntRange(1, width).Draw(r, "k")
		levels := rapid.IntRange(1, 2000).Draw(r, "levels")
		seed := rapid.Uint64().Draw(r, "seed")
		g := rand.New(rand.NewPCG(seed, 2))
		z := make([]float32, width)
		for i := range z {
			z[i] = float32(g.IntN(levels)-levels/4) / 8
		}
		// An SAE whose z is its bias: W_enc is 0.
		s.Config.DSAE, s.Config.K = width, k
		s.WEnc, s.WDec = make([]float32, tinyWidth*width), make([]float32, tinyWidth*width)
		s.BEnc, s.BDec = z, make([]float32, tinyWidth)
		a, err := testRuntime.LoadSAE(t.Context(), s)
		require.NoError(r, err)
		defer func() { require.NoError(r, a.Close()) }()

		order := make([]int, width)
		for i := range order {
			order[i] = i
		}
		sort.SliceStable(order, func(i, j int) bool { return z[order[i]] > z[order[j]] })
		var want []uint32
		for _, j := range order[:k] {
			if z[j] > 0 {
				want = append(want, uint32(j))
			}
		}
		sort.Slice(want, func(i, j int) bool { return want[i] < want[j] })
		var got []uint32
		require.NoError(r, testRuntime.do(t.Context(), func(sc *scope) error {
			f := a.encoder.fire(sc, sc.floats(make([]float32, tinyWidth), 1, tinyWidth))
			require.NoError(r, sc.err)
			latents, values := f.token(0)
			got = append(got, latents...)
			for i, l := range latents {
				require.Equal(r, z[l], values[i])
			}
			return nil
		}))
		require.Equal(r, want, got)
	})
}

func TestEveryBuildOfTheKernelsAgrees(t *testing.T) {
	best := testRuntime.Profile().ISA
	defer func() { require.True(t, useKernels(best)) }()
	for _, isa := range []string{"avx512", "avx2", "baseline"} {
		if !useKernels(isa) {
			t.Logf("this CPU cannot run %s", isa)
			continue
		}
		m := openModel(t, "testdata/llama-untied-llama3")
		checkActivations(t, m, openGolden(t, "testdata/llama-untied-llama3.golden.safetensors"), true)
		for _, architecture := range []string{"standard", "topk", "jumprelu"} {
			source := randomSAE(architecture, 1003, 0)
			if architecture == "topk" {
				source.Config.K = 20
			}
			a := loadSAE(t, source)
			x := random(9, 50*tinyWidth, 1)
			got, err := a.Encode(t.Context(), x, 50)
			require.NoError(t, err)
			for i := range 50 {
				want := plainFirings(source, x[i*tinyWidth:][:tinyWidth])
				for j, v := range got.Acts[i*1003 : (i+1)*1003] {
					require.InDelta(t, want[uint32(j)], v, 1e-4)
				}
			}
		}
	}
}

// residentBytes is this process's memory, from /proc.
func residentBytes(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip("no /proc here: ", err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	require.NoError(t, err)
	return pages * os.Getpagesize()
}

func TestMemoryStaysFlatOverManyBatches(t *testing.T) {
	e := tinyEngine(t, randomSAE("topk", 1024, 32))
	sequences := randomSequences(6, 128, 128, 100)
	var out postings.Columns
	run := func(batches int) int {
		for range batches {
			out.Reset()
			_, err := e.Batch(t.Context(), sequences, 0, &out)
			require.NoError(t, err)
		}
		return residentBytes(t)
	}
	warm := run(10)
	hot := run(100) // ten times the tokens
	require.Less(t, hot-warm, 16<<20, "grew from %d to %d bytes", warm, hot)
}

func TestScopesFreeWhatIsMadeInThem(t *testing.T) {
	ones := make([]float32, 1<<18)
	run := func(n int) int {
		for range n {
			require.NoError(t, testRuntime.do(t.Context(), func(s *scope) error {
				x := s.floats(ones, 512, 512)
				for range 50 {
					s.inner(func(s *scope) tensor { return s.add(s.mul(x, x), x) })
				}
				return s.err
			}))
		}
		return residentBytes(t)
	}
	warm := run(1)
	require.Less(t, run(6)-warm, 100<<20, "300 sums and products are 600 MB")
}

func TestBadInputIsAnErrorThatSaysSo(t *testing.T) {
	m := openModel(t, "testdata/llama-tied")
	e := tinyEngine(t, randomSAE("standard", 64, 0))
	ctx := t.Context()

	_, err := ParseHook("blocks.8.hook_z")
	var unknown *HookError
	require.ErrorAs(t, err, &unknown)
	require.ErrorContains(t, err, "known are hook_embed, blocks.L.hook_resid_pre")

	_, err = m.Activations(ctx, [][]int32{{1}}, []Hook{{Layer: 3, Point: ResidPost}}, false)
	require.EqualError(t, err, "hook blocks.3.hook_resid_post: the model has 3 layers, 0 to 2")

	var out postings.Columns
	_, err = e.Batch(ctx, [][]int32{{1, 2}, {3, 97}}, 0, &out)
	require.EqualError(t, err, "token id 97 (sequence 1, offset 1) is outside the model's vocabulary of 97")
	_, err = e.Batch(ctx, [][]int32{make([]int32, 70_000)}, 0, &out)
	require.ErrorContains(t, err, "at most 65536")

	narrow := randomSAE("standard", 64, 0)
	narrow.Config.DIn, narrow.WEnc = 24, narrow.WEnc[:24*64]
	_, err = NewEngine(m, loadSAE(t, narrow), claimedHook)
	require.ErrorContains(t, err, "d_in 24")

	for config, fact := range map[*checkpoint.SAEConfig]string{
		{Architecture: "abstopk", Signed: true}:                               "abstopk",
		{Architecture: "gated", DIn: 2, DSAE: 3, DOut: 2}:                     "W_dec has 0 values",
		{Architecture: "groupmax", DSAE: 10, K: 3}:                            "divides d_sae",
		{Architecture: "standard", Transcoder: true, ApplyBDecToInput: true}:  "transcoder with apply_b_dec_to_input",
		{Architecture: "standard", Normalization: "constant_scalar_rescale"}:  "outside a temporal SAE",
		{Architecture: "topk", Signed: true}:                                  "signed",
		{Architecture: "standard", Normalization: "covariance_whitening"}:     "covariance_whitening",
		{Architecture: "standard", Normalization: "expected_average_only_in"}: "scaling factor",
	} {
		_, err = testRuntime.LoadSAE(ctx, &checkpoint.SAE{Config: *config})
		require.ErrorContains(t, err, fact)
	}

	for _, name := range []string{"tpu", "cuda:x", "cuda:99"} {
		_, err = Start(Options{Device: name})
		var device *DeviceError
		require.ErrorAs(t, err, &device)
	}
}

func TestAWrongShapeIsAnErrorWithTheShapes(t *testing.T) {
	err := testRuntime.do(t.Context(), func(s *scope) error {
		a, b := s.floats(make([]float32, 6), 2, 3), s.floats(make([]float32, 8), 4, 2)
		require.Nil(t, s.mm(a, b))
		require.Nil(t, s.add(a, a), "after an error nothing more happens")
		return nil
	})
	var refused *OpError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, []string{"[2, 3]", "[4, 2]"}, refused.Shapes)
	require.NotContains(t, err.Error(), "Exception raised")
	require.NoError(t, testRuntime.do(t.Context(), func(s *scope) error {
		s.floats([]float32{1}, 1)
		return nil
	}), "the runtime goes on")
}

func TestWhatMemoryCannotHoldIsAnErrorOfItsOwn(t *testing.T) {
	err := testRuntime.do(t.Context(), func(s *scope) error {
		s.zeros(1<<30, 1<<20)
		return nil
	})
	require.ErrorIs(t, err, ErrNoMemory)
	_, err = newBlock(1 << 62)
	require.ErrorIs(t, err, ErrNoMemory)
}

func TestACancelledBatchLeavesNothingBehind(t *testing.T) {
	e := tinyEngine(t, randomSAE("standard", 64, 0))
	ctx, cancel := context.WithCancel(t.Context())
	out := postings.Columns{Latent: []uint32{1}, Sequence: []uint32{2}, Offset: []uint16{3}, Activation: []float32{4}}
	e.model.tokensPerForward = 10
	sequences := randomSequences(8, 10, 10)
	require.NoError(t, testRuntime.do(t.Context(), func(*scope) error { return nil }))
	cancel()
	_, err := e.Batch(ctx, sequences, 0, &out)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, out.Len())
}

func TestANumberThatIsNoneIsFound(t *testing.T) {
	s := randomSAE("standard", 64, 0)
	e := tinyEngine(t, s)
	table := e.model.embedding
	values := make([]float32, 97*tinyWidth)
	require.NoError(t, testRuntime.do(t.Context(), func(sc *scope) error {
		sc.read(table.t, values)
		return sc.err
	}))
	values[5*tinyWidth] = float32(math.NaN())
	b, err := copyToBlock(values)
	require.NoError(t, err)
	e.model.embedding.data = (*float32)(b.data)
	defer b.free()
	var out postings.Columns
	_, err = e.Batch(t.Context(), [][]int32{{1, 2}, {5, 3}}, 0, &out)
	var wrong *NonFiniteError
	require.ErrorAs(t, err, &wrong)
	require.Equal(t, 1, wrong.Sequence)
	require.Equal(t, 0, wrong.Offset)
	require.Zero(t, out.Len())
}

func TestAClosedRuntimeSaysSo(t *testing.T) {
	r, err := Start(Options{Threads: 1})
	require.NoError(t, err)
	require.NoError(t, r.Close())
	require.NoError(t, r.Close())
	require.True(t, errors.Is(r.do(t.Context(), func(*scope) error { return nil }), ErrClosed))
}

// transcoderOf reads mlp.hook_in of the tiny Llamas and predicts what the MLP adds.
func transcoderOf() *checkpoint.SAE {
	s := randomSAE("jumprelu", 200, 0)
	s.Config.Transcoder, s.Config.ApplyBDecToInput = true, false
	s.Config.Hook, s.Config.HookOut = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
	s.WSkip = random(20, tinyWidth*tinyWidth, 0.2)
	return s
}

func TestATranscoderIsTestedByWhatItPredicts(t *testing.T) {
	m := openModel(t, "testdata/llama-untied-llama3")
	a := loadSAE(t, transcoderOf())
	in, out := Hook{Layer: 1, Point: MLPIn}, Hook{Layer: 1, Point: MLPOut}
	e, err := NewEngine(m, a, in)
	require.NoError(t, err)
	sequences := randomSequences(3, 40, 1, 130, 7, 64)
	got, err := e.SelfTest(t.Context(), SelfTestOptions{Sequences: sequences, BOS: -1, Tokens: 10_000})
	require.NoError(t, err)
	require.Equal(t, "blocks.1.mlp.hook_in", got.Hook)
	require.Equal(t, "blocks.1.hook_mlp_out", got.HookOut)

	shown, err := m.Activations(t.Context(), sequences, []Hook{in, out}, false)
	require.NoError(t, err)
	x, y := rowsOf(shown.Hooks[in], sequences, shown.Seq, tinyWidth), rowsOf(shown.Hooks[out], sequences, shown.Seq, tinyWidth)
	n := len(x) / tinyWidth
	require.Equal(t, n, got.Tokens, "no sinks: the norm sees to that")
	encoded, err := a.Encode(t.Context(), x, n)
	require.NoError(t, err)
	var wrong, spread float64
	for d := range tinyWidth {
		mean := 0.0
		for i := range n {
			mean += float64(y[i*tinyWidth+d]) / float64(n)
		}
		for i := range n {
			v := float64(y[i*tinyWidth+d])
			wrong += (v - float64(encoded.Recon[i*tinyWidth+d])) * (v - float64(encoded.Recon[i*tinyWidth+d]))
			spread += (v - mean) * (v - mean)
		}
	}
	require.InEpsilon(t, wrong/spread, *got.FVU, 1e-4)

	var pairs []string
	for _, tap := range got.Taps {
		pairs = append(pairs, tap.Hook+" → "+tap.HookOut)
	}
	require.Subset(t, pairs, []string{
		"blocks.0.mlp.hook_in → blocks.0.hook_mlp_out", "blocks.2.mlp.hook_in → blocks.2.hook_mlp_out", // another layer
		"blocks.1.ln2.hook_normalized → blocks.1.hook_mlp_out", "blocks.1.hook_resid_mid → blocks.1.hook_mlp_out", // another input
		"blocks.1.mlp.hook_in → blocks.1.hook_resid_post", // another output
	})

	var postingsOf postings.Columns
	_, err = e.Batch(t.Context(), sequences, 0, &postingsOf)
	require.NoError(t, err)
	fired := 0
	for _, v := range encoded.Acts {
		if v > 0 {
			fired++
		}
	}
	require.Equal(t, fired, postingsOf.Len())
}

func TestAnSAEFitsWhereItsWidthsDo(t *testing.T) {
	m := openModel(t, "testdata/llama-biases") // 4 heads of 12: hook_z is wider than the residual stream
	wide := randomSAE("topk", 64, 5)
	wide.Config.DIn, wide.Config.DOut, wide.Config.Reshape = 48, 48, "hook_z"
	wide.WEnc, wide.WDec, wide.BDec = random(1, 48*64, 0.2), random(3, 48*64, 0.2), random(4, 48, 0.1)
	z := loadSAE(t, wide)
	e, err := NewEngine(m, z, Hook{Layer: 1, Point: AttnZ})
	require.NoError(t, err)
	var out postings.Columns
	_, err = e.Batch(t.Context(), randomSequences(3, 20), 0, &out)
	require.NoError(t, err)
	require.Equal(t, 20*5, out.Len())
	_, err = e.SelfTest(t.Context(), SelfTestOptions{Sequences: testText(), BOS: -1, Tokens: 300})
	require.NoError(t, err)

	_, err = NewEngine(m, z, claimedHook)
	require.ErrorContains(t, err, "reads vectors of d_in 48, but blocks.1.hook_resid_post has 32")
	embedded, err := NewEngine(m, loadSAE(t, randomSAE("topk", 64, 5)), Hook{Point: Embed})
	require.NoError(t, err)
	_, err = embedded.SelfTest(t.Context(), SelfTestOptions{Sequences: testText(), BOS: -1, Tokens: 300})
	require.NoError(t, err)

	transcoder := transcoderOf()
	transcoder.Config.HookOut = "blocks.1.attn.hook_z"
	_, err = NewEngine(m, loadSAE(t, transcoder), Hook{Layer: 1, Point: MLPIn})
	require.ErrorContains(t, err, "predicts vectors of d_out 32, but blocks.1.attn.hook_z has 48")
	transcoder.Config.HookOut = ""
	_, err = NewEngine(m, loadSAE(t, transcoder), Hook{Layer: 1, Point: MLPIn})
	require.ErrorContains(t, err, "what the transcoder predicts")
}
