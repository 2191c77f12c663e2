// Package blob keeps files that never change: a model's, an SAE's and a dataset's files, corpus shards
// and artifacts, each under a key that holds its sha256.
//
// A key either is not there, or holds the whole file: Put writes to a temporary name, syncs file and
// folder, and only then renames, so a crash leaves nothing half-written under a key. Local makes a blob
// readable as a file on this machine, from the store's own folder or through a cache, and checks the
// digest of what it fetches. A key that is not there is an error that wraps fs.ErrNotExist.
//
// cmd and the adapters that store files import it.
package blob
