// Package event holds what every fact of Featuremill looks like: the envelope it is recorded in,
// the metadata beside it, the registry that turns a type name and its JSON back into a Go value,
// and the hash chain that makes the log tamper-evident.
//
// A Data is a fact as a domain package writes it; a Proposed is a fact that has an identity and
// waits to be appended; a Recorded is a fact with its place in the log. Decode fails with an
// UnknownTypeError or a DecodeError, never with a panic, whatever the bytes are.
//
// Everything may import this package; it imports the standard library only.
package event
