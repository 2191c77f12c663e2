package torch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/featuremill/featuremill/domain/extraction"
)

// SelfTestOptions say what to test on.
type SelfTestOptions struct {
	Sequences   [][]int32 // without an inserted BOS
	Context     int       // most tokens of a sequence as it is fed; 0 = no limit
	BOS         int32     // −1 = there is none to insert
	PrependBOS  *bool     // nil: try both, and keep the lower FVU
	SkipFirst   int       // offsets below it are not counted, unless the SAE has a seqpos_slice
	Exclude     []int32   // ids that are not counted
	Tokens      int       // counted tokens to measure on; 0 = 4,096
	PublishedL0 float64   // 0 = unknown

	Beat func() error // called after every forward; its error ends the test. Nil = nobody wants to know
}

const (
	selfTestTokens = 4096
	pursuitTokens  = 512 // of a matching pursuit, which takes a product with the whole encoder for every firing
	sinkNorm       = 3   // × the median norm
	tapReach       = 2   // layers up and down
	betterBy       = 0.9 // another tap with less than this share of the claimed one's FVU is the right one
	muchBetterBy   = 0.5 // likewise what would be otherwise about the SAE; between the two it is a warning
	tooDense       = 2   // × the published L0
	unlike         = 0.6 // × the ρ that so few tokens can show: text of another kind has more
)

// SelfTest measures whether the SAE belongs at the hook, and whether it is run as it was trained: the
// share of variance that its reconstructions leave unexplained (FVU) and L0 there, at every tap of
// equal width up to two layers away, and there again with one thing otherwise: another normalisation,
// b_dec in or out of the input, weak firings left out, BOS or none. Mismatch says why the SAE does
// not fit, if it does not: that is a verdict, not an error.
func (e *Engine) SelfTest(ctx context.Context, o SelfTestOptions) (extraction.SelfTest, error) {
	if o.Tokens == 0 {
		o.Tokens = selfTestTokens
	}
	if e.sae.config.Architecture == "matching_pursuit" {
		o.Tokens = min(o.Tokens, pursuitTokens)
	}
	t, err := e.selfTest(ctx, o)
	if err != nil {
		return extraction.SelfTest{}, fmt.Errorf("self-test: %w", err)
	}
	return t, nil
}

func (e *Engine) selfTest(ctx context.Context, o SelfTestOptions) (extraction.SelfTest, error) {
	none := extraction.SelfTest{}
	prepend, err := ways(o)
	if err != nil {
		return none, err
	}
	var text *sample
	var claimed *candidate
	var bos extraction.Alternative
	if len(prepend) > 1 && o.PrependBOS == nil {
		text, claimed, bos, err = e.lowerWay(ctx, o, prepend)
	} else {
		text = e.fed(o, prepend[0])
		claimed, err = e.claimed(ctx, o, text)
		if err == nil && len(prepend) > 1 {
			bos, err = e.otherWay(ctx, o, text, claimed)
		}
	}
	if err != nil {
		return none, err
	}
	if claimed.tokens == 0 {
		return none, errors.New("no token is counted: the text is too short, or everything is excluded")
	}
	changed := e.alternatives(claimed.norms.mean, claimed.l0())
	rivals, taps := slices.Clone(changed), []*candidate{}
	for _, at := range e.taps() {
		if at == claimed.tap {
			taps = append(taps, claimed)
			continue
		}
		c := e.candidate(at, "", nil)
		taps, rivals = append(taps, c), append(rivals, c)
	}
	if err := e.screen(ctx, o, text, claimed, rivals); err != nil {
		return none, err
	}
	t := e.report(o, text, claimed)
	t.BOSTried = len(prepend) > 1 && o.PrependBOS == nil
	for _, c := range taps {
		t.Taps = append(t.Taps, e.tapReport(c))
	}
	for _, c := range changed {
		t.WhatIf = append(t.WhatIf, c.alternative(c.name))
	}
	e.judge(&t, bos)
	return t, nil
}

// claimed runs the text through the model and measures the claimed tap.
func (e *Engine) claimed(ctx context.Context, o SelfTestOptions, text *sample) (*candidate, error) {
	c := e.candidate(tap{e.hook, e.out}, "", nil)
	if err := e.sample(ctx, o, text, e.taps()); err != nil {
		return nil, err
	}
	return c, e.measure(ctx, o, text, []*candidate{c})
}

// ways are with and without BOS, the one to keep, or to prefer, first.
func ways(o SelfTestOptions) ([]bool, error) {
	if o.PrependBOS != nil && *o.PrependBOS && o.BOS < 0 {
		return nil, errors.New("a BOS token is to be prepended, but there is none")
	}
	if o.BOS < 0 {
		return []bool{false}, nil
	}
	if o.PrependBOS == nil {
		return []bool{true, false}, nil
	}
	for _, ids := range o.Sequences { // it is in the text: another would be a second one
		if len(ids) > 0 && ids[0] == o.BOS {
			return []bool{*o.PrependBOS}, nil
		}
	}
	return []bool{*o.PrependBOS, !*o.PrependBOS}, nil
}

