// Package checkpoint reads what other people trained: language models (Hugging Face folders, GGUF files) and sparse
// autoencoders (SAEFormats: SAELens, sparsify, Gemma Scope and others), into one canonical form that the extractor computes with.
//
// It owns the words tensor, dtype, checkpoint and fold. It promises that whatever it opens is whole and consistent: names,
// dtypes, shapes, offsets and sizes are checked against the file before memory is given, and a file that breaks a rule is a
// typed error (errors.go) that says what was found and what would be right. It never guesses a fact that changes a number.
// Tensors may be views of a memory map: they end with Close. Pure Go, no cgo; imports nothing of this module.
package checkpoint
