package checkpoint

import (
	"fmt"
	"math"
	"slices"
)

// SAE is a sparse autoencoder in canonical form: float32, row-major, shapes as given. The slices may be views of a mapped file
// until a fold makes them owned; treat them as read-only.
type SAE struct {
	Config SAEConfig

	WEnc      []float32 // [d_in, d_sae]
	BEnc      []float32 // [d_sae]
	WDec      []float32 // [d_sae, d_out], rows are feature directions
	BDec      []float32 // [d_out]
	Threshold []float32 // [d_sae] for jumprelu, else nil

	// What only some architectures have; nil for all others.
	BGate, BMag, RMag []float32 // [d_sae], gated; BEnc is nil then
	WSkip             []float32 // [d_out, d_in]: ŷ gains x·WSkipᵀ, x as it was tapped
	Temporal          *Temporal
	Pursuit           *Pursuit // matching_pursuit; WEnc and BEnc are nil then: the encoder is W_decᵀ

	sparsity []float32
	owned    bool
	close    []func() error
}

// SAEConfig is what is known about an SAE beside its weights.
type SAEConfig struct {
	Format        string // "saelens", "sparsify", …: SAEFormats
	FormatVersion string // the sae_lens_version written in the file; "" for files that have none

	// Architecture says how latents are chosen, whatever the SAE reads and writes: standard, topk, groupmax, jumprelu, gated,
	// matching_pursuit, temporal; abstopk is read, but nothing here encodes it (Signed).
	Architecture     string
	FileArchitecture string // in the file's own words: jumprelu_skip_transcoder, BatchTopKSAE, …; "" where it has none
	Transcoder       bool   // reads Hook and predicts HookOut; b_dec is never subtracted from its input, its output never normalised
	DIn, DSAE        int
	DOut             int

	K                        int  // topk, groupmax, abstopk; else 0
	RescaleActsByDecoderNorm bool // topk: z is multiplied by the norms of W_dec's rows before the choice, divided on decode
	ApplyBDecToInput         bool
	Signed                   bool // activations may be negative: statistics of features do not hold for it

	// Normalization is what is left to do at run time: none, constant_norm_rescale, layer_norm. An SAE whose file says
	// expected_average_only_in was folded with ScalingFactor when it was opened, and says none here.
	Normalization     string
	FileNormalization string  // as the file says
	ScalingFactor     float64 // the factor that was folded; 0 = none

	// Hook is a TransformerLens name (blocks.8.hook_resid_post) or, where none means the same tensor, the name of a module in
	// transformers with .input or .output behind it (model.layers.8.mlp.input).
	Hook      string
	HookPoint string // resid_post, resid_pre, mlp_out, attn_out, …; "" when Hook is not of the form blocks.L.…
	Layer     int    // −1 when neither the hook nor the file names a layer
	HookOut   string // of a transcoder; else ""
	FileHook  string // the file's own words, where Hook says them in others; else ""

	// CenterWritingWeights: the SAE was trained on a model whose residual stream has mean 0 over d_model at every token, as
	// TransformerLens makes it. The same for raw weights: subtract each token's mean from what is tapped.
	CenterWritingWeights bool
	ActivationsOnly      bool // decode is no reconstruction: one layer of a cross-layer transcoder, decoders summed

	ModelName            string
	Repo                 string // owner/name on the hub, where the path or an option says it
	PrependBOS           *bool  // nil: the file says nothing
	ContextSize          int    // 0: the file says nothing
	SeqposSlice          *PositionSlice
	ExcludeSpecialTokens ExcludedTokens
	Reshape              string // none, hook_z
	DType                string // of W_enc in the file: F32, F16, BF16, F64

	Folds  []string // what was folded into the weights, in order: FoldScale, FoldDecoder, FoldFinetuning
	Files  []string // absolute paths whose bytes define what the SAE computes
	SHA256 string   // HashFiles of them

	Origins map[string]string // where each fact came from, by its JSON name in domain/sae: "cfg.json", "known.yaml: …", "option", …
	Notes   []string          // what a reader of the numbers should know
}

