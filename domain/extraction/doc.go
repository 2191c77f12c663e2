// Package extraction is the aggregate of an extraction: one run of one source over one corpus with one
// config, from the request through the self-test and the plan to the recorded segments and one
// terminal event.
//
// It promises that a segment is recorded once and never changes, that the last segment completes the
// extraction in the same append, and that nothing follows a terminal event but resume, extend and
// delete. A run has at most MaxSegments segments, and is carried in time and memory in proportion to
// them. Decide and Evolve are pure: no clock, no randomness, no I/O. It knows no leases and no fences:
// those are the log's.
package extraction
