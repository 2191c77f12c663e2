package torch

import (
	"context"
	"fmt"
	"math"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// SAE is a sparse autoencoder on a device. u = norm(x) − b_dec?, z = u·W_enc + b_enc (times decoder
// norms?), acts = what fires in z; decode = norm⁻¹(acts·W_dec + b_dec) (SAELens 6 sae.py, *_sae.py).
type SAE struct {
	runtime  *Runtime
	config   checkpoint.SAEConfig
	mode     normalization
	sparsity []float32 // log10 of training frequencies, nil if unknown

	wEnc, wDec  tensor // [d_in, d_sae], [d_sae, d_out]
	bEnc, bDec  tensor
	scale       tensor // ‖W_dec rows‖ for top-k with rescale, else nil
	unscale     tensor // 1/scale, 0 for a zero row
	threshold   tensor // max(threshold, 0) for jumprelu, else nil
	memory      []block
	work        workspace
	encoder     encoder
	chunkTokens int64
}

type normalization int

// The numbers are those of fm_sae_input.
const (
	asItIs normalization = iota
	constantNorm
	layerNorm
)

// LoadSAE copies an SAE's weights: s may be closed afterwards.
func (r *Runtime) LoadSAE(ctx context.Context, s *checkpoint.SAE) (*SAE, error) {
	c := s.Config
	a := &SAE{runtime: r, config: c}
	switch c.Architecture {
	case "standard", "topk", "jumprelu":
	default:
		return nil, &checkpoint.UnsupportedError{Kind: "SAE architecture", Name: c.Architecture, Supported: []string{"standard", "topk", "jumprelu"}}
	}
	if c.Signed {
		return nil, &checkpoint.UnsupportedError{Kind: "SAE with signed activations", Name: c.Architecture, Supported: []string{"standard", "topk", "jumprelu"}}
	}
	switch c.Normalization {
	case checkpoint.NormNone, "":
		a.mode = asItIs
	case checkpoint.NormConstant:
		a.mode = constantNorm
	case checkpoint.NormLayer:
		a.mode = layerNorm
	case checkpoint.NormExpected:
		return nil, &checkpoint.ScalingFactorError{}
	default:
		return nil, &checkpoint.UnsupportedError{Kind: "normalize_activations", Name: c.Normalization, Supported: []string{checkpoint.NormNone, checkpoint.NormConstant, checkpoint.NormLayer}}
	}
	if values, ok := s.Sparsity(); ok {
		a.sparsity = append([]float32(nil), values...)
	}
	// z of one chunk: 32 MiB, and at least 16 tokens however wide the SAE is.
	a.chunkTokens = min(1024, max(16, (32<<20)/(4*int64(c.DSAE))))
	err := r.do(ctx, func(sc *scope) error { return a.load(sc, s) })
	if err != nil {
		a.release()
		return nil, fmt.Errorf("load SAE: %w", err)
	}
	return a, nil
}

func (a *SAE) load(sc *scope, s *checkpoint.SAE) error {
	c := s.Config
	in, n, out := int64(c.DIn), int64(c.DSAE), int64(c.DOut)
	a.wEnc = a.bind(sc, s.WEnc, in, n)
	a.bEnc = a.bind(sc, s.BEnc, n)
	a.wDec = a.bind(sc, s.WDec, n, out)
	a.bDec = a.bind(sc, s.BDec, out)
	if c.Architecture == "jumprelu" {
		above := make([]float32, len(s.Threshold))
		for i, t := range s.Threshold { // relu(z) where z > t: what is not above 0 is no firing
			above[i] = max(t, 0)
		}
		a.threshold = a.bind(sc, above, n)
	}
	if c.RescaleActsByDecoderNorm {
		norms, inverse := make([]float32, n), make([]float32, n)
		for i := range norms {
			sum := 0.0
			for _, w := range s.WDec[i*c.DOut : (i+1)*c.DOut] {
				sum += float64(w) * float64(w)
			}
			norms[i] = float32(math.Sqrt(sum))
			if norms[i] > 0 {
				inverse[i] = 1 / norms[i]
			}
		}
		a.scale, a.unscale = a.bind(sc, norms, n), a.bind(sc, inverse, n)
	}
	if sc.device == cpu {
		a.encoder = &fusedEncoder{a: a, threads: a.runtime.profile.Threads}
	} else {
		a.encoder = &composedEncoder{a: a}
	}
	return sc.err
}

// bind makes a tensor that lives as long as the SAE.
func (a *SAE) bind(s *scope, values []float32, shape ...int64) tensor {
	if s.err != nil {
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
	if s.err != nil {
		return nil
	}
	return s.disown(t)
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
	for _, t := range []*tensor{&a.wEnc, &a.bEnc, &a.wDec, &a.bDec, &a.scale, &a.unscale, &a.threshold} {
		if *t != nil {
			lib.AtFree(*t)
			*t = nil
		}
	}
	for i := range a.memory {
		a.memory[i].free()
	}
	a.memory = nil
	a.work.free()
}

// k is how many may fire; 0 = as many as are above the threshold.
func (a *SAE) k() int64 {
	if a.config.Architecture == "topk" {
		return int64(a.config.K)
	}
	return 0
}

// encode hands the firings of x's rows, [rows, d_in], to visit, a chunk at a time, in order.
func (a *SAE) encode(s *scope, x tensor, rows int64, visit func(s *scope, first int64, f *firings)) {
	for first := int64(0); first < rows && s.alive(); first += a.chunkTokens {
		n := min(a.chunkTokens, rows-first)
		s.inner(func(s *scope) tensor {
			if f := a.encoder.fire(s, s.narrow(x, 0, first, n)); s.err == nil {
				visit(s, first, f)
			}
			return nil
		})
	}
}

// Encoding is what an SAE makes of n vectors.
type Encoding struct {
	Acts   []float32 // [n, d_sae]
	Decode []float32 // [n, d_out]: decode of Acts
	Recon  []float32 // [n, d_out]: the whole forward; differs from Decode where an SAE has a skip or predicted part
}

// Encode computes dense activations and reconstructions of x: [n, d_in]. For a handful of vectors;
// Engine.Batch is the sparse way.
func (a *SAE) Encode(ctx context.Context, x []float32, n int) (Encoding, error) {
	if len(x) != n*a.config.DIn {
		return Encoding{}, fmt.Errorf("encode: %d values for %d vectors of d_in %d", len(x), n, a.config.DIn)
	}
	e := Encoding{
		Acts:   make([]float32, n*a.config.DSAE),
		Decode: make([]float32, n*a.config.DOut),
	}
	err := a.runtime.do(ctx, func(s *scope) error {
		in := s.floats(x, int64(n), int64(a.config.DIn))
		a.encode(s, in, int64(n), func(s *scope, first int64, f *firings) {
			dense := a.encoder.dense(s, f)
			s.read(dense, e.Acts[int(first)*a.config.DSAE:][:len(f.counts)*a.config.DSAE])
			s.read(a.encoder.decode(s, dense, f), e.Decode[int(first)*a.config.DOut:][:len(f.counts)*a.config.DOut])
		})
		return s.err
	})
	if err != nil {
		return Encoding{}, fmt.Errorf("encode: %w", err)
	}
	e.Recon = e.Decode
	return e, nil
}
