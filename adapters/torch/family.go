package torch

import (
	"maps"
	"slices"
	"strings"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// moduleStages says what Hugging Face's modules of a family read and write, by "layers.*.mlp.input", "layers.*.mlp.output" and
// "layers.*.mlp" for the latter. It follows from where the parts stand, so the table of names in checkpoint is the only one.
func moduleStages(c checkpoint.ModelConfig) map[string]stage {
	names := c.Modules()
	out := map[string]stage{}
	add := func(module string, input, output stage) {
		if output != stages {
			out[module], out[module+".output"] = output, output
		}
		if input != stages {
			out[module+".input"] = input
		}
	}
	layer := func(part string, input, output stage) {
		if part != "" {
			add(names.Layers+".*."+part, input, output)
		}
	}
	const none = stages
	before := atResidMid // what the MLP's norm reads
	if c.Parallel {
		before = atResidPre
	}
	embedding := atEmbedding
	if names.ScalesItself {
		embedding = atEmbed
	}
	add(names.Embedding, none, embedding)
	add(names.Layers+".*", atResidPre, atResidPost)
	layer(names.AttnNorm, atResidPre, atAttnIn)
	layer(names.Attn, atAttnIn, atAttn)
	for _, part := range []string{names.Q, names.K, names.V, names.QKV} {
		layer(part, atAttnIn, none)
	}
	layer(names.O, atZ, atAttn)
	layer(names.AttnPostNorm, atAttn, atAttnOut)
	layer(names.MLPNorm, before, atMLPIn)
	layer(names.MLP, atMLPIn, atMLP)
	for _, part := range []string{names.Gate, names.Up, names.GateUp} {
		layer(part, atMLPIn, none)
	}
	if !c.Gated {
		layer(names.Act, none, atMLPPost)
	}
	layer(names.Down, atMLPPost, atMLP)
	layer(names.MLPPostNorm, atMLP, atMLPOut)
	return out
}

// moduleNames lists them for people.
func (m *Model) moduleNames() []string {
	names := slices.Sorted(maps.Keys(m.modules))
	names = slices.DeleteFunc(names, func(n string) bool { return strings.HasSuffix(n, ".output") })
	for i, n := range names {
		names[i] = strings.Replace(n, "*", "L", 1)
	}
	return names
}

// fusedFits says whether the kernels of our own compute this decoder: what turns by a sequence's length
// they do not.
func fusedFits(c checkpoint.ModelConfig) bool { return !bySequence(c.Rope) }
