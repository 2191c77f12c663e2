package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/collect"
	"github.com/featuremill/featuremill/adapters/worker"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
)

// envLife says how long TestAServerThatLives lives, such as 3m or 1h.
const envLife = "FEATUREMILL_TEST_LIFE"

// TestAServerThatLives runs one server for a long time and does to it what years do: workers are killed, PostgreSQL and
// the broker restarted, the store is away for up to a minute, SQL readers hold snapshots, autovacuum runs every second,
// read models are rebuilt and the store is swept, while people start, cancel, resume, extend and delete extractions. In
// the end everything must be as if nothing had happened.
func TestAServerThatLives(t *testing.T) {
	text := os.Getenv(envLife)
	if text == "" {
		t.Skip("SKIPPED: a server's life takes minutes (make soak)")
	}
	life, err := time.ParseDuration(text)
	require.NoError(t, err)
	newLife(t, life).live()
}

// shapes are the extractions that people ask for: sequences, and examples of each latent.
var shapes = []struct{ samples, examples int }{{64, 10}, {96, 12}, {128, 10}, {208, 11}}

const (
	sources = 5   // SAEs, of which each has one active extraction at most
	longest = 416 // sequences after an extension
)

type life struct {
	*stack
	server *process
	url    string
	ends   time.Time
	long   time.Duration
	random *rand.Rand
	undone map[string]result // what an undisturbed run comes to, by shape

	mu       sync.Mutex
	workers  []*process
	kills    int
	restarts map[string]int
	started  map[string]int // shape of an extraction
	deleted  map[string]bool
	acts     map[string]int
	wrong    []string
}

func newLife(t *testing.T, long time.Duration) *life {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	l := &life{stack: newStack(t, options{ownServer: true, objects: true}), long: long, random: rand.New(rand.NewPCG(seed, 1)),
		restarts: map[string]int{}, started: map[string]int{}, deleted: map[string]bool{}, acts: map[string]int{}, undone: map[string]result{}}
	for i := range sources {
		l.importSAE(fmt.Sprint("life", i), "testdata/sae")
	}
	l.asSuperuserDo(`alter system set autovacuum_naptime = '1s'`, `alter system set autovacuum_vacuum_threshold = 1`, `alter system set autovacuum_analyze_threshold = 1`, `select pg_reload_conf()`)
	path, _ := programs(t)
	l.server = start(t, "server", path, l.args("serve", "--roles", "api,relay,projector", "--listen", "127.0.0.1:0"), fast)
	l.await("the API", func() bool {
		require.False(t, l.server.Ended(), "%s", l.server.out)
		m := listening.FindStringSubmatch(l.server.out.String())
		if m != nil {
			l.url = "http://" + m[1]
		}
		return m != nil
	})
	return l
}

func (l *life) asSuperuserDo(statements ...string) {
	l.t.Helper()
	for _, sql := range statements {
		_, err := l.pool.Exec(l.t.Context(), sql)
		require.NoError(l.t, err)
	}
}

// fault notes what must not be; the life goes on.
func (l *life) fault(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.wrong) < 100 {
		l.wrong = append(l.wrong, time.Now().Format("15:04:05 ")+fmt.Sprintf(format, args...))
	}
}

func (l *life) did(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acts[what]++
}

func (l *life) worker() {
	_, path := programs(l.t)
	w := start(l.t, "extractor", path, l.args("work", "--threads", "1"), fast)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.workers = append(l.workers, w)
}

func (l *life) dice(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.random.IntN(n)
}

// pause waits, and reports whether there is time left.
func (l *life) pause(least, most time.Duration) bool {
	d := least + time.Duration(l.dice(int(most-least)))
	select {
	case <-time.After(min(d, time.Until(l.ends))):
	case <-l.t.Context().Done():
	}
	return time.Now().Before(l.ends)
}

// ask sends a request to the API. Status 0: no answer, or one that says that something is away, as it may be.
func (l *life) ask(method, path string, body any) (int, map[string]any) {
	var in io.Reader = http.NoBody
	if body != nil {
		b, err := json.Marshal(body)
		require.NoError(l.t, err)
		in = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, l.url+"/api/v1"+path, in)
	require.NoError(l.t, err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil
	}
	defer func() { _ = answer.Body.Close() }()
	var out map[string]any
	_ = json.NewDecoder(answer.Body).Decode(&out)
	switch {
	case answer.StatusCode == http.StatusServiceUnavailable:
		return 0, out
	case answer.StatusCode >= 500:
		l.fault("%s %s: %d %v", method, path, answer.StatusCode, out)
	}
	return answer.StatusCode, out
}

