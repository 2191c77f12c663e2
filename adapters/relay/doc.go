// Package relay copies the event log to the broker: one leader, in order, at least once.
//
// Any number of relays may run; the one whose session holds an advisory lock in PostgreSQL leads, and
// stops publishing as soon as that session is in doubt. It publishes what lies behind the checkpoint,
// waits for the broker's acknowledgement, and then moves the checkpoint by compare-and-set. A crash
// between the two repeats the end of what was published; nothing is left out, nothing swapped. While
// the broker is away events wait in the log, and commands go on.
//
// Only cmd imports this package; it imports domain/event and adapters/kafka.
package relay
