package hub

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Code says what went wrong, for programs.
type Code string

// The codes of errors.
const (
	BadReference     Code = "hub_bad_reference"      // what was asked for cannot name anything
	RepoNotFound     Code = "hub_repo_not_found"     // no such repository, or a private one
	RevisionNotFound Code = "hub_revision_not_found" // no such branch, tag or commit
	FileNotFound     Code = "hub_file_not_found"     // no such file or folder at that commit
	Gated            Code = "hub_gated"              // its owners want their conditions accepted first
	BadToken         Code = "hub_bad_token"          // the token is not valid
	Forbidden        Code = "hub_forbidden"          // the token may not read this
	RateLimited      Code = "hub_rate_limited"       // too many requests, again and again
	Unavailable      Code = "hub_unavailable"        // the server fails, or cannot be reached
	Protocol         Code = "hub_protocol"           // the server's answer makes no sense
	SizeMismatch     Code = "hub_size_mismatch"      // the bytes are more or fewer than was said
	DigestMismatch   Code = "hub_digest_mismatch"    // the bytes are not those that the commit names
	DiskFull         Code = "hub_disk_full"          // no room in the cache folder
	NotCached        Code = "hub_not_cached"         // offline, and not in the cache
	Unsuitable       Code = "hub_unsuitable"         // the repository has not what is wanted of it
)

// Error says what the hub refused, or what could not be done with what it sent.
type Error struct {
	Code    Code
	Detail  string // for people: what was wrong, and what would be right
	Choices []string
	Err     error

	retry time.Duration // Retry-After of the server; 0 = it said nothing
}

func (e *Error) Error() string { return e.Detail }
func (e *Error) Unwrap() error { return e.Err }

// CodeOf returns the code of an error of this package, "" of any other.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func failed(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Detail: err.Error(), Err: errors.Unwrap(err)}
}

// place is what a request was about, for the words of an error.
type place struct {
	repo     Repo
	revision string
	path     string
	token    bool // one was sent
}

// refused turns an answer of the hub into an error. X-Error-Code tells more than the status: a
// repository that does not exist answers 401 to those who send no token.
func (p place) refused(status int, h http.Header) *Error {
	said := strings.TrimSpace(h.Get("X-Error-Message"))
	if len(said) > 300 {
		said = said[:300]
	}
	code := h.Get("X-Error-Code")
	private := "; a private repository needs a token that may read it"
	if p.token {
		private = "; if it is private, this token may not read it"
	}
	switch {
	case code == "GatedRepo" && !p.token:
		return failed(Gated, "%s is gated: accept its conditions at the hub, and send the token of the account that did", p.repo)
	case code == "GatedRepo":
		return failed(Gated, "%s is gated, and the account of this token has no access: accept its conditions at the hub, or wait until its owners approve", p.repo)
	case code == "RevisionNotFound":
		return failed(RevisionNotFound, "%s has no revision %q: give a branch, a tag or a commit", p.repo, p.revision)
	case code == "EntryNotFound" || status == http.StatusNotFound && code == "" && p.path != "":
		return failed(FileNotFound, "%s has no %s at revision %s", p.repo, p.path, p.revision)
	case code == "RepoNotFound" || status == http.StatusNotFound:
		return failed(RepoNotFound, "the hub has no %s%s", p.repo, private)
	case code == "DisabledRepo":
		return failed(Forbidden, "%s was disabled by the hub", p.repo)
	case status == http.StatusUnauthorized && p.token:
		return failed(BadToken, "the hub does not accept the token (%s): it is mistyped, expired or withdrawn", or(said, "401"))
	case status == http.StatusUnauthorized:
		return failed(RepoNotFound, "the hub has no %s%s", p.repo, private)
	case status == http.StatusForbidden:
		return failed(Forbidden, "the hub refuses %s to this %s (%s)", p.repo, map[bool]string{true: "token", false: "anonymous request"}[p.token], or(said, "403"))
	case status == http.StatusTooManyRequests:
		e := failed(RateLimited, "the hub says that there were too many requests: wait, or send a token, which has a higher limit")
		e.retry = retryAfter(h)
		return e
	case status >= http.StatusInternalServerError:
		e := failed(Unavailable, "the hub fails with %d (%s) for %s", status, or(said, http.StatusText(status)), p)
		e.retry = retryAfter(h)
		return e
	}
	return failed(Protocol, "the hub answers %d (%s) for %s", status, or(said, http.StatusText(status)), p)
}

func (p place) String() string {
	s := p.repo.String()
	if p.path != "" {
		s += ", " + p.path
	}
	return s
}

func retryAfter(h http.Header) time.Duration {
	n, err := strconv.Atoi(strings.TrimSpace(h.Get("Retry-After")))
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(min(n, 60)) * time.Second
}

// local says what a failing disk means.
func local(err error, folder string) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return failed(DiskFull, "no room is left in the hub's cache %s: make room, or choose another folder with --hub-cache, and ask again: what is there is kept (%w)", folder, err)
	}
	return err
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
