package hub

import (
	"encoding/hex"
	"path"
	"path/filepath"
	"strings"
)

// Kind is a kind of repository.
type Kind string

// The kinds of repository that are read. SAEs lie in model repositories.
const (
	Model   Kind = "model"
	Dataset Kind = "dataset"
)

// Repo names a repository.
type Repo struct {
	Kind Kind
	ID   string // owner/name; a few old ones have no owner
}

func (r Repo) String() string { return string(r.Kind) + " repository " + r.ID }

// folder is the repository's folder in the cache.
func (r Repo) folder() string {
	return string(r.Kind) + "s--" + strings.ReplaceAll(r.ID, "/", "--")
}

// urlPath is the repository's part of a URL that serves files.
func (r Repo) urlPath() string {
	if r.Kind == Dataset {
		return "datasets/" + r.ID
	}
	return r.ID
}

func (r Repo) check() error {
	if r.Kind != Model && r.Kind != Dataset {
		return failed(BadReference, "repository kind %q: want model or dataset", r.Kind)
	}
	parts := strings.Split(r.ID, "/")
	if len(parts) > 2 || len(r.ID) > 200 {
		return failed(BadReference, "repository %q: want owner/name", r.ID)
	}
	for _, p := range parts {
		if p == "" || strings.Trim(p, ".") == "" || strings.Contains(p, "--") || strings.Contains(p, "..") {
			return failed(BadReference, "repository %q: want owner/name", r.ID)
		}
		for _, c := range p {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
				return failed(BadReference, "repository %q: names have letters, digits, '-', '_' and '.' only", r.ID)
			}
		}
	}
	return nil
}

// Ref is a reference as people write it: hf:owner/name@revision:path.
type Ref struct {
	ID       string
	Revision string // "" = main
	Path     string // inside the repository; "" = all of it
}

func (r Ref) String() string {
	s := "hf:" + r.ID
	if r.Revision != "" {
		s += "@" + r.Revision
	}
	if r.Path != "" {
		s += ":" + r.Path
	}
	return s
}

// ParseRef reads [hf:]owner/name[@revision][:path].
func ParseRef(s string) (Ref, error) {
	var r Ref
	rest := strings.TrimPrefix(s, "hf:")
	rest, r.Path, _ = strings.Cut(rest, ":")
	var pinned bool
	r.ID, r.Revision, pinned = strings.Cut(rest, "@")
	if pinned && r.Revision == "" {
		return Ref{}, failed(BadReference, "%q: a revision must stand after '@'", s)
	}
	if !strings.Contains(r.ID, "/") {
		return Ref{}, failed(BadReference, "%q: want hf:owner/name, with @revision and :path where they are needed", s)
	}
	if err := (Repo{Kind: Model, ID: r.ID}).check(); err != nil {
		return Ref{}, err
	}
	if r.Path = strings.Trim(r.Path, "/"); r.Path != "" {
		if err := checkPath(r.Path); err != nil {
			return Ref{}, err
		}
	}
	return r, checkRevision(r.Revision)
}

// checkPath refuses a path that is not plainly inside a repository. Servers are not trusted with paths either.
func checkPath(p string) error {
	if p == "" || len(p) > 1000 || path.Clean(p) != p || !filepath.IsLocal(filepath.FromSlash(p)) || strings.ContainsAny(p, "\\\x00") || p == "." || p == ".git" || strings.HasPrefix(p, ".git/") {
		return failed(Protocol, "file name %q: want a clean path inside the repository", p)
	}
	return nil
}

func checkRevision(rev string) error {
	if rev == "" {
		return nil
	}
	if len(rev) > 200 || strings.ContainsAny(rev, "\\\x00?#: ") || checkPath(rev) != nil {
		return failed(BadReference, "revision %q: want a branch, a tag or a commit", rev)
	}
	return nil
}

func isHex(s string, n int) bool {
	if len(s) != n || strings.ToLower(s) != s {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

func isCommit(s string) bool { return isHex(s, 40) }
