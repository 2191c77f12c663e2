package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/hub"
	"github.com/featuremill/featuremill/adapters/hub/hubtest"
)

func TestAnSAEOnTheHubIsInspected(t *testing.T) {
	const tested = "../internal/e2e/testdata/sae/"
	repo := &hubtest.Repo{Kind: "model", ID: "maker/saes", Files: map[string][]byte{}}
	for _, name := range []string{"cfg.json", "sae_weights.safetensors"} {
		b, err := os.ReadFile(tested + name)
		require.NoError(t, err)
		repo.Files["layer_1/"+name], repo.Files["layer_2/"+name] = b, b
	}
	s := hubtest.New(t, repo)
	at := []string{"--hub-endpoint", s.URL, "--hub-cache", t.TempDir()}
	require.NoError(t, run(t.Context(), append([]string{"sae", "inspect", "hf:maker/saes@main:layer_1", "--json"}, at...)))
	sent := s.Sent()
	require.NoError(t, run(t.Context(), append([]string{"sae", "inspect", "maker/saes:layer_1", "--hub-offline"}, at...)))
	require.Equal(t, sent, s.Sent(), "what is cached is there offline")
	require.ErrorContains(t, run(t.Context(), append([]string{"sae", "inspect", "hf:maker/saes"}, at...)), "layer_1, layer_2")
	require.ErrorContains(t, run(t.Context(), append([]string{"sae", "inspect", "hf:maker/none:x"}, at...)), "the hub has no model repository maker/none")
}

func TestAPathThatIsHereIsNotLookedForOnTheHub(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.MkdirAll(filepath.Join("owner", "name"), 0o755))
	for path, want := range map[string]bool{
		"owner/name": false, "owner/other": true, "hf:owner/name": true, "./owner/other": false, "/owner/other": false, "~/x": false, "model.gguf": false, "a/b/c": false, "owner/other@v1:x/y": true,
	} {
		_, ok, err := fromHub(path)
		require.NoError(t, err)
		require.Equal(t, want, ok, path)
	}
	_, _, err := fromHub("hf:nonsense")
	require.Equal(t, hub.BadReference, hub.CodeOf(err))
}
