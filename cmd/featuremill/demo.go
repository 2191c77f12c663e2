package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/fx"

	"github.com/featuremill/featuremill/cmd/featuremill/demo"
	"github.com/featuremill/featuremill/cmd/internal/wiring"
	"github.com/featuremill/featuremill/projections/extractions"
	"github.com/featuremill/featuremill/projections/features"
)

type demoCmd struct {
	wiring.Config
	wiring.APIConfig
	Extractor string `help:"The worker's program. Empty: the one beside this program." type:"path"`
	Threads   int    `help:"CPU threads of the worker; 0 is one a core." default:"0"`
	Exit      bool   `help:"End after the demonstration instead of serving."`
}

// demonstration is a run of the demo: what it needs, what it found, and how long each stage took.
type demonstration struct {
	client
	dir        string // its own files in the state folder
	folder     *features.Folder
	runs       *extractions.Queries
	pid        atomic.Int64 // of the worker
	extractor  wiring.Extractor
	stages     []stage
	ids        demoIDs
	gguf, text string
}

// demoIDs is what a later run finds again.
type demoIDs struct {
	Model      string  `json:"model"`
	SAE        string  `json:"sae"`
	Dataset    string  `json:"dataset"`
	Extraction string  `json:"extraction"`
	Digests    string  `json:"digests"` // what the comparison with the undisturbed run said
	Parity     string  `json:"parity"`
	Stages     []stage `json:"stages"`
}

type stage struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds"`
}

func (d *demonstration) stage(name string, do func() error) error {
	fmt.Printf("· %s\n", name)
	started := time.Now()
	err := do()
	d.stages = append(d.stages, stage{name, time.Since(started).Seconds()})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (c *demoCmd) Run(ctx context.Context) error {
	if c.LogLevel == "info" {
		c.LogLevel = "error" // the demo tells its own story
	}
	c.ImportRoots = nil
	d := &demonstration{dir: filepath.Join(c.State, "demo"), extractor: wiring.Extractor{Path: c.Extractor, Threads: c.Threads}}
	d.extractor.Started = func(pid int) { d.pid.Store(int64(pid)) }
	if _, err := d.extractor.Find(); err != nil {
		return err
	}
	var app *fx.App
	if err := d.stage("start PostgreSQL, the broker, the API and a worker", func() error {
		var address wiring.Address
		app = fx.New(wiring.Core(c.Config), wiring.Relay(), wiring.Projector(), wiring.Queries(), wiring.API(c.APIConfig), wiring.ChildExtractor(d.extractor),
			fx.Populate(&address, &d.folder, &d.runs))
		if err := app.Err(); err != nil {
			return err
		}
		d.client = client{API: "http://" + string(address), Token: c.Token}
		return app.Start(ctx)
	}); err != nil {
		return err
	}
	err := d.tell(ctx)
	if err == nil {
		fmt.Printf("\nAPI: %s/api/v1   for example %s/api/v1/extractions/%s/features?limit=5\n", d.API, d.API, d.ids.Extraction)
		fmt.Printf("The same as a table: featuremill features --api %s --extraction %s\n", d.API, d.ids.Extraction)
		if !c.Exit {
			fmt.Println("Serving until Ctrl-C. What was computed is kept: the next demo starts in seconds.")
			<-ctx.Done()
		}
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), app.StopTimeout())
	defer cancel()
	return errors.Join(err, app.Stop(stop))
}

// tell runs what is not there yet and shows the result.
func (d *demonstration) tell(ctx context.Context) error {
	if d.recall(ctx) {
		fmt.Println("· what an earlier demo computed is here")
	} else if err := d.compute(ctx); err != nil {
		return err
	}
	return d.show(ctx)
}

func (d *demonstration) notes() string { return filepath.Join(d.dir, "demo.json") }

// recall finds the extraction of an earlier demo.
func (d *demonstration) recall(ctx context.Context) bool {
	b, err := os.ReadFile(d.notes())
	if err != nil || json.Unmarshal(b, &d.ids) != nil {
		return false
	}
	var j job
	err = d.call(ctx, http.MethodGet, "/extractions/"+url.PathEscape(d.ids.Extraction), nil, nil, &j)
	if err == nil && j.Status == "finalizing" { // its tables are being made anew
		j, err = d.watch(ctx, d.ids.Extraction, os.Stdout)
	}
	if err != nil || j.Status != "completed" {
		d.ids = demoIDs{}
		return false
	}
	d.text = d.fetched()[2]
	return true
}

// fetched are the paths that fetch.sh makes.
func (d *demonstration) fetched() [3]string {
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		home, _ := os.UserHomeDir()
		cache = filepath.Join(home, ".cache")
	}
	return [3]string{
		filepath.Join(cache, "featuremill", "models", "SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct.Q4_1.gguf"),
		filepath.Join(cache, "featuremill", "datasets", "sotu", "sotu.jsonl"),
		filepath.Join(cache, "featuremill", "datasets", "sotu", "sotu-excerpts.jsonl"),
	}
}

