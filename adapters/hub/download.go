package hub

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"time"
)

// transfer fetches one blob.
type transfer struct {
	c      *Client
	repo   Repo
	commit string
	file   File
	cache  *repoCache
	got    func(n int64) // bytes that are there now and were not before; negative where some turned out useless

	part *os.File
	have int64     // bytes in part
	sum  hash.Hash // of them
	most int64     // that have ever held: a server that always begins anew does not get on
	etag string    // of the server that gave them, if it is known; "" after a restart
}

// fetch makes the blob be in the cache. got is told of its bytes, also of those that were there.
func (c *Client) fetch(ctx context.Context, r *repoCache, repo Repo, commit string, f File, got func(int64)) (err error) {
	select { // files are limited over all downloads of this client
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	unlock, err := r.lock(ctx, f.blob(), func() { got(0) })
	if err != nil {
		return local(err, c.cfg.Cache)
	}
	defer unlock()
	there, err := r.has(ctx, f)
	if err != nil {
		return err
	}
	if there {
		got(f.Size)
		return r.link(commit, f)
	}
	t := &transfer{c: c, repo: repo, commit: commit, file: f, cache: r, got: got}
	if err := t.run(ctx); err != nil {
		return local(err, c.cfg.Cache)
	}
	return local(r.link(commit, f), c.cfg.Cache)
}

func (t *transfer) name() string { return path.Join("blobs", t.file.blob()) }

func (t *transfer) run(ctx context.Context) (err error) {
	if t.part, err = t.cache.OpenFile(t.name()+".incomplete", os.O_RDWR|os.O_CREATE, 0o644); err != nil {
		return err
	}
	defer func() {
		if t.part != nil {
			err = errors.Join(err, t.part.Close())
		}
	}()
	if err := t.goOn(ctx); err != nil {
		return err
	}
	for again := false; ; again = true {
		if err := t.c.patiently(ctx, func() (bool, error) { return t.attempt(ctx) }); err != nil {
			return err
		}
		if hexSum(t.sum) == t.file.blob() {
			break
		}
		// A part of another program, or of before a power cut, may be broken; a second whole copy is the server's fault.
		if err := t.restart(); err != nil {
			return err
		}
		t.most = 0
		if again {
			return failed(DigestMismatch, "%s of %s arrives whole, but its bytes are not those that commit %s names: something between here and the hub changes them", t.file.Path, t.repo, t.commit)
		}
		t.c.cfg.Logger.Warn("a download has the wrong digest and starts again", "repository", t.repo.ID, "file", t.file.Path)
	}
	if err := t.part.Sync(); err != nil {
		return err
	}
	err = t.part.Close()
	t.part = nil
	return errors.Join(err, t.cache.Rename(t.name()+".incomplete", t.name()))
}

// goOn takes up what an earlier attempt has left.
func (t *transfer) goOn(ctx context.Context) error {
	info, err := t.part.Stat()
	if err != nil {
		return err
	}
	t.sum = t.file.digest()
	if info.Size() > t.file.Size {
		return t.restart()
	}
	if t.have, err = io.Copy(t.sum, stoppable{ctx, t.part}); err == nil {
		t.got(t.have)
	}
	t.most = t.have
	return err
}

// restart throws away what is there.
func (t *transfer) restart() error {
	t.got(-t.have)
	t.have, t.sum, t.etag = 0, t.file.digest(), ""
	if err := t.part.Truncate(0); err != nil {
		return err
	}
	_, err := t.part.Seek(0, io.SeekStart)
	return err
}

// attempt asks for the rest of the file and writes what comes. It reports whether anything came.
func (t *transfer) attempt(ctx context.Context) (gotOn bool, err error) {
	if t.have == t.file.Size {
		return true, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	header := http.Header{}
	if t.have > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", t.have))
		if t.etag != "" {
			header.Set("If-Range", t.etag)
		}
	}
	parts := append([]string{"resolve", t.commit}, segments(t.file.Path)...)
	resp, err := t.c.get(ctx, t.c.endpoint.JoinPath(append([]string{t.repo.urlPath()}, parts...)...), header)
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := t.check(resp); err != nil {
		return false, err
	}
	if resp.StatusCode == http.StatusOK && t.have > 0 { // the server cannot go on, or the file is another one
		if err := t.restart(); err != nil {
			return false, err
		}
	}
	t.etag = ""
	if tag := resp.Header.Get("ETag"); strings.HasPrefix(tag, `"`) { // a weak one cannot be gone on with
		t.etag = tag
	}
	err = t.write(resp.Body, cancel)
	gotOn = t.have > t.most
	t.most = max(t.most, t.have)
	if err == nil && t.have < t.file.Size {
		err = io.ErrUnexpectedEOF
	}
	var disk *os.PathError
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &disk), CodeOf(err) != "":
		return false, err // the disk's fault, or there is too much of it
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return gotOn, failed(Unavailable, "the connection to the hub broke off after %d of %d bytes of %s: %w", t.have, t.file.Size, t.file.Path, err)
}

