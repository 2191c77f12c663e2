package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/extraction"
)

// envStore says what keeps the files: "" a folder, "s3" an object store in this process, or the address of a real one,
// http://host:port, that asks for no key.
const envStore = "FEATUREMILL_TEST_STORE"

// line is a TCP line to a server, which a test can cut.
type line struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	down  bool
	open  map[net.Conn]bool
	limit int64 // bytes that a connection may bring, until it is cut; 0 = no limit
	cuts  atomic.Int64
}

func newLine(t testing.TB, to string) *line {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n := &line{listener: l, to: to, open: map[net.Conn]bool{}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { n.serve(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		n.Cut()
		serving.Wait()
	})
	return n
}

func (n *line) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	n.mu.Lock()
	down, limit := n.down, n.limit
	if !down {
		n.open[c] = true
	}
	n.mu.Unlock()
	if down {
		return
	}
	defer func() {
		n.mu.Lock()
		delete(n.open, c)
		n.mu.Unlock()
	}()
	s, err := net.Dial("tcp", n.to)
	if err != nil {
		return
	}
	defer func() { _ = s.Close() }()
	go func() {
		_, _ = io.Copy(s, c)
		_ = s.Close()
	}()
	if limit == 0 {
		_, _ = io.Copy(c, s)
		return
	}
	if _, err := io.CopyN(c, s, limit); err == nil {
		n.cuts.Add(1)
	}
}

// Cut closes the line, and everything that goes over it.
func (n *line) Cut() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = true
	for c := range n.open {
		_ = c.Close()
	}
}

// Mend opens the line again.
func (n *line) Mend() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down, n.limit = false, 0
}

// Limit has every new connection cut after so many bytes.
func (n *line) Limit(bytes int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.limit = bytes
}

const bucket = "mill"

var prefixes atomic.Int64

// objects gives the test a part of an object store, behind a line of its own.
func objects(t testing.TB) (address string, n *line) {
	t.Helper()
	endpoint := os.Getenv(envStore)
	if endpoint == "s3" || endpoint == "" {
		memory := s3mem.New()
		require.NoError(t, memory.CreateBucket(bucket))
		server := httptest.NewServer(gofakes3.New(memory, gofakes3.WithLogger(gofakes3.DiscardLog())).Server())
		t.Cleanup(server.Close)
		endpoint = server.URL
	} else {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, endpoint+"/"+bucket, http.NoBody)
		require.NoError(t, err)
		answer, err := http.DefaultClient.Do(request)
		require.NoError(t, err, "the object store of %s", envStore)
		_ = answer.Body.Close()
		http.DefaultClient.CloseIdleConnections()
	}
	at, err := url.Parse(endpoint)
	require.NoError(t, err)
	n = newLine(t, at.Host)
	q := url.Values{
		"endpoint": {"http://" + n.listener.Addr().String()}, "region": {"us-east-1"}, "use_path_style": {"true"}, "hostname_immutable": {"true"},
		"prefix": {fmt.Sprintf("%d-%d/", os.Getpid(), prefixes.Add(1))},
	}
	return "s3://" + bucket + "?" + q.Encode(), n
}

func TestAnOutageOfTheStoreEndsNothing(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{objects: true})
	s.serve("relay")
	s.serve("projector")
	s.extractor(failpoints(slowly))
	id := s.begin(config())
	s.awaitSegments(id, 3)
	s.line.Cut()
	s.await("work that is put off", func() bool {
		work, err := s.log.ListWork(t.Context(), id)
		require.NoError(t, err)
		for _, w := range work {
			if len(w.Causes) > 0 {
				require.Contains(t, w.Causes[0].Detail, "the store is away")
				require.Zero(t, w.Attempts)
				return true
			}
		}
		return false
	})
	outage := 5 * time.Second
	if os.Getenv("FEATUREMILL_TEST_LONG") != "" {
		outage = time.Minute
	}
	<-time.After(outage) // what is tested is how long it lasts
	s.line.Mend()
	s.finish(id)
	for _, r := range s.recorded(id) {
		require.Equal(t, 1, r.Attempt, "an outage of the store uses no attempt up: segment %d", r.Index)
	}
}

func TestAFoldWaitsForAStoreThatIsAway(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{objects: true})
	s.extractor()
	id := s.begin(config())
	s.awaitStatus(id, extraction.StatusCompleted)
	s.line.Cut()
	s.serve("projector")
	s.await("a fold that is put off", func() bool {
		work, err := s.log.ListWork(t.Context(), id)
		require.NoError(t, err)
		return len(work) == 1 && len(work[0].Causes) > 0
	})
	s.line.Mend()
	s.finish(id)
}

func TestADownloadFromTheStoreThatIsCutGoesOn(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{objects: true})
	s.serve("projector")
	s.line.Limit(100_000)
	s.extractor()
	id := s.begin(config())
	s.await("some cuts", func() bool { return s.line.cuts.Load() > 3 })
	s.line.Mend()
	s.finish(id)
}

func TestTwoMachinesShareOnlyDatabaseBrokerAndStore(t *testing.T) {
	t.Parallel()
	s := newStack(t, options{objects: true})
	s.serve("relay")
	s.serve("projector")
	_, path := programs(t)
	for _, machine := range []string{"one", "two"} {
		at := *s
		at.state = filepath.Join(s.state, machine)
		start(t, "extractor "+machine, path, at.args("work", "--threads", "1"), append([]string{failpoints(slowly)}, fast...))
	}
	id := s.begin(config())
	s.finish(id)
	workers := map[string]int{}
	for _, r := range s.recorded(id) {
		workers[r.Worker]++
	}
	require.Len(t, workers, 2, "segments by worker")
}
