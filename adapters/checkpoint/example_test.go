package checkpoint_test

import (
	"errors"
	"fmt"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

func ExampleOpenModel() {
	m, err := checkpoint.OpenModel("testdata/llama/tied.gguf")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = m.Close() }()
	c := m.Config()
	q, err := m.Tensor("model.layers.0.self_attn.q_proj.weight")
	fmt.Println(c.Family, c.Layers, "layers,", q.DType, q.Shape, err)
	// Output: llama 2 layers, F32 [32 32] <nil>
}

func ExampleOpenSAE() {
	const folder = "testdata/sae/standard-expected-average"
	_, err := checkpoint.OpenSAE(folder)
	var missing *checkpoint.ScalingFactorError
	fmt.Println("asks for a factor:", errors.As(err, &missing))

	s, err := checkpoint.OpenSAE(folder, checkpoint.WithScalingFactor(0.37))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = s.Close() }()
	fmt.Println(s.Config.Architecture, s.Config.HookPoint, s.Config.Layer, s.Config.Folds)
	// Output:
	// asks for a factor: true
	// standard resid_post 3 [activation-scale]
}
