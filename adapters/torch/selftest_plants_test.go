package torch

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/domain/extraction"
)

// plant is a mistake that is made on purpose in an SAE that is right.
type plant struct {
	name    string
	hook    func(Hook) Hook
	sae     func(*checkpoint.SAE)
	bos     *bool
	l0      float64 // published, where the mistake shows by it
	verdict string  // part of the mismatch, "" = none
	warning string  // part of a warning, "" = no warning is asked for
}

func wrongLayer(h Hook) Hook { h.Layer++; return h }

func at(p Point) func(Hook) Hook { return func(h Hook) Hook { h.Point = p; return h } }

// transposed reads W_dec's memory as if it were [d_out, d_sae].
func transposed(s *checkpoint.SAE) {
	rows, columns := s.Config.DSAE, s.Config.DOut
	turned := make([]float32, len(s.WDec))
	for i := range rows {
		for j := range columns {
			turned[i*columns+j] = s.WDec[j*rows+i]
		}
	}
	s.WDec = turned
}

func withoutThreshold(s *checkpoint.SAE) {
	s.Config.Architecture, s.Threshold = "standard", nil
}

func normalizedAs(mode string) func(*checkpoint.SAE) {
	return func(s *checkpoint.SAE) { s.Config.Normalization = mode }
}

// checkPlants runs the self-test on an SAE as it is, and with each mistake.
func checkPlants(t *testing.T, m *Model, open func() *checkpoint.SAE, hook Hook, o SelfTestOptions, plants []plant) {
	t.Helper()
	sound := plant{name: "as it is"}
	for _, p := range append([]plant{sound}, plants...) {
		t.Run(p.name, func(t *testing.T) {
			s, h, o := open(), hook, o
			if p.sae != nil {
				p.sae(s)
			}
			if p.hook != nil {
				h = p.hook(h)
			}
			if p.bos != nil {
				o.PrependBOS = p.bos
			}
			o.PublishedL0 = p.l0
			e, err := NewEngine(m, loadSAE(t, s), h)
			require.NoError(t, err)
			got, err := e.SelfTest(t.Context(), o)
			require.NoError(t, err)
			t.Log(table(got))
			if p.verdict == "" {
				require.Empty(t, got.Mismatch)
			} else {
				require.Contains(t, got.Mismatch, p.verdict)
			}
			if p.name == sound.name {
				require.Empty(t, got.Warnings)
			}
			if p.warning != "" {
				require.True(t, slices.ContainsFunc(got.Warnings, func(w string) bool { return strings.Contains(w, p.warning) }), "%q", got.Warnings)
			}
		})
	}
}

func table(t extraction.SelfTest) string {
	var b strings.Builder
	number := func(v *float64) string {
		if v == nil {
			return "–"
		}
		return fmt.Sprintf("%.4g", *v)
	}
	fmt.Fprintf(&b, "%s: FVU %s, L0 %s, dead %.2f, sinks %.3f, ρ %s\n", t.Hook, number(t.FVU), number(t.L0), t.DeadShare, t.SinkShare, number(t.Rho))
	for _, tap := range t.Taps {
		fmt.Fprintf(&b, "  %-30s FVU %-8s L0 %-6s ρ %s\n", tap.Hook+" "+tap.HookOut, number(tap.FVU), number(tap.L0), number(tap.Rho))
	}
	for _, w := range t.WhatIf {
		fmt.Fprintf(&b, "  if %-70s FVU %-8s L0 %s\n", w.If, number(w.FVU), number(w.L0))
	}
	for _, w := range t.Warnings {
		fmt.Fprintf(&b, "  warning: %s\n", w)
	}
	fmt.Fprintf(&b, "  mismatch: %q", t.Mismatch)
	return b.String()
}

// unfolded undoes the fold of an activation scale, as if nobody had known of it.
func unfolded(factor float32) func(*checkpoint.SAE) {
	return func(s *checkpoint.SAE) {
		s.WEnc, s.WDec, s.BDec = slices.Clone(s.WEnc), slices.Clone(s.WDec), slices.Clone(s.BDec)
		for i := range s.WEnc {
			s.WEnc[i] /= factor
		}
		for i := range s.WDec {
			s.WDec[i] *= factor
		}
		for i := range s.BDec {
			s.BDec[i] *= factor
		}
	}
}

