package hub

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Info is what the hub says of a repository at a revision.
type Info struct {
	Repo      Repo
	Revision  string // as it was asked for; "" = main
	Commit    string // 40 hexadecimal digits
	ModelType string // of a model: config.json's model_type, where the hub knows it
	BaseModel string // of the card, where it names exactly one
	Cached    bool   // the hub was not asked, or did not answer: it is what the cache remembers
}

// File is one file of a commit.
type File struct {
	Path   string
	Size   int64
	SHA256 string // of a large file; "" of one that git keeps itself
	Git    string // git's sha1 of a small file; of a large one it names a pointer, and is not used
}

// blob is the name of the file's bytes in the cache.
func (f File) blob() string {
	if f.SHA256 != "" {
		return f.SHA256
	}
	return f.Git
}

func (c *Client) apiURL(repo Repo, rest ...string) *url.URL {
	return c.endpoint.JoinPath(append([]string{"api", string(repo.Kind) + "s", repo.ID}, rest...)...)
}

// Resolve pins a revision to its commit. Where the hub does not answer, the commit that the cache
// remembers for the revision is returned, if there is one.
func (c *Client) Resolve(ctx context.Context, repo Repo, revision string) (Info, error) {
	if err := errors.Join(repo.check(), checkRevision(revision)); err != nil {
		return Info{}, err
	}
	if c.cfg.Offline {
		return c.remembered(repo, revision, nil)
	}
	p := place{repo: repo, revision: or(revision, "main"), token: c.cfg.Token != ""}
	body, _, err := c.document(ctx, c.apiURL(repo, "revision", url.PathEscape(p.revision)), p)
	if CodeOf(err) == Unavailable && ctx.Err() == nil {
		return c.remembered(repo, revision, err)
	}
	if err != nil {
		return Info{}, err
	}
	info, err := parseInfo(body)
	if err != nil {
		return Info{}, failed(Protocol, "the hub's answer for %s cannot be read: %w", p, err)
	}
	info.Repo, info.Revision = repo, revision
	return info, c.remember(repo, p.revision, info.Commit)
}