func (l *life) live() {
	l.reference()
	goroutines, handles := l.resources()
	l.ends = time.Now().Add(l.long)
	for range 3 {
		l.worker()
	}
	var all sync.WaitGroup
	act := func(least, most time.Duration, do func()) {
		all.Go(func() {
			for l.pause(least, most) {
				do()
			}
		})
	}
	part := func(n time.Duration) time.Duration { return max(min(l.long/n, 10*time.Minute), 5*time.Second) }
	act(8*time.Second, 25*time.Second, l.killWorker)
	act(part(6), part(3), l.restartPostgres)
	act(part(6), part(3), l.restartBroker)
	act(part(8), part(4), l.storeAway)
	act(5*time.Second, 20*time.Second, l.readSQL)
	act(part(12), part(6), l.rebuild)
	act(20*time.Second, 60*time.Second, l.sweep)
	for i := range sources {
		all.Go(func() { l.person(fmt.Sprint("life", i)) })
	}
	act(50*time.Millisecond, 150*time.Millisecond, l.browse)
	all.Wait()
	l.settle()
	l.judge(goroutines, handles)
}

// reference runs each shape, short and extended, before anything is disturbed.
func (l *life) reference() {
	l.worker()
	for i, shape := range shapes {
		id := l.start("life0", i)
		require.NotEmpty(l.t, id)
		l.awaitStatus(id, extraction.StatusCompleted)
		l.awaitFolded(id)
		l.undone[key(shape.samples, i)] = l.result(id)
		status, out := l.ask(http.MethodPost, "/extractions/"+id+"/extend", map[string]any{"evaluation_samples": longest})
		require.Equal(l.t, http.StatusAccepted, status, "%v", out)
		l.awaitStatus(id, extraction.StatusCompleted)
		l.awaitFolded(id)
		l.undone[key(longest, i)] = l.result(id)
	}
	l.mu.Lock()
	first := l.workers[0]
	l.workers = nil
	l.mu.Unlock()
	require.Zero(l.t, first.Stop())
}

func key(samples, shape int) string { return fmt.Sprint(samples, " of ", shape) }

func (l *life) start(sae string, shape int) string {
	body := map[string]any{"evaluation_samples": shapes[shape].samples, "top_k_examples": shapes[shape].examples, "batch_size": 4, "context_length": 1024}
	status, out := l.ask(http.MethodPost, "/saes/"+sae+"/extract-features?dataset_id="+datasetID, body)
	if status != http.StatusAccepted {
		if status != 0 && status != http.StatusConflict {
			l.fault("start: %d %v", status, out)
		}
		return ""
	}
	id, _ := out["id"].(string)
	l.mu.Lock()
	l.started[id] = shape
	l.mu.Unlock()
	l.did("started")
	return id
}

// person uses one SAE: starts, and now and then cancels and resumes, extends, deletes, or asks for the tables again.
func (l *life) person(sae string) {
	idle := max(500*time.Millisecond, min(l.long/80, time.Minute)) // a long life is not a fuller one
	for l.pause(0, idle) {
		id := l.start(sae, l.dice(len(shapes)))
		if id == "" {
			continue
		}
		path := "/extractions/" + id
		if l.dice(4) == 0 && l.pause(0, 3*time.Second) {
			if status, _ := l.ask(http.MethodPost, path+"/cancel", map[string]any{}); status == http.StatusOK {
				l.did("cancelled")
				l.pause(0, time.Second)
				for status := 0; status != http.StatusAccepted && status != http.StatusConflict; l.pause(200*time.Millisecond, 300*time.Millisecond) {
					if status, _ = l.ask(http.MethodPost, path+"/resume", nil); status == http.StatusAccepted {
						l.did("resumed")
					}
				}
			}
		}
		l.end(id)
		switch l.dice(6) {
		case 0:
			if status, _ := l.ask(http.MethodPost, path+"/extend", map[string]any{"evaluation_samples": longest}); status == http.StatusAccepted {
				l.did("extended")
				l.end(id)
			}
		case 1:
			if status, _ := l.ask(http.MethodPost, path+"/fold", nil); status == http.StatusAccepted {
				l.did("folded again")
			}
		case 2, 3:
			if status, _ := l.ask(http.MethodDelete, path, nil); status == http.StatusNoContent {
				l.mu.Lock()
				l.deleted[id] = true
				l.mu.Unlock()
				l.did("deleted")
			}
		}
	}
}

