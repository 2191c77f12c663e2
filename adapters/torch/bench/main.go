// Command bench runs the extractor's inner loop for bench.py, which times it beside a PyTorch script.
//
// It reads "FIRST LAST\n" and computes those sequences: forward, encode, sparse output, sort, and an
// artifact on disk. It answers one line of JSON with seconds for each part. Both programs stay loaded
// and take turns, so that what else the machine does falls on both.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/postings"
	"github.com/featuremill/featuremill/adapters/torch"
)

type answer struct {
	Seconds  float64 `json:"seconds"`  // all of it
	CPU      float64 `json:"cpu"`      // CPU seconds of all threads: what a loaded machine does not stretch much
	Sparse   float64 `json:"sparse"`   // of that: sparse output, sort, artifact: what is not libtorch or a kernel
	Tokens   int     `json:"tokens"`   //
	Postings int     `json:"postings"` //
	PeakRSS  int64   `json:"peak_rss"` // bytes, of the process so far
	Profile  any     `json:"profile"`
}

func main() {
	model := flag.String("model", "", "a model's folder or .gguf")
	sae := flag.String("sae", "", "a SAELens folder")
	in := flag.String("in", "", "safetensors with input_ids [batch, seq]")
	batch := flag.Int("batch", 32, "sequences a batch")
	threads := flag.Int("threads", 0, "threads, 0 = all")
	flag.Parse()
	if err := run(*model, *sae, *in, *batch, *threads); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(modelPath, saePath, in string, batch, threads int) error {
	ctx := context.Background()
	sequences, err := readSequences(in)
	if err != nil {
		return err
	}
	r, err := torch.Start(torch.Options{Threads: threads})
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	source, err := checkpoint.OpenModel(modelPath)
	if err != nil {
		return err
	}
	model, err := r.LoadModel(ctx, source)
	if err != nil {
		return err
	}
	files, err := checkpoint.OpenSAE(saePath)
	if err != nil {
		return err
	}
	sae, err := r.LoadSAE(ctx, files)
	if err != nil {
		return err
	}
	if err := files.Close(); err != nil {
		return err
	}
	hook, err := torch.ParseHook(files.Config.Hook)
	if err != nil {
		return err
	}
	engine, err := torch.NewEngine(model, sae, hook)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()

	var columns postings.Columns
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var first, last int
		if _, err := fmt.Sscan(lines.Text(), &first, &last); err != nil {
			return err
		}
		start, before := time.Now(), engine.SparseTime()
		cpu := cpuSeconds()
		a := answer{Profile: r.Profile(), Tokens: 0}
		columns.Reset()
		for at := first; at < last; at += batch {
			ids := sequences[at:min(at+batch, last)]
			if _, err := engine.Batch(ctx, ids, uint32(at), &columns); err != nil {
				return err
			}
			for _, s := range ids {
				a.Tokens += len(s)
			}
		}
		after := time.Now()
		if err := artifact(filepath.Join(dir, "segment.parquet"), &columns, first, last-first, a.Tokens, sae.Config().DSAE); err != nil {
			return err
		}
		a.Sparse = (time.Since(after) + engine.SparseTime() - before).Seconds()
		a.CPU = cpuSeconds() - cpu
		a.Seconds, a.Postings, a.PeakRSS = time.Since(start).Seconds(), columns.Len(), peakRSS()
		if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
			return err
		}
	}
	return lines.Err()
}

func artifact(path string, columns *postings.Columns, first, sequences, tokens, latents int) error {
	columns.Sort(latents)
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	m := postings.Metadata{FirstSequence: first, Sequences: sequences, Tokens: tokens, Latents: latents}
	if _, err := postings.Write(f, columns, m); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

func readSequences(path string) ([][]int32, error) {
	f, err := checkpoint.OpenSafetensors(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	t, err := f.Tensor("input_ids")
	if err != nil {
		return nil, err
	}
	values, err := t.Int64()
	if err != nil {
		return nil, err
	}
	out := make([][]int32, t.Shape[0])
	for i := range out {
		for _, id := range values[i*t.Shape[1] : (i+1)*t.Shape[1]] {
			out[i] = append(out[i], int32(id))
		}
	}
	return out, nil
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// peakRSS is VmHWM of /proc/self/status, 0 where there is none.
func peakRSS() int64 {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		var kb int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	return 0
}