func parseInfo(body []byte) (Info, error) {
	var doc struct {
		SHA    string `json:"sha"`
		Config struct {
			ModelType string `json:"model_type"`
		} `json:"config"`
		Card json.RawMessage `json:"cardData"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return Info{}, err
	}
	if !isCommit(doc.SHA) {
		return Info{}, failed(Protocol, "sha %.50q is not a commit", doc.SHA)
	}
	info := Info{Commit: doc.SHA, ModelType: doc.Config.ModelType}
	var card struct {
		Base json.RawMessage `json:"base_model"`
	}
	if json.Unmarshal(doc.Card, &card) == nil { // a card is written by people: what cannot be read says nothing
		var one string
		var many []string
		if json.Unmarshal(card.Base, &one) == nil {
			info.BaseModel = one
		} else if json.Unmarshal(card.Base, &many) == nil && len(many) == 1 {
			info.BaseModel = many[0]
		}
	}
	return info, nil
}

const (
	maxPages = 10_000
	maxFiles = 100_000
	maxSize  = 1 << 46 // of one file; the sum of all does not overflow
)

// List returns the files of a commit below a folder, in the order of their paths; "" is the root. A
// path that names a file gives that file. Where the hub does not answer, the files are those in the cache.
func (c *Client) List(ctx context.Context, repo Repo, commit, under string) ([]File, error) {
	if err := repo.check(); err != nil {
		return nil, err
	}
	if !isCommit(commit) {
		return nil, failed(BadReference, "commit %q: want 40 hexadecimal digits", commit)
	}
	if under != "" {
		if err := checkPath(under); err != nil {
			return nil, err
		}
	}
	if c.cfg.Offline {
		return c.cachedFiles(repo, commit, under, nil)
	}
	files, err := c.list(ctx, repo, commit, under)
	if CodeOf(err) == Unavailable && ctx.Err() == nil {
		return c.cachedFiles(repo, commit, under, err)
	}
	if CodeOf(err) == FileNotFound && under != "" { // the tree of a file: look in its folder
		folder := ""
		if i := strings.LastIndexByte(under, '/'); i >= 0 {
			folder = under[:i]
		}
		beside, other := c.list(ctx, repo, commit, folder)
		if other != nil {
			return nil, err
		}
		if i := slices.IndexFunc(beside, func(f File) bool { return f.Path == under }); i >= 0 {
			return beside[i : i+1], nil
		}
	}
	return files, err
}

func (c *Client) list(ctx context.Context, repo Repo, commit, under string) ([]File, error) {
	p := place{repo: repo, revision: commit, path: under, token: c.cfg.Token != ""}
	u := c.apiURL(repo, append([]string{"tree", commit}, segments(under)...)...)
	u.RawQuery = "recursive=true"
	var out []File
	for range maxPages {
		body, h, err := c.document(ctx, u, p)
		if err != nil {
			return nil, err
		}
		files, err := parseTree(body)
		if err != nil {
			return nil, failed(Protocol, "the hub's list of the files of %s cannot be read: %w", p, err)
		}
		if out = append(out, files...); len(out) > maxFiles {
			return nil, failed(Protocol, "%s has more than %d files: name a folder of it", p, maxFiles)
		}
		next, err := nextPage(h, u)
		switch {
		case err != nil:
			return nil, failed(Protocol, "the hub's list of the files of %s goes on at an address that makes no sense: %w", p, err)
		case next == nil:
			return inOrder(out)
		case !c.sameOrigin(next):
			return nil, failed(Protocol, "the hub's list of the files of %s goes on at another host, %s", p, next.Host)
		case next.String() == u.String():
			return nil, failed(Protocol, "the hub's list of the files of %s has no end", p)
		}
		u = next
	}
	return nil, failed(Protocol, "the hub's list of the files of %s has no end", p)
}

// segments are a path's parts as a URL has them.
func segments(p string) []string {
	if p == "" {
		return nil
	}
	parts := strings.Split(p, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return parts
}

func inOrder(files []File) ([]File, error) {
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	for i := 1; i < len(files); i++ {
		if files[i].Path == files[i-1].Path {
			return nil, failed(Protocol, "the hub lists %q twice", files[i].Path)
		}
	}
	return files, nil
}

// parseTree reads one page of a listing. Folders are left out.
func parseTree(body []byte) ([]File, error) {
	var entries []struct {
		Type string `json:"type"`
		Path string `json:"path"`
		Size int64  `json:"size"`
		OID  string `json:"oid"`
		LFS  *struct {
			OID    string `json:"oid"`
			SHA256 string `json:"sha256"`
			Size   int64  `json:"size"`
		} `json:"lfs"`
	}
	if err := json.Unmarshal(body, &entries); err != nil {
		return nil, err
	}
	var out []File
	for _, e := range entries {
		if e.Type != "file" {
			continue
		}
		if err := checkPath(e.Path); err != nil {
			return nil, err
		}
		f := File{Path: e.Path, Size: e.Size, Git: e.OID}
		if e.LFS != nil {
			f.Size, f.SHA256 = e.LFS.Size, strings.TrimPrefix(or(e.LFS.OID, e.LFS.SHA256), "sha256:")
		}
		switch {
		case f.Size < 0 || f.Size > maxSize:
			return nil, failed(Protocol, "%q has %d bytes", e.Path, f.Size)
		case e.LFS != nil && !isHex(f.SHA256, 64):
			return nil, failed(Protocol, "%q has the sha256 %.80q", e.Path, f.SHA256)
		case e.LFS == nil && !isHex(f.Git, 40):
			return nil, failed(Protocol, "%q has the git digest %.80q", e.Path, f.Git)
		}
		out = append(out, f)
	}
	return out, nil
}

// nextPage reads the link to the next page, RFC 8288; nil = this was the last.
func nextPage(h http.Header, from *url.URL) (*url.URL, error) {
	for _, line := range h.Values("Link") {
		for line != "" {
			_, rest, ok := strings.Cut(line, "<")
			if !ok {
				break
			}
			target, rest, ok := strings.Cut(rest, ">")
			if !ok {
				break
			}
			parameters, more := rest, ""
			if i := strings.Index(rest, ",<"); i >= 0 {
				parameters, more = rest[:i], rest[i:]
			} else if i := strings.Index(rest, ", <"); i >= 0 {
				parameters, more = rest[:i], rest[i:]
			}
			for _, p := range strings.Split(parameters, ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
				if strings.EqualFold(strings.TrimSpace(name), "rel") && slices.Contains(strings.Fields(strings.Trim(strings.TrimSpace(value), `"`)), "next") {
					return from.Parse(target)
				}
			}
			line = more
		}
	}
	return nil, nil
}
