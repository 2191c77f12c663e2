package e2e

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
)

// changedSAE copies the SAE and lets change its config and weights.
func changedSAE(t *testing.T, config func(map[string]any), weights func(map[string][]float32)) string {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile("testdata/sae/cfg.json")
	require.NoError(t, err)
	var cfg map[string]any
	require.NoError(t, json.Unmarshal(text, &cfg))
	config(cfg)
	text, err = json.Marshal(cfg)
	require.NoError(t, err)
	writeFile(t, filepath.Join(dir, "cfg.json"), text)
	file, err := checkpoint.OpenSafetensors("testdata/sae/sae_weights.safetensors")
	require.NoError(t, err)
	defer func() { require.NoError(t, file.Close()) }()
	values, tensors := map[string][]float32{}, []checkpoint.Tensor(nil)
	for _, name := range file.Names() {
		tensor, err := file.Tensor(name)
		require.NoError(t, err)
		v, err := tensor.Float32()
		require.NoError(t, err)
		values[name] = append([]float32(nil), v...)
		tensors = append(tensors, tensor)
	}
	weights(values)
	for i, tensor := range tensors {
		data := make([]byte, 0, 4*len(values[tensor.Name]))
		for _, v := range values[tensor.Name] {
			b := math.Float32bits(v)
			data = append(data, byte(b), byte(b>>8), byte(b>>16), byte(b>>24))
		}
		tensors[i].Data = data
	}
	require.NoError(t, checkpoint.WriteSafetensors(filepath.Join(dir, "sae_weights.safetensors"), tensors, nil))
	return dir
}

func hook(name string) func(map[string]any) {
	return func(c map[string]any) { c["metadata"].(map[string]any)["hook_name"] = name }
}

func asIs(map[string][]float32) {}

func TestAnSAEAtTheWrongPlaceFailsWithTheRightOne(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.serve("projector")
	s.extractor()
	for id, claimed := range map[string]string{"wronglayer": "blocks.2.hook_resid_post", "wronghook": "blocks.1.hook_mlp_out"} {
		s.importSAE(id, changedSAE(t, hook(claimed), asIs))
		r, err := s.commands.StartExtractionFromSAE(t.Context(), call(), command.StartExtractionFromSAE{SAEID: id, DatasetID: datasetID, Config: config()})
		require.NoError(t, err)
		state := s.awaitStatus(r.ID, extraction.StatusFailed)
		require.Equal(t, "sae_mismatch", state.Failure.Code)
		require.Contains(t, state.Failure.Detail, claimed)
		require.Contains(t, state.Failure.Detail, "blocks.1.hook_resid_post fits better")
		require.False(t, state.Failure.Resumable)
		require.Zero(t, state.Segments())
		s.awaitFolded(r.ID)

		forced := config()
		forced.EvaluationSamples, forced.Force = 20, true
		r, err = s.commands.StartExtractionFromSAE(t.Context(), call(), command.StartExtractionFromSAE{SAEID: id, DatasetID: datasetID, Config: forced})
		require.NoError(t, err)
		state = s.awaitStatus(r.ID, extraction.StatusCompleted)
		require.True(t, state.SelfTest.Forced)
		s.awaitFolded(r.ID)
	}
	s.requireWhole()
}

func TestWhatCannotBeUsedIsRefusedAndLeavesNothing(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	head, _, err := s.log.Head(t.Context())
	require.NoError(t, err)

	broken := changedSAE(t, func(map[string]any) {}, func(w map[string][]float32) { w["W_enc"][77] = float32(math.NaN()) })
	_, err = s.library.SAE(t.Context(), broken, library.SAEOptions{})
	require.True(t, problem.Is(err, "unreadable_sae"), "%v", err)
	require.ErrorContains(t, err, "W_enc")

	narrow, err := s.library.SAE(t.Context(), "../../../adapters/torch/testdata/sae/topk-none", library.SAEOptions{})
	require.NoError(t, err)
	_, err = s.commands.ImportSAE(t.Context(), call(), sae.Import{ID: "narrow", Name: "narrow", Facts: narrow, ModelID: modelID})
	require.True(t, problem.Is(err, "sae_does_not_fit_model"), "%v", err)
	require.ErrorContains(t, err, "24")
	require.ErrorContains(t, err, "32")

	_, err = s.commands.StartExtractionFromSAE(t.Context(), call(), command.StartExtractionFromSAE{SAEID: "nobody", DatasetID: datasetID, Config: config()})
	require.True(t, problem.Is(err, "sae_not_found"), "%v", err)

	now, _, err := s.log.Head(t.Context())
	require.NoError(t, err)
	require.Equal(t, head, now, "nothing was registered")
}
