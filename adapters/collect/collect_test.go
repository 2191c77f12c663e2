package collect_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/collect"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/fileset"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/source"
)

// history is a log in memory, of which a sweep reads all.
type history struct {
	eventlog.Log
	recs     []event.Recorded
	registry *event.Registry
}

func (h *history) append(stream string, data ...event.Data) {
	for _, d := range data {
		b, err := json.Marshal(d)
		if err != nil {
			panic(err)
		}
		h.recs = append(h.recs, event.Recorded{Position: int64(len(h.recs) + 1), Stream: stream, Type: d.EventType(), SchemaVersion: h.registry.SchemaVersion(d.EventType()), Data: b})
	}
}

func (h *history) ReadAll(_ context.Context, after int64, limit int) ([]event.Recorded, error) {
	rest := h.recs[min(int(after), len(h.recs)):]
	return rest[:min(limit, len(rest))], nil
}

func artifactKey(id string, segment int, digest string) string {
	return fmt.Sprintf("extractions/%s/%d-%s.parquet", id, segment, digest)
}

// world is a store with a history, in which time passes by making files older.
type world struct {
	t       require.TestingT
	root    string
	store   *blob.Files
	log     *history
	sweeper *collect.Sweeper
	n       int

	flying map[string]*flight // imports under way, by stream
	ready  []string           // streams of models that are not deleted
	runs   []string
}

type flight struct {
	file  fileset.File
	since time.Duration
}

func newWorld(t require.TestingT, root string) *world {
	registry, err := facts.Registry()
	require.NoError(t, err)
	store, err := blob.OpenFiles(filepath.Join(root, "files"))
	require.NoError(t, err)
	w := &world{t: t, root: root, store: store, log: &history{registry: registry}, flying: map[string]*flight{}}
	w.sweeper = &collect.Sweeper{Log: w.log, Registry: registry, Store: store, Artifact: artifactKey, Cache: filepath.Join(root, "cache")}
	w.log.append(dataset.Stream("d"), dataset.Ready{Facts: dataset.Facts{Files: w.files("the dataset")}})
	w.log.append(sae.Stream("sae_s"), sae.Ready{Facts: sae.Facts{Files: w.files("the SAE")}})
	return w
}

func (w *world) files(content string) fileset.Set {
	path := filepath.Join(w.root, "import")
	require.NoError(w.t, os.WriteFile(path, []byte(content), 0o600))
	size, digest, err := blob.PutFile(context.Background(), w.store, path)
	require.NoError(w.t, err)
	return fileset.Set{{Name: "f", Bytes: size, SHA256: digest}}
}

func (w *world) begin(content string) {
	w.n++
	w.flying[model.Stream(fmt.Sprint("m", w.n))] = &flight{file: w.files(content)[0]}
}

func (w *world) finish(stream string) {
	f := w.flying[stream]
	delete(w.flying, stream)
	w.log.append(stream, model.Ready{Facts: model.Facts{Files: fileset.Set{f.file}}})
	w.ready = append(w.ready, stream)
}

func (w *world) run(stream string) {
	w.n++
	id := fmt.Sprint("ext_", w.n)
	src, err := source.FromSAE("sae_s")
	require.NoError(w.t, err)
	chunk := w.files("chunk " + id)[0].SHA256
	vocabulary := w.files("vocabulary")[0].SHA256
	digest := strings.Repeat("a", 64)
	require.NoError(w.t, w.store.Put(context.Background(), artifactKey(id, 0, digest), strings.NewReader("postings")))
	w.log.append(corpus.Stream("c"+id), corpus.Requested{ID: "c" + id, DatasetID: "d"}, corpus.ChunkBuilt{SHA256: chunk}, corpus.Ready{VocabularySHA256: vocabulary})
	w.log.append(extraction.Stream(id), extraction.Requested{ID: id, Source: src, ModelID: strings.TrimPrefix(stream, "model-"), DatasetID: "d"},
		extraction.Planned{CorpusID: "c" + id}, extraction.SegmentRecorded{Artifact: extraction.Artifact{FileSHA256: digest}})
	// An attempt that was not recorded.
	require.NoError(w.t, w.store.Put(context.Background(), artifactKey(id, 0, strings.Repeat("b", 64)), strings.NewReader("of an attempt that nobody recorded")))
	w.runs = append(w.runs, id)
}

