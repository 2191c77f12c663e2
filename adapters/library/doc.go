// Package library turns a path on this machine into a checked, stored thing: it reads a model, an SAE,
// a training's checkpoint folder or a dataset with the readers of adapters/checkpoint and
// adapters/corpus, stores the files by digest, and returns the facts for the event. It also does the
// way back: a folder on this machine with the files of a set. Hub is the same for what adapters/hub fetches.
//
// Nothing is registered here, so a path that is refused leaves nothing behind but files that nobody
// names. Only paths below the configured roots are read, symlinks resolved. What is wrong with a file
// is a *problem.Error that says what would be right. adapters/httpapi, adapters/worker and cmd import it.
package library
