package hubtest

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Token is the token that private and gated repositories want.
const Token = "hf_testtoken"

// Repo is a repository with one commit.
type Repo struct {
	Kind     string // model | dataset
	ID       string
	Files    map[string][]byte
	Branches []string // beside main
	Gated    bool     // wants Token
	Private  bool     // wants Token, and does not exist for others
	Info     map[string]any

	Tree   func(path string, entry map[string]any) // changes what the listing says
	Serve  map[string][]byte                       // sends other bytes than Files has
	Commit string                                  // made by New
}

// Request is one request that came.
type Request struct {
	CDN           bool
	Method, Path  string
	Range         string
	IfRange       string
	Authorization string
}

// Behaviour is what is special about a server.
type Behaviour struct {
	// LFS is the size from which files are large; 1 KiB.
	LFS int
	// Page is how many entries a page of a listing has; 3.
	Page int
	// Cut closes a connection after so many bytes of a file; 0 = never.
	Cut int64
	// NoRanges makes the content network ignore ranges.
	NoRanges bool
	// Hold is called before every piece of a large file is sent, with the position of the piece in the file.
	Hold func(file string, at int64, gone <-chan struct{})
	// Before may answer a request itself; true = it did.
	Before func(w http.ResponseWriter, r *http.Request, cdn bool) bool
}

// Server is a hub with its content network.
type Server struct {
	URL, CDN string

	behaviour Behaviour
	mu        sync.Mutex
	repos     map[string]*Repo
	blobs     map[string]blob
	requests  []Request
	sent      int64
}

type blob struct {
	name  string
	bytes []byte
}

// New starts a server with these repositories; it ends with the test.
func New(t testing.TB, repos ...*Repo) *Server {
	t.Helper()
	s := &Server{behaviour: Behaviour{LFS: 1 << 10, Page: 3}, repos: map[string]*Repo{}, blobs: map[string]blob{}}
	hub := httptest.NewServer(http.HandlerFunc(s.hub))
	cdn := httptest.NewServer(http.HandlerFunc(s.cdn))
	t.Cleanup(func() { hub.CloseClientConnections(); hub.Close(); cdn.CloseClientConnections(); cdn.Close() })
	s.URL, s.CDN = hub.URL, cdn.URL
	for _, r := range repos {
		s.Add(r)
	}
	return s
}

// Add adds a repository, or a new commit of it.
func (s *Server) Add(r *Repo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := sha1.New()
	for _, name := range slices.Sorted(maps.Keys(r.Files)) {
		fmt.Fprintf(h, "%s %x\n", name, sha256.Sum256(r.Files[name]))
		s.blobs[SHA256(r.Files[name])] = blob{r.Kind + "s/" + r.ID + "/" + name, r.Files[name]}
	}
	r.Commit = hex.EncodeToString(h.Sum(nil))
	s.repos[r.Kind+"s/"+r.ID] = r
}

// Behave changes how the server behaves from the next request on.
func (s *Server) Behave(change func(*Behaviour)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.behaviour)
}

func (s *Server) now() Behaviour {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.behaviour
}

// SHA256 is the digest of a large file.
func SHA256(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Git is the digest of a small file.
func Git(b []byte) string {
	sum := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(b)), b...))
	return hex.EncodeToString(sum[:])
}

// Requests returns what came so far.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Sent is how many bytes of files were sent.
func (s *Server) Sent() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

func (s *Server) note(r *http.Request, cdn bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, Request{CDN: cdn, Method: r.Method, Path: r.URL.Path, Range: r.Header.Get("Range"), IfRange: r.Header.Get("If-Range"), Authorization: r.Header.Get("Authorization")})
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	if code != "" {
		w.Header().Set("X-Error-Code", code)
	}
	w.Header().Set("X-Error-Message", message)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": message})
}

