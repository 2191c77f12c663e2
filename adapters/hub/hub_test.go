package hub_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/featuremill/featuremill/adapters/hub"
	"github.com/featuremill/featuremill/adapters/hub/hubtest"
)

// TestMain also is the child that is killed in the middle of a download.
func TestMain(m *testing.M) {
	if endpoint := os.Getenv("HUB_TEST_CHILD"); endpoint != "" {
		if err := child(endpoint); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func child(endpoint string) error {
	c, err := hub.New(hub.Config{Endpoint: endpoint, Cache: os.Getenv("HUB_TEST_CACHE"), Backoff: time.Millisecond})
	if err != nil {
		return err
	}
	_, err = download(context.Background(), c, nil)
	return err
}

var repo = hub.Repo{Kind: hub.Model, ID: "owner/saes"}

func download(ctx context.Context, c *hub.Client, progress func(hub.Progress)) (string, error) {
	info, err := c.Resolve(ctx, repo, "")
	if err != nil {
		return "", err
	}
	files, err := c.List(ctx, repo, info.Commit, "")
	if err != nil {
		return "", err
	}
	return c.Snapshot(ctx, repo, info.Commit, files, progress)
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

func saes() *hubtest.Repo {
	return &hubtest.Repo{Kind: "model", ID: "owner/saes", Files: map[string][]byte{
		"README.md":                         []byte("# saes\n"),
		"empty":                             {},
		"layer_8/cfg.json":                  []byte(`{"d_in": 4}`),
		"layer_8/sae_weights.safetensors":   noise(1, 2_000_003),
		"layer_8/sparsity.safetensors":      noise(2, 70_000),
		"layer_9/cfg.json":                  []byte(`{"d_in": 5}`),
		"layer_9/sae_weights.safetensors":   noise(3, 1_000_000),
		"odd names/a+b %20 ?#ü.safetensors": noise(4, 3000),
	}}
}

func client(t *testing.T, s *hubtest.Server, change ...func(*hub.Config)) *hub.Client {
	t.Helper()
	cfg := hub.Config{Endpoint: s.URL, Cache: t.TempDir(), Backoff: time.Millisecond, Stall: 10 * time.Second}
	for _, f := range change {
		f(&cfg)
	}
	c, err := hub.New(cfg)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func same(t *testing.T, dir string, want map[string][]byte) {
	t.Helper()
	for name, b := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, hubtest.SHA256(b), hubtest.SHA256(got), name)
	}
}

func TestARepositoryArrivesWholeInTheHubsOwnLayout(t *testing.T) {
	t.Parallel()
	r := saes()
	s := hubtest.New(t, r)
	c := client(t, s)
	var last hub.Progress
	dir, err := download(t.Context(), c, func(p hub.Progress) { last = p })
	require.NoError(t, err)
	same(t, dir, r.Files)
	require.Equal(t, last.TotalBytes, last.Bytes)
	require.Equal(t, len(r.Files), last.Files)
	require.Equal(t, filepath.Join(c.Cache(), "models--owner--saes", "snapshots", r.Commit), dir)
	commit, err := os.ReadFile(filepath.Join(c.Cache(), "models--owner--saes", "refs", "main"))
	require.NoError(t, err)
	require.Equal(t, r.Commit, string(commit))
	target, err := os.Readlink(filepath.Join(dir, "layer_8", "sae_weights.safetensors"))
	require.NoError(t, err)
	require.Equal(t, "../../../blobs/"+hubtest.SHA256(r.Files["layer_8/sae_weights.safetensors"]), target)
	target, err = os.Readlink(filepath.Join(dir, "README.md"))
	require.NoError(t, err)
	require.Equal(t, "../../blobs/"+hubtest.Git(r.Files["README.md"]), target)

	before := s.Sent()
	_, err = download(t.Context(), c, nil)
	require.NoError(t, err)
	require.Equal(t, before, s.Sent(), "what is there is not fetched again")
}

func TestACutConnectionIsGoneOnWith(t *testing.T) {
	t.Parallel()
	r := saes()
	s := hubtest.New(t, r)
	s.Behave(func(b *hubtest.Behaviour) { b.Cut = 300_000 })
	c := client(t, s)
	dir, err := download(t.Context(), c, nil)
	require.NoError(t, err)
	same(t, dir, r.Files)
	var all int64
	for _, b := range r.Files {
		all += int64(len(b))
	}
	require.Less(t, s.Sent(), all+all/10, "hardly a byte is fetched twice")
	ranges := 0
	for _, q := range s.Requests() {
		if q.CDN && q.Range != "" {
			ranges++
			require.True(t, strings.HasPrefix(q.IfRange, `"cdn-`), "a part is gone on with only if the file is the same")
		}
	}
	require.GreaterOrEqual(t, ranges, 8)
}

func TestADownloadThatWasKilledGoesOn(t *testing.T) {
	t.Parallel()
	r := saes()
	s := hubtest.New(t, r)
	s.Behave(func(b *hubtest.Behaviour) { b.Cut = 300_000 })
	const name = "models/owner/saes/layer_8/sae_weights.safetensors"
	reached := make(chan struct{})
	var once sync.Once
	var killed atomic.Bool
	s.Behave(func(b *hubtest.Behaviour) {
		b.Hold = func(file string, at int64, gone <-chan struct{}) {
			if file == name && at > 1_100_000 && !killed.Load() {
				once.Do(func() { close(reached) })
				<-gone
			}
		}
	})
	cache := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "HUB_TEST_CHILD="+s.URL, "HUB_TEST_CACHE="+cache)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	select {
	case <-reached:
	case <-t.Context().Done():
	}
	require.NoError(t, cmd.Process.Signal(syscall.SIGKILL))
	require.Error(t, cmd.Wait())
	killed.Store(true)

	part, err := os.Stat(filepath.Join(cache, "models--owner--saes", "blobs", hubtest.SHA256(r.Files["layer_8/sae_weights.safetensors"])+".incomplete"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, part.Size(), int64(900_000))
	before := s.Sent()
	dir, err := download(t.Context(), client(t, s, func(cfg *hub.Config) { cfg.Cache = cache }), nil)
	require.NoError(t, err)
	same(t, dir, r.Files)
	var all int64
	for _, b := range r.Files {
		all += int64(len(b))
	}
	require.LessOrEqual(t, s.Sent()-before, all-part.Size(), "what the killed process had fetched is not fetched again")
	left, err := filepath.Glob(filepath.Join(cache, "models--owner--saes", "blobs", "*.incomplete"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestAServerThatKnowsNoRangesSendsTheFileAgain(t *testing.T) {
	t.Parallel()
	r := saes()
	s := hubtest.New(t, r)
	s.Behave(func(b *hubtest.Behaviour) { b.NoRanges = true })
	s.Behave(func(b *hubtest.Behaviour) { b.Cut = 1_500_000 })
	c := client(t, s)
	_, err := download(t.Context(), c, nil)
	require.ErrorContains(t, err, "broke off")
	s.Behave(func(b *hubtest.Behaviour) { b.Cut = 0 })
	dir, err := download(t.Context(), c, nil)
	require.NoError(t, err)
	same(t, dir, r.Files)
}

func TestABrokenPartIsFoundAndFetchedAgain(t *testing.T) {
	t.Parallel()
	r := saes()
	s := hubtest.New(t, r)
	c := client(t, s)
	weights := r.Files["layer_8/sae_weights.safetensors"]
	blobs := filepath.Join(c.Cache(), "models--owner--saes", "blobs")
	require.NoError(t, os.MkdirAll(blobs, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(blobs, hubtest.SHA256(weights)+".incomplete"), make([]byte, 500_000), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(blobs, hubtest.SHA256(r.Files["layer_9/sae_weights.safetensors"])), []byte("not it"), 0o644))
	dir, err := download(t.Context(), c, nil)
	require.NoError(t, err)
	same(t, dir, r.Files)
}

func TestBytesThatAreNotTheCommitsAreRefused(t *testing.T) {
	t.Parallel()
	r := saes()
	lie := append([]byte(nil), r.Files["layer_8/sae_weights.safetensors"]...)
	lie[1_000_000] ^= 1
	r.Serve = map[string][]byte{"layer_8/sae_weights.safetensors": lie}
	c := client(t, hubtest.New(t, r))
	_, err := download(t.Context(), c, nil)
	require.Equal(t, hub.DigestMismatch, hub.CodeOf(err), "%v", err)
	_, err = os.Stat(filepath.Join(c.Cache(), "models--owner--saes", "snapshots", r.Commit, "layer_8/sae_weights.safetensors"))
	require.ErrorIs(t, err, os.ErrNotExist)

	r = saes()
	r.Serve = map[string][]byte{"layer_8/sae_weights.safetensors": lie[:1_000_000], "README.md": []byte("# more\nthan the commit has\n")}
	_, err = download(t.Context(), client(t, hubtest.New(t, r)), nil)
	require.Equal(t, hub.SizeMismatch, hub.CodeOf(err), "%v", err)
}

func TestTheTokenGoesToTheHubAndToNoOtherHost(t *testing.T) {
	t.Parallel()
	r := saes()
	r.Gated = true
	s := hubtest.New(t, r)
	c := client(t, s, func(cfg *hub.Config) { cfg.Token = "hf_other" }).WithToken(hubtest.Token)
	dir, err := download(t.Context(), c, nil)
	require.NoError(t, err)
	same(t, dir, r.Files)
	cdn := 0
	for _, q := range s.Requests() {
		if q.CDN {
			cdn++
			require.Empty(t, q.Authorization)
		} else {
			require.Equal(t, "Bearer "+hubtest.Token, q.Authorization)
		}
	}
	require.Positive(t, cdn)
}

func TestWhatTheHubRefusesIsSaidInWords(t *testing.T) {
	t.Parallel()
	gated, private := saes(), saes()
	gated.ID, gated.Gated = "owner/gated", true
	private.ID, private.Private = "owner/private", true
	s := hubtest.New(t, saes(), gated, private)
	for name, c := range map[string]struct {
		id, revision, path, token string
		code                      hub.Code
		says                      string
	}{
		"no such repository":                    {id: "owner/none", code: hub.RepoNotFound, says: "a private repository needs a token"},
		"no such repository, with a token":      {id: "owner/none", token: hubtest.Token, code: hub.RepoNotFound, says: "this token may not read it"},
		"a private repository":                  {id: "owner/private", code: hub.RepoNotFound, says: "needs a token"},
		"a private repository of somebody else": {id: "owner/private", token: "hf_other", code: hub.RepoNotFound, says: "may not read it"},
		"a gated repository":                    {id: "owner/gated", code: hub.Gated, says: "accept its conditions"},
		"a gated repository, not accepted":      {id: "owner/gated", token: "hf_other", code: hub.Gated, says: "has no access"},
		"a token that is not valid":             {id: "owner/saes", token: "hf_wrong", code: hub.BadToken, says: "does not accept the token"},
		"no such revision":                      {id: "owner/saes", revision: "v9", code: hub.RevisionNotFound, says: `no revision "v9"`},
		"no such folder":                        {id: "owner/saes", path: "layer_10", code: hub.FileNotFound, says: "no layer_10"},
		"a name that is none":                   {id: "owner/../etc", code: hub.BadReference, says: "owner/name"},
		"a revision that is none":               {id: "owner/saes", revision: "../../x", code: hub.BadReference, says: "a branch, a tag or a commit"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := client(t, s, func(cfg *hub.Config) { cfg.Token = c.token })
			repo := hub.Repo{Kind: hub.Model, ID: c.id}
			info, err := client.Resolve(t.Context(), repo, c.revision)
			if err == nil {
				var files []hub.File
				if files, err = client.List(t.Context(), repo, info.Commit, c.path); err == nil {
					_, err = client.Snapshot(t.Context(), repo, info.Commit, files, nil)
				}
			}
			require.Equal(t, c.code, hub.CodeOf(err), "%v", err)
			require.ErrorContains(t, err, c.says)
		})
	}
}

func TestTheServersFaultsAreWaitedFor(t *testing.T) {
	t.Parallel()
	r := saes()
	s := hubtest.New(t, r)
	var n atomic.Int64
	s.Behave(func(b *hubtest.Behaviour) {
		b.Before = func(w http.ResponseWriter, _ *http.Request, _ bool) bool {
			switch n.Add(1) % 4 {
			case 1:
				w.WriteHeader(http.StatusBadGateway)
				return true
			case 2:
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			}
			return false
		}
	})
	dir, err := download(t.Context(), client(t, s, func(cfg *hub.Config) { cfg.Attempts = 50 }), nil)
	require.NoError(t, err)
	same(t, dir, r.Files)

	for status, code := range map[int]hub.Code{http.StatusServiceUnavailable: hub.Unavailable, http.StatusTooManyRequests: hub.RateLimited} {
		s := hubtest.New(t, saes())
		s.Behave(func(b *hubtest.Behaviour) {
			b.Before = func(w http.ResponseWriter, _ *http.Request, _ bool) bool {
				w.WriteHeader(status)
				return true
			}
		})
		_, err := download(t.Context(), client(t, s, func(cfg *hub.Config) { cfg.Attempts = 3 }), nil)
		require.Equal(t, code, hub.CodeOf(err), "%v", err)
		require.ErrorContains(t, err, "tried 3 times")
	}
}

func TestWhatIsCachedIsThereOffline(t *testing.T) {
	t.Parallel()
	r := saes()
	s := hubtest.New(t, r)
	c := client(t, s)
	_, err := download(t.Context(), c, nil)
	require.NoError(t, err)
	offline := client(t, s, func(cfg *hub.Config) { cfg.Cache, cfg.Offline = c.Cache(), true })
	asked := len(s.Requests())
	dir, err := download(t.Context(), offline, nil)
	require.NoError(t, err)
	same(t, dir, r.Files)
	require.Len(t, s.Requests(), asked)

	gone := client(t, s, func(cfg *hub.Config) { cfg.Cache, cfg.Endpoint, cfg.Attempts = c.Cache(), "http://127.0.0.1:1", 1 })
	dir, err = download(t.Context(), gone, nil)
	require.NoError(t, err)
	same(t, dir, r.Files)

	empty := client(t, s, func(cfg *hub.Config) { cfg.Offline = true })
	_, err = download(t.Context(), empty, nil)
	require.Equal(t, hub.NotCached, hub.CodeOf(err), "%v", err)
	empty = client(t, s, func(cfg *hub.Config) { cfg.Endpoint, cfg.Attempts = "http://127.0.0.1:1", 1 })
	_, err = download(t.Context(), empty, nil)
	require.Equal(t, hub.Unavailable, hub.CodeOf(err), "%v", err)
}

func TestTwoProcessesDoNotFetchTheSameBlobTwice(t *testing.T) {
	t.Parallel()
	r := saes()
	s := hubtest.New(t, r)
	cache := t.TempDir()
	errs := make(chan error, 4)
	for range cap(errs) {
		c := client(t, s, func(cfg *hub.Config) { cfg.Cache = cache })
		go func() {
			_, err := download(t.Context(), c, nil)
			errs <- err
		}()
	}
	for range cap(errs) {
		require.NoError(t, <-errs)
	}
	var all int64
	for _, b := range r.Files {
		all += int64(len(b))
	}
	require.Equal(t, all, s.Sent())
}

func TestPathsOfTheServerStayInTheCache(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"../../../evil", "/etc/evil", "a/../../../../evil", `a\..\evil`, "a//b", ".", "", "./a", ".git/hooks/x"} {
		r := saes()
		r.Tree = func(p string, entry map[string]any) {
			if p == "README.md" {
				entry["path"] = name
			}
		}
		_, err := download(t.Context(), client(t, hubtest.New(t, r)), nil)
		require.Equal(t, hub.Protocol, hub.CodeOf(err), "%q: %v", name, err)
	}
}

func TestASymlinkOutOfTheCacheIsNotFollowed(t *testing.T) {
	t.Parallel()
	r := saes()
	c := client(t, hubtest.New(t, r))
	outside := t.TempDir()
	snapshot := filepath.Join(c.Cache(), "models--owner--saes", "snapshots", r.Commit)
	require.NoError(t, os.MkdirAll(snapshot, 0o755))
	require.NoError(t, os.Symlink(outside, filepath.Join(snapshot, "layer_8")))
	_, err := download(t.Context(), c, nil)
	require.ErrorContains(t, err, "escapes")
	there, err := os.ReadDir(outside)
	require.NoError(t, err)
	require.Empty(t, there)

	offline, err := hub.New(hub.Config{Cache: c.Cache(), Offline: true})
	require.NoError(t, err)
	secret := filepath.Join(outside, strings.Repeat("ab", 20))
	require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
	require.NoError(t, os.Symlink(secret, filepath.Join(snapshot, "cfg.json")))
	files, err := offline.List(t.Context(), repo, r.Commit, "")
	if err == nil {
		for _, f := range files {
			require.NotEqual(t, "cfg.json", f.Path)
		}
	}
}

func TestADownloadThatTheDiskCannotHoldIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	r := saes()
	r.Tree = func(p string, entry map[string]any) {
		if lfs, ok := entry["lfs"].(map[string]any); ok && strings.HasPrefix(p, "layer_8/sae") {
			lfs["size"] = int64(1) << 45
		}
	}
	s := hubtest.New(t, r)
	_, err := download(t.Context(), client(t, s), nil)
	require.Equal(t, hub.DiskFull, hub.CodeOf(err), "%v", err)
	require.Zero(t, s.Sent())
}

func TestADownloadEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s := hubtest.New(t, saes())
	s.Behave(func(b *hubtest.Behaviour) {
		b.Hold = func(_ string, at int64, gone <-chan struct{}) {
			if at > 500_000 {
				<-gone
			}
		}
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("called off")
	_, err := download(ctx, client(t, s), func(p hub.Progress) {
		if p.Bytes > 600_000 {
			cancel(reason)
		}
	})
	require.ErrorIs(t, err, reason)
}

func TestAConnectionThatFallsSilentIsCut(t *testing.T) {
	t.Parallel()
	r := saes()
	s := hubtest.New(t, r)
	var silent sync.Map
	s.Behave(func(b *hubtest.Behaviour) {
		b.Hold = func(file string, at int64, gone <-chan struct{}) {
			if at > 100_000 {
				if _, again := silent.LoadOrStore(file, true); !again {
					<-gone
				}
			}
		}
	})
	dir, err := download(t.Context(), client(t, s, func(cfg *hub.Config) { cfg.Stall = 200 * time.Millisecond }), nil)
	require.NoError(t, err)
	same(t, dir, r.Files)
}

func TestAnotherHostsPageIsNotFollowed(t *testing.T) {
	t.Parallel()
	s := hubtest.New(t, saes())
	s.Behave(func(b *hubtest.Behaviour) {
		b.Before = func(w http.ResponseWriter, r *http.Request, cdn bool) bool {
			if !cdn && strings.Contains(r.URL.Path, "/tree/") {
				w.Header().Set("Link", `<`+s.CDN+`/next>; rel="next"`)
				_, _ = w.Write([]byte("[]"))
				return true
			}
			return false
		}
	})
	_, err := download(t.Context(), client(t, s), nil)
	require.Equal(t, hub.Protocol, hub.CodeOf(err), "%v", err)
}

func TestReferencesAreRead(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]hub.Ref{
		"hf:a/b":                      {ID: "a/b"},
		"a/b":                         {ID: "a/b"},
		"hf:a/b@refs/pr/1:layer_8":    {ID: "a/b", Revision: "refs/pr/1", Path: "layer_8"},
		"hf:a/b.c:x/y z/w.npz":        {ID: "a/b.c", Path: "x/y z/w.npz"},
		"a/b@0123456789abcdef":        {ID: "a/b", Revision: "0123456789abcdef"},
		"hf:fnlp/Llama3_1-8B-LXR-8x:": {ID: "fnlp/Llama3_1-8B-LXR-8x"},
	} {
		got, err := hub.ParseRef(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got)
	}
	for _, text := range []string{"", "a", "hf:a", "a/b/c", "../b", "a/..", "hf:a/b@", "a/b:../x", "a/b:/../x", "a b/c", "a/b@x y"} {
		_, err := hub.ParseRef(text)
		require.Error(t, err, text)
	}
}