// Temporal holds the attention layers of a temporal SAE, which predict codes from a sequence's earlier tokens
// (SAELens 6.54, temporal_sae.py).
type Temporal struct {
	Layers          []TemporalLayer
	Heads           int
	BottleneckDim   int     // of queries and keys, of all heads
	ActivationScale float64 // constant_scalar_rescale: x is multiplied by it, ŷ divided
	TopK            int     // of the novel codes; 0 = relu alone
	Lambda          float64 // 1 / (4 d_in)
	Tied            bool    // W_enc is W_decᵀ (WEnc is nil, or that); b_dec is then added on decode only if ApplyBDecToInput
}

// Pursuit says when a matching pursuit ends (SAELens 6.54, matching_pursuit_sae.py).
type Pursuit struct {
	ResidualThreshold      float64 // a token is done when its residual's norm is below it; 0 = never
	MaxIterations          int     // 0 = d_in
	StopOnDuplicateSupport bool    // a token is done when an iteration chose no new latent
}

// TemporalLayer is one of its layers: weights are [out, in], biases [out] or nil.
type TemporalLayer struct {
	KWeight, QWeight, VWeight, CWeight []float32
	KBias, QBias, VBias, CBias         []float32
}

// What can be folded into the weights.
const (
	FoldScale      = "activation-scale"
	FoldDecoder    = "decoder-norm"
	FoldFinetuning = "finetuning-scale"
)

// The normalisations of an SAE's input.
const (
	NormNone     = "none"
	NormExpected = "expected_average_only_in"
	NormConstant = "constant_norm_rescale"
	NormLayer    = "layer_norm"
)

// PositionSlice is Python's slice over the positions of a sequence; nil takes every position.
type PositionSlice struct {
	Start, Stop, Step *int // Step is above 0
}

// Contains says whether the slice takes a position of a sequence of that length.
func (s *PositionSlice) Contains(position, length int) bool {
	if position < 0 || position >= length {
		return false
	}
	if s == nil {
		return true
	}
	bound := func(at *int, otherwise int) int {
		switch {
		case at == nil:
			return otherwise
		case *at < 0:
			return max(0, length+*at)
		default:
			return min(*at, length)
		}
	}
	start, stop, step := bound(s.Start, 0), bound(s.Stop, length), 1
	if s.Step != nil {
		step = *s.Step
	}
	return position >= start && position < stop && (position-start)%step == 0
}

// ExcludedTokens are token ids whose activations the SAE was not trained on.
type ExcludedTokens struct {
	All bool  // every special token of the tokenizer
	IDs []int // these ids
}

// Sparsity is log10 of each latent's firing frequency in training, [d_sae], where sparsity.safetensors is there.
func (s *SAE) Sparsity() ([]float32, bool) { return s.sparsity, s.sparsity != nil }

