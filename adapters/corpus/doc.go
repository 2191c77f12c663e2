// Package corpus reads datasets (JSON, text, Parquet, Arrow, token arrays) and turns them into a corpus: rows in
// a seeded order, tokenised, cut into sequences, in chunks that never change; and it reads and writes the files
// in which chunks and vocabularies are kept.
//
// A chunk depends only on dataset, tokenizer, options and its number, so any worker builds the same bytes, and a
// longer run keeps the sequences of a shorter one. The package is pure Go; whoever builds hands it a tokenizer.
// A file that cannot be used is a *FileError, a column that is not there a *MissingColumnError, a bad row a
// *RowError.
package corpus
