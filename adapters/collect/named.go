package collect

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/fileset"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/training"
)

// Named is what the log names, through a position.
type Named struct {
	position int64
	things   map[string]*thing // by stream: models, SAEs, datasets, trainings
	corpora  map[string]*corpusFiles
	runs     map[string]*run
}

type thing struct {
	sets    []fileset.Set
	files   []string // digests, beside the sets
	deleted bool
}

type corpusFiles struct {
	dataset    string // the digest of its files
	chunks     map[int]string
	vocabulary string
}

type run struct {
	uses      []string // streams
	dataset   string   // stream
	corpus    string
	artifacts map[int]string // digests of files, by segment
}

const page = 2000

// Read computes what the log names now.
func Read(ctx context.Context, log eventlog.Log, registry *event.Registry) (*Named, error) {
	n := &Named{things: map[string]*thing{}, corpora: map[string]*corpusFiles{}, runs: map[string]*run{}}
	return n, n.Advance(ctx, log, registry)
}

// Advance reads on to the end of the log.
func (n *Named) Advance(ctx context.Context, log eventlog.Log, registry *event.Registry) error {
	for {
		recs, err := log.ReadAll(ctx, n.position, page)
		if err != nil {
			return err
		}
		for _, rec := range recs {
			if err := n.apply(rec, registry); err != nil {
				return fmt.Errorf("nothing is collected: event %d (%s of %s) cannot be read, and may name files: %w", rec.Position, rec.Type, rec.Stream, err)
			}
			n.position = rec.Position
		}
		if len(recs) < page {
			return nil
		}
	}
}

func (n *Named) apply(rec event.Recorded, registry *event.Registry) error {
	data, err := registry.Decode(rec)
	if errors.Is(err, event.ErrArchived) && namesNothing[rec.Type] {
		return nil
	}
	if err != nil {
		return err
	}
	_, id, _ := strings.Cut(rec.Stream, "-")
	switch e := data.(type) {
	case model.Ready:
		n.things[rec.Stream] = &thing{sets: []fileset.Set{e.Facts.Files}, files: []string{e.Facts.Tokenizer}}
	case sae.Ready:
		n.things[rec.Stream] = &thing{sets: []fileset.Set{e.Facts.Files}}
	case dataset.Ready:
		n.things[rec.Stream] = &thing{sets: []fileset.Set{e.Facts.Files}}
	case training.Imported:
		t := &thing{}
		for _, s := range e.SAEs {
			t.sets = append(t.sets, s.Facts.Files)
		}
		n.things[rec.Stream] = t
	case model.Deleted, sae.Deleted, dataset.Deleted, training.Deleted:
		if t := n.things[rec.Stream]; t != nil {
			t.deleted = true
		}
	case corpus.Requested:
		if n.corpora[id] == nil {
			n.corpora[id] = &corpusFiles{chunks: map[int]string{}}
		}
		n.corpora[id].dataset = e.DatasetDigest
	case corpus.ChunkBuilt:
		n.corpora[id].chunks[e.Chunk] = e.SHA256
	case corpus.Ready:
		n.corpora[id].vocabulary = e.VocabularySHA256
	case extraction.Requested:
		r := &run{artifacts: map[int]string{}, dataset: dataset.Stream(e.DatasetID), uses: []string{model.Stream(e.ModelID), dataset.Stream(e.DatasetID)}}
		if s := e.Source.SAEID(); s != "" {
			r.uses = append(r.uses, sae.Stream(s))
		} else {
			r.uses = append(r.uses, training.Stream(e.Source.TrainingID()))
		}
		n.runs[id] = r
	case extraction.Planned:
		n.runs[id].corpus = e.CorpusID
	case extraction.SegmentRecorded:
		n.runs[id].artifacts[e.Index] = e.Artifact.FileSHA256
	case extraction.Deleted:
		delete(n.runs, id)
	}
	return nil
}

// namesNothing are types whose forgotten data named no file.
var namesNothing = map[string]bool{"FeatureNamed": true, "FeatureDescribed": true, "FeatureNoted": true, "FeatureStarred": true, "SAERenamed": true, "EventSkipped": true}

// ArtifactKey is where a segment's postings are kept.
type ArtifactKey func(extractionID string, segment int, fileSHA256 string) string

// Keys returns the keys of the store that are named, each with what names it.
func (n *Named) Keys(artifact ArtifactKey) map[string]string {
	keys := map[string]string{}
	file := func(digest, by string) {
		if len(digest) > 2 {
			keys[blob.FileKey(digest)] = by
		}
	}
	used := map[string]bool{}
	shown := map[string]bool{} // corpora that a run needs
	texts := map[string]bool{} // digests of datasets whose corpora a run needs, or may soon need
	for id, r := range n.runs {
		for segment, digest := range r.artifacts {
			keys[artifact(id, segment, digest)] = "segment " + fmt.Sprint(segment) + " of " + id
		}
		for _, stream := range r.uses {
			used[stream] = true
		}
		shown[r.corpus] = true
		if t := n.things[r.dataset]; r.corpus == "" && t != nil {
			texts[t.sets[0].Digest()] = true
		}
	}
	for stream, t := range n.things {
		if t.deleted && !used[stream] {
			continue
		}
		if !t.deleted && strings.HasPrefix(stream, dataset.Stream("")) {
			texts[t.sets[0].Digest()] = true
		}
		for _, set := range t.sets {
			for _, f := range set {
				file(f.SHA256, stream)
			}
		}
		for _, digest := range t.files {
			file(digest, stream)
		}
	}
	for id, c := range n.corpora {
		if !shown[id] && !texts[c.dataset] { // another dataset may have the same bytes, and then it has this corpus
			continue
		}
		for _, digest := range c.chunks {
			file(digest, "corpus "+id)
		}
		file(c.vocabulary, "corpus "+id)
	}
	return keys
}

// Sets returns the digests of the file sets that are named.
func (n *Named) Sets() map[string]bool {
	used, sets := map[string]bool{}, map[string]bool{}
	for _, r := range n.runs {
		for _, stream := range r.uses {
			used[stream] = true
		}
	}
	for stream, t := range n.things {
		if !t.deleted || used[stream] {
			for _, set := range t.sets {
				sets[set.Digest()] = true
			}
		}
	}
	return sets
}
