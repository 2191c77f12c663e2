package torch

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// fittedSAE reconstructs the first `rank` principal directions of what the hook shows on the given
// text: W_enc = [V, −V], W_dec its transpose, b_dec the mean.
func fittedSAE(t *testing.T, m *Model, h Hook, sequences [][]int32, rank int) *checkpoint.SAE {
	t.Helper()
	a, err := m.Activations(t.Context(), sequences, []Hook{h}, false)
	require.NoError(t, err)
	var rows [][]float64
	mean := make([]float64, tinyWidth)
	for i, ids := range sequences {
		for j := range ids {
			row := make([]float64, tinyWidth)
			for d := range row {
				row[d] = float64(a.Hooks[h][(i*a.Seq+j)*tinyWidth+d])
				mean[d] += row[d]
			}
			rows = append(rows, row)
		}
	}
	for d := range mean {
		mean[d] /= float64(len(rows))
		for _, row := range rows {
			row[d] -= mean[d]
		}
	}
	latents := 2 * rank
	s := &checkpoint.SAE{
		Config: checkpoint.SAEConfig{Architecture: "standard", DIn: tinyWidth, DSAE: latents, DOut: tinyWidth, ApplyBDecToInput: true, Hook: h.String()},
		WEnc:   make([]float32, tinyWidth*latents), BEnc: make([]float32, latents),
		WDec: make([]float32, tinyWidth*latents), BDec: make([]float32, tinyWidth),
	}
	for d := range mean {
		s.BDec[d] = float32(mean[d])
	}
	for k := range rank {
		v := principal(rows, uint64(k))
		for d := range v {
			s.WEnc[d*latents+2*k], s.WEnc[d*latents+2*k+1] = float32(v[d]), -float32(v[d])
			s.WDec[2*k*tinyWidth+d], s.WDec[(2*k+1)*tinyWidth+d] = float32(v[d]), -float32(v[d])
		}
		for _, row := range rows { // deflate
			along := 0.0
			for d := range v {
				along += row[d] * v[d]
			}
			for d := range v {
				row[d] -= along * v[d]
			}
		}
	}
	return s
}

func principal(rows [][]float64, seed uint64) []float64 {
	start := random(seed+50, tinyWidth, 1)
	v := make([]float64, tinyWidth)
	for d := range v {
		v[d] = float64(start[d])
	}
	for range 60 {
		next := make([]float64, tinyWidth)
		for _, row := range rows {
			along := 0.0
			for d := range v {
				along += row[d] * v[d]
			}
			for d := range v {
				next[d] += along * row[d]
			}
		}
		size := 0.0
		for _, x := range next {
			size += x * x
		}
		for d := range v {
			v[d] = next[d] / math.Sqrt(size)
		}
	}
	return v
}

func testText() [][]int32 {
	lengths := make([]int, 40)
	for i := range lengths {
		lengths[i] = 30 + i
	}
	return randomSequences(11, lengths...)
}

func TestSelfTestKnowsAnSAEAtItsHook(t *testing.T) {
	m := openModel(t, "testdata/llama-tied")
	s := fittedSAE(t, m, claimedHook, testText(), 16)
	a := loadSAE(t, s)
	e, err := NewEngine(m, a, claimedHook)
	require.NoError(t, err)
	no := false
	got, err := e.SelfTest(t.Context(), SelfTestOptions{Sequences: testText(), Context: 64, BOS: -1, PrependBOS: &no, SkipFirst: 1, Tokens: 1000, Exclude: []int32{7}})
	require.NoError(t, err)
	require.Empty(t, got.Mismatch)
	require.Equal(t, 1000, got.Tokens)
	require.Less(t, *got.FVU, 0.3)
	require.InDelta(t, 16, *got.L0, 0.01) // of V and −V one fires
	require.InDelta(t, 16, got.L0All, 0.01)
	require.Equal(t, int32(-1), got.BOS)
	require.False(t, got.BOSTried)
	require.Zero(t, got.DeadShare)
	var hooks []string
	for _, tap := range got.Taps {
		hooks = append(hooks, tap.Hook)
		if tap.Hook == got.Hook {
			require.InDelta(t, *got.FVU, *tap.FVU, 1e-12)
		}
	}
	require.Equal(t, []string{ // the input of a layer is the output of the one before: listed once
		"blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post",
		// What its own layer's norms and heads make has the same width.
		"blocks.1.ln1.hook_normalized", "blocks.1.attn.hook_z", "blocks.1.hook_attn_out", "blocks.1.hook_resid_mid",
		"blocks.1.ln2.hook_normalized", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post",
		"blocks.2.hook_attn_out", "blocks.2.hook_resid_mid", "blocks.2.hook_mlp_out", "blocks.2.hook_resid_post",
	}, hooks)

	require.InDelta(t, plainFVU(t, m, s, 1000), *got.FVU, 1e-5)
}

