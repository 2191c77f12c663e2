package library_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/hub"
	"github.com/featuremill/featuremill/adapters/hub/hubtest"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/sae"
)

const formats = "../checkpoint/testdata/formats"

// published is a checkpoint as its publisher lays it out on the hub.
type published struct {
	repo  *hubtest.Repo
	path  string // on this machine
	at    string // in the repository
	facts checkpoint.SAEFacts
}

// publishers are the owners of repositories whose names say something.
var publishers = map[string]string{"gemma-scope": "google", "qwen3-4b-transcoders": "mwhanna", "clt-gemma-2-2b-2.5M": "mntss", "Llama-3.1-8B-Instruct-SAE-l19": "Goodfire", "DeepSeek-R1-Distill-Llama-8B-SAE-l19": "qresearch"}

func publishedSAEs(t *testing.T) map[string]published {
	t.Helper()
	expected, err := filepath.Glob(formats + "/*/*.expected.safetensors")
	require.NoError(t, err)
	require.NotEmpty(t, expected)
	out := map[string]published{}
	for i, file := range expected {
		s, err := checkpoint.OpenSafetensors(file)
		require.NoError(t, err)
		meta := s.Metadata()
		require.NoError(t, s.Close())
		root := strings.TrimSuffix(file, ".expected.safetensors")
		p := published{path: filepath.Join(root, filepath.FromSlash(meta["path"])), at: meta["path"], repo: &hubtest.Repo{Kind: "model", ID: fmt.Sprintf("maker/repo%d", i), Files: map[string][]byte{}}}
		if meta["options"] != "" {
			require.NoError(t, json.Unmarshal([]byte(meta["options"]), &p.facts))
		}
		top, rest, _ := strings.Cut(p.at, "/")
		for name, owner := range publishers {
			if strings.HasPrefix(top, name) {
				root, p.at, p.repo.ID = filepath.Join(root, top), rest, owner+"/"+top
			}
		}
		if id, ok := strings.CutPrefix(top, "models--"); ok {
			root, p.repo.ID = filepath.Join(root, top, "snapshots", "00000000"), strings.Replace(id, "--", "/", 1)
			p.at = strings.TrimPrefix(p.at, top+"/snapshots/00000000/")
		}
		require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			p.repo.Files[filepath.ToSlash(rel)], err = os.ReadFile(path)
			return err
		}))
		out[strings.TrimPrefix(strings.TrimSuffix(file, ".expected.safetensors"), formats+"/")] = p
	}
	return out
}

func newHub(t *testing.T, s *hubtest.Server) (*library.Library, *library.Hub) {
	t.Helper()
	client, err := hub.New(hub.Config{Endpoint: s.URL, Cache: t.TempDir(), Backoff: time.Millisecond})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	store, err := blob.OpenFiles(t.TempDir())
	require.NoError(t, err)
	l, err := library.New(store, t.TempDir(), []string{t.TempDir()}) // import roots are for paths that people name
	require.NoError(t, err)
	return l, library.NewHub(l, client)
}

func stated(f checkpoint.SAEFacts) sae.Stated {
	return sae.Stated{ScalingFactor: f.ScalingFactor, Normalization: f.Normalization, Architecture: f.Architecture, K: f.K, ApplyBDecToInput: f.ApplyBDecToInput,
		ModelName: f.ModelName, Hook: f.Hook, HookOut: f.HookOut, Layer: f.Layer, SkipTransposed: f.SkipTransposed, Repo: f.Repo}
}

// What a worker opens, from the store, is what the publisher's files mean where they lie.
func TestAnSAEOfAnyFormatComesFromTheHubAndIsOpenedAgainAsItWas(t *testing.T) {
	t.Parallel()
	for name, p := range publishedSAEs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want, err := checkpoint.OpenSAE(p.path, checkpoint.WithFacts(p.facts))
			require.NoError(t, err)
			defer func() { require.NoError(t, want.Close()) }()
			said := stated(p.facts)
			if want.Config.Hook == "" {
				said.Hook = "blocks.0.hook_resid_post" // a person has to say it then
			}
			l, h := newHub(t, hubtest.New(t, p.repo))
			r, err := h.PinSAE(t.Context(), "", sae.DownloadRequested{Repo: p.repo.ID, File: p.at, Stated: said})
			require.NoError(t, err)
			require.Equal(t, p.repo.Commit, r.Commit)
			facts, err := h.FetchSAE(t.Context(), "", r, nil)
			if want.Config.ActivationsOnly || err != nil && strings.Contains(err.Error(), "which is not known; known are") {
				t.Logf("%s: %v", want.Config.Hook, err)
			}
			require.NoError(t, err)

			dir, err := l.Folder(t.Context(), facts.Files)
			require.NoError(t, err)
			got, err := library.OpenSAE(dir, facts)
			require.NoError(t, err)
			defer func() { require.NoError(t, got.Close()) }()
			a, b := want.Config, got.Config
			if a.Hook != "" {
				require.Equal(t, a.Hook, b.Hook)
				require.Equal(t, a.Layer, b.Layer)
			}
			require.Equal(t, []any{a.Format, a.Architecture, a.HookOut, a.K, a.Normalization, a.ScalingFactor, a.ApplyBDecToInput, a.Folds, a.ModelName, a.CenterWritingWeights, a.Transcoder},
				[]any{b.Format, b.Architecture, b.HookOut, b.K, b.Normalization, b.ScalingFactor, b.ApplyBDecToInput, b.Folds, b.ModelName, b.CenterWritingWeights, b.Transcoder})
			require.Equal(t, want.WEnc, got.WEnc)
			require.Equal(t, want.WDec, got.WDec)
			require.Equal(t, want.BEnc, got.BEnc)
			require.Equal(t, want.BDec, got.BDec)
			require.Equal(t, want.Threshold, got.Threshold)
			require.Equal(t, b.Hook, facts.Hook)
		})
	}
}

func TestOnlyTheFilesOfADatasetThatAreNeededAreFetched(t *testing.T) {
	t.Parallel()
	repo := &hubtest.Repo{Kind: "dataset", ID: "maker/texts", Files: map[string][]byte{}}
	for i := range 5 {
		var b bytes.Buffer
		for j := range 100 {
			fmt.Fprintf(&b, "{\"text\": \"row %d of file %d\"}\n", j, i)
		}
		repo.Files[fmt.Sprintf("data/train-%05d-of-00005.jsonl", i)] = b.Bytes()
	}
	s := hubtest.New(t, repo)
	l, h := newHub(t, s)
	r, err := h.PinDataset(t.Context(), "", dataset.DownloadRequested{Repo: "maker/texts", MaxRows: 150})
	require.NoError(t, err)
	require.Equal(t, "train", r.Split)
	facts, err := h.FetchDataset(t.Context(), "", r, nil)
	require.NoError(t, err)
	require.EqualValues(t, 150, facts.Rows)
	require.Len(t, facts.Files, 2)
	d, err := l.OpenDataset(t.Context(), facts)
	require.NoError(t, err)
	require.EqualValues(t, 150, d.Rows())
	require.NoError(t, d.Close())
}