// check refuses an answer that is not the rest of this file.
func (t *transfer) check(resp *answer) error {
	p := place{repo: t.repo, revision: t.commit, path: t.file.Path, token: t.c.cfg.Token != ""}
	h := resp.linked
	if commit := h.Get("X-Repo-Commit"); commit != "" && commit != t.commit && resp.StatusCode < 300 {
		return failed(Protocol, "the hub answers with commit %.50q where %s was asked for", commit, t.commit)
	}
	if size := h.Get("X-Linked-Size"); size != "" && size != strconv.FormatInt(t.file.Size, 10) {
		return failed(SizeMismatch, "the hub lists %s with %d bytes and serves it with %.30q", p, t.file.Size, size)
	}
	if tag := strings.Trim(strings.TrimPrefix(h.Get("X-Linked-Etag"), "W/"), `"`); tag != "" && tag != t.file.blob() {
		return failed(DigestMismatch, "the hub lists %s with digest %s and serves it with %.80q", p, t.file.blob(), tag)
	}
	switch {
	case resp.StatusCode == http.StatusOK:
		if n := resp.ContentLength; n >= 0 && n != t.file.Size {
			return failed(SizeMismatch, "the hub lists %s with %d bytes and sends %d", p, t.file.Size, n)
		}
		return nil
	case resp.StatusCode == http.StatusPartialContent:
		return t.checkRange(resp.Header.Get("Content-Range"))
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable: // the part is longer than what the server has
		if err := t.restart(); err != nil {
			return err
		}
		return failed(Unavailable, "the hub cannot go on with %s after %d bytes", p, t.have)
	case !resp.own: // a signed address that has expired: the next attempt gets a new one
		return failed(Unavailable, "the store that the hub names for %s answers %d", p, resp.StatusCode)
	}
	return p.refused(resp.StatusCode, h)
}

func (t *transfer) checkRange(said string) error {
	var first, last, size int64
	if n, err := fmt.Sscanf(said, "bytes %d-%d/%d", &first, &last, &size); n != 3 || err != nil {
		return failed(Protocol, "the hub sends a part of %s without saying which (%.60q)", t.file.Path, said)
	}
	switch {
	case size != t.file.Size:
		return failed(SizeMismatch, "the hub lists %s with %d bytes and sends a part of %d", t.file.Path, t.file.Size, size)
	case first != t.have || last < first || last >= size:
		return failed(Protocol, "the hub sends bytes %d to %d of %s where those from %d on were asked for", first, last, t.file.Path, t.have)
	}
	return nil
}

// write appends what comes, never more than the file has. A connection that falls silent is cut.
func (t *transfer) write(body io.Reader, cut context.CancelCauseFunc) error {
	silent := time.AfterFunc(t.c.cfg.Stall, func() { cut(fmt.Errorf("no byte came for %s", t.c.cfg.Stall)) })
	defer silent.Stop()
	buffer := make([]byte, 256<<10)
	for {
		n, err := body.Read(buffer)
		silent.Reset(t.c.cfg.Stall)
		if t.have+int64(n) > t.file.Size {
			return failed(SizeMismatch, "the hub lists %s with %d bytes and sends more", t.file.Path, t.file.Size)
		}
		if n > 0 {
			if _, err := t.part.Write(buffer[:n]); err != nil {
				return err
			}
			t.sum.Write(buffer[:n])
			t.have += int64(n)
			t.got(int64(n))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
