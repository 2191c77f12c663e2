package library_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/training"
	"github.com/featuremill/featuremill/projections/library"
	"github.com/featuremill/featuremill/projections/projector"
)

// stocked has a library with one of everything that the queries tell apart.
func stocked(t *testing.T) *bundle {
	t.Helper()
	b := newBundle(t)
	b.importModel(t, "m_smol", "HuggingFaceTB/SmolLM2-135M-Instruct", model.Origin{Kind: "local", Path: "/models/smol"})
	b.importModel(t, "m_gemma", "gemma", model.Origin{Kind: "huggingface", Repo: "google/gemma-2-2b", Revision: "main"})
	b.importModel(t, "m_gone", "gone", model.Origin{Kind: "local"})
	b.record(t, model.Stream("m_gone"), model.Deleted{})
	b.importTraining(t, "train_1", "m_smol", "layer_8_residual", "layer_9_mlp")
	b.importSAE(t, "sae_a", "alpha 100%", sae.Origin{Kind: "local", Path: "/saes/a"}, "m_smol")
	b.importSAE(t, "sae_b", "beta_1", sae.Origin{Kind: "huggingface", Repo: "google/gemma-scope", File: "layer_8/w"}, "")
	b.importSAE(t, "sae_c", "Gamma", sae.Origin{Kind: "trained", TrainingID: "train_1", Path: "layer_8_residual"}, "m_smol")
	b.record(t, sae.Stream("sae_d"), sae.Registered{ID: "sae_d", Name: "delta", Origin: sae.Origin{Kind: "huggingface", Repo: "x/y"}})
	b.importSAE(t, "sae_e", "gone", sae.Origin{Kind: "trained", TrainingID: "train_1", Path: "layer_9_mlp"}, "")
	b.record(t, sae.Stream("sae_e"), sae.Deleted{})
	b.record(t, dataset.Stream("ds_1"), dataset.Registered{ID: "ds_1", Name: "speeches", Origin: model.Origin{Kind: "local", Path: "/data"}},
		dataset.Ready{Facts: dataset.Facts{Format: "jsonl", TextColumn: "text", Columns: []string{"text", "year"}, Rows: 240, Files: files("sotu.jsonl")}})
	b.record(t, corpus.Stream("c1"),
		corpus.Requested{ID: "c1", DatasetID: "ds_1", DatasetDigest: "dd", TokenizerSHA256: "tt", ModelID: "m_smol", Options: corpus.Options{Mode: corpus.Documents, ContextLength: 128}, Sequences: 10},
		corpus.ChunkBuilt{Chunk: 0, Sequences: 6, Tokens: 700, Rows: 3, SHA256: "c0", Bytes: 11, More: true},
		corpus.ChunkBuilt{Chunk: 1, FirstSequence: 6, Sequences: 4, Tokens: 400, Rows: 2, SHA256: "c1", Bytes: 12},
		corpus.Ready{Sequences: 10, Tokens: 1100, Chunks: 2, VocabularySHA256: "vv", Exhausted: true})
	b.project(t)
	return b
}

func ids(all []library.SAE) []string {
	out := []string{}
	for _, s := range all {
		out = append(out, s.ID)
	}
	return out
}

func TestSAEsAreListed(t *testing.T) {
	t.Parallel()
	b := stocked(t)
	for name, test := range map[string]struct {
		ask   library.Listing
		want  []string
		total int
	}{
		"newest first, without deleted ones":             {library.Listing{}, []string{"sae_d", "sae_c", "sae_b", "sae_a"}, 4},
		"a page of them":                                 {library.Listing{Skip: 1, Limit: 2}, []string{"sae_c", "sae_b"}, 4},
		"nothing after the last page":                    {library.Listing{Skip: 9}, []string{}, 4},
		"oldest first":                                   {library.Listing{Order: "asc"}, []string{"sae_a", "sae_b", "sae_c", "sae_d"}, 4},
		"by name, where the case is that of the bytes":   {library.Listing{SortBy: "name", Order: "asc"}, nil, 4},
		"by layer, unknown last":                         {library.Listing{SortBy: "layer", Order: "desc"}, []string{"sae_c", "sae_b", "sae_a", "sae_d"}, 4},
		"by a column that is none, by age":               {library.Listing{SortBy: "id; drop table models"}, []string{"sae_d", "sae_c", "sae_b", "sae_a"}, 4},
		"ready ones":                                     {library.Listing{Status: "ready"}, []string{"sae_c", "sae_b", "sae_a"}, 3},
		"deleted ones, when they are asked for":          {library.Listing{Status: "deleted"}, []string{"sae_e"}, 1},
		"of a source":                                    {library.Listing{Source: "trained"}, []string{"sae_c"}, 1},
		"found by name, whatever the case":               {library.Listing{Search: "gAMM"}, []string{"sae_c"}, 1},
		"found by repository":                            {library.Listing{Search: "gemma-scope"}, []string{"sae_b"}, 1},
		"found by text in which nothing is a wildcard":   {library.Listing{Search: "100%"}, []string{"sae_a"}, 1},
		"found by an underscore":                         {library.Listing{Search: "_1"}, []string{"sae_b"}, 1},
		"not found by a backslash":                       {library.Listing{Search: `\`}, []string{}, 0},
		"of a model, by the name in their config":        {library.Listing{ModelName: "smollm2"}, []string{"sae_c", "sae_b", "sae_a"}, 3},
		"linked to a model":                              {library.Listing{ModelID: "m_smol"}, []string{"sae_c", "sae_a"}, 2},
		"by everything at once":                          {library.Listing{Status: "ready", Source: "local", Search: "alpha", ModelName: "HuggingFace", ModelID: "m_smol"}, []string{"sae_a"}, 1},
		"not at all, when a quote would break the query": {library.Listing{Search: `'; --`}, []string{}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := b.queries.ListSAEs(t.Context(), test.ask)
			require.NoError(t, err)
			require.Equal(t, test.total, got.Total)
			if test.want != nil {
				require.Equal(t, test.want, ids(got.Items))
			}
		})
	}
}

