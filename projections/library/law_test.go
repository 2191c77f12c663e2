package library_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/training"
	"github.com/featuremill/featuremill/projections/library"
	"github.com/featuremill/featuremill/projections/projector/projectiontest"
)

func background(t require.TestingT) context.Context {
	if c, ok := t.(interface{ Context() context.Context }); ok {
		return c.Context()
	}
	return context.Background()
}

// plain folds the log in memory: the aggregates' own Evolve, and for what they do not keep (times,
// errors), the events.
func plain(events []projectiontest.Event) projectiontest.Rows {
	type folded struct {
		row      projectiontest.Row
		model    model.State
		sae      sae.State
		dataset  dataset.State
		corpus   corpus.State
		training training.State
	}
	streams := map[string]*folded{}
	var order []string
	for _, e := range events {
		f := streams[e.Stream]
		if f == nil {
			f = &folded{row: projectiontest.Row{"created_at": e.RecordedAt}}
			streams[e.Stream] = f
			order = append(order, e.Stream)
		}
		f.row["stream_version"], f.row["updated_at"] = e.Version, e.RecordedAt
		f.model, f.sae, f.dataset, f.corpus, f.training = f.model.Evolve(e.Fact), f.sae.Evolve(e.Fact), f.dataset.Evolve(e.Fact), f.corpus.Evolve(e.Fact), f.training.Evolve(e.Fact)
		failed := func(code, detail any) { f.row["error_code"], f.row["error_message"] = code, detail }
		switch d := e.Fact.(type) {
		case model.Ready, dataset.Ready:
			f.row["ready_at"] = e.RecordedAt
			failed(nil, nil)
		case sae.Ready:
			f.row["downloaded_at"] = e.RecordedAt
			failed(nil, nil)
		case training.Imported:
			f.row["completed_at"] = e.RecordedAt
		case corpus.Requested:
			failed(nil, nil)
		case model.Failed:
			failed(d.Code, d.Detail)
		case sae.Failed:
			failed(d.Code, d.Detail)
		case dataset.Failed:
			failed(d.Code, d.Detail)
		case corpus.Failed:
			failed(d.Code, d.Detail)
		case model.Deleted, sae.Deleted, dataset.Deleted, training.Deleted:
			f.row["deleted_at"] = e.RecordedAt
		}
	}
	out := projectiontest.Rows{}
	for _, stream := range order {
		f := streams[stream]
		kind, id, _ := strings.Cut(stream, "-")
		f.row["id"] = id
		switch kind {
		case "model":
			out["models"] = append(out["models"], modelRow(f.row, f.model))
		case "sae":
			out["external_saes"] = append(out["external_saes"], saeRow(f.row, f.sae))
		case "dataset":
			out["datasets"] = append(out["datasets"], datasetRow(f.row, f.dataset))
		case "corpus":
			corpusRows(out, f.row, f.corpus)
		case "training":
			trainingRows(out, f.row, f.training)
		}
	}
	return out
}

// set leaves out what is not known.
func set(row projectiontest.Row, column string, v any) {
	switch v {
	case "", 0, int64(0):
		return
	}
	row[column] = v
}

func origin(row projectiontest.Row, o model.Origin) {
	row["source"] = o.Kind
	set(row, "hf_repo_id", o.Repo)
	set(row, "hf_revision", o.Revision)
	set(row, "local_path", o.Path)
}

func modelRow(row projectiontest.Row, s model.State) projectiontest.Row {
	row["name"], row["status"] = s.Name, s.Status
	origin(row, s.Origin)
	if row["ready_at"] == nil {
		return row
	}
	f := s.Facts
	set(row, "family", f.Family)
	set(row, "format", f.Format)
	set(row, "dtype", f.DType)
	set(row, "layers", f.Layers)
	set(row, "d_model", f.DModel)
	set(row, "vocab", f.Vocab)
	set(row, "context_length", f.Context)
	set(row, "params_count", f.Params)
	set(row, "tokenizer_sha256", f.Tokenizer)
	row["file_size_bytes"], row["files_sha256"], row["facts"] = f.Files.Bytes(), f.Files.Digest(), f
	return row
}

