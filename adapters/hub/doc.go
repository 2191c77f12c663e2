// Package hub fetches files of models, SAEs and datasets from an endpoint that speaks the HuggingFace
// hub's protocol, and keeps them in a cache folder in the hub's own layout, which other tools share.
//
// A repository is a named set of files with a history; a revision (a branch, a tag) is resolved to a
// commit once, and everything after that names the commit. A file's bytes are a blob, named by their
// digest: the sha256 of a large file, git's sha1 of a small one. A blob appears under its name only
// after its digest was checked; until then it is an .incomplete file that the next attempt, of this
// process or another, goes on with. The token is sent to the endpoint and to no other host.
//
// Every failure is an *Error with a stable code and a sentence that says what to do. Nothing that the
// server says is trusted: not its paths, its sizes, nor its links. It imports no other package of
// Featuremill; adapters/library and cmd import it.
package hub
