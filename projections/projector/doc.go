// Package projector runs projections: it brings the events of the log, in order and exactly once, to
// whatever turns them into tables.
//
// Position and hash of the last event are stored in the transaction of its rows, so a crash repeats
// nothing and loses nothing. PostgreSQL is the truth; a feed, such as a Kafka topic, only makes it
// quick. An event that cannot be applied is parked with the later ones of its stream, and the others
// go on. A log that was restored from a backup stops the runner with a *RestoredLogError.
//
// projections/* and cmd/* import it; it imports domain/* and pgx.
package projector
