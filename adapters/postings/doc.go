// Package postings is the artifact format: one Parquet file with the sparse activations of one segment.
//
// It owns the words posting (latent, sequence, offset, activation ≠ 0), artifact and run file (several
// artifacts merged). It promises that equal postings give equal bytes, that a latent range is read
// without the rest, and that a damaged or hostile file is an error (ErrCorrupt), never a panic and never
// a large allocation. The files are plain Parquet: pyarrow, DuckDB and polars read them as they are.
// Whoever computes or folds postings may import it.
package postings
