// Package schema holds the shapes that outlive a program: the migrations of the database, and the
// contracts of events and of the HTTP interface, embedded so that the binary carries them.
//
// A migration that was shipped is never edited: a change is a new file with the next number.
// Everything may import this package; it imports nothing of ours.
package schema