// pass makes everything older.
func (w *world) pass(d time.Duration) {
	for _, f := range w.flying {
		if f.since+d >= blob.Young { // imports end before
			return
		}
	}
	for _, f := range w.flying {
		f.since += d
	}
	require.NoError(w.t, filepath.WalkDir(w.root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.Chtimes(path, st.ModTime().Add(-d), st.ModTime().Add(-d))
	}))
}

func (w *world) sweep() collect.Report {
	r, err := w.sweeper.Sweep(context.Background())
	require.NoError(w.t, err)
	return r
}

func (w *world) stored() (keys []string) {
	for item, err := range w.store.List(context.Background(), "") {
		require.NoError(w.t, err)
		keys = append(keys, item.Key)
	}
	return keys
}

func (w *world) named() (keys []string) {
	n, err := collect.Read(context.Background(), w.log, w.log.registry)
	require.NoError(w.t, err)
	for key := range n.Keys(artifactKey) {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func TestASweepTakesAllThatNobodyNamesAndNothingThatSomebodyDoes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		root, err := os.MkdirTemp("", "collect")
		require.NoError(t, err)
		defer func() { _ = os.RemoveAll(root) }()
		w := newWorld(t, root)
		pick := func(from []string, what string) string { return rapid.SampledFrom(from).Draw(t, what) }
		t.Repeat(map[string]func(*rapid.T){
			"an import begins": func(t *rapid.T) { w.begin(pick([]string{"a", "b", "c"}, "content")) },
			"an import ends": func(t *rapid.T) {
				var all []string
				for s := range w.flying {
					all = append(all, s)
				}
				if slices.Sort(all); len(all) > 0 {
					w.finish(pick(all, "import"))
				}
			},
			"an import is given up": func(t *rapid.T) {
				for s := range w.flying {
					if rapid.Bool().Draw(t, "give up") {
						delete(w.flying, s)
					}
					break
				}
			},
			"a model is deleted": func(t *rapid.T) {
				if len(w.ready) > 0 {
					i := rapid.IntRange(0, len(w.ready)-1).Draw(t, "model")
					w.log.append(w.ready[i], model.Deleted{})
					w.ready = slices.Delete(w.ready, i, i+1)
				}
			},
			"an extraction runs": func(t *rapid.T) {
				if len(w.ready) > 0 {
					w.run(pick(w.ready, "model"))
				}
			},
			"an extraction is deleted": func(t *rapid.T) {
				if len(w.runs) > 0 {
					i := rapid.IntRange(0, len(w.runs)-1).Draw(t, "extraction")
					w.log.append(extraction.Stream(w.runs[i]), extraction.Deleted{})
					w.runs = slices.Delete(w.runs, i, i+1)
				}
			},
			"time passes": func(t *rapid.T) { w.pass(time.Duration(rapid.IntRange(1, 40).Draw(t, "hours")) * time.Hour) },
			"a sweep":     func(*rapid.T) { w.sweep() },
			"": func(t *rapid.T) {
				stored := w.stored()
				for _, key := range w.named() {
					require.Contains(t, stored, key)
				}
				for stream, f := range w.flying {
					require.Contains(t, stored, blob.FileKey(f.file.SHA256), "of the import of %s", stream)
				}
			},
		})
		w.flying = map[string]*flight{}
		w.pass(49 * time.Hour)
		w.sweep()
		require.Equal(t, w.named(), w.stored())
	})
}