// find returns the repository that a path begins with, and the rest of the path.
func (s *Server) find(p string) (*Repo, []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := strings.Split(strings.Trim(p, "/"), "/")
	if parts[0] == "api" {
		parts = parts[1:]
	} else if parts[0] != "datasets" {
		parts = append([]string{"models"}, parts...)
	}
	if len(parts) < 3 {
		return nil, nil
	}
	return s.repos[strings.Join(parts[:3], "/")], parts[3:]
}

func (s *Server) hub(w http.ResponseWriter, r *http.Request) {
	s.note(r, false)
	if before := s.now().Before; before != nil && before(w, r, false) {
		return
	}
	if rest, ok := strings.CutPrefix(r.URL.Path, "/resolve-cache/"); ok { // where small files are redirected to
		s.mu.Lock()
		b := s.blobs[rest]
		s.mu.Unlock()
		s.send(w, r, b, Git(b.bytes))
		return
	}
	bearer := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if bearer != "" && bearer != Token && bearer != "hf_other" {
		refuse(w, http.StatusUnauthorized, "", "Invalid credentials in Authorization header")
		return
	}
	repo, rest := s.find(r.URL.Path)
	switch {
	case repo == nil || repo.Private && bearer != Token:
		status := http.StatusUnauthorized
		if bearer != "" {
			status = http.StatusNotFound
		}
		refuse(w, status, "RepoNotFound", "Repository not found")
		return
	case len(rest) < 2:
		refuse(w, http.StatusNotFound, "", "Not Found")
		return
	}
	revision, err := url.PathUnescape(rest[1])
	if i := strings.Index(r.URL.EscapedPath(), "/"+rest[0]+"/"); err == nil && i >= 0 { // branches may have slashes, escaped
		escaped, _, _ := strings.Cut(r.URL.EscapedPath()[i+len(rest[0])+2:], "/")
		if revision, err = url.PathUnescape(escaped); err == nil {
			rest = append(rest[:1:1], append([]string{revision}, rest[1+strings.Count(revision, "/")+1:]...)...)
		}
	}
	if revision != "main" && revision != repo.Commit && !slices.Contains(repo.Branches, revision) {
		refuse(w, http.StatusNotFound, "RevisionNotFound", "Invalid rev id: "+revision)
		return
	}
	at := strings.Join(rest[2:], "/")
	switch rest[0] {
	case "revision":
		s.info(w, repo)
	case "tree":
		s.tree(w, r, repo, at)
	case "resolve":
		if repo.Gated && bearer != Token {
			status := http.StatusUnauthorized
			if bearer != "" {
				status = http.StatusForbidden
			}
			refuse(w, status, "GatedRepo", "Access to "+repo.ID+" is restricted")
			return
		}
		s.resolve(w, r, repo, at)
	default:
		refuse(w, http.StatusNotFound, "", "Not Found")
	}
}

func (s *Server) info(w http.ResponseWriter, repo *Repo) {
	doc := map[string]any{"id": repo.ID, "sha": repo.Commit, "private": repo.Private, "gated": repo.Gated}
	maps.Copy(doc, repo.Info)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(doc)
}

func (s *Server) tree(w http.ResponseWriter, r *http.Request, repo *Repo, under string) {
	as := s.now()
	var all []map[string]any
	folders := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(repo.Files)) {
		if under != "" && !strings.HasPrefix(name, under+"/") {
			continue
		}
		for dir := path.Dir(name); dir != "." && !folders[dir]; dir = path.Dir(dir) {
			folders[dir] = true
			all = append(all, map[string]any{"type": "directory", "path": dir, "oid": Git([]byte(dir)), "size": 0})
		}
		b := repo.Files[name]
		entry := map[string]any{"type": "file", "path": name, "oid": Git(b), "size": len(b)}
		if len(b) >= as.LFS {
			pointer := []byte("version https://git-lfs.github.com/spec/v1\noid sha256:" + SHA256(b))
			entry["oid"] = Git(pointer)
			entry["lfs"] = map[string]any{"oid": SHA256(b), "size": len(b), "pointerSize": len(pointer)}
		}
		if repo.Tree != nil {
			repo.Tree(name, entry)
		}
		all = append(all, entry)
	}
	if len(all) == 0 && under != "" {
		refuse(w, http.StatusNotFound, "EntryNotFound", "Entry not found: "+under)
		return
	}
	from, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
	page := all[min(from, len(all)):min(from+as.Page, len(all))]
	if from+as.Page < len(all) {
		next := *r.URL
		q := next.Query()
		q.Set("cursor", strconv.Itoa(from+as.Page))
		next.RawQuery = q.Encode()
		w.Header().Set("Link", fmt.Sprintf(`<%s%s>; rel="next"`, s.URL, next.RequestURI()))
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(page)
}

