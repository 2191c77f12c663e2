// Package features is the read model of latents: what each fires on, how often and how strongly, with
// examples, and the labels that people gave.
//
// The projection keeps what an extraction's events say and notes that a fold is wanted; the numbers come
// from a Folder, a leased job that folds the recorded segments' artifacts into a new generation of
// tables and makes it current in one short transaction. A reader sees one whole generation or none. A
// fold that fails is a field of the extraction, never a parked event. Everything here can be rebuilt from
// the log and the artifacts, without the model.
package features