func openSource(t *testing.T, path string) func() *checkpoint.SAE {
	return func() *checkpoint.SAE {
		s, err := checkpoint.OpenSAE(path)
		require.NoError(t, err)
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
}

var yes, no = true, false

// Every mistake that a checkpoint or a person can make about a right SAE is caught, or is named here
// as one that is not.
func TestPlantedMistakesAreCaught(t *testing.T) {
	m := openModel(t, "testdata/llama-tied")
	o := SelfTestOptions{Sequences: testText(), Context: 48, BOS: 1, PrependBOS: &yes, SkipFirst: 1, Tokens: 1000}
	checkPlants(t, m, openSource(t, "testdata/plants/jumprelu"), claimedHook, o, []plant{
		{name: "a wrong layer", hook: wrongLayer, verdict: "blocks.1.hook_resid_post fits better"},
		{name: "a wrong hook", hook: at(MLPOut), verdict: "blocks.1.hook_resid_post fits better"},
		{name: "a wrong normalisation: none", sae: normalizedAs(checkpoint.NormNone), verdict: "normalize_activations were layer_norm"},
		{name: "a wrong normalisation: constant", sae: normalizedAs(checkpoint.NormConstant), warning: "normalize_activations were layer_norm"},
		{name: "a dropped threshold", sae: withoutThreshold, l0: 6, warning: "more than twice the published 6.0"},
		{name: "a dropped threshold, published densities alone", sae: withoutThreshold, warning: "unlike their published densities"},
		{name: "a transposed decoder", sae: transposed, verdict: "worse than the mean"},
		{name: "BOS left out against the file's word", bos: &no, warning: "trained with a BOS token"},
		// Not to be caught: this model sees a BOS token like any other, and FVU hardly changes.
		{name: "BOS left out, the file silent", bos: &no, sae: func(s *checkpoint.SAE) { s.Config.PrependBOS = nil }},
	})
}

// The same on a real model, with the SAE of the demo.
func TestPlantedMistakesAreCaughtOnSmolLM2(t *testing.T) {
	m := openModel(t, smolLM2(t))
	g := openGolden(t, "testdata/plants/text.safetensors")
	tensor, err := g.f.Tensor("input_ids")
	require.NoError(t, err)
	ids, err := tensor.Int64()
	require.NoError(t, err)
	var text [][]int32
	for row := range tensor.Shape[0] {
		var sequence []int32
		for _, id := range ids[row*tensor.Shape[1]:][:tensor.Shape[1]] {
			sequence = append(sequence, int32(id))
		}
		text = append(text, sequence)
	}
	o := SelfTestOptions{Sequences: text, Context: 128, BOS: 1, PrependBOS: &no, SkipFirst: 1, Tokens: 400}
	checkPlants(t, m, openSource(t, "../../cmd/featuremill/demo/sae"), Hook{Layer: 8, Point: ResidPost}, o, []plant{
		{name: "a wrong layer", hook: wrongLayer, verdict: "blocks.8.hook_resid_post fits better"},
		{name: "a wrong hook", hook: at(MLPOut), verdict: "blocks.8.hook_resid_post fits better"},
		{name: "what a norm makes of the stream", hook: at(MLPIn), verdict: "blocks.8.hook_resid_post fits better"},
		{name: "a wrong normalisation: constant", sae: normalizedAs(checkpoint.NormConstant), verdict: "normalize_activations were none"},
		{name: "a scaling factor left out", sae: unfolded(0.19474738), verdict: "normalize_activations were expected_average_only_in"},
		{name: "a dropped k", sae: func(s *checkpoint.SAE) { s.Config.Architecture = "standard" }, l0: 48, warning: "more than twice the published 48.0"},
		{name: "a transposed decoder", sae: transposed, verdict: "worse than the mean"},
		{name: "b_dec left in", sae: func(s *checkpoint.SAE) { s.Config.ApplyBDecToInput = false }, verdict: "apply_b_dec_to_input were true"},
		{name: "BOS put in against the file's word", bos: &yes, warning: "trained with no BOS token"},
	})
}
