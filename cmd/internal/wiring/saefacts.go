package wiring

import "github.com/featuremill/featuremill/adapters/checkpoint"

// SAEFacts are the flags by which a person says of an SAE what its files leave open: in both programs the same.
type SAEFacts struct {
	ScalingFactor  *float64 `placeholder:"S" help:"For an SAE normalised as expected_average_only_in: sqrt(d_in) / mean norm of its training data."`
	Normalize      string   `enum:",none,expected_average_only_in,constant_norm_rescale,layer_norm" default:"" placeholder:"HOW" help:"How its input is normalised: none, expected_average_only_in, constant_norm_rescale or layer_norm."`
	K              int      `placeholder:"N" help:"How many latents a top-k SAE keeps."`
	Architecture   string   `placeholder:"NAME" help:"How latents are chosen, where the weights leave it open: standard or topk."`
	ApplyBDec      *bool    `name:"apply-b-dec" negatable:"" help:"b_dec is subtracted from its input."`
	ModelName      string   `placeholder:"REPO" help:"The model that it was trained on."`
	Hook           string   `placeholder:"HOOK" help:"Where it reads: blocks.8.hook_resid_post."`
	HookOut        string   `placeholder:"HOOK" help:"What a transcoder predicts."`
	Layer          *int     `placeholder:"L" help:"Which layer it reads; of files that hold several, the one to take."`
	SkipTransposed *bool    `negatable:"" help:"Gemma Scope 2: the affine skip connection is transposed in the file."`
}

// Facts are what was said. repo is where the SAE was published, if that is known: some facts are known by it.
func (f SAEFacts) Facts(repo string) checkpoint.SAEFacts {
	return checkpoint.SAEFacts{
		ScalingFactor: f.ScalingFactor, Normalization: f.Normalize, K: f.K, Architecture: f.Architecture, ApplyBDecToInput: f.ApplyBDec, ModelName: f.ModelName,
		Hook: f.Hook, HookOut: f.HookOut, Layer: f.Layer, SkipTransposed: f.SkipTransposed, Repo: repo,
	}
}
