package checkpoint

import "errors"

// SAE is a sparse autoencoder in canonical form: float32, row-major, shapes as given. The slices may be views of a mapped file
// until a fold makes them owned; treat them as read-only.
type SAE struct {
	Config SAEConfig

	WEnc      []float32 // [d_in, d_sae]
	BEnc      []float32 // [d_sae]
	WDec      []float32 // [d_sae, d_out], rows are feature directions
	BDec      []float32 // [d_out]
	Threshold []float32 // [d_sae] for jumprelu, else nil
}

// SAEConfig is what is known about an SAE beside its weights.
type SAEConfig struct {
	Format        string // "saelens"
	FormatVersion string // the sae_lens_version written in the file, "" for the old flat form that has none
	Architecture  string // standard, topk, jumprelu; abstopk is read but not encoded (Signed)
	DIn, DSAE     int
	DOut          int

	K                        int  // topk, abstopk; else 0
	RescaleActsByDecoderNorm bool // topk: z is multiplied by the norms of W_dec's rows before the choice, divided on decode
	ApplyBDecToInput         bool
	Signed                   bool // activations may be negative: statistics of features do not hold for it

	// Normalization is what is left to do at run time: none, constant_norm_rescale, layer_norm. An SAE whose file says
	// expected_average_only_in was folded with ScalingFactor when it was opened, and says none here.
	Normalization     string
	FileNormalization string  // as the file says
	ScalingFactor     float64 // the factor that was folded; 0 = none

	Hook      string // as in the file: blocks.8.hook_resid_post
	HookPoint string // resid_post, resid_pre, mlp_out, attn_out, …; "" when Hook is not of the form blocks.L.…
	Layer     int    // −1 when the hook names no layer
	HookOut   string // of a transcoder; else ""

	ModelName            string
	PrependBOS           *bool // nil: the file says nothing
	ContextSize          int   // 0: the file says nothing
	SeqposSlice          *PositionSlice
	ExcludeSpecialTokens ExcludedTokens
	Reshape              string // none, hook_z
	DType                string // of W_enc in the file: F32, F16, BF16, F64

	Folds  []string // what was folded into the weights: "activation-scale", "decoder-norm", "finetuning-scale"
	Files  []string // absolute paths whose bytes define what the SAE computes
	SHA256 string   // HashFiles(Files)
}

// PositionSlice is Python's slice over the positions of a sequence; nil takes every position.
type PositionSlice struct {
	Start, Stop, Step *int
}

// ExcludedTokens are token ids whose activations the SAE was not trained on.
type ExcludedTokens struct {
	All bool  // every special token of the tokenizer
	IDs []int // these ids
}

// SAEOption adds a fact that the files do not hold.
type SAEOption func(*saeOptions)

type saeOptions struct{ scalingFactor float64 }

// WithScalingFactor gives the factor sqrt(d_in) / mean ‖x‖ for an SAE normalised as expected_average_only_in. It outranks the
// file's own; for any other SAE it is refused (ScaleNotWantedError).
func WithScalingFactor(s float64) SAEOption {
	return func(o *saeOptions) { o.scalingFactor = s }
}

// OpenSAE opens a SAELens folder (cfg.json and sae_weights.safetensors), old flat form or version 6.
func OpenSAE(path string, options ...SAEOption) (*SAE, error) { return nil, errors.ErrUnsupported }

// FoldScalingFactor multiplies W_enc by s and divides W_dec and b_dec by it.
func (s *SAE) FoldScalingFactor(factor float64) error { return errors.ErrUnsupported }

// FoldDecoderNorm gives the rows of W_dec the norm 1 and scales W_enc, b_enc and the threshold by what the norms were.
func (s *SAE) FoldDecoderNorm() error { return errors.ErrUnsupported }

// Sparsity is log10 of each latent's firing frequency in training, where sparsity.safetensors is there.
func (s *SAE) Sparsity() ([]float32, bool) { return nil, false }

// Close ends every view that was handed out.
func (s *SAE) Close() error { return nil }
