package blob_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/featuremill/featuremill/adapters/blob"
)

func TestMain(m *testing.M) {
	_ = os.Setenv("AWS_ACCESS_KEY_ID", "any")
	_ = os.Setenv("AWS_SECRET_ACCESS_KEY", "any")
	os.Exit(m.Run())
}

// cloud is an object store in this process, behind a line that a test can break.
type cloud struct {
	server *httptest.Server
	away   atomic.Bool                                                   // connections are closed without a word
	answer atomic.Pointer[func(http.ResponseWriter, *http.Request) bool] // answers instead of the store; false = the store does
	sent   atomic.Int64                                                  // bytes of bodies
}

func newCloud(t *testing.T) *cloud {
	t.Helper()
	memory := s3mem.New()
	require.NoError(t, memory.CreateBucket("mill"))
	store := gofakes3.New(memory, gofakes3.WithLogger(gofakes3.DiscardLog())).Server()
	c := &cloud{}
	c.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c.away.Load() {
			panic(http.ErrAbortHandler)
		}
		if f := c.answer.Load(); f != nil && (*f)(w, r) {
			return
		}
		store.ServeHTTP(&counting{w, &c.sent}, r)
	}))
	t.Cleanup(c.server.Close)
	return c
}

type counting struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

func (c *cloud) breaks(f func(http.ResponseWriter, *http.Request) bool) { c.answer.Store(&f) }
func (c *cloud) mend()                                                  { c.answer.Store(nil); c.away.Store(false) }

func (c *cloud) address(bucket, prefix string) string {
	q := url.Values{"endpoint": {c.server.URL}, "region": {"us-east-1"}, "use_path_style": {"true"}, "hostname_immutable": {"true"}}
	if prefix != "" {
		q.Set("prefix", prefix)
	}
	return "s3://" + bucket + "?" + q.Encode()
}

func (c *cloud) open(t *testing.T, cache string) *blob.Bucket {
	t.Helper()
	s, err := blob.Open(t.Context(), c.address("mill", ""), cache)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s.(*blob.Bucket)
}

func noise(n int) ([]byte, string) {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	sum := sha256.Sum256(b)
	return b, hex.EncodeToString(sum[:])
}

func keys(t *testing.T, s blob.Store, prefix string) (out []string) {
	t.Helper()
	for item, err := range s.List(t.Context(), prefix) {
		require.NoError(t, err)
		require.Positive(t, item.Bytes)
		require.WithinDuration(t, time.Now(), item.Modified, time.Hour)
		out = append(out, item.Key)
	}
	return out
}

