package corpus

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sort"
	"strconv"

	"github.com/parquet-go/parquet-go"

	"github.com/featuremill/featuremill/domain/corpus"
)

// Shard reads one chunk of a corpus. It is safe for concurrent use.
type Shard struct {
	name   string
	in     *parquet.File
	closer io.Closer // nil if the caller owns the file
	meta   ShardMetadata
	starts []int // first sequence of each row group
	cache  *groupCache
}

// ShardMetadata is what a shard says about itself.
type ShardMetadata struct {
	Corpus        string
	Chunk         int
	Sequences     int
	Tokens        int64
	ContentSHA256 string
}

// cacheBytes bounds the decoded row groups that a shard, or a corpus, keeps.
const cacheBytes = 256 << 20

// OpenShardFile opens a shard on disk; Close closes the file.
func OpenShardFile(path string) (*Shard, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open shard: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("open shard: %w", err)
	}
	s, err := openShard(path, file, info.Size())
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	s.closer = file
	return s, nil
}

// OpenShard reads a shard of the given size from r, which must stay readable while the shard is used.
func OpenShard(r io.ReaderAt, size int64) (*Shard, error) { return openShard("shard", r, size) }

func openShard(name string, r io.ReaderAt, size int64) (_ *Shard, err error) {
	defer recovered(&err)
	in, err := openParquetFile(name, r, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return nil, err
	}
	s := &Shard{name: name, in: in, cache: newGroupCache(cacheBytes)}
	if version, _ := in.Lookup(metaFormat); version != "1" {
		return nil, s.broken("it is not a corpus shard of version 1 (its version is %q)", version)
	}
	if !parquet.EqualNodes(in.Schema(), parquet.SchemaOf(shardRow{})) {
		return nil, s.broken("its columns are not those of a corpus shard")
	}
	s.meta.Corpus, _ = in.Lookup(metaCorpus)
	s.meta.ContentSHA256, _ = in.Lookup(metaContent)
	var tokens int
	for key, target := range map[string]*int{metaChunk: &s.meta.Chunk, metaSequences: &s.meta.Sequences, metaTokens: &tokens} {
		text, _ := in.Lookup(key)
		if *target, err = strconv.Atoi(text); err != nil || *target < 0 {
			return nil, s.broken("its %s is %q", key, text)
		}
	}
	s.meta.Tokens = int64(tokens)
	rows := int64(0)
	for _, g := range in.RowGroups() {
		if g.NumRows() <= 0 || g.NumRows() > math.MaxInt32 {
			return nil, s.broken("it has a row group of %d rows", g.NumRows())
		}
		s.starts = append(s.starts, int(rows))
		rows += g.NumRows()
	}
	if rows != int64(s.meta.Sequences) {
		return nil, s.broken("it has %d sequences and says %d", rows, s.meta.Sequences)
	}
	return s, nil
}

func (s *Shard) broken(format string, args ...any) error {
	return &FileError{Path: s.name, Detail: fmt.Sprintf(format, args...)}
}

// Metadata says what the shard holds.
func (s *Shard) Metadata() ShardMetadata { return s.meta }

// Sequences is the number of sequences.
func (s *Shard) Sequences() int { return s.meta.Sequences }

// Sequence returns sequence i of the chunk. Its slices are shared with other callers: do not change them.
func (s *Shard) Sequence(i int) (corpus.Sequence, error) {
	if i < 0 || i >= s.meta.Sequences {
		return corpus.Sequence{}, fmt.Errorf("sequence %d is not in the shard, which has %d", i, s.meta.Sequences)
	}
	group := sort.Search(len(s.starts), func(g int) bool { return s.starts[g] > i }) - 1
	sequences, err := s.cache.get(groupKey{s, group}, s.decode)
	if err != nil {
		return corpus.Sequence{}, err
	}
	return sequences[i-s.starts[group]], nil
}

// Close closes the file that OpenShardFile opened.
func (s *Shard) Close() error {
	if s.closer == nil {
		return nil
	}
	return s.closer.Close()
}

