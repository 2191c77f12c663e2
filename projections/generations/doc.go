// Package generations is the store of folds: the tables that a fold makes of an extraction's artifacts, which of them
// an extraction shows, and their end.
//
// A generation is known by what it is made of, not by the read model that asked for it: a rebuild or a new version of a
// projection finds what is there. It is loaded beside what readers see, and shown by one short transaction. What no
// extraction shows any more stays for a while, for readers that had found it, and is then dropped, one generation
// at a time, waiting for readers without holding anybody up. Whatever a crash leaves behind is dropped the same way.
//
// The projector and the queries of features import it. It writes nothing but the schema generations.
package generations
