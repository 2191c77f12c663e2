package httpapi

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/extraction"
)

func TestAStartThatSaysNothingGetsTheDefaults(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", "{}", `{"seed": null, "fold": null, "prepend_bos": null, "exclude_token_ids": null, "batch_size": null}`} {
		in, err := decodeStart([]byte(body))
		require.NoError(t, err)
		require.Equal(t, extraction.DefaultConfig(), in.Config)
	}
}

// FuzzStart: whatever the body is, it is refused, or gives a config that is valid and reads back as it is written.
func FuzzStart(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"evaluation_samples": 5, "prepend_bos": true}`, `{"dataset_id": "d", "exclude_token_ids": [1, 2], "min_activation_frequency": 1e-3}`,
		`{"prepend_bos": "auto", "fold": "decoder-norm", "seed": -1}`, `{"seed": 1e400}`, `{"Seed": 7, "seed": 8}`, `[`, `{"prepend_bos": {"a": 1}}`, `{"prepend_bos": "\"true"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		in, err := decodeStart(body)
		if err != nil {
			status, p := explain(err)
			require.Less(t, status, 500)
			require.NotEmpty(t, p.Error())
			return
		}
		require.NoError(t, in.Config.Validate())
		written, err := json.Marshal(in.Config)
		require.NoError(t, err)
		again, err := decodeStart(written)
		require.NoError(t, err)
		require.Equal(t, in.Config, again.Config)
	})
}

// FuzzJSON: a body that is let through is JSON; one that is not is told where it breaks.
func FuzzJSON(f *testing.F) {
	for _, seed := range []string{"{}", "{\n,", "\xff", `{"a":"\u0000"}`, `{"a":1e999}`, "[[[["} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		err := checkJSON(body)
		if err == nil {
			require.True(t, json.Valid(body))
			return
		}
		status, p := explain(err)
		require.Contains(t, []int{400, 422}, status)
		require.NotEmpty(t, p.Error())
	})
}