func TestASweepSaysWhatItWouldDoAndLeavesStrangersAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	w.begin("a")
	require.NoError(t, w.store.Put(t.Context(), "selftests/x.json", strings.NewReader("{}")))
	require.NoError(t, w.store.Put(t.Context(), "notes/mine.txt", strings.NewReader("of somebody else")))
	for _, path := range []string{"files/files/aa/x.partial", "cache/taps/pass", "cache/sets/" + strings.Repeat("0", 64) + "/f", "cache/other/f"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(w.root, path)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(w.root, path), []byte("x"), 0o600))
	}
	require.Zero(t, w.sweep().Files, "all is young")
	w.flying = map[string]*flight{}
	w.pass(25 * time.Hour)
	before := w.stored()
	var told []string
	w.sweeper.Removed = func(r collect.Removal) { told = append(told, r.What) }
	w.sweeper.Dry = true
	dry := w.sweep()
	require.Equal(t, before, w.stored())
	w.sweeper.Dry = false
	wet := told
	told = nil
	report := w.sweep()
	require.Equal(t, dry.Files, report.Files)
	require.Equal(t, wet, told)
	require.Len(t, told, 4, "the import that was given up, a partial file, a forward pass, links: %v", told)
	require.Equal(t, 1, report.Unknown)
	require.Contains(t, w.stored(), "notes/mine.txt")
	require.Contains(t, w.stored(), "selftests/x.json", "a verdict is kept for a month")
	require.FileExists(t, filepath.Join(w.root, "cache/other/f"))
	w.pass(31 * 24 * time.Hour)
	w.sweep()
	require.NotContains(t, w.stored(), "selftests/x.json")
	require.Contains(t, w.stored(), "notes/mine.txt")
}

func TestNothingIsCollectedWhileAnEventCannotBeRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	w.begin("a")
	w.flying = map[string]*flight{}
	w.pass(25 * time.Hour)
	w.log.recs = append(w.log.recs, event.Recorded{Position: int64(len(w.log.recs) + 1), Stream: "steering-1", Type: "SteeringReady", SchemaVersion: 1, Data: json.RawMessage(`{}`)})
	before := w.stored()
	_, err := w.sweeper.Sweep(t.Context())
	require.ErrorContains(t, err, "nothing is collected")
	require.Equal(t, before, w.stored())
}

func TestWhatIsMissingIsFoundWithWhatNamesIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, t.TempDir())
	w.begin("a")
	w.finish(model.Stream("m1"))
	w.run(model.Stream("m1"))
	named, err := collect.Read(t.Context(), w.log, w.log.registry)
	require.NoError(t, err)
	missing, unnamed, size, err := collect.Missing(t.Context(), named, w.store, artifactKey)
	require.NoError(t, err)
	require.Empty(t, missing)
	require.Equal(t, 1, unnamed, "the attempt that nobody recorded")
	require.EqualValues(t, len("of an attempt that nobody recorded"), size)
	require.NoError(t, w.store.Delete(t.Context(), artifactKey("ext_2", 0, strings.Repeat("a", 64))))
	missing, _, _, err = collect.Missing(t.Context(), named, w.store, artifactKey)
	require.NoError(t, err)
	require.Equal(t, map[string]string{artifactKey("ext_2", 0, strings.Repeat("a", 64)): "segment 0 of ext_2"}, missing)
}

func TestABlobThatIsStoredAgainWhileItIsDeletedStays(t *testing.T) {
	t.Parallel()
	store, err := blob.OpenFiles(t.TempDir())
	require.NoError(t, err)
	for range 200 {
		require.NoError(t, store.Put(t.Context(), "x", bytes.NewReader([]byte("x"))))
		cut := time.Now().Add(time.Microsecond)
		for time.Now().Before(cut) { // the clock moves on between the two
		}
		put := make(chan error, 1)
		go func() { put <- store.Put(t.Context(), "x", bytes.NewReader([]byte("x"))) }()
		_, err := store.DeleteOlder(t.Context(), "x", cut)
		require.NoError(t, err)
		require.NoError(t, <-put)
		b, err := store.Open(t.Context(), "x")
		require.NoError(t, err, "what was put at the same time is there")
		require.NoError(t, b.Close())
	}
}
