package checkpoint

// SAEFacts are facts that a person adds where the files of an SAE do not hold them; the zero value adds none. Where the files
// hold a fact too, the person's counts and SAEConfig.Notes says so.
type SAEFacts struct {
	ScalingFactor    *float64 `json:"scaling_factor,omitempty"` // sqrt(d_in) / mean ‖x‖, for expected_average_only_in only
	Normalization    string   `json:"normalization,omitempty"`  // none, expected_average_only_in, constant_norm_rescale, layer_norm
	Architecture     string   `json:"architecture,omitempty"`   // where weights without a configuration leave it open: standard, topk
	K                int      `json:"k,omitempty"`
	ApplyBDecToInput *bool    `json:"apply_b_dec_to_input,omitempty"`
	ModelName        string   `json:"model_name,omitempty"`      // a repository of the hub
	Hook             string   `json:"hook,omitempty"`            // SAEConfig.Hook
	HookOut          string   `json:"hook_out,omitempty"`        // of a transcoder
	Layer            *int     `json:"layer,omitempty"`           // of files that hold several layers, it chooses one
	SkipTransposed   *bool    `json:"skip_transposed,omitempty"` // Gemma Scope 2: whether affine_skip_connection is to be transposed
	Repo             string   `json:"repo,omitempty"`            // owner/name on the hub, where the path does not say it: some facts are known by it
}

// SAEOption adds facts that the files do not hold.
type SAEOption func(*SAEFacts)

// WithFacts gives all of them.
func WithFacts(f SAEFacts) SAEOption { return func(o *SAEFacts) { *o = f } }

// WithScalingFactor gives the factor sqrt(d_in) / mean ‖x‖ for an SAE normalised as expected_average_only_in. It outranks the
// file's own; for any other SAE it is refused (ScaleNotWantedError).
func WithScalingFactor(s float64) SAEOption { return func(o *SAEFacts) { o.ScalingFactor = &s } }

// WithNormalization says how the SAE's input is normalised.
func WithNormalization(mode string) SAEOption { return func(o *SAEFacts) { o.Normalization = mode } }
