package worker

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"sort"
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
	chunk, sum, file, err := buildChunk(ctx, task, data, tokens, state.Request, index)
	if err := errors.Join(err, data.Close()); err != nil {
		return err
	}
	if err := w.store.Put(ctx, blob.FileKey(sum.FileSHA256), bytes.NewReader(file)); err != nil {
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

// buildChunk makes a chunk, and the bytes that it is stored as.
func buildChunk(ctx context.Context, task *Task, data *corpus.Dataset, tokens Tokenizer, of corpora.Requested, index int) (*corpus.Chunk, corpus.ShardSummary, []byte, error) {
	chunk, err := corpus.Build(ctx, data, reporting{tokens, task}, buildOptions(of.Options), index)
	if err != nil {
		if !stopped(err) && !outage(err) {
			err = &Failure{Code: "corpus_failed", Detail: err.Error(), Err: err}
		}
		return nil, corpus.ShardSummary{}, nil, err
	}
	var file bytes.Buffer
	sum, err := corpus.WriteShard(&file, of.ID, chunk)
	return chunk, sum, file.Bytes(), err
}

// restore makes those chunks of a corpus again, and its vocabulary, that the store has no more: nobody needed them for a
// while, and they were collected.
func (w *Worker) restore(ctx context.Context, task *Task, state corpora.State, data *corpus.Dataset, tokens Tokenizer) error {
	vocabulary, err := w.vocabulary(ctx, tokens)
	if err != nil {
		return err
	}
	if vocabulary != state.Done.VocabularySHA256 {
		return &Failure{Code: "corpus_changed", Detail: fmt.Sprintf("the tokenizer's vocabulary is %.12s… now, and %.12s… was recorded with the corpus", vocabulary, state.Done.VocabularySHA256)}
	}
	for _, c := range state.Chunks {
		if err := task.Batch(telemetry{Stage: "tokenising", TokensDone: state.Tokens}); err != nil {
			return err
		}
		there, err := blob.Has(ctx, w.store, blob.FileKey(c.SHA256), c.Bytes)
		if err != nil {
			return err
		}
		if there {
			continue
		}
		_, sum, file, err := buildChunk(ctx, task, data, tokens, state.Request, c.Chunk)
		if err != nil {
			return err
		}
		if sum.FileSHA256 != c.SHA256 {
			return &Failure{Code: "corpus_changed", Detail: fmt.Sprintf("chunk %d of the corpus is not in the store, and was built as %.12s… now instead of %.12s…: put the store back", c.Chunk, sum.FileSHA256, c.SHA256), Resumable: true}
		}
		if err := w.store.Put(ctx, blob.FileKey(c.SHA256), bytes.NewReader(file)); err != nil {
			return fmt.Errorf("store chunk %d of corpus %s again: %w", c.Chunk, state.Request.ID, err)
		}
	}
	return nil
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

// mostShards is how many chunks of corpora a worker keeps open.
const mostShards = 64

// shardCache keeps the chunks that were read last: the segments of one extraction come one after the other. However many
// chunks a corpus has, a worker fetches and opens those that it needs.
type shardCache struct {
	mu      sync.Mutex
	open    map[string]*openShard // by digest
	decoded *corpus.Cache
	used    int64 // counts takes
}

type openShard struct {
	*corpus.Shard
	readers int
	used    int64 // the last take
}

// take opens a chunk. release is called when it is not read any more.
func (c *shardCache) take(ctx context.Context, store blob.Store, chunk corpora.ChunkBuilt) (shard *corpus.Shard, release func() error, err error) {
	c.mu.Lock()
	found := c.open[chunk.SHA256]
	if found != nil {
		found.readers++
	}
	c.mu.Unlock()
	if found == nil {
		if found, err = c.add(ctx, store, chunk); err != nil {
			return nil, nil, err
		}
	}
	return found.Shard, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.used++
		found.readers, found.used = found.readers-1, c.used
		return c.shrink(mostShards)
	}, nil
}

func (c *shardCache) add(ctx context.Context, store blob.Store, chunk corpora.ChunkBuilt) (*openShard, error) {
	path, err := store.Local(ctx, blob.FileKey(chunk.SHA256), chunk.SHA256)
	if err != nil {
		return nil, missing(fmt.Sprintf("chunk %d of the corpus", chunk.Chunk), err)
	}
	s, err := corpus.OpenShardFile(path)
	if err != nil {
		return nil, err
	}
	if s.Sequences() != chunk.Sequences {
		return nil, errors.Join(fmt.Errorf("chunk %d of the corpus has %d sequences, not %d", chunk.Chunk, s.Sequences(), chunk.Sequences), s.Close())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.open[chunk.SHA256]; found != nil { // somebody was faster
		found.readers++
		return found, s.Close()
	}
	if c.open == nil {
		c.open, c.decoded = map[string]*openShard{}, corpus.NewCache()
	}
	s.Share(c.decoded)
	found := &openShard{Shard: s, readers: 1}
	c.open[chunk.SHA256] = found
	return found, nil
}

// shrink closes what nobody reads, the longest unused first, until so many are left.
func (c *shardCache) shrink(left int) (err error) {
	for len(c.open) > left {
		oldest := ""
		for sha256, s := range c.open {
			if s.readers == 0 && (oldest == "" || s.used < c.open[oldest].used) {
				oldest = sha256
			}
		}
		if oldest == "" {
			return err
		}
		err = errors.Join(err, c.open[oldest].Close())
		delete(c.open, oldest)
	}
	return err
}

func (c *shardCache) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.shrink(0)
}

type sequence struct {
	sequence corpora.Sequence
	err      error
}

// sequences reads a range of a corpus in order; an error ends it.
func (w *Worker) sequences(ctx context.Context, state corpora.State, first, count int) iter.Seq[sequence] {
	return func(yield func(sequence) bool) {
		end := first + count
		if first < 0 || end > state.Sequences {
			yield(sequence{err: fmt.Errorf("sequences %d to %d are not in the corpus, which has %d", first, end-1, state.Sequences)})
			return
		}
		at := sort.Search(len(state.Chunks), func(i int) bool { return state.Chunks[i].FirstSequence+state.Chunks[i].Sequences > first })
		for ; at < len(state.Chunks) && state.Chunks[at].FirstSequence < end; at++ {
			if !w.chunk(ctx, state.Chunks[at], first, end, yield) {
				return
			}
		}
	}
}

// chunk yields those sequences from first to end − 1 that a chunk has. It reports whether to go on.
func (w *Worker) chunk(ctx context.Context, chunk corpora.ChunkBuilt, first, end int, yield func(sequence) bool) bool {
	shard, release, err := w.shards.take(ctx, w.store, chunk)
	if err != nil {
		yield(sequence{err: err})
		return false
	}
	more := true
	for i := max(first, chunk.FirstSequence); more && i < min(end, chunk.FirstSequence+chunk.Sequences); i++ {
		s, err := shard.Sequence(i - chunk.FirstSequence)
		more = yield(sequence{s, err}) && err == nil
	}
	if err := release(); err != nil && more {
		yield(sequence{err: err})
		return false
	}
	return more
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
