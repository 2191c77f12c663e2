// Package eventlog is the port to the event log: what a store must promise, and the errors it may return.
//
// A log is one ordered story. Append writes to one or several streams in one transaction, or not at
// all; ReadStream returns one stream in order; ReadAll returns the whole log by position, which is
// gapless, so a reader that has seen position n has seen everything up to n.
//
// Side tables (reservations, work) are a pure function of the appended events: an Effects function
// says what an event does to them, and the store applies it in the append's transaction.
//
// Everything may import this package; it imports domain/event only.
package eventlog