// decode reads a row group, column by column.
func (s *Shard) decode(group int) (_ []corpus.Sequence, _ int64, err error) {
	defer recovered(&err)
	rowGroup := s.in.RowGroups()[group]
	n := int(rowGroup.NumRows())
	chunks := rowGroup.ColumnChunks()

	var lists [6]listColumn // the columns after "sequence", in the order of shardRow
	for i := range lists {
		if lists[i], err = readList(chunks[i+1], n); err != nil {
			return nil, 0, s.broken("row group %d: %v", group, err)
		}
	}
	tokens, pieceToken, pieceRow, pieceStart, pieceEnd, inserted := lists[0], lists[1], lists[2], lists[3], lists[4], lists[5]
	pieces := make([]corpus.Piece, len(pieceToken.int32s))
	if len(pieceRow.int64s) != len(pieces) || len(pieceStart.int64s) != len(pieces) || len(pieceEnd.int64s) != len(pieces) {
		return nil, 0, s.broken("row group %d: its piece columns differ in length", group)
	}
	for k := range pieces {
		pieces[k] = corpus.Piece{Token: int(pieceToken.int32s[k]), Row: pieceRow.int64s[k], CharStart: pieceStart.int64s[k], CharEnd: pieceEnd.int64s[k]}
	}
	added := make([]int, len(inserted.int32s))
	for k, at := range inserted.int32s {
		added[k] = int(at)
	}
	out := make([]corpus.Sequence, n)
	for i := range out {
		out[i] = corpus.Sequence{
			Tokens:   tokens.int32s[tokens.ends[i]:tokens.ends[i+1]:tokens.ends[i+1]],
			Pieces:   pieces[pieceToken.ends[i]:pieceToken.ends[i+1]:pieceToken.ends[i+1]],
			Inserted: added[inserted.ends[i]:inserted.ends[i+1]:inserted.ends[i+1]],
		}
		if len(out[i].Inserted) == 0 {
			out[i].Inserted = nil
		}
		if detail := invalid(out[i]); detail != "" {
			return nil, 0, s.broken("sequence %d %s", s.starts[group]+i, detail)
		}
	}
	return out, int64(len(tokens.int32s)*4 + len(pieces)*32 + len(added)*8 + n*72), nil
}

// invalid says what is wrong with a sequence, or nothing.
func invalid(s corpus.Sequence) string {
	if len(s.Tokens) == 0 || len(s.Tokens) > MaxContextLength {
		return fmt.Sprintf("has %d tokens", len(s.Tokens))
	}
	if len(s.Pieces) == 0 {
		return "has no piece"
	}
	last := -1
	for _, p := range s.Pieces {
		if p.Token <= last || p.Token >= len(s.Tokens) || p.Row < 0 || p.CharEnd < p.CharStart {
			return fmt.Sprintf("has the piece %+v", p)
		}
		last = p.Token
	}
	last = -1
	for _, at := range s.Inserted {
		if at <= last || at >= len(s.Tokens) {
			return fmt.Sprintf("has an inserted token at %d", at)
		}
		last = at
	}
	for _, id := range s.Tokens {
		if id < 0 {
			return fmt.Sprintf("has the token id %d", id)
		}
	}
	return ""
}

// listColumn is a column of lists: the values of all rows, and ends[i], ends[i+1] around those of row i.
type listColumn struct {
	int32s []int32
	int64s []int64
	ends   []int
}

func readList(chunk parquet.ColumnChunk, rows int) (l listColumn, err error) {
	pages := chunk.Pages()
	defer func() {
		if closeErr := pages.Close(); err == nil {
			err = closeErr
		}
	}()
	l.ends = make([]int, 0, rows+1)
	count := 0
	for {
		page, err := pages.ReadPage()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return l, err
		}
		if page.Dictionary() != nil {
			parquet.Release(page)
			return l, fmt.Errorf("column %d is written with a dictionary, which shards are not", chunk.Column())
		}
		data, repetition, definition := page.Data(), page.RepetitionLevels(), page.DefinitionLevels()
		if len(repetition) != len(definition) {
			parquet.Release(page)
			return l, fmt.Errorf("column %d has %d repetition and %d definition levels", chunk.Column(), len(repetition), len(definition))
		}
		for k, level := range repetition {
			if level == 0 {
				l.ends = append(l.ends, count)
			}
			if definition[k] > 0 { // 0 stands for an empty list
				count++
			}
		}
		if chunk.Type().Kind() == parquet.Int32 {
			l.int32s = append(l.int32s, data.Int32()...)
		} else {
			l.int64s = append(l.int64s, data.Int64()...)
		}
		parquet.Release(page)
	}
	if len(l.ends) != rows || len(l.int32s)+len(l.int64s) != count {
		return l, fmt.Errorf("column %d has %d rows of %d and %d values of %d", chunk.Column(), len(l.ends), rows, len(l.int32s)+len(l.int64s), count)
	}
	l.ends = append(l.ends, count)
	return l, nil
}