// Whatever keeps the blobs, this is so.
func TestAStoreKeepsWholeBlobs(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(*testing.T) blob.Store{
		"a folder": func(t *testing.T) blob.Store {
			s, err := blob.OpenFiles(t.TempDir())
			require.NoError(t, err)
			return s
		},
		"an object store": func(t *testing.T) blob.Store { return newCloud(t).open(t, t.TempDir()) },
		"a part of an object store": func(t *testing.T) blob.Store {
			s, err := blob.Open(t.Context(), newCloud(t).address("mill", "ours/"), t.TempDir())
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, s.Close()) })
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			_, err := s.Open(t.Context(), "a/none")
			require.ErrorIs(t, err, fs.ErrNotExist)
			require.NotErrorIs(t, err, blob.ErrUnavailable)
			_, err = s.Local(t.Context(), "a/none", strings.Repeat("0", 64))
			require.ErrorIs(t, err, fs.ErrNotExist)
			require.NoError(t, s.Delete(t.Context(), "a/none"))

			data, digest := noise(12 << 20) // more than a part of an upload
			require.NoError(t, s.Put(t.Context(), "a/large", bytes.NewReader(data)))
			require.NoError(t, s.Put(t.Context(), "a/large", io.MultiReader(bytes.NewReader(data))), "twice is no error, also from what cannot be read again")
			require.NoError(t, s.Put(t.Context(), "b/small", strings.NewReader("x")))
			require.Equal(t, []string{"a/large"}, keys(t, s, "a/"))
			require.Equal(t, []string{"a/large", "b/small"}, keys(t, s, ""))

			b, err := s.Open(t.Context(), "a/large")
			require.NoError(t, err)
			require.EqualValues(t, len(data), b.Size())
			got := make([]byte, 1000)
			n, err := b.ReadAt(got, int64(len(data)-400))
			require.ErrorIs(t, err, io.EOF)
			require.Equal(t, data[len(data)-400:], got[:n])
			_, err = b.ReadAt(got, 5<<20)
			require.NoError(t, err)
			require.Equal(t, data[5<<20:5<<20+1000], got)
			require.NoError(t, b.Close())

			path, err := s.Local(t.Context(), "a/large", digest)
			require.NoError(t, err)
			local, err := os.ReadFile(path)
			require.NoError(t, err)
			require.True(t, bytes.Equal(data, local))

			cut := io.MultiReader(bytes.NewReader(data), failing{})
			require.ErrorIs(t, s.Put(t.Context(), "c", cut), errCut)
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			require.ErrorIs(t, s.Put(ended, "c", strings.NewReader("x")), context.Canceled)
			require.Empty(t, keys(t, s, "c"))
			leftovers, err := s.Leftovers(t.Context())
			require.NoError(t, err)
			require.Empty(t, leftovers)

			file := filepath.Join(t.TempDir(), "f")
			require.NoError(t, os.WriteFile(file, data, 0o600))
			for range 2 {
				size, sum, err := blob.PutFile(t.Context(), s, file)
				require.NoError(t, err)
				require.EqualValues(t, len(data), size)
				require.Equal(t, digest, sum)
			}
			require.Equal(t, []string{blob.FileKey(digest)}, keys(t, s, "files/"))
			require.NoError(t, s.Delete(t.Context(), "a/large"))
			require.Empty(t, keys(t, s, "a/"))
		})
	}
}

func TestAFileThatChangesWhileItIsStoredGetsNoKeyAndTakesNobodysAway(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]blob.Store{"a folder": folder(t), "an object store": newCloud(t).open(t, t.TempDir())} {
		data, digest := noise(3 << 20)
		file := filepath.Join(t.TempDir(), "f")
		require.NoError(t, os.WriteFile(file, data, 0o600))
		// Between the two times that it is read somebody writes to it, and another import stores what it was before.
		changing := &meddling{Store: s, before: func() {
			require.NoError(t, s.Put(t.Context(), blob.FileKey(digest), bytes.NewReader(data)))
			require.NoError(t, os.WriteFile(file, append([]byte("other"), data[5:]...), 0o600))
		}}
		_, _, err := blob.PutFile(t.Context(), changing, file)
		require.ErrorContains(t, err, "changed while it was read", name)
		require.Equal(t, []string{blob.FileKey(digest)}, keys(t, s, "files/"), "%s: what another import has stored stays", name)
		b, err := s.Open(t.Context(), blob.FileKey(digest))
		require.NoError(t, err)
		got := make([]byte, len(data))
		_, err = b.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got), name)
	}
}

func folder(t *testing.T) blob.Store {
	t.Helper()
	s, err := blob.OpenFiles(t.TempDir())
	require.NoError(t, err)
	return s
}

// meddling lets somebody else act just before a blob is put.
type meddling struct {
	blob.Store
	before func()
}

func (m *meddling) Put(ctx context.Context, key string, r io.Reader) error {
	m.before()
	return m.Store.Put(ctx, key, r)
}

