// Package collect finds stored files that no recorded fact names, and removes them.
//
// What is named is computed from the log alone: the files of models, SAEs, datasets and trainings that are not deleted;
// of an extraction that is not deleted its artifacts, the chunks and the vocabulary of its corpus, and the files of the
// model, the SAE and the dataset that it was made of, also if these are deleted (a lost artifact is computed again from
// them). A corpus stays while its dataset or an extraction of it does. Everything else goes once it is old: what is
// young may belong to an import whose fact is not recorded yet. Whoever relies on a file that is there already makes
// sure that it is young (blob.Kept), and stores it again where it is not.
//
// It refuses to remove anything while the log holds an event that it cannot read. cmd imports it.
package collect
