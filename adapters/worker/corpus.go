package worker

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/adapters/corpus"
	"github.com/featuremill/featuremill/domain/command"
	corpora "github.com/featuremill/featuremill/domain/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/model"
)

// corpus builds one chunk of a corpus and records it.
func (w *Worker) corpus(ctx context.Context, task *Task) error {
	id, index := task.Lease.Work.Subject, task.Lease.Work.Index
	state, _, err := command.Load[corpora.State](ctx, w.commands, corpora.Stream(id))
	if err != nil {
		return err
	}
	if !state.Building || index != len(state.Chunks) {
		return nil
	}
	ctx = fetching(ctx, task)
	m, _, err := command.Load[model.State](ctx, w.commands, model.Stream(state.Request.ModelID))
	if err != nil {
		return err
	}
	d, _, err := command.Load[dataset.State](ctx, w.commands, dataset.Stream(state.Request.DatasetID))
	if err != nil {
		return err
	}
	tokens, err := w.tokenizer(ctx, m.Facts)
	if err != nil {
		return err
	}
	data, err := w.library.OpenDataset(ctx, d.Facts)
	if err != nil {
		return missing("the dataset's files", err)
	}
	chunk, err := corpus.Build(ctx, data, reporting{tokens, task}, buildOptions(state.Request.Options), index)
	switch {
	case err == nil:
		err = data.Close()
	case stopped(err), outage(err):
		err = errors.Join(err, data.Close())
	default:
		err = &Failure{Code: "corpus_failed", Detail: err.Error(), Err: errors.Join(err, data.Close())}
	}
	if err != nil {
		return err
	}
	var file bytes.Buffer
	sum, err := corpus.WriteShard(&file, id, chunk)
	if err != nil {
		return err
	}
	if err := w.store.Put(ctx, blob.FileKey(sum.FileSHA256), bytes.NewReader(file.Bytes())); err != nil {
		return fmt.Errorf("store chunk %d of corpus %s: %w", index, id, err)
	}
	vocabulary, err := w.vocabulary(ctx, tokens)
	if err != nil {
		return err
	}
	if err := task.Batch(telemetry{Stage: "tokenising", TokensDone: state.Tokens + chunk.Tokens}); err != nil {
		return err
	}
	rows := min(int64(index+1)*corpus.ChunkRows, d.Facts.Rows) - int64(index)*corpus.ChunkRows
	w.at("chunk")
	built := corpora.RecordChunk{
		Chunk:     corpora.ChunkBuilt{Chunk: index, Sequences: len(chunk.Sequences), Tokens: chunk.Tokens, Rows: rows, SHA256: sum.FileSHA256, Bytes: sum.Bytes},
		Exhausted: int64(index+1)*corpus.ChunkRows >= d.Facts.Rows, VocabularySHA256: vocabulary,
	}
	return w.record(ctx, task, func() error {
		_, err := w.commands.RecordCorpusChunk(ctx, w.call(task), task.Lease, built)
		return err
	})
}

// vocabulary stores the tokenizer's vocabulary for those who have no tokenizer.
func (w *Worker) vocabulary(ctx context.Context, t Tokenizer) (string, error) {
	var file bytes.Buffer
	digest, err := corpus.WriteVocabulary(&file, t.Digest(), t.Vocabulary())
	if err != nil {
		return "", err
	}
	if kept, err := blob.Kept(ctx, w.store, blob.FileKey(digest), int64(file.Len())); err != nil || kept {
		return digest, err
	}
	return digest, w.store.Put(ctx, blob.FileKey(digest), bytes.NewReader(file.Bytes()))
}

// OpenCorpus opens the shards of a corpus. The caller closes it.
func OpenCorpus(ctx context.Context, store blob.Store, state corpora.State) (*corpus.Corpus, error) {
	shards := make([]*corpus.Shard, 0, len(state.Chunks))
	fail := func(err error) (*corpus.Corpus, error) {
		for _, s := range shards {
			err = errors.Join(err, s.Close())
		}
		return nil, err
	}
	for _, c := range state.Chunks {
		path, err := store.Local(ctx, blob.FileKey(c.SHA256), c.SHA256)
		if err != nil {
			return fail(missing(fmt.Sprintf("chunk %d of the corpus", c.Chunk), err))
		}
		s, err := corpus.OpenShardFile(path)
		if err != nil {
			return fail(err)
		}
		shards = append(shards, s)
	}
	c, err := corpus.NewCorpus(shards...)
	if err != nil {
		return fail(err)
	}
	return c, nil
}

// shardCache keeps the corpus that was read last: the segments of one extraction come one after the other.
type shardCache struct {
	mu     sync.Mutex
	id     string
	chunks int
	corpus *corpus.Corpus
}

func (c *shardCache) open(ctx context.Context, store blob.Store, state corpora.State) (*corpus.Corpus, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.corpus != nil && c.id == state.Request.ID && c.chunks == len(state.Chunks) {
		return c.corpus, nil
	}
	if err := c.closeLocked(); err != nil {
		return nil, err
	}
	opened, err := OpenCorpus(ctx, store, state)
	if err != nil {
		return nil, err
	}
	c.corpus, c.id, c.chunks = opened, state.Request.ID, len(state.Chunks)
	return opened, nil
}

func (c *shardCache) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeLocked()
}

func (c *shardCache) closeLocked() error {
	if c.corpus == nil {
		return nil
	}
	err := c.corpus.Close()
	c.corpus = nil
	return err
}

type sequence struct {
	sequence corpora.Sequence
	err      error
}

// sequences reads a range of a corpus in order; an error ends it.
func (w *Worker) sequences(ctx context.Context, state corpora.State, first, count int) iter.Seq[sequence] {
	return func(yield func(sequence) bool) {
		c, err := w.shards.open(ctx, w.store, state)
		for i := first; err == nil && i < first+count; i++ {
			var s corpora.Sequence
			if s, err = c.Sequence(i); err == nil && !yield(sequence{sequence: s}) {
				return
			}
		}
		if err != nil {
			yield(sequence{err: err})
		}
	}
}

func hexDigest(b [32]byte) string { return hex.EncodeToString(b[:]) }

// reporting reports every batch of rows that is tokenised: a long chunk is no hung one.
type reporting struct {
	Tokenizer
	task *Task
}

func (r reporting) EncodeBatch(ctx context.Context, texts []string) ([]corpora.Encoding, error) {
	if err := r.task.Batch(nil); err != nil {
		return nil, err
	}
	return r.Tokenizer.EncodeBatch(ctx, texts)
}