func TestListsRefuseWhatCannotBeAsked(t *testing.T) {
	t.Parallel()
	b := stocked(t)
	for field, ask := range map[string]library.Listing{
		"status": {Status: "done"}, "source": {Source: "ftp"}, "order": {Order: "up"}, "skip": {Skip: -1}, "limit": {Limit: 5000}, "search": {Search: "a\x00b"},
	} {
		_, err := b.queries.ListSAEs(t.Context(), ask)
		var refused *problem.Error
		require.ErrorAs(t, err, &refused, field)
		require.Equal(t, problem.Invalid, refused.Kind)
		require.Equal(t, field, refused.Fields[0].Name)
	}
	_, err := b.queries.ListDatasets(t.Context(), library.Listing{ModelName: "x"})
	require.True(t, problem.Is(err, "invalid_request"))
}

func TestAnSAEShowsEveryFact(t *testing.T) {
	t.Parallel()
	b := stocked(t)
	s, err := b.queries.SAE(t.Context(), "sae_c")
	require.NoError(t, err)
	require.Equal(t, "trained", s.Source)
	require.Equal(t, "train_1", *s.TrainingID)
	require.Equal(t, 8, *s.Layer)
	require.Equal(t, "residual", *s.HookType)
	require.Equal(t, 3072, *s.NFeatures)
	require.Equal(t, 576, *s.DModel)
	require.Equal(t, "m_smol", *s.ModelID)
	require.InDelta(t, 48.5, *s.PublishedL0, 0)
	require.Nil(t, s.HFRepoID)
	require.Nil(t, s.ErrorMessage)
	require.Contains(t, string(s.Metadata), `"architecture":"topk"`)
	require.EqualValues(t, 3, s.StreamVersion)

	pending, err := b.queries.SAE(t.Context(), "sae_d")
	require.NoError(t, err)
	require.Nil(t, pending.NFeatures)
	require.Nil(t, pending.Metadata)

	gone, err := b.queries.SAE(t.Context(), "sae_e")
	require.NoError(t, err, "a deleted SAE is found by its id")
	require.Equal(t, "deleted", gone.Status)
	require.NotNil(t, gone.DeletedAt)
}

func TestWhatIsNotThereIsNotFound(t *testing.T) {
	t.Parallel()
	b := stocked(t)
	for code, ask := range map[string]func() error{
		"sae_not_found":      func() error { _, err := b.queries.SAE(t.Context(), "none"); return err },
		"model_not_found":    func() error { _, err := b.queries.Model(t.Context(), "none"); return err },
		"dataset_not_found":  func() error { _, err := b.queries.Dataset(t.Context(), "none"); return err },
		"training_not_found": func() error { _, err := b.queries.Training(t.Context(), "none"); return err },
		"corpus_not_found":   func() error { _, err := b.queries.Corpus(t.Context(), "none"); return err },
	} {
		require.True(t, problem.Is(ask(), code), code)
	}
}

func TestModelsAreFoundByTheNameInAnSAEsConfig(t *testing.T) {
	t.Parallel()
	b := stocked(t)
	for name, test := range map[string]struct {
		ask  string
		want []string
	}{
		"by the exact name":                      {"HuggingFaceTB/SmolLM2-135M-Instruct", []string{"m_smol"}},
		"by the exact repository":                {"google/gemma-2-2b", []string{"m_gemma"}},
		"by the repository without its owner":    {"gemma-2-2b", []string{"m_gemma"}},
		"whatever the case and the punctuation":  {"Gemma_2 2B", []string{"m_gemma"}},
		"with another owner, as mirrors have it": {"unsloth/SmolLM2-135M-Instruct", []string{"m_smol"}},
		"not by a part of the name":              {"gemma-2", nil},
		"not when it was deleted":                {"gone", nil},
		"not by an empty name":                   {" ", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := b.queries.ModelsNamed(t.Context(), test.ask)
			require.NoError(t, err)
			var ids []string
			for _, m := range got {
				ids = append(ids, m.ID)
			}
			require.Equal(t, test.want, ids)
		})
	}
}