func saeRow(row projectiontest.Row, s sae.State) projectiontest.Row {
	row["name"], row["status"], row["source"] = s.Name, s.Status, s.Origin.Kind
	set(row, "description", s.Description)
	set(row, "hf_repo_id", s.Origin.Repo)
	set(row, "hf_revision", s.Origin.Revision)
	set(row, "hf_filepath", s.Origin.File)
	set(row, "local_path", s.Origin.Path)
	set(row, "training_id", s.Origin.TrainingID)
	if s.Origin.TrainingID != "" {
		set(row, "training_path", library.PathInTraining(s.Origin))
	}
	set(row, "model_id", s.ModelID)
	if s.SelfTest != nil {
		row["self_test"], row["self_test_status"] = *s.SelfTest, "done"
		if s.SelfTest.Code != "" {
			row["self_test_status"] = "failed"
		}
	}
	if s.SelfTestWanted {
		row["self_test_status"] = "pending"
	}
	if row["downloaded_at"] == nil {
		return row
	}
	f := s.Facts
	for column, v := range map[string]any{
		"model_name": f.ModelName, "hook": f.Hook, "hook_out": f.HookOut, "hook_type": library.HookType(f.Hook), "n_features": f.DSAE, "d_model": f.DIn,
		"d_out": f.DOut, "k": f.K, "architecture": f.Architecture, "format": f.Format, "format_version": f.FormatVersion, "normalization": f.Normalization,
		"dtype": f.DType, "context_length": f.ContextLength,
	} {
		set(row, column, v)
	}
	row["layer"], row["signed"], row["sae_metadata"] = f.Layer, f.Signed, f
	if f.PrependBOS != nil {
		row["prepend_bos"] = *f.PrependBOS
	}
	if f.PublishedL0 != nil {
		row["published_l0"] = *f.PublishedL0
	}
	row["file_size_bytes"], row["files_sha256"] = f.Files.Bytes(), f.Files.Digest()
	return row
}

func datasetRow(row projectiontest.Row, s dataset.State) projectiontest.Row {
	row["name"], row["status"] = s.Name, s.Status
	origin(row, s.Origin)
	if row["ready_at"] == nil {
		return row
	}
	f := s.Facts
	set(row, "format", f.Format)
	set(row, "text_column", f.TextColumn)
	row["tokenised"], row["num_rows"], row["facts"] = f.Tokenised, f.Rows, f
	if f.Columns != nil {
		row["columns"] = f.Columns
	}
	row["file_size_bytes"], row["files_sha256"] = f.Files.Bytes(), f.Files.Digest()
	return row
}

func corpusRows(out projectiontest.Rows, row projectiontest.Row, s corpus.State) {
	status := "failed"
	if s.Building {
		status = "building"
	} else if s.IsReady && s.Failure == nil {
		status = "ready"
	}
	r := s.Request
	row["status"], row["wanted"], row["options"] = status, s.Wanted, r.Options
	row["dataset_id"], row["dataset_sha256"], row["tokenizer_sha256"], row["model_id"] = r.DatasetID, r.DatasetDigest, r.TokenizerSHA256, r.ModelID
	row["sequences"], row["tokens"], row["num_rows"], row["chunks"], row["exhausted"] = s.Sequences, s.Tokens, s.Rows, len(s.Chunks), s.Done.Exhausted
	set(row, "vocabulary_sha256", s.Done.VocabularySHA256)
	var bytes int64
	for _, c := range s.Chunks {
		bytes += c.Bytes
		out["corpus_chunks"] = append(out["corpus_chunks"], projectiontest.Row{"corpus_id": row["id"], "chunk": c.Chunk, "first_sequence": c.FirstSequence,
			"sequences": c.Sequences, "tokens": c.Tokens, "num_rows": c.Rows, "sha256": c.SHA256, "bytes": c.Bytes})
	}
	row["bytes"] = bytes
	out["corpora"] = append(out["corpora"], row)
}

func trainingRows(out projectiontest.Rows, row projectiontest.Row, s training.State) {
	row["name"], row["model_id"], row["source"], row["saes"] = s.Name, s.ModelID, s.Checkpoint.Kind, len(s.SAEs)
	set(row, "checkpoint_dir", s.Checkpoint.Path)
	set(row, "hf_repo_id", s.Checkpoint.Repo)
	row["status"] = "completed"
	if s.Status == model.Gone {
		row["status"] = "deleted"
	}
	var bytes int64
	for _, one := range s.SAEs {
		f := one.Facts
		bytes += f.Files.Bytes()
		out["training_saes"] = append(out["training_saes"], projectiontest.Row{"training_id": row["id"], "path": one.Path, "layer": f.Layer, "hook": f.Hook,
			"hook_type": library.HookType(f.Hook), "n_features": f.DSAE, "d_model": f.DIn, "architecture": f.Architecture,
			"file_size_bytes": f.Files.Bytes(), "files_sha256": f.Files.Digest(), "facts": f})
	}
	row["file_size_bytes"] = bytes
	out["trainings"] = append(out["trainings"], row)
}