func (s *Server) resolve(w http.ResponseWriter, r *http.Request, repo *Repo, name string) {
	b, ok := repo.Files[name]
	if !ok {
		refuse(w, http.StatusNotFound, "EntryNotFound", "Entry not found: "+name)
		return
	}
	key := SHA256(b)
	if lie, ok := repo.Serve[name]; ok {
		key = SHA256(lie)
		s.mu.Lock()
		s.blobs[key] = blob{repo.Kind + "s/" + repo.ID + "/" + name, lie}
		s.mu.Unlock()
	}
	h := w.Header()
	h.Set("X-Repo-Commit", repo.Commit)
	if len(b) < s.now().LFS {
		h.Set("Location", "/resolve-cache/"+key)
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	h.Set("X-Linked-Etag", `"`+SHA256(b)+`"`)
	h.Set("X-Linked-Size", strconv.Itoa(len(b)))
	h.Set("Location", s.CDN+"/"+key+"?signature=secret")
	w.WriteHeader(http.StatusFound)
}

func (s *Server) cdn(w http.ResponseWriter, r *http.Request) {
	s.note(r, true)
	if before := s.now().Before; before != nil && before(w, r, true) {
		return
	}
	s.mu.Lock()
	b, ok := s.blobs[strings.TrimPrefix(r.URL.Path, "/")]
	s.mu.Unlock()
	if !ok || r.URL.Query().Get("signature") != "secret" {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	s.send(w, r, b, "cdn-"+Git(b.bytes))
}

func (s *Server) send(w http.ResponseWriter, r *http.Request, b blob, tag string) {
	as := s.now()
	tag = `"` + tag + `"`
	h := w.Header()
	h.Set("ETag", tag)
	h.Set("Accept-Ranges", "bytes")
	size := int64(len(b.bytes))
	from, status := int64(0), http.StatusOK
	if asked := r.Header.Get("Range"); asked != "" && !as.NoRanges && (r.Header.Get("If-Range") == "" || r.Header.Get("If-Range") == tag) {
		if n, err := fmt.Sscanf(asked, "bytes=%d-", &from); n != 1 || err != nil || from >= size {
			h.Set("Content-Range", fmt.Sprintf("bytes */%d", size))
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		status = http.StatusPartialContent
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
	}
	h.Set("Content-Length", strconv.FormatInt(size-from, 10))
	w.WriteHeader(status)
	const piece = 64 << 10
	for sent := int64(0); from < size; {
		if as.Hold != nil {
			as.Hold(b.name, from, r.Context().Done())
		}
		n := min(piece, size-from)
		if as.Cut > 0 {
			n = min(n, as.Cut-sent)
		}
		if _, err := w.Write(b.bytes[from : from+n]); err != nil {
			return
		}
		from, sent = from+n, sent+n
		s.mu.Lock()
		s.sent += n
		s.mu.Unlock()
		if as.Cut > 0 && sent >= as.Cut && from < size {
			control := http.NewResponseController(w)
			_ = control.Flush()
			if conn, _, err := control.Hijack(); err == nil {
				_ = conn.Close()
			}
			return
		}
	}
}