// Close ends every view that was handed out.
func (s *SAE) Close() error {
	var first error
	for _, c := range s.close {
		if err := c(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// FoldScalingFactor folds the input's scale: W_enc is multiplied by it, W_dec and b_dec are divided, b_enc and the threshold stay.
// OpenSAE has done it already where the file asks for it; folding twice is a ScaleNotWantedError.
func (s *SAE) FoldScalingFactor(factor float64) error {
	if s.Config.Normalization != NormExpected {
		return &ScaleNotWantedError{Normalization: s.Config.Normalization, Folded: slices.Contains(s.Config.Folds, FoldScale)}
	}
	switch {
	case s.Config.Transcoder:
		return &FoldError{Fact: "a transcoder with " + NormExpected + " has no definition: its input is scaled, and nothing says on which scale its output is"}
	case s.Config.Architecture == "matching_pursuit" || s.Config.Architecture == "temporal":
		return &FoldError{Fact: NormExpected + " cannot be folded into an SAE of the architecture " + s.Config.Architecture + ": its encoder is its decoder"}
	}
	by := float32(factor)
	if !(by > 0) || math.IsInf(float64(by), 0) {
		return &FormatError{Fact: fmt.Sprintf("the scaling factor is %v", factor), Want: "a number above 0"}
	}
	s.own()
	scale(s.WEnc, func(v float32) float32 { return v * by })
	scale(s.WDec, func(v float32) float32 { return v / by })
	scale(s.BDec, func(v float32) float32 { return v / by })
	s.Config.Normalization, s.Config.ScalingFactor = NormNone, factor
	s.Config.Folds = append(s.Config.Folds, FoldScale)
	return nil
}

// minDecoderNorm is the least norm that a fold divides by (SAELens 6.54, get_W_dec_norm): a dead latent's zero row stays zero.
const minDecoderNorm = 1e-8

// FoldDecoderNorm gives the rows of W_dec the norm 1 and multiplies W_enc's columns, b_enc and the threshold by what the norms
// were, so that activations have the size of what they add to the output. A top-k choice would change unless the SAE weighs by
// the norms anyway: without that it is a FoldError. A second fold changes nothing.
func (s *SAE) FoldDecoderNorm() error {
	if slices.Contains(s.Config.Folds, FoldDecoder) {
		return nil
	}
	switch {
	case s.Config.Architecture == "matching_pursuit" || s.Config.Architecture == "temporal":
		return &FoldError{Fact: "decoder norms cannot be folded into an SAE of the architecture " + s.Config.Architecture + ": its encoder is its decoder"}
	case s.Config.Architecture == "groupmax":
		return &FoldError{Fact: "decoder norms cannot be folded into a groupmax SAE: it would choose other latents"}
	case s.Config.K > 0 && !s.Config.RescaleActsByDecoderNorm:
		return &FoldError{Fact: "decoder norms cannot be folded into a top-k SAE without rescale_acts_by_decoder_norm: it would choose other latents"}
	}
	s.own()
	norms := s.decoderNorms()
	dSAE, dOut := s.Config.DSAE, s.Config.DOut
	for i, n := range norms {
		row := s.WDec[i*dOut : (i+1)*dOut]
		for j := range row {
			row[j] /= n
		}
	}
	inParallel(len(s.WEnc), func(from, to int) {
		for i := from; i < to; i++ {
			s.WEnc[i] *= norms[i%dSAE]
		}
	})
	// A gate opens by the sign of z, which a norm keeps; r_mag multiplies W_enc, which has the norm already.
	for _, biases := range [][]float32{s.BEnc, s.Threshold, s.BGate, s.BMag} {
		for i := range biases {
			biases[i] *= norms[i]
		}
	}
	s.Config.Folds = append(s.Config.Folds, FoldDecoder)
	return nil
}

func (s *SAE) decoderNorms() []float32 {
	norms := make([]float32, s.Config.DSAE)
	for i := range norms {
		sum := 0.0
		for _, v := range s.WDec[i*s.Config.DOut : (i+1)*s.Config.DOut] {
			sum += float64(v) * float64(v)
		}
		norms[i] = float32(max(math.Sqrt(sum), minDecoderNorm))
	}
	return norms
}

// own copies what may be a view of the read-only map.
func (s *SAE) own() {
	if s.owned {
		return
	}
	s.WEnc, s.BEnc, s.WDec, s.BDec = slices.Clone(s.WEnc), slices.Clone(s.BEnc), slices.Clone(s.WDec), slices.Clone(s.BDec)
	s.Threshold, s.WSkip = slices.Clone(s.Threshold), slices.Clone(s.WSkip)
	s.BGate, s.BMag, s.RMag = slices.Clone(s.BGate), slices.Clone(s.BMag), slices.Clone(s.RMag)
	s.owned = true
}

func scale(values []float32, f func(float32) float32) {
	inParallel(len(values), func(from, to int) {
		for i := from; i < to; i++ {
			values[i] = f(values[i])
		}
	})
}