func (d *demonstration) compute(ctx context.Context) error {
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"fetch the model (SmolLM2-135M-Instruct, 98 MB) and the text (State of the Union speeches, 1790 to today)", d.fetch},
		{"import model, SAE and text: every file is checked and hashed", d.register},
		{"extract, and kill -9 the worker half way", d.disturbed},
		{"extract the same again undisturbed, and compare every segment's digest", d.undisturbed},
		{"one sequence against Python (transformers, sae-lens)", d.parity},
	}
	for _, s := range steps {
		if err := d.stage(s.name, func() error { return s.do(ctx) }); err != nil {
			return err
		}
	}
	d.ids.Stages = d.stages
	b, err := json.MarshalIndent(d.ids, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(d.notes(), b, 0o600)
}

// fetch writes the files that came with this program, and runs the script that fetches the rest.
func (d *demonstration) fetch(ctx context.Context) error {
	err := fs.WalkDir(demo.Files, ".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(d.dir, path)
		if e.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		b, err := fs.ReadFile(demo.Files, path)
		if err != nil {
			return err
		}
		return os.WriteFile(to, b, 0o600)
	})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "bash", filepath.Join(d.dir, "fetch.sh"))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("fetch.sh: %w", err)
	}
	paths := strings.Fields(string(out))
	if len(paths) != 3 {
		return fmt.Errorf("fetch.sh printed %q instead of three paths", out)
	}
	d.gguf, d.text = paths[0], paths[2]
	return nil
}

func (d *demonstration) register(ctx context.Context) error {
	var r registered
	if err := d.call(ctx, http.MethodPost, "/models/import", nil, map[string]any{"path": d.gguf, "name": "HuggingFaceTB/SmolLM2-135M-Instruct"}, &r); err != nil {
		return err
	}
	d.ids.Model = r.ID
	if err := d.call(ctx, http.MethodPost, "/saes/import/file", nil, map[string]any{"file_path": filepath.Join(d.dir, "sae"), "name": "SmolLM2 layer 8, 3,072 latents, top-k 48", "model_id": d.ids.Model}, &r); err != nil {
		return err
	}
	d.ids.SAE = r.ID
	if err := d.call(ctx, http.MethodPost, "/datasets/import", nil, map[string]any{"path": d.text, "name": "State of the Union, excerpts"}, &r); err != nil {
		return err
	}
	d.ids.Dataset = r.ID
	return nil
}

func (d *demonstration) start(ctx context.Context) (string, error) {
	var j job
	err := d.call(ctx, http.MethodPost, "/saes/"+url.PathEscape(d.ids.SAE)+"/extract-features", url.Values{"dataset_id": {d.ids.Dataset}}, map[string]any{"evaluation_samples": 10_000}, &j)
	return j.ID, err
}

// disturbed runs an extraction whose worker is killed when half of its segments are recorded.
func (d *demonstration) disturbed(ctx context.Context) error {
	id, err := d.start(ctx)
	if err != nil {
		return err
	}
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	killed := make(chan string, 1)
	go func() { killed <- d.killHalfWay(watch, id) }()
	j, err := d.watch(ctx, id, os.Stdout)
	cancel()
	if said := <-killed; said != "" {
		fmt.Println("  " + said)
	}
	if err != nil {
		return err
	}
	if j.Status != "completed" {
		return fmt.Errorf("the extraction is %s: %s", j.Status, j.Error)
	}
	d.ids.Extraction = id
	return nil
}

func (d *demonstration) killHalfWay(ctx context.Context, id string) string {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var j struct {
			Planned  int `json:"segments_planned"`
			Recorded int `json:"segments_recorded"`
		}
		if d.call(ctx, http.MethodGet, "/extractions/"+url.PathEscape(id), nil, nil, &j) == nil && j.Planned > 0 && 2*j.Recorded >= j.Planned {
			pid := int(d.pid.Load())
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				return fmt.Sprintf("could not kill the worker (process %d): %v", pid, err)
			}
			return fmt.Sprintf("kill -9 %d after %d of %d segments; a new worker took over", pid, j.Recorded, j.Planned)
		}
		select {
		case <-ctx.Done():
			return "the extraction was over before half of it could be seen"
		case <-tick.C:
		}
	}
}

// undisturbed runs the same extraction again and compares the digests of what both computed.
func (d *demonstration) undisturbed(ctx context.Context) error {
	id, err := d.start(ctx)
	if err != nil {
		return err
	}
	j, err := d.watch(ctx, id, os.Stdout)
	if err != nil {
		return err
	}
	if j.Status != "completed" {
		return fmt.Errorf("the extraction is %s: %s", j.Status, j.Error)
	}
	a, err := d.runs.Segments(ctx, d.ids.Extraction)
	if err != nil {
		return err
	}
	b, err := d.runs.Segments(ctx, id)
	if err != nil {
		return err
	}
	equal := 0
	var postings int64
	for i := range min(len(a), len(b)) {
		if a[i].ContentSHA256 == b[i].ContentSHA256 {
			equal++
		}
		postings += a[i].Postings
	}
	d.ids.Digests = fmt.Sprintf("%d of %d segments have equal digests in the killed and in the undisturbed run (%s postings)", equal, len(a), thousands(postings))
	if equal != len(a) || len(a) != len(b) {
		return errors.New(d.ids.Digests)
	}
	return d.call(ctx, http.MethodDelete, "/extractions/"+url.PathEscape(id), nil, nil, nil)
}

func thousands(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