func TestTrainingsKnowTheirSAEsAndWhatWasImported(t *testing.T) {
	t.Parallel()
	b := stocked(t)
	one, err := b.queries.Training(t.Context(), "train_1")
	require.NoError(t, err)
	require.Equal(t, "completed", one.Status)
	require.Equal(t, "HuggingFaceTB/SmolLM2-135M-Instruct", *one.ModelName)
	require.Len(t, one.SAEs, 2)
	require.Equal(t, "layer_9_mlp", one.SAEs[0].Path, "in the order of layers")

	imported, err := b.queries.ImportedSAEs(t.Context(), "train_1")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"layer_8_residual": "sae_c"}, imported, "what was deleted does not count")

	b.record(t, training.Stream("train_1"), training.Deleted{})
	b.importTraining(t, "train_2", "m_unknown", "only")
	b.project(t)
	all, err := b.queries.ListTrainings(t.Context(), library.Listing{})
	require.NoError(t, err)
	require.Equal(t, 1, all.Total)
	require.Equal(t, "train_2", all.Items[0].ID)
	require.Nil(t, all.Items[0].ModelName)
	require.Len(t, all.Items[0].SAEs, 1)
	counts, err := b.queries.TrainingCounts(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]int{"all": 1, "running": 0, "completed": 1, "failed": 0}, counts)
}

func TestDatasetsModelsAndCorporaAreListed(t *testing.T) {
	t.Parallel()
	b := stocked(t)
	datasets, err := b.queries.ListDatasets(t.Context(), library.Listing{Status: "ready", Search: "speech"})
	require.NoError(t, err)
	require.Equal(t, 1, datasets.Total)
	require.EqualValues(t, 240, *datasets.Items[0].NumRows)
	require.Equal(t, []string{"text", "year"}, datasets.Items[0].Columns)
	models, err := b.queries.ListModels(t.Context(), library.Listing{SortBy: "name", Order: "desc", Limit: 1})
	require.NoError(t, err)
	require.Equal(t, 2, models.Total)
	require.EqualValues(t, 134_515_008, *models.Items[0].ParamsCount)

	corpora, err := b.queries.Corpora(t.Context(), "ds_1")
	require.NoError(t, err)
	require.Len(t, corpora, 1)
	require.Equal(t, "ready", corpora[0].Status)
	require.Equal(t, 10, corpora[0].Sequences)
	require.True(t, corpora[0].Exhausted)
	chunks, err := b.queries.Chunks(t.Context(), "c1")
	require.NoError(t, err)
	require.Equal(t, 6, chunks[1].FirstSequence)
	none, err := b.queries.Corpora(t.Context(), "ds_2")
	require.NoError(t, err)
	require.Empty(t, none)
}

func TestWhatIsNotReadyYetSaysWhy(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	many := modelFacts()
	many.Layers = 5_000_000_000 // the tables count layers with 32 bits
	b.record(t, model.Stream("m_many"), model.Registered{ID: "m_many", Name: "many"}, model.Ready{Facts: many})
	b.record(t, model.Stream("m_away"), model.Registered{ID: "m_away", Name: "away", Origin: model.Origin{Kind: "huggingface", Repo: "x/y"}})
	r, err := projector.New(b.law.Config, b.law.Projection)
	require.NoError(t, err)
	require.NoError(t, r.RunToEnd(t.Context()))

	m, err := b.queries.Model(t.Context(), "m_many")
	require.NoError(t, err)
	require.Equal(t, "pending", m.Status)
	require.NotNil(t, m.ErrorMessage)
	require.Contains(t, *m.ErrorMessage, "event 2 (ModelReady) could not be applied to the tables")

	m, err = b.queries.Model(t.Context(), "m_away")
	require.NoError(t, err)
	require.Nil(t, m.ErrorMessage)
	_, err = b.pool.Exec(t.Context(), "insert into work (kind, subject, index) values ($1, $2, 0)", facts.DownloadWork, model.Stream("m_away"))
	require.NoError(t, err)
	lease, err := b.log.Claim(t.Context(), eventlog.Claim{Owner: "worker", Kinds: []string{facts.DownloadWork}})
	require.NoError(t, err)
	require.NotNil(t, lease)
	m, err = b.queries.Model(t.Context(), "m_away")
	require.NoError(t, err)
	require.Equal(t, "downloading", m.Status)
	require.Nil(t, m.ErrorMessage)
	require.NoError(t, b.log.PutOff(t.Context(), *lease, eventlog.Pause{After: time.Minute, Cause: "the hub does not answer"}))
	m, err = b.queries.Model(t.Context(), "m_away")
	require.NoError(t, err)
	require.Equal(t, "pending", m.Status)
	require.NotNil(t, m.ErrorMessage)
	require.Equal(t, "it is tried again: the hub does not answer", *m.ErrorMessage)
}

func TestTheConsumerGroupAndTheSchemaOfTheLibraryNeverChange(t *testing.T) {
	t.Parallel()
	require.Equal(t, "library-v2", projector.ConsumerGroup(library.Projection{}))
	require.Equal(t, "library_v2", projector.Schema(library.Projection{}))
}
