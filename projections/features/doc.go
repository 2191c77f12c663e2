// Package features is the read model of latents: what each fires on, how often and how strongly, with
// examples, and the labels that people gave.
//
// The projection keeps what an extraction's events say: how far it is recorded, and labels. The numbers come from a
// Folder, which folds the recorded segments' artifacts into a generation of tables (package generations) and has the
// extraction show it in one short transaction; a leased job decides when. A reader sees one whole generation or none.
// A fold that fails is a fact beside the extraction, never a parked event. The projection can be rebuilt from the log
// without a fold, and the tables from the artifacts without the model.
package features
