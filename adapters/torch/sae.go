package torch

import (
	"context"
	"fmt"
	"math"
	"slices"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// SAE is a sparse autoencoder or a transcoder on a device. u = norm(x) − b_dec?, acts = what fires in u; decode = norm⁻¹(acts·W_dec
// + b_dec); the whole forward adds what an SAE skips or predicts (SAELens 6.54, saes/*.py; sparsify 1.3.3, sparse_coder.py).
type SAE struct {
	runtime  *Runtime
	config   checkpoint.SAEConfig
	mode     normalization // of the input
	undo     normalization // of the output; none for a transcoder
	factor   float64       // constantScalar's
	limit    int64         // of the strongest latents of a token; 0 = none: a self-test's question
	sparsity []float32     // log10 of training frequencies, nil if unknown

	wEnc, wDec tensor // [d_in, d_sae], [d_sae, d_out]
	bEnc       tensor // nil where an architecture has none
	shift      tensor // b_dec where it is subtracted from the input, else nil
	bDec       tensor // b_dec where it is added to the output, else nil
	wSkip      tensor // [d_in, d_out], else nil
	scale      tensor // ‖W_dec rows‖ for top-k with rescale, else nil
	unscale    tensor // 1/scale, 0 for a zero row
	threshold  tensor // max(threshold, 0) for jumprelu, else nil
	gate       tensor // gated: z + gate > 0 opens, relu(z·magnitude + bMag) is the value
	magnitude  tensor
	bMag       tensor
	attention  []temporalLayer
	temporal   *checkpoint.Temporal // its numbers; weights are in attention
	pursuit    checkpoint.Pursuit

	parameters  []tensor // every tensor above, to be freed
	memory      []block
	work        workspace
	encoder     encoder
	chunkTokens int64
}

type normalization int

// The first three are the numbers of fm_sae_input.
const (
	asItIs normalization = iota
	constantNorm
	layerNorm
	constantScalar // temporal SAEs only
)

func architectures() []string {
	return []string{"standard", "topk", "groupmax", "jumprelu", "gated", "matching_pursuit", "temporal"}
}

// LoadSAE copies an SAE's weights: s may be closed afterwards.
func (r *Runtime) LoadSAE(ctx context.Context, s *checkpoint.SAE) (*SAE, error) {
	c := s.Config
	a := &SAE{runtime: r, config: c}
	switch {
	case !slices.Contains(architectures(), c.Architecture):
		return nil, &checkpoint.UnsupportedError{Kind: "SAE architecture", Name: c.Architecture, Supported: architectures()}
	case c.Signed:
		return nil, &checkpoint.UnsupportedError{Kind: "SAE with signed activations", Name: c.Architecture, Supported: architectures()}
	case c.Transcoder && c.ApplyBDecToInput:
		return nil, &checkpoint.FormatError{Fact: "a transcoder with apply_b_dec_to_input", Want: "false: b_dec belongs to the output's space"}
	case c.Architecture == "groupmax" && (c.K < 1 || c.DSAE%c.K != 0):
		return nil, &checkpoint.FormatError{Fact: fmt.Sprintf("groupmax with d_sae %d and k %d", c.DSAE, c.K), Want: "a k that divides d_sae"}
	case c.Architecture == "topk" && (c.K < 1 || c.K > c.DSAE):
		return nil, &checkpoint.FormatError{Fact: fmt.Sprintf("top-k with d_sae %d and k %d", c.DSAE, c.K), Want: "a k from 1 to d_sae"}
	}
	if err := a.setNormalization(s); err != nil {
		return nil, err
	}
	if values, ok := s.Sparsity(); ok {
		a.sparsity = append([]float32(nil), values...)
	}
	// z of one chunk: 32 MiB, and at least 16 tokens however wide the SAE is.
	a.chunkTokens = min(1024, max(16, (32<<20)/(4*int64(max(c.DSAE, 1)))))
	if r.device != cpu { // 512 MiB, three times
		a.chunkTokens = min(8192, max(16, (512<<20)/(4*int64(max(c.DSAE, 1)))))
	}
	err := r.do(ctx, func(sc *scope) error { return a.load(sc, s) })
	if err != nil {
		a.release()
		return nil, fmt.Errorf("load SAE: %w", err)
	}
	return a, nil
}

func (a *SAE) setNormalization(s *checkpoint.SAE) error {
	c := s.Config
	supported := []string{checkpoint.NormNone, checkpoint.NormConstant, checkpoint.NormLayer}
	switch c.Normalization {
	case checkpoint.NormNone, "", normScalar:
		a.mode = asItIs
	case checkpoint.NormConstant:
		a.mode = constantNorm
	case checkpoint.NormLayer:
		a.mode = layerNorm
	case checkpoint.NormExpected:
		return &checkpoint.ScalingFactorError{}
	default:
		return &checkpoint.UnsupportedError{Kind: "normalize_activations", Name: c.Normalization, Supported: supported}
	}
	switch {
	case s.Temporal != nil && a.mode == asItIs && s.Temporal.ActivationScale != 0 && s.Temporal.ActivationScale != 1: //nolint:revive // 1 scales nothing
		a.mode, a.factor = constantScalar, s.Temporal.ActivationScale
	case s.Temporal == nil && c.Normalization == normScalar:
		return &checkpoint.UnsupportedError{Kind: "normalize_activations", Name: c.Normalization + " outside a temporal SAE", Supported: supported}
	}
	if !c.Transcoder { // what a transcoder writes lies in another space than what it reads
		a.undo = a.mode
	}
	return nil
}

// normScalar is temporal SAEs' own normalisation: times a number on the way in, divided by it on the way out.
const normScalar = "constant_scalar_rescale"

func (a *SAE) load(sc *scope, s *checkpoint.SAE) error {
	c := s.Config
	in, n, out := int64(c.DIn), int64(c.DSAE), int64(c.DOut)
	a.wDec = a.bind(sc, "W_dec", s.WDec, n, out)
	bDec := a.bind(sc, "b_dec", s.BDec, out)
	if c.ApplyBDecToInput {
		a.shift = bDec
	}
	a.bDec = bDec
	tied := c.Architecture == "matching_pursuit" || s.Temporal != nil && s.Temporal.Tied
	if tied { // what was never subtracted is not added either
		a.bDec = a.shift
	}
	if tied && s.WEnc == nil {
		a.wEnc = a.keep(sc, sc.contiguous(sc.t(a.wDec)))
	} else {
		a.wEnc = a.bind(sc, "W_enc", s.WEnc, in, n)
	}
	if s.WSkip != nil {
		a.wSkip = a.keep(sc, sc.t(a.bind(sc, "W_skip", s.WSkip, out, in)))
	}
	if sc.device == cpu {
		a.encoder = &fusedEncoder{a: a, threads: a.runtime.profile.Threads}
	} else {
		a.encoder = &composedEncoder{a: a}
	}
	switch c.Architecture {
	case "standard", "topk", "jumprelu":
		a.bEnc = a.bind(sc, "b_enc", s.BEnc, n)
	case "groupmax":
		a.bEnc = a.bind(sc, "b_enc", s.BEnc, n)
		a.encoder = &composedEncoder{a: a}
	case "gated":
		grown := make([]float32, len(s.RMag))
		for i, r := range s.RMag {
			grown[i] = float32(math.Exp(float64(r)))
		}
		a.gate, a.bMag = a.bind(sc, "b_gate", s.BGate, n), a.bind(sc, "b_mag", s.BMag, n)
		a.magnitude = a.bind(sc, "r_mag", grown, n)
		a.encoder = &composedEncoder{a: a}
	case "matching_pursuit":
		if s.Pursuit == nil {
			return &checkpoint.FormatError{Fact: "a matching pursuit without the rules that end it", Want: "residual_threshold, max_iterations and stop_on_duplicate_support"}
		}
		a.pursuit = *s.Pursuit
		a.encoder = &composedEncoder{a: a}
	case "temporal":
		if err := a.loadTemporal(sc, s.Temporal); err != nil {
			return err
		}
		a.encoder = &composedEncoder{a: a}
	}
	if c.Architecture == "jumprelu" {
		above := make([]float32, len(s.Threshold))
		for i, t := range s.Threshold { // relu(z) where z > t: what is not above 0 is no firing
			above[i] = max(t, 0)
		}
		a.threshold = a.bind(sc, "threshold", above, n)
	}
	if c.RescaleActsByDecoderNorm {
		a.bindNorms(sc, s)
	}
	return sc.err
}

func (a *SAE) bindNorms(sc *scope, s *checkpoint.SAE) {
	n, width := s.Config.DSAE, s.Config.DOut
	norms, inverse := make([]float32, n), make([]float32, n)
	for i := range norms {
		sum := 0.0
		for _, w := range s.WDec[i*width : (i+1)*width] {
			sum += float64(w) * float64(w)
		}
		norms[i] = float32(math.Sqrt(sum))
		if norms[i] > 0 {
			inverse[i] = 1 / norms[i]
		}
	}
	a.scale, a.unscale = a.bind(sc, "decoder norms", norms, int64(n)), a.bind(sc, "decoder norms", inverse, int64(n))
}

// bind makes a tensor that lives as long as the SAE.
func (a *SAE) bind(s *scope, name string, values []float32, shape ...int64) tensor {
	if s.err != nil {
		return nil
	}
	size := int64(1)
	for _, n := range shape {
		size *= n
	}
	if int64(len(values)) != size {
		s.fail(&checkpoint.FormatError{Fact: fmt.Sprintf("%s has %d values", name, len(values)), Want: fmt.Sprintf("%v, that is %d", shape, size)})
		return nil
	}
	b, err := copyToBlock(values)
	if err != nil {
		s.fail(err)
		return nil
	}
	t := s.toDevice(s.blob(b.data, shape[len(shape)-1], float32Type, shape...))
	if s.device != cpu {
		b.free()
	} else {
		a.memory = append(a.memory, b)
	}
	return a.keep(s, t)
}

// keep takes a tensor over from the scope.
func (a *SAE) keep(s *scope, t tensor) tensor {
	if s.err != nil {
		return nil
	}
	a.parameters = append(a.parameters, s.disown(t))
	return t
}

// Config is the checkpoint's.
func (a *SAE) Config() checkpoint.SAEConfig { return a.config }

// Close gives the memory back.
func (a *SAE) Close() error {
	return a.runtime.do(context.Background(), func(*scope) error {
		a.release()
		return nil
	})
}

func (a *SAE) release() {
	for _, t := range a.parameters {
		lib.AtFree(t)
	}
	a.parameters = nil
	for i := range a.memory {
		a.memory[i].free()
	}
	a.memory = nil
	a.work.free()
}