func TestWhatPassesIsToldFromWhatStays(t *testing.T) {
	t.Parallel()
	status := func(code int, name string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(code)
			_, _ = fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>%s</Code><Message>m</Message></Error>`, name)
			return true
		}
	}
	for name, test := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		passes bool
	}{
		"503":             {status(503, "ServiceUnavailable"), true},
		"500":             {status(500, "InternalError"), true},
		"it is too much":  {status(503, "SlowDown"), true},
		"403":             {status(403, "AccessDenied"), false},
		"the wrong key":   {status(403, "SignatureDoesNotMatch"), false},
		"a closed line":   {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, true},
		"no such bucket":  {status(404, "NoSuchBucket"), true},
		"a bad request":   {status(400, "InvalidArgument"), false},
		"a slow request":  {status(400, "RequestTimeout"), true},
		"too many of all": {status(429, "TooManyRequests"), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCloud(t)
			s := c.open(t, t.TempDir())
			require.NoError(t, s.Put(t.Context(), "x", strings.NewReader("x")))
			b, err := s.Open(t.Context(), "x")
			require.NoError(t, err)
			c.breaks(test.answer)
			_, read := b.ReadAt(make([]byte, 1), 0)
			for what, err := range map[string]error{"put": s.Put(t.Context(), "y", strings.NewReader("y")), "read": read} {
				require.Error(t, err, what)
				require.Equal(t, test.passes, errors.Is(err, blob.ErrUnavailable), "%s: %v", what, err)
				require.NotErrorIs(t, err, fs.ErrNotExist, what)
			}
		})
	}
}

func TestAFetchThatIsCutGoesOnFromWhereItWas(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	s := c.open(t, t.TempDir())
	data, digest := noise(40 << 20)
	require.NoError(t, s.Put(t.Context(), "large", bytes.NewReader(data)))
	cuts := 0
	store := c.server.Config.Handler
	c.server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && cuts < 5 {
			cuts++
			store.ServeHTTP(&cutting{w, 3 << 20}, r)
			return
		}
		store.ServeHTTP(w, r)
	})
	var told []int64
	ctx := blob.WithProgress(t.Context(), func(done, total int64) error {
		require.EqualValues(t, len(data), total)
		told = append(told, done)
		return nil
	})
	path, err := s.Local(ctx, "large", digest)
	require.NoError(t, err)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
	require.Equal(t, 5, cuts)
	require.Less(t, c.sent.Load(), int64(len(data)+10<<20), "what had come was not fetched again")
	require.IsIncreasing(t, told[:len(told)-1])
	require.EqualValues(t, len(data), told[len(told)-1])
}

// cutting ends a connection after some bytes.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

func (c *counting) Flush() { c.ResponseWriter.(http.Flusher).Flush() }

func TestAFetchGoesOnAfterAKill(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	cache := t.TempDir()
	data, digest := noise(48 << 20)
	s := c.open(t, cache)
	require.NoError(t, s.Put(t.Context(), "large", bytes.NewReader(data)))
	killed := errors.New("the worker is stopping")
	ctx := blob.WithProgress(t.Context(), func(done, _ int64) error {
		if done > 20<<20 {
			return killed
		}
		return nil
	})
	_, err := s.Local(ctx, "large", digest)
	require.ErrorIs(t, err, killed, "whoever is told of progress can end the fetch")
	before := c.sent.Load()
	path, err := c.open(t, cache).Local(t.Context(), "large", digest)
	require.NoError(t, err)
	require.Less(t, c.sent.Load()-before, int64(29<<20))
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
	leftovers, err := s.Leftovers(t.Context())
	require.NoError(t, err)
	require.Empty(t, leftovers)
}

func TestAFetchWaitsOutAnOutageAndThenSaysSo(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	s := c.open(t, t.TempDir())
	data, digest := noise(20 << 20)
	require.NoError(t, s.Put(t.Context(), "large", bytes.NewReader(data)))
	ctx := blob.WithProgress(t.Context(), func(done, _ int64) error {
		if done > 17<<20 && done < int64(len(data)) {
			c.away.Store(true)
			c.server.CloseClientConnections()
		}
		return nil
	})
	_, err := s.Local(ctx, "large", digest)
	if err != nil { // the rest may have been on its way already
		require.ErrorIs(t, err, blob.ErrUnavailable)
		require.NotErrorIs(t, err, fs.ErrNotExist)
	}
	c.mend()
	before := c.sent.Load()
	_, err = s.Local(t.Context(), "large", digest)
	require.NoError(t, err)
	require.Less(t, c.sent.Load()-before, int64(5<<20), "only what was missing")
}

func TestWrongBytesAreNoBlob(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	cache := t.TempDir()
	s := c.open(t, cache)
	data, digest := noise(2 << 20)
	require.NoError(t, s.Put(t.Context(), "x", bytes.NewReader(data)))
	_, err := s.Local(t.Context(), "x", strings.Repeat("0", 64))
	require.ErrorContains(t, err, "changed or cut short")
	require.NotErrorIs(t, err, blob.ErrUnavailable)

	// What was left of an earlier fetch is other bytes: it is fetched once more, from the start.
	partial := filepath.Join(cache, "fetch", digest+".partial")
	require.NoError(t, os.MkdirAll(filepath.Dir(partial), 0o755))
	require.NoError(t, os.WriteFile(partial, make([]byte, 1<<20), 0o600))
	path, err := s.Local(t.Context(), "x", digest)
	require.NoError(t, err)
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
}

func TestTwoThatWantTheSameFetchItOnce(t *testing.T) {
	t.Parallel()
	c := newCloud(t)
	cache := t.TempDir()
	data, digest := noise(30 << 20)
	require.NoError(t, c.open(t, cache).Put(t.Context(), "x", bytes.NewReader(data)))
	var all errgroup.Group
	var paths sync.Map
	for range 4 {
		s := c.open(t, cache)
		all.Go(func() error {
			path, err := s.Local(t.Context(), "x", digest)
			paths.Store(path, true)
			return err
		})
	}
	require.NoError(t, all.Wait())
	n := 0
	paths.Range(func(any, any) bool { n++; return true })
	require.Equal(t, 1, n)
	require.Less(t, c.sent.Load(), int64(len(data)+1<<20))
}

func TestNothingIsMissingFromAStoreThatIsNotThere(t *testing.T) {
	t.Parallel()
	root := filepath.Join(t.TempDir(), "blobs")
	files, err := blob.OpenFiles(root)
	require.NoError(t, err)
	line := newCloud(t)
	for name, test := range map[string]struct {
		store      blob.Store
		away, back func()
	}{
		"a disk that is not mounted": {files,
			func() { require.NoError(t, os.Rename(root, root+" away")); require.NoError(t, os.Mkdir(root, 0o755)) },
			func() { require.NoError(t, os.Remove(root)); require.NoError(t, os.Rename(root+" away", root)) }},
		"a bucket that was deleted": {line.open(t, t.TempDir()),
			func() { // a look at a blob is answered without a body
				line.breaks(func(w http.ResponseWriter, r *http.Request) bool {
					w.WriteHeader(http.StatusNotFound)
					if r.Method != http.MethodHead {
						_, _ = io.WriteString(w, `<?xml version="1.0"?><Error><Code>NoSuchBucket</Code></Error>`)
					}
					return true
				})
			},
			line.mend},
	} {
		require.NoError(t, test.store.Put(t.Context(), "a", strings.NewReader("x")), name)
		test.away()
		for _, key := range []string{"a", "b"} {
			_, err := test.store.Open(t.Context(), key)
			require.ErrorIs(t, err, blob.ErrUnavailable, name)
			require.NotErrorIs(t, err, fs.ErrNotExist, name)
			_, err = test.store.Local(t.Context(), key, strings.Repeat("0", 64))
			require.ErrorIs(t, err, blob.ErrUnavailable, name)
			require.NotErrorIs(t, err, fs.ErrNotExist, name)
			_, err = blob.Has(t.Context(), test.store, key, 1)
			require.ErrorIs(t, err, blob.ErrUnavailable, name)
		}
		for _, err := range test.store.List(t.Context(), "") {
			require.ErrorIs(t, err, blob.ErrUnavailable, name)
		}
		require.ErrorIs(t, test.store.Put(t.Context(), "b", strings.NewReader("x")), blob.ErrUnavailable, name)
		test.back()
		_, err := test.store.Open(t.Context(), "b")
		require.ErrorIs(t, err, fs.ErrNotExist, name)
		require.Equal(t, []string{"a"}, keys(t, test.store, ""), name)
	}
}

func TestABlobWhoseDeletionWasCutByAKillGetsItsNameBack(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s, err := blob.OpenFiles(root)
	require.NoError(t, err)
	for _, key := range []string{"x/taken", "x/again"} {
		require.NoError(t, s.Put(t.Context(), key, strings.NewReader("bytes")))
		// The moment between the two steps of DeleteOlder.
		require.NoError(t, os.Rename(filepath.Join(root, key), filepath.Join(root, key+".deleting.partial")))
	}
	require.NoError(t, s.Put(t.Context(), "x/again", strings.NewReader("bytes")))
	found, err := s.Leftovers(t.Context())
	require.NoError(t, err)
	require.Empty(t, found)
	require.Equal(t, []string{"x/again", "x/taken"}, keys(t, s, ""))
	entries, err := os.ReadDir(filepath.Join(root, "x"))
	require.NoError(t, err)
	require.Len(t, entries, 2)
}

func TestALeftoverThatSomebodyWorksOnStays(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s, err := blob.OpenFiles(root)
	require.NoError(t, err)
	old := time.Now().Add(-48 * time.Hour)
	file := func(name string) *os.File {
		f, err := os.Create(filepath.Join(root, name+".partial"))
		require.NoError(t, err)
		require.NoError(t, os.Chtimes(f.Name(), old, old))
		t.Cleanup(func() { require.NoError(t, f.Close()) })
		return f
	}
	file("dead")
	fetched := file("fetched")
	require.NoError(t, syscall.Flock(int(fetched.Fd()), syscall.LOCK_EX))
	written := file("written")
	found, err := s.Leftovers(t.Context())
	require.NoError(t, err)
	require.Len(t, found, 3)
	_, err = written.WriteString("more")
	require.NoError(t, err)
	var cleared []string
	for _, l := range found {
		done, err := s.Clear(t.Context(), l)
		require.NoError(t, err)
		if done {
			cleared = append(cleared, filepath.Base(l.Path))
		}
	}
	require.Equal(t, []string{"dead.partial"}, cleared)
	found, err = s.Leftovers(t.Context())
	require.NoError(t, err)
	require.Len(t, found, 2)
}

func TestWhatIsStoredIsPrivate(t *testing.T) { // not parallel: the umask is the process's
	for _, mask := range []int{0, 0o022, 0o077} {
		was := syscall.Umask(mask)
		root, cache := filepath.Join(t.TempDir(), "store"), filepath.Join(t.TempDir(), "cache")
		if mask == 0o022 {
			require.NoError(t, os.Mkdir(root, 0o777)) // an older installation
		}
		s, err := blob.OpenFiles(root)
		require.NoError(t, err)
		require.NoError(t, s.Put(t.Context(), "a/b/c", strings.NewReader("private")))
		data, digest := noise(1 << 20)
		remote := newCloud(t).open(t, cache)
		require.NoError(t, remote.Put(t.Context(), "x", bytes.NewReader(data)))
		_, err = remote.Local(t.Context(), "x", digest)
		require.NoError(t, err)
		syscall.Umask(was)
		seen := 0
		for _, folder := range []string{root, cache} {
			require.NoError(t, filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
				require.NoError(t, err)
				info, err := d.Info()
				require.NoError(t, err)
				want := fs.FileMode(0o400)
				if d.IsDir() {
					want = 0o700
				}
				require.Equal(t, want, info.Mode().Perm(), path)
				seen++
				return nil
			}))
		}
		require.Greater(t, seen, 8)
	}
}
