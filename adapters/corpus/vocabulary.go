package corpus

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"github.com/featuremill/featuremill/domain/corpus"
)

// vocabularyRow is a token; its id is its row. text is bytes, not a string: a token may be a part of a character.
type vocabularyRow struct {
	ID        int32  `parquet:"id,delta"`
	Piece     string `parquet:"piece"`
	Text      []byte `parquet:"text"`
	Special   bool   `parquet:"special"`
	Continues bool   `parquet:"continues"`
}

const (
	metaVocabulary = "featuremill.vocabulary"
	metaTokenizer  = "featuremill.tokenizer"
)

// WriteVocabulary writes a tokenizer's vocabulary for those who have no tokenizer, and returns the lower-case
// hexadecimal sha256 of the file. The same tokens always give the same bytes.
func WriteVocabulary(w io.Writer, tokenizerDigest string, tokens []corpus.Token) (string, error) {
	sum := sha256.New()
	out := parquet.NewGenericWriter[vocabularyRow](io.MultiWriter(w, sum),
		parquet.Compression(&zstd.Codec{Level: zstd.SpeedDefault, Concurrency: 1}),
		parquet.CreatedBy("featuremill", "1", "0"),
		parquet.DataPageStatistics(false),
		parquet.KeyValueMetadata(metaVocabulary, "1"),
		parquet.KeyValueMetadata(metaTokenizer, tokenizerDigest),
	)
	rows := make([]vocabularyRow, len(tokens))
	for id, t := range tokens {
		rows[id] = vocabularyRow{ID: int32(id), Piece: t.Piece, Text: []byte(t.Text), Special: t.Special, Continues: t.Continues}
	}
	if _, err := out.Write(rows); err != nil {
		return "", fmt.Errorf("write vocabulary: %w", err)
	}
	if err := out.Close(); err != nil {
		return "", fmt.Errorf("write vocabulary: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// ReadVocabulary reads what WriteVocabulary wrote: the tokens by id, and the tokenizer's digest.
func ReadVocabulary(r io.ReaderAt, size int64) (tokens []corpus.Token, tokenizerDigest string, err error) {
	defer recovered(&err)
	in, err := openParquetFile("vocabulary", r, size)
	if err != nil {
		return nil, "", err
	}
	if version, _ := in.Lookup(metaVocabulary); version != "1" {
		return nil, "", &FileError{Path: "vocabulary", Detail: fmt.Sprintf("it is not a vocabulary of version 1 (its version is %q)", version)}
	}
	if !parquet.EqualNodes(in.Schema(), parquet.SchemaOf(vocabularyRow{})) {
		return nil, "", &FileError{Path: "vocabulary", Detail: "its columns are not those of a vocabulary"}
	}
	tokenizerDigest, _ = in.Lookup(metaTokenizer)
	rows := parquet.NewGenericReader[vocabularyRow](in)
	defer rows.Close()
	buffer := make([]vocabularyRow, 4096)
	for {
		n, err := rows.Read(buffer)
		for _, row := range buffer[:n] {
			if int(row.ID) != len(tokens) {
				return nil, "", &FileError{Path: "vocabulary", Detail: fmt.Sprintf("its row %d is token %d", len(tokens), row.ID)}
			}
			tokens = append(tokens, corpus.Token{Piece: row.Piece, Text: string(row.Text), Special: row.Special, Continues: row.Continues})
		}
		if errors.Is(err, io.EOF) {
			return tokens, tokenizerDigest, nil
		}
		if err != nil {
			return nil, "", &FileError{Path: "vocabulary", Detail: "unreadable: " + err.Error(), Err: err}
		}
	}
}