// end waits until an extraction has ended.
func (l *life) end(id string) {
	for began := time.Now(); ; {
		if state, _, ok := l.load(id); ok && state.Status.Terminal() {
			if state.Status == extraction.StatusFailed {
				l.fault("%s failed: %v", id, state.Failure)
			}
			return
		}
		if time.Since(began) > 5*time.Minute {
			l.fault("%s does not come to an end", id)
			return
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-l.t.Context().Done():
			return
		}
	}
}

func (l *life) killWorker() {
	l.mu.Lock()
	i := l.random.IntN(len(l.workers))
	victim := l.workers[i]
	l.workers = slices.Delete(l.workers, i, i+1)
	l.kills++
	l.mu.Unlock()
	victim.Kill()
	l.worker()
}

func (l *life) restarted(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restarts[what]++
}

// restartPostgres and restartBroker take turns with nothing: both may be down at once.
func (l *life) restartPostgres() {
	l.stack.server.Kill()
	l.stack.server.Restart()
	l.restarted("PostgreSQL")
}

func (l *life) restartBroker() {
	l.broker.Kill()
	l.broker.Restart()
	l.restarted("broker")
}

func (l *life) storeAway() {
	l.line.Cut()
	l.pause(time.Second, min(time.Minute, max(l.long/10, 5*time.Second)))
	l.line.Mend()
	l.restarted("store")
}

// readSQL holds a snapshot over all tables, as an analyst does who went for a coffee.
func (l *life) readSQL() {
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, l.dsn)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, sql := range []string{`set idle_in_transaction_session_timeout = 0`, `begin isolation level repeatable read`, `select count(*) from features`, `select count(*) from extraction_jobs`, `select count(*) from feature_activations`} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return // it was restarted
		}
	}
	l.did("snapshots held")
	l.pause(time.Second, 30*time.Second)
}

func (l *life) command(args ...string) (string, int) {
	path, _ := programs(l.t)
	return run(l.t, path, l.args(args...)...)
}

func (l *life) rebuild() {
	name := []string{"library", "extractions", "features"}[l.dice(3)]
	if out, code := l.command("projections", "rebuild", name); code == 0 {
		l.did("rebuilt")
	} else if !strings.Contains(out, "being rebuilt") && !isAway(out) {
		l.fault("rebuild %s: %s", name, tail(out, 5))
	}
}

// isAway reports whether a command failed because something was away, as it may be.
func isAway(out string) bool {
	return regexp.MustCompile(`connect|EOF|57P0|shutting down|not available|recovery|the store is away|closed|reset|starting up|terminating`).MatchString(out)
}

func (l *life) sweep() {
	// What is younger than the longest outage, and some, may still be recorded.
	if out, code := l.command("store", "sweep", "--grace", "4m", "-q"); code == 0 {
		l.did("swept")
	} else if !isAway(out) {
		l.fault("sweep: %s", tail(out, 5))
	}
}

// browse reads what people look at. What has ended once never shows less.
func (l *life) browse() {
	l.mu.Lock()
	ids := slices.Sorted(maps.Keys(l.started))
	l.mu.Unlock()
	if len(ids) == 0 {
		return
	}
	id := ids[l.dice(len(ids))]
	status, one := l.ask(http.MethodGet, "/extractions/"+id, nil)
	if status != http.StatusOK || one["status"] != "completed" {
		return
	}
	before := one["folded_at"]
	status, list := l.ask(http.MethodGet, "/extractions/"+id+"/features?limit=5", nil)
	if status == http.StatusOK && list["total"] == 0.0 && before != nil {
		if status, again := l.ask(http.MethodGet, "/extractions/"+id, nil); status == http.StatusOK && again["status"] == "completed" {
			l.fault("%s is completed and lists nothing", id)
		}
	}
	l.did("browsed")
}

// settle waits until nothing is to be done any more.
func (l *life) settle() {
	l.line.Mend()
	l.await("an end of all work", func() bool {
		list, err := l.log.ListWork(l.t.Context(), "")
		if err != nil || len(list) > 0 {
			return false
		}
		var open int
		err = l.pool.QueryRow(l.t.Context(), `select count(*) from work where kind <> 'selftest'`).Scan(&open)
		return err == nil && open == 0
	})
}

