package torch

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// canonicalGolden reads a case of testdata/golden_architectures.py: an SAE whose canonical form is in
// the file, so that nothing but the arithmetic is looked at.
func canonicalGolden(t *testing.T, g golden) *checkpoint.SAE {
	t.Helper()
	var extra struct {
		checkpoint.SAEConfig
		Pursuit  *checkpoint.Pursuit
		Temporal *checkpoint.Temporal
	}
	require.NoError(t, json.Unmarshal([]byte(g.f.Metadata()["config"]), &extra))
	s := &checkpoint.SAE{Config: extra.SAEConfig, Pursuit: extra.Pursuit, Temporal: extra.Temporal}
	into := map[string]*[]float32{
		"W_enc": &s.WEnc, "b_enc": &s.BEnc, "W_dec": &s.WDec, "b_dec": &s.BDec, "threshold": &s.Threshold,
		"b_gate": &s.BGate, "b_mag": &s.BMag, "r_mag": &s.RMag, "W_skip": &s.WSkip,
	}
	if s.Temporal != nil {
		for i := range s.Temporal.Layers {
			l := &s.Temporal.Layers[i]
			for name, p := range map[string][2]*[]float32{"k_ctx": {&l.KWeight, &l.KBias}, "q_target": {&l.QWeight, &l.QBias}, "v_ctx": {&l.VWeight, &l.VBias}, "c_proj": {&l.CWeight, &l.CBias}} {
				into[fmt.Sprintf("attn_layers.%d.%s.weight", i, name)], into[fmt.Sprintf("attn_layers.%d.%s.bias", i, name)] = p[0], p[1]
			}
		}
	}
	for _, name := range g.f.Names() {
		if p, ok := into[name]; ok {
			*p, _ = g.floats(name)
		}
	}
	if extra.Architecture == "matching_pursuit" || s.Temporal != nil && s.Temporal.Tied {
		s.WEnc = nil // W_decᵀ
	}
	return s
}

// encoders are the ways to compute an SAE: its own, and libtorch's operations alone.
func encoders(a *SAE) []encoder {
	if _, fused := a.encoder.(*fusedEncoder); fused {
		return []encoder{a.encoder, &composedEncoder{a: a}}
	}
	return []encoder{a.encoder}
}

// differences are the largest relative errors of a token's acts, decode and recon.
func differences(t *testing.T, a *SAE, g golden) map[string]float64 {
	t.Helper()
	x, shape := g.floats("x")
	batch, seq := 1, shape[0]
	if a.config.Architecture == "temporal" {
		require.Len(t, shape, 3)
		batch, seq = shape[0], shape[1]
	}
	got, err := a.EncodeSequences(t.Context(), x, batch, seq)
	require.NoError(t, err)
	out := map[string]float64{}
	for name, v := range map[string]struct {
		values []float32
		width  int
	}{"acts": {got.Acts, a.config.DSAE}, "decode": {got.Decode, a.config.DOut}, "recon": {got.Recon, a.config.DOut}} {
		want, _ := g.floats(name)
		out[name] = worst(t, v.values, want, v.width)
	}
	return out
}

func TestEveryArchitectureAgreesWithItsReference(t *testing.T) {
	paths, err := filepath.Glob("testdata/architectures/*.safetensors")
	require.NoError(t, err)
	require.Len(t, paths, 46)
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".safetensors"), func(t *testing.T) {
			g := openGolden(t, path)
			a := loadSAE(t, canonicalGolden(t, g))
			for _, e := range encoders(a) {
				a.encoder = e
				for name, difference := range differences(t, a, g) {
					require.LessOrEqual(t, difference, parity, "%s, %T", name, e)
				}
				t.Logf("%T: %v", e, differences(t, a, g))
			}
		})
	}
}