// plainFVU is the definition, in plain Go, on the test text from its offset 1 on, without token 7.
func plainFVU(t *testing.T, m *Model, s *checkpoint.SAE, tokens int) float64 {
	t.Helper()
	text := testText()
	for i, ids := range text {
		text[i] = ids[:min(64, len(ids))]
	}
	a, err := m.Activations(t.Context(), text, []Hook{claimedHook}, false)
	require.NoError(t, err)
	var rows [][]float32
	for i, ids := range text {
		for j, id := range ids {
			if j >= 1 && id != 7 && len(rows) < tokens {
				rows = append(rows, a.Hooks[claimedHook][(i*a.Seq+j)*tinyWidth:][:tinyWidth])
			}
		}
	}
	mean := make([]float64, tinyWidth)
	for _, row := range rows {
		for d, v := range row {
			mean[d] += float64(v) / float64(len(rows))
		}
	}
	var wrong, spread float64
	for _, row := range rows {
		guess := make([]float64, tinyWidth)
		for d := range guess {
			guess[d] = float64(s.BDec[d])
		}
		for latent, z := range plainFirings(s, row) {
			for d := range guess {
				guess[d] += z * float64(s.WDec[int(latent)*tinyWidth+d])
			}
		}
		for d, v := range row {
			wrong += (float64(v) - guess[d]) * (float64(v) - guess[d])
			spread += (float64(v) - mean[d]) * (float64(v) - mean[d])
		}
	}
	return wrong / spread
}

func TestSelfTestNamesTheRightHook(t *testing.T) {
	m := openModel(t, "testdata/llama-tied")
	a := loadSAE(t, fittedSAE(t, m, claimedHook, testText(), 16))
	e, err := NewEngine(m, a, Hook{Layer: 2, Point: ResidPost})
	require.NoError(t, err)
	got, err := e.SelfTest(t.Context(), SelfTestOptions{Sequences: testText(), BOS: 1, SkipFirst: 1, Tokens: 500})
	require.NoError(t, err)
	require.Contains(t, got.Mismatch, "blocks.1.hook_resid_post fits better")
	require.True(t, got.BOSTried)
	require.Equal(t, 500, got.Tokens)
}

func TestSelfTestRefusesAnSAEThatIsWorseThanTheMean(t *testing.T) {
	s := randomSAE("topk", 64, 8)
	for i := range s.WDec {
		s.WDec[i] *= 100
	}
	got, err := tinyEngine(t, s).SelfTest(t.Context(), SelfTestOptions{Sequences: testText(), BOS: -1, Tokens: 300})
	require.NoError(t, err)
	require.Contains(t, got.Mismatch, "worse than the mean")

	for i := range s.WDec {
		s.WDec[i] = 3e38
	}
	got, err = tinyEngine(t, s).SelfTest(t.Context(), SelfTestOptions{Sequences: testText(), BOS: -1, Tokens: 300})
	require.NoError(t, err)
	require.Nil(t, got.FVU)
	require.Contains(t, got.Mismatch, "not finite")
}

func TestSelfTestWarnsOfTooManyFiringsAndComparesDensities(t *testing.T) {
	s := randomSAE("standard", 64, 0)
	e := tinyEngine(t, s)
	plain, err := e.SelfTest(t.Context(), SelfTestOptions{Sequences: testText(), BOS: -1, Tokens: 300})
	require.NoError(t, err)
	require.Nil(t, plain.Rho)
	require.Empty(t, plain.Warnings)

	e.sae.sparsity = make([]float32, 64)
	for i := range e.sae.sparsity {
		e.sae.sparsity[i] = float32(-i)
	}
	got, err := e.SelfTest(t.Context(), SelfTestOptions{Sequences: testText(), BOS: -1, Tokens: 300, PublishedL0: *plain.L0 / 3})
	require.NoError(t, err)
	require.NotNil(t, got.Rho)
	require.Len(t, got.Warnings, 2) // and that densities are unlike
	require.Equal(t, plain.FVU, got.FVU)

	_, err = e.SelfTest(t.Context(), SelfTestOptions{Sequences: [][]int32{{1}}, BOS: -1, SkipFirst: 1})
	require.ErrorContains(t, err, "no token is counted")
}

func TestSpearmansRhoTakesMeanRanksForTies(t *testing.T) {
	t.Parallel()
	require.Equal(t, []float64{0, 1.5, 1.5, 3}, ranks([]float64{1, 2, 2, 9}))
	require.InDelta(t, 1, pearson(ranks([]float64{1, 2, 3}), ranks([]float64{-9, 0, 1})), 1e-12)
	require.InDelta(t, -1, pearson(ranks([]float64{1, 2, 3}), ranks([]float64{3, 2, 1})), 1e-12)
}
