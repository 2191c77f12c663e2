package corpus

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strconv"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"github.com/featuremill/featuremill/domain/corpus"
)

// A shard is the Parquet file of one chunk: a row a sequence, so that pandas, polars and DuckDB read it as it is.
type shardRow struct {
	Sequence   int32   `parquet:"sequence,delta"` // in the chunk
	TokenIDs   []int32 `parquet:"token_ids,list"`
	PieceToken []int32 `parquet:"piece_token,list"`
	PieceRow   []int64 `parquet:"piece_row,list"`
	PieceStart []int64 `parquet:"piece_char_start,list"`
	PieceEnd   []int64 `parquet:"piece_char_end,list"`
	Inserted   []int32 `parquet:"inserted,list"`
}

// groupTokens is where a row group ends: what a reader decodes to give one sequence.
const groupTokens = 1 << 15

// ShardSummary identifies a written shard.
type ShardSummary struct {
	ContentSHA256 string // of the sequences, whatever the file's encoding
	FileSHA256    string
	Bytes         int64
	Sequences     int
	Tokens        int64
}

const (
	metaFormat    = "featuremill.shard"
	metaCorpus    = "featuremill.corpus"
	metaChunk     = "featuremill.chunk"
	metaSequences = "featuremill.sequences"
	metaTokens    = "featuremill.tokens"
	metaContent   = "featuremill.content_sha256"
)

// WriteShard writes a chunk of the corpus with the given id. The same chunk always gives the same bytes.
func WriteShard(w io.Writer, corpusID string, c *Chunk) (ShardSummary, error) {
	content := contentDigest(c.Sequences)
	sum := sha256.New()
	counted := &countingWriter{to: io.MultiWriter(w, sum)}
	out := parquet.NewGenericWriter[shardRow](counted,
		parquet.Compression(&zstd.Codec{Level: zstd.SpeedDefault, Concurrency: 1}),
		parquet.CreatedBy("featuremill", "1", "0"), // the library's own text names its version
		parquet.DataPageStatistics(false),
		parquet.KeyValueMetadata(metaFormat, "1"),
		parquet.KeyValueMetadata(metaCorpus, corpusID),
		parquet.KeyValueMetadata(metaChunk, strconv.Itoa(c.Index)),
		parquet.KeyValueMetadata(metaSequences, strconv.Itoa(len(c.Sequences))),
		parquet.KeyValueMetadata(metaTokens, strconv.FormatInt(c.Tokens, 10)),
		parquet.KeyValueMetadata(metaContent, content),
	)
	tokens := 0
	for i, s := range c.Sequences {
		if _, err := out.Write([]shardRow{newShardRow(i, s)}); err != nil {
			return ShardSummary{}, fmt.Errorf("write shard of chunk %d: %w", c.Index, err)
		}
		if tokens += len(s.Tokens); tokens >= groupTokens {
			if err := out.Flush(); err != nil {
				return ShardSummary{}, fmt.Errorf("write shard of chunk %d: %w", c.Index, err)
			}
			tokens = 0
		}
	}
	if err := out.Close(); err != nil {
		return ShardSummary{}, fmt.Errorf("write shard of chunk %d: %w", c.Index, err)
	}
	return ShardSummary{
		ContentSHA256: content, FileSHA256: hex.EncodeToString(sum.Sum(nil)),
		Bytes: counted.n, Sequences: len(c.Sequences), Tokens: c.Tokens,
	}, nil
}

func newShardRow(i int, s corpus.Sequence) shardRow {
	row := shardRow{Sequence: int32(i), TokenIDs: s.Tokens, Inserted: make([]int32, len(s.Inserted))}
	for _, p := range s.Pieces {
		row.PieceToken = append(row.PieceToken, int32(p.Token))
		row.PieceRow = append(row.PieceRow, p.Row)
		row.PieceStart = append(row.PieceStart, p.CharStart)
		row.PieceEnd = append(row.PieceEnd, p.CharEnd)
	}
	for k, at := range s.Inserted {
		row.Inserted[k] = int32(at)
	}
	return row
}

// contentDigest hashes sequences as little-endian numbers, each list after its length.
func contentDigest(sequences []corpus.Sequence) string {
	sum := sha256.New()
	for _, s := range sequences {
		digestSequence(sum, s)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func digestSequence(sum hash.Hash, s corpus.Sequence) {
	b := make([]byte, 0, 12+4*len(s.Tokens)+28*len(s.Pieces)+4*len(s.Inserted))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s.Tokens)))
	for _, id := range s.Tokens {
		b = binary.LittleEndian.AppendUint32(b, uint32(id))
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s.Pieces)))
	for _, p := range s.Pieces {
		b = binary.LittleEndian.AppendUint32(b, uint32(p.Token))
		b = binary.LittleEndian.AppendUint64(b, uint64(p.Row))
		b = binary.LittleEndian.AppendUint64(b, uint64(p.CharStart))
		b = binary.LittleEndian.AppendUint64(b, uint64(p.CharEnd))
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s.Inserted)))
	for _, at := range s.Inserted {
		b = binary.LittleEndian.AppendUint32(b, uint32(at))
	}
	sum.Write(b)
}

type countingWriter struct {
	to io.Writer
	n  int64
}

func (w *countingWriter) Write(b []byte) (int, error) {
	n, err := w.to.Write(b)
	w.n += int64(n)
	return n, err
}
