package e2e

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/library"
	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/extraction"
)

func TestALostArtifactIsComputedAgain(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	project := s.serve("projector")
	s.extractor()
	id := s.begin(config())
	s.awaitStatus(id, extraction.StatusCompleted)
	s.awaitFolded(id)
	require.Zero(t, project.Stop())
	keys, err := s.artifacts(id)
	require.NoError(t, err)
	require.NoError(t, s.store.Delete(t.Context(), keys[2]))
	require.NoError(t, s.store.Put(t.Context(), keys[5], bytes.NewReader([]byte("rot"))))
	require.NoError(t, s.store.Put(t.Context(), "extractions/"+id+"/99-of-nobody.parquet", bytes.NewReader([]byte("rest"))))

	out, code := s.verify()
	require.NotZero(t, code)
	require.Contains(t, out, keys[2])
	path, extractor := programs(t)
	out, code = run(t, path, s.args("artifacts", "check", id)...)
	require.NotZero(t, code)
	require.Contains(t, out, "not in the store")
	require.Contains(t, out, "its bytes have sha256")
	out, code = run(t, path, s.args("artifacts", "repair", id, "--extractor", extractor, "--threads", "2")...)
	require.NotZero(t, code, "another profile")
	require.Contains(t, out, "only the same profile gives the same numbers")
	out, code = run(t, path, s.args("artifacts", "repair", id, "--extractor", extractor, "--threads", "1")...)
	require.Zero(t, code, out)
	require.Contains(t, out, "2 artifacts were computed again")
	s.requireSame(id)

	out, code = run(t, path, s.args("store", "sweep", "--grace", "1ns", "--dry-run")...)
	require.Zero(t, code, out)
	require.Contains(t, out, "99-of-nobody.parquet")
	out, code = run(t, path, s.args("store", "sweep", "--grace", "1ns")...)
	require.Zero(t, code, out)
	left, err := s.artifacts(id)
	require.NoError(t, err)
	require.Equal(t, keys, left)
	s.requireSame(id)
}

// A corpus is known by what it is made of, for ever; its chunks go with the dataset that needed them last.
func TestATextThatWasDeletedAndComesAgainIsExtractedAgain(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{})
	s.serve("projector")
	s.extractor()
	first := s.begin(config())
	done := s.awaitStatus(first, extraction.StatusCompleted)
	s.awaitFolded(first)
	text, _, err := command.Load[corpus.State](t.Context(), s.commands, corpus.Stream(done.CorpusID))
	require.NoError(t, err)
	_, err = s.commands.DeleteExtraction(t.Context(), call(), first)
	require.NoError(t, err)
	_, err = s.commands.DeleteDataset(t.Context(), call(), datasetID)
	require.NoError(t, err)
	path, _ := programs(t)
	out, code := run(t, path, s.args("store", "sweep", "--grace", "1ns")...)
	require.Zero(t, code, out)
	there, err := blob.Has(t.Context(), s.store, blob.FileKey(text.Chunks[0].SHA256), text.Chunks[0].Bytes)
	require.NoError(t, err)
	require.False(t, there, "the chunks were swept")

	d, err := s.library.Dataset(t.Context(), "testdata/texts.jsonl", library.DatasetOptions{})
	require.NoError(t, err)
	const again = "d_again"
	_, err = s.commands.ImportDataset(t.Context(), call(), dataset.Import{ID: again, Name: "speeches", Facts: d})
	require.NoError(t, err)
	r, err := s.commands.StartExtractionFromSAE(t.Context(), call(), command.StartExtractionFromSAE{SAEID: saeID, DatasetID: again, Config: config()})
	require.NoError(t, err)
	s.awaitStatus(r.ID, extraction.StatusCompleted)
	s.requireSame(r.ID)
}