func TestLiveRebuiltAndFoldedLibrariesAreTheSame(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	history := 0
	rapid.Check(t, func(t *rapid.T) {
		history++ // every history has its own streams in the one log
		h := &histories{bundle: b, t: t, prefix: fmt.Sprintf("h%d", history)}
		for range rapid.IntRange(1, 25).Draw(t, "commands") {
			h.step()
			if rapid.IntRange(0, 9).Draw(t, "advance") == 0 {
				b.law.Advance(t)
			}
		}
		if history%20 == 0 {
			b.law.RequireLive(t)
		}
	})
	b.law.RequireRebuilt(t)
}

// histories draws commands, lets the aggregates decide, and records what they decided.
type histories struct {
	*bundle
	t      *rapid.T
	prefix string
}

func (h *histories) id(kind string) string {
	return fmt.Sprintf("%s_%s_%d", kind, h.prefix, rapid.IntRange(0, 1).Draw(h.t, "which"))
}

func (h *histories) text(label string) string {
	return rapid.SampledFrom([]string{"", "a", "ünïcode ‹ › 漢字", `quotes " ' \ and {"json"}`, "two\nlines"}).Draw(h.t, label)
}

func (h *histories) origin() model.Origin {
	return rapid.SampledFrom([]model.Origin{
		{Kind: "local", Path: "/data/model"}, {Kind: "huggingface", Repo: "google/gemma-2-2b", Revision: "main"},
	}).Draw(h.t, "origin")
}