func (e *Engine) report(o SelfTestOptions, s *sample, claimed *candidate) extraction.SelfTest {
	t := extraction.SelfTest{
		Hook: e.hook.String(), Tokens: claimed.tokens, FVU: claimed.fvu(), L0: claimed.l0(),
		L0All: float64(claimed.fedFires) / float64(max(1, claimed.fed)), MedianNorm: claimed.norms.median,
		DeadShare: claimed.deadShare(), SinkShare: claimed.sinkShare(), PrependBOS: s.prepend, BOS: -1,
		Rho: sparsityRho(claimed.tapScore, e.sae.sparsity),
	}
	if s.prepend {
		t.BOS = o.BOS
	}
	if e.sae.config.Transcoder {
		t.HookOut = e.out.String()
	}
	if o.PublishedL0 > 0 {
		t.PublishedL0 = &o.PublishedL0
	}
	return t
}

func (e *Engine) tapReport(c *candidate) extraction.Tap {
	t := extraction.Tap{Hook: c.in.String(), FVU: c.fvu(), L0: c.l0(), Tokens: c.fewTokens(), Rho: sparsityRho(c.tapScore, e.sae.sparsity)}
	if e.sae.config.Transcoder {
		t.HookOut = c.out.String()
	}
	if c.tokens > 0 {
		dead, sinks := c.deadShare(), c.sinkShare()
		t.DeadShare, t.SinkShare = &dead, &sinks
	}
	return t
}

func (c *candidate) alternative(name string) extraction.Alternative {
	return extraction.Alternative{If: name, FVU: c.fvu(), L0: c.l0(), Tokens: c.fewTokens()}
}

// fewTokens is how many tokens decided, 0 where all were measured.
func (c *candidate) fewTokens() int {
	if c.few {
		return c.tokens
	}
	return 0
}

// less orders FVUs; one that is not finite comes last.
func less(a, b *float64) bool {
	return a != nil && (b == nil || *a < *b)
}

// judge gives the verdict and the warnings.
func (e *Engine) judge(t *extraction.SelfTest, bos extraction.Alternative) {
	if e.sae.config.ActivationsOnly {
		e.judgeActivations(t)
	} else {
		t.Mismatch = mismatch(*t)
		for _, w := range t.WhatIf {
			if t.Mismatch == "" && w.Tokens == 0 && clearlyBetter(w.FVU, t.FVU, betterBy) {
				t.Warnings = append(t.Warnings, fmt.Sprintf("FVU is %.4g, but would be %.4g if %s", *t.FVU, *w.FVU, w.If))
			}
		}
	}
	if bos.If != "" {
		t.WhatIf = append(t.WhatIf, bos)
		if !t.BOSTried && bos.Tokens == 0 && clearlyBetter(bos.FVU, t.FVU, betterBy) {
			t.Warnings = append(t.Warnings, fmt.Sprintf("FVU is %.4g, but would be %.4g if %s", *t.FVU, *bos.FVU, bos.If))
		}
	}
	if said := e.sae.config.PrependBOS; said != nil && *said != t.PrependBOS {
		were := map[bool]string{true: "a BOS token in front of every sequence", false: "no BOS token"}
		t.Warnings = append(t.Warnings, "the SAE was trained with "+were[*said]+"; here is "+map[bool]string{true: "one", false: "none"}[t.PrependBOS])
	}
	if best := attainableRho(e.sae.sparsity, t.Tokens); t.Rho != nil && best != nil && *t.Rho < unlike**best {
		t.Warnings = append(t.Warnings, fmt.Sprintf("how often latents fire is unlike their published densities: Spearman's ρ is %.2f, and %.2f would be had of as many tokens if nothing were wrong", *t.Rho, *best))
	}
	if t.L0 != nil && t.PublishedL0 != nil && !e.sae.fixedL0() && *t.L0 > tooDense**t.PublishedL0 {
		t.Warnings = append(t.Warnings, fmt.Sprintf("L0 is %.1f, more than twice the published %.1f", *t.L0, *t.PublishedL0))
	}
}

// judgeActivations takes FVU back: one layer of a cross-layer transcoder reconstructs nothing by itself.
func (e *Engine) judgeActivations(t *extraction.SelfTest) {
	if t.L0 == nil {
		t.Mismatch = "the activations at " + t.Hook + " are not finite"
	}
	t.FVU, t.WhatIf = nil, nil
	for i := range t.Taps {
		t.Taps[i].FVU = nil
	}
	t.Warnings = append(t.Warnings, "its reconstruction is a part of one: nothing says whether it belongs at "+t.Hook)
}

