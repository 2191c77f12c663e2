// Package tokenizer turns text into token ids exactly as Hugging Face's tokenizers does, because it is a thin
// C binding to that library's own Rust code (rust/, built by build.sh into the user's cache folder).
//
// It reads a tokenizer.json, or builds one: from a SentencePiece tokenizer.model, or from the facts in a GGUF file
// (byte-level BPE, and SentencePiece BPE by its scores). What builds them is pure Go and is left of the package without
// cgo. Offsets count code points of the text. Errors are returned, never panics: the library's own are caught at the boundary.
package tokenizer
