// Package fold turns the postings of an extraction into what a person sees of a feature: exact statistics,
// examples with their windows, and the summary of the extraction.
//
// It owns the words counted token, firing, sink, example and window; latent.go has the definition of every
// number. It reads artifacts, corpus and vocabulary through interfaces, knows no SQL and no file format, and
// promises that the result depends on the postings, the corpus and the options alone: not on how the
// sequences were cut into segments, nor on the number of workers. Memory is bounded (see Run).
// It fails with ErrInput where artifacts and corpus contradict each other. The features projection imports it.
package fold