func clearlyBetter(a, than *float64, by float64) bool {
	return a != nil && (than == nil || *a < by**than)
}

// mismatch is the verdict. What a few tokens decided is not better, whatever its FVU is on them.
func mismatch(t extraction.SelfTest) string {
	var best *float64
	hint := ""
	for _, tap := range t.Taps {
		if tap.Tokens == 0 && (tap.Hook != t.Hook || tap.HookOut != t.HookOut) && clearlyBetter(tap.FVU, t.FVU, betterBy) && less(tap.FVU, best) {
			best = tap.FVU
			name := tap.Hook
			if tap.HookOut != t.HookOut {
				name += " → " + tap.HookOut
			}
			hint = fmt.Sprintf("; %s fits better: FVU %.4g, L0 %.1f", name, *tap.FVU, *tap.L0)
		}
	}
	for _, w := range t.WhatIf {
		if w.Tokens == 0 && clearlyBetter(w.FVU, t.FVU, muchBetterBy) && less(w.FVU, best) {
			best = w.FVU
			hint = fmt.Sprintf("; FVU would be %.4g if %s", *w.FVU, w.If)
		}
	}
	found := best != nil
	if found && *best >= 1 {
		hint = ""
	}
	switch {
	case t.FVU == nil:
		return "the reconstruction at " + t.Hook + " is not finite" + hint
	case *t.FVU >= 1:
		return fmt.Sprintf("at %s the SAE reconstructs worse than the mean would: FVU %.4g (below 1 is needed)%s", t.Hook, *t.FVU, hint)
	case found:
		return fmt.Sprintf("FVU at %s is %.4g%s", t.Hook, *t.FVU, hint)
	}
	return ""
}

// taps are the places to score, the claimed one among them, in the order of the model. A transcoder's
// neighbours read and predict one layer on; or they read, or predict, something else of its own layer.
func (e *Engine) taps() []tap {
	// What a norm makes is not the residual stream, however alike their names are.
	inputs := e.model.near(e.hook, tapReach, LN1Normalized, LN2Normalized, MLPIn, AttnZ)
	var out []tap
	for _, h := range inputs {
		t := tap{h, h}
		if e.sae.config.Transcoder {
			t.out = e.out
			t.out.Layer += h.Layer - e.hook.Layer
		}
		if e.model.Width(t.out) == e.sae.config.DOut {
			out = append(out, t)
		}
		if h != e.hook || !e.sae.config.Transcoder {
			continue
		}
		for _, another := range e.model.near(e.out, 0) {
			if another != e.out && another.Layer == e.out.Layer {
				out = append(out, tap{e.hook, another})
			}
		}
	}
	return out
}

// alternatives are the claimed tap with one thing otherwise about the SAE. meanNorm is that of the
// SAE's input without sinks, l0 how many latents fire now.
func (e *Engine) alternatives(meanNorm float64, l0 *float64) []*candidate {
	a := e.sae
	if a.temporal != nil || a.config.Architecture == "matching_pursuit" {
		return nil
	}
	var out []*candidate
	would := func(name string, change func(*SAE)) {
		out = append(out, e.candidate(tap{e.hook, e.out}, name, change))
	}
	normalized := func(name string, mode normalization, factor float64) {
		would(name, func(a *SAE) {
			a.mode, a.factor = mode, factor
			if !a.config.Transcoder {
				a.undo = mode
			}
		})
	}
	for mode, name := range []string{asItIs: "none", constantNorm: "constant_norm_rescale", layerNorm: "layer_norm"} {
		if normalization(mode) != a.mode {
			normalized("normalize_activations were "+name, normalization(mode), 0)
		}
	}
	if a.mode == asItIs && meanNorm > 0 {
		here := math.Sqrt(float64(a.config.DIn)) / meanNorm
		if folded := a.config.ScalingFactor; folded != 0 {
			normalized("the scaling factor were left out", constantScalar, 1/folded)
			normalized(fmt.Sprintf("the scaling factor were %.4g, as this text has it", here), constantScalar, here/folded)
		} else {
			normalized(fmt.Sprintf("normalize_activations were expected_average_only_in, by %.4g", here), constantScalar, here)
		}
	}
	switch {
	case a.config.Transcoder:
	case a.shift == nil:
		would("apply_b_dec_to_input were true", func(a *SAE) { a.shift = a.bDec })
	default:
		would("apply_b_dec_to_input were false", func(a *SAE) { a.shift = nil })
	}
	if !a.fixedL0() && l0 != nil { // a threshold that was lost lets noise fire, which only spoils the sum
		for _, part := range []struct {
			name  string
			share float64
		}{{"half", 2}, {"eighth", 8}} {
			if k := int64(*l0 / part.share); k > 0 {
				would(fmt.Sprintf("only the strongest %s, %d latents a token, fired", part.name, k), func(a *SAE) { a.limit = k })
			}
		}
	}
	return out
}
