package wiring

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/corpus"
	"github.com/featuremill/featuremill/adapters/postings"
	"github.com/featuremill/featuremill/adapters/worker"
	corpora "github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/projections/features"
	"github.com/featuremill/featuremill/projections/features/fold"
)

// readers opens what a fold reads from the store.
type readers struct{ store blob.Store }

var _ features.Readers = readers{}

// artifact is a segment's postings, or a run of several, with the file below them.
type artifact struct {
	*postings.Reader
	close func() error
}

func (a artifact) Close() error { return a.close() }

// Artifact implements features.Readers.
func (r readers) Artifact(ctx context.Context, extractionID string, segment int, fileSHA256 string) (fold.Artifact, error) {
	key := worker.ArtifactKey(extractionID, segment, fileSHA256)
	b, err := r.store.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	p, err := postings.Open(b, b.Size())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", key, err), b.Close())
	}
	return artifact{p, b.Close}, nil
}

// Corpus implements features.Readers.
func (r readers) Corpus(ctx context.Context, corpusID string, chunks []features.Chunk) (fold.Corpus, error) {
	state := corpora.State{Request: corpora.Requested{ID: corpusID}}
	for _, c := range chunks {
		state.Chunks = append(state.Chunks, corpora.ChunkBuilt{Chunk: c.Index, SHA256: c.SHA256})
	}
	return worker.OpenCorpus(ctx, r.store, state)
}

type vocabulary []corpora.Token

func (v vocabulary) Len() int              { return len(v) }
func (v vocabulary) Piece(id int32) string { return v[id].Piece }
func (v vocabulary) Special(id int32) bool { return v[id].Special }

// Vocabulary implements features.Readers.
func (r readers) Vocabulary(ctx context.Context, sha256 string) (fold.Vocabulary, error) {
	b, err := r.store.Open(ctx, blob.FileKey(sha256))
	if err != nil {
		return nil, err
	}
	tokens, _, err := corpus.ReadVocabulary(b, b.Size())
	if err := errors.Join(err, b.Close()); err != nil {
		return nil, err
	}
	return vocabulary(tokens), nil
}

// Merge implements features.Readers: the run file is a cache and has no name.
func (r readers) Merge(ctx context.Context, run []fold.Artifact) (fold.Artifact, error) {
	sources := make([]postings.Source, len(run))
	for i, a := range run {
		s, ok := a.(postings.Source)
		if !ok {
			return nil, fmt.Errorf("artifact %d of the run is a %T", i, a)
		}
		sources[i] = s
	}
	return postings.CreateRun(ctx, os.TempDir(), sources...)
}