// resources are the goroutines and the file handles of the server.
func (l *life) resources() (goroutines, handles int) {
	l.t.Helper()
	answer, err := http.Get(l.url + "/metrics")
	require.NoError(l.t, err)
	defer func() { _ = answer.Body.Close() }()
	b, err := io.ReadAll(answer.Body)
	require.NoError(l.t, err)
	number := func(name string) int {
		m := regexp.MustCompile(`(?m)^` + name + ` (\S+)`).FindSubmatch(b)
		require.NotNil(l.t, m, name)
		v, err := strconv.ParseFloat(string(m[1]), 64)
		require.NoError(l.t, err)
		return int(v)
	}
	return number("go_goroutines"), number("process_open_fds")
}

func (l *life) judge(goroutines, handles int) {
	t := l.t
	for _, w := range l.workers {
		require.Zero(t, w.Stop())
	}
	l.workers = nil
	t.Logf("started %d extractions; did %v; killed %d workers; restarted %v", len(l.started), l.acts, l.kills, l.restarts)

	lost := 0
	for _, id := range slices.Sorted(maps.Keys(l.started)) {
		if l.deleted[id] {
			continue
		}
		state, _, ok := l.load(id)
		require.True(t, ok)
		if state.Status == extraction.StatusDeleted { // its answer was lost
			continue
		}
		if state.Status != extraction.StatusCompleted {
			l.fault("%s is %s: %v", id, state.Status, state.Failure)
			continue
		}
		for _, r := range l.recorded(id) {
			lost += r.Attempt - 1
		}
		l.awaitFolded(id)
		sequences, _ := state.Planned()
		want, known := l.undone[key(min(sequences, longest), l.started[id])]
		if got := l.result(id); !known {
			l.fault("%s has %d sequences", id, sequences)
		} else if !slices.Equal(got.Contents, want.Contents) || got.Dump != want.Dump {
			l.fault("%s is not what an undisturbed run comes to", id)
		}
	}
	// A killed worker held at most a segment, or a plan with a chunk of a corpus.
	if lost > l.kills {
		l.fault("%d attempts at segments were lost with %d killed workers", lost, l.kills)
	}
	out, code := l.command("store", "sweep", "--grace", "1ns", "-q")
	require.Zero(t, code, out)
	out, code = l.verify()
	if code != 0 || strings.Contains(out, "FAULT") {
		l.fault("verify: %s", tail(out, 20))
	}
	out, _ = l.command("projections", "status")
	if !strings.Contains(out, ", 0 parked") || regexp.MustCompile(`[1-9]\d* parked`).MatchString(out) {
		l.fault("parked: %s", out)
	}
	l.room()
	l.await("an end of connections", func() bool {
		http.DefaultClient.CloseIdleConnections()
		g, h := l.resources()
		return g <= goroutines+2 && h <= handles+2
	})
	require.Zero(t, l.server.Stop())
	require.NotContains(t, l.server.out.String(), "panic")
	for _, w := range l.wrong {
		t.Error(w)
	}
}

// room compares what is stored with what the remaining things need.
func (l *life) room() {
	t := l.t
	registry, err := facts.Registry()
	require.NoError(t, err)
	named, err := collect.Read(t.Context(), l.log, registry)
	require.NoError(t, err)
	keys := named.Keys(worker.ArtifactKey)
	var stored, needed int64
	for item, err := range l.store.List(t.Context(), "") {
		require.NoError(t, err)
		stored += item.Bytes
		if _, wanted := keys[item.Key]; wanted {
			needed += item.Bytes
		}
	}
	t.Logf("the store holds %d bytes, of which %d are needed", stored, needed)
	if float64(stored) > 1.1*float64(needed) {
		l.fault("the store holds %d bytes for %d that are needed", stored, needed)
	}
	// What is not shown any more is dropped a minute later.
	var tables, current int
	l.await("an end of old tables", func() bool {
		err := l.pool.QueryRow(t.Context(), `select (select count(*) from generations.generations), (select count(*) from generations.current where generation is not null)`).Scan(&tables, &current)
		return err == nil && tables == current
	})
	t.Logf("%d generations of tables are there, and shown", tables)
	leftovers, err := filepath.Glob(filepath.Join(l.state, "cache", "blobs", "fetch", "*"))
	require.NoError(t, err)
	require.Empty(t, leftovers)
}