func (h *histories) step() {
	switch rapid.SampledFrom([]string{"model", "sae", "dataset", "corpus", "training"}).Draw(h.t, "aggregate") {
	case "model":
		id := h.id("m")
		s := load[model.State](h, model.Stream(id))
		switch h.verb("import", "register", "fail", "delete") {
		case "import":
			h.decided(model.Stream(id))(s.DecideImport(model.Import{ID: id, Name: h.text("name"), Origin: h.origin(), Facts: modelFacts()}))
		case "register":
			if s.Status == model.Absent {
				h.record(h.t, model.Stream(id), model.Registered{ID: id, Name: "pending", Origin: h.origin()})
			}
		case "fail":
			if s.Status == model.Pending {
				h.record(h.t, model.Stream(id), model.Failed{Code: "download_failed", Detail: h.text("detail")})
			}
		case "delete":
			h.decided(model.Stream(id))(s.DecideDelete())
		}
	case "sae":
		id := h.id("s")
		s := load[sae.State](h, sae.Stream(id))
		switch h.verb("import", "link", "test", "tested", "rename", "delete") {
		case "import":
			o := rapid.SampledFrom([]sae.Origin{{Kind: "local", Path: "/data/sae"}, {Kind: "huggingface", Repo: "google/gemma-scope", File: "layer_8"},
				{Kind: "trained", TrainingID: "train_1", Path: "layer_8_residual"}}).Draw(h.t, "origin")
			f := saeFacts(rapid.IntRange(0, 12).Draw(h.t, "layer"))
			f.Hook = rapid.SampledFrom([]string{"blocks.8.hook_resid_post", "blocks.3.hook_mlp_out", "blocks.1.attn.hook_z", "blocks.0.hook_attn_out", "odd"}).Draw(h.t, "hook")
			if rapid.Bool().Draw(h.t, "bare") {
				f.PrependBOS, f.PublishedL0, f.K, f.ModelName = nil, nil, 0, ""
				f.Signed = rapid.Bool().Draw(h.t, "signed")
			}
			h.decided(sae.Stream(id))(s.DecideImport(sae.Import{ID: id, Name: h.text("name"), Description: h.text("description"), Origin: o, Facts: f}))
		case "link":
			if s.Status == model.IsReady {
				h.decided(sae.Stream(id))(s.DecideLink(h.id("m"), modelFacts()))
			}
		case "test":
			if s.Status == model.IsReady {
				h.decided(sae.Stream(id))(s.DecideRequestSelfTest(h.id("m"), modelFacts()))
			}
		case "tested":
			if rapid.Bool().Draw(h.t, "fails") {
				h.decided(sae.Stream(id))(s.DecideSelfTestFailed("worker_lost", h.text("detail")))
			} else {
				fvu := 0.09
				h.decided(sae.Stream(id))(s.DecideSelfTested(sae.SelfTested{ModelID: s.ModelID, Text: h.text("text"), Report: &extraction.SelfTest{Hook: s.Facts.Hook, Tokens: 4096, FVU: &fvu, Taps: []extraction.Tap{}}}))
			}
		case "rename":
			h.decided(sae.Stream(id))(s.DecideRename(h.text("name"), h.text("description")))
		case "delete":
			h.decided(sae.Stream(id))(s.DecideDelete())
		}
	case "dataset":
		id := h.id("d")
		s := load[dataset.State](h, dataset.Stream(id))
		switch h.verb("import", "delete") {
		case "import":
			f := dataset.Facts{Format: "jsonl", TextColumn: "text", Columns: []string{"text", "year"}, Rows: int64(rapid.IntRange(0, 1000).Draw(h.t, "rows")), Files: files("a.jsonl")}
			if rapid.Bool().Draw(h.t, "tokenised") {
				f = dataset.Facts{Format: "npy", Tokenised: true, Rows: 7, Files: files("ids.npy")}
			}
			h.decided(dataset.Stream(id))(s.DecideImport(dataset.Import{ID: id, Name: h.text("name"), Origin: h.origin(), Facts: f}))
		case "delete":
			h.decided(dataset.Stream(id))(s.DecideDelete())
		}
	case "corpus":
		id := h.id("c")
		s := load[corpus.State](h, corpus.Stream(id))
		switch h.verb("request", "chunk", "fail") {
		case "request":
			h.decided(corpus.Stream(id))(s.DecideRequest(corpus.Requested{ID: id, DatasetID: h.id("d"), DatasetDigest: "dd", TokenizerSHA256: "tt", ModelID: h.id("m"),
				Options: corpus.Options{Mode: corpus.Documents, ContextLength: 128, PrependBOS: true, BOS: 1, Seed: 7}, Sequences: rapid.IntRange(1, 40).Draw(h.t, "sequences")}))
		case "chunk":
			n := rapid.IntRange(0, 20).Draw(h.t, "sequences")
			h.decided(corpus.Stream(id))(s.DecideChunk(corpus.RecordChunk{Chunk: corpus.ChunkBuilt{Chunk: len(s.Chunks), Sequences: n, Tokens: int64(n * 128), Rows: int64(n), SHA256: "cc", Bytes: 9},
				Exhausted: rapid.Bool().Draw(h.t, "exhausted"), VocabularySHA256: "vv"}))
		case "fail":
			h.decided(corpus.Stream(id))(s.DecideFail(corpus.Failed{Chunk: len(s.Chunks), Code: "no_text_column", Detail: h.text("detail")}))
		}
	case "training":
		id := h.id("t")
		s := load[training.State](h, training.Stream(id))
		switch h.verb("import", "delete") {
		case "import":
			saes := []training.SAE{{Path: "layer_8_residual", Facts: saeFacts(8)}, {Path: "layer_9_mlp", Facts: saeFacts(9)}}
			h.decided(training.Stream(id))(s.DecideImport(training.Import{ID: id, Name: h.text("name"), Checkpoint: h.origin(), ModelID: h.id("m"), Model: modelFacts(),
				SAEs: slices.Clone(saes[:rapid.IntRange(1, 2).Draw(h.t, "saes")])}))
		case "delete":
			h.decided(training.Stream(id))(s.DecideDelete())
		}
	}
}

func (h *histories) verb(choices ...string) string {
	return rapid.SampledFrom(choices).Draw(h.t, "verb")
}

// decided records what an aggregate decided; what it refused did not happen.
func (h *histories) decided(stream string) func([]event.Data, error) {
	return func(data []event.Data, err error) {
		if err == nil {
			h.record(h.t, stream, data...)
		}
	}
}

func load[S interface{ Evolve(event.Data) S }](h *histories, stream string) S {
	var s S
	recs, err := h.log.ReadStream(background(h.t), stream, 0)
	require.NoError(h.t, err)
	for _, rec := range recs {
		d, err := h.law.Config.Registry.Decode(rec)
		require.NoError(h.t, err)
		s = s.Evolve(d)
	}
	return s
}
