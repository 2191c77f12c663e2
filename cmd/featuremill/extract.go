package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

type extractCmd struct {
	client
	SAE        string `name:"sae" help:"Id of the SAE." xor:"source" required:""`
	Training   string `help:"Id of a training with exactly one SAE." xor:"source" required:""`
	Dataset    string `help:"Id of the dataset." required:""`
	Model      string `help:"Id of the model. Empty: the one that the SAE is linked to."`
	Samples    int    `help:"How many sequences." default:"10000"`
	TopK       int    `help:"How many top examples a feature." default:"100"`
	BatchSize  int    `help:"Sequences in one forward; 0 = auto."`
	Context    int    `help:"Tokens of a sequence; 0 = the SAE's, else 128."`
	Mode       string `help:"documents or packed." enum:"documents,packed" default:"documents"`
	PrependBOS string `name:"prepend-bos" help:"auto, true or false." enum:"auto,true,false" default:"auto"`
	Fold       string `help:"none, or decoder-norm for Neuronpedia's magnitudes." enum:"none,decoder-norm" default:"none"`
	Force      bool   `help:"Go on even if the self-test says that the SAE does not fit."`
	Detach     bool   `help:"Do not watch; print the id and end."`
}

// job is the part of an extraction's status that is shown.
type job struct {
	ID              string   `json:"id"`
	Status          string   `json:"status"`
	Progress        *float64 `json:"progress"`
	TokensPerSecond *float64 `json:"tokens_per_second"`
	ETA             *float64 `json:"eta_seconds"`
	Stage           string   `json:"stage"`
	Waiting         string   `json:"waiting_for"`
	Error           string   `json:"error_message"`
	Features        *int     `json:"total_features"`
}

func (c *extractCmd) Run(ctx context.Context) error {
	path := "/saes/" + url.PathEscape(c.SAE) + "/extract-features"
	if c.Training != "" {
		path = "/trainings/" + url.PathEscape(c.Training) + "/extract-features"
	}
	body := map[string]any{
		"evaluation_samples": c.Samples, "top_k_examples": c.TopK, "mode": c.Mode, "prepend_bos": c.PrependBOS, "fold": c.Fold, "force": c.Force,
	}
	if c.BatchSize > 0 {
		body["batch_size"] = c.BatchSize
	}
	if c.Context > 0 {
		body["context_length"] = c.Context
	}
	query := url.Values{"dataset_id": {c.Dataset}}
	if c.Model != "" {
		query.Set("model_id", c.Model)
	}
	var j job
	if err := c.call(ctx, http.MethodPost, path, query, body, &j); err != nil {
		return err
	}
	fmt.Println(j.ID)
	if c.Detach {
		return nil
	}
	j, err := c.watch(ctx, j.ID, os.Stderr)
	if errors.Is(err, context.Canceled) {
		return c.cancel(j.ID)
	}
	if err != nil {
		return err
	}
	if j.Status != "completed" {
		return fmt.Errorf("the extraction is %s: %s", j.Status, j.Error)
	}
	fmt.Fprintf(os.Stderr, "browse them: featuremill features --extraction %s\n", j.ID)
	return nil
}

// cancel asks whether to cancel what goes on in the background.
func (c client) cancel(id string) error {
	fmt.Fprintf(os.Stderr, "\nCancel the extraction? What was computed stays. [y/N] ")
	var answer string
	_, _ = fmt.Scanln(&answer)
	if !strings.HasPrefix(strings.ToLower(answer), "y") {
		fmt.Fprintf(os.Stderr, "it goes on: %s\n", id)
		return nil
	}
	ctx, done := context.WithTimeout(context.Background(), 10*time.Second)
	defer done()
	return c.call(ctx, http.MethodPost, "/extractions/"+url.PathEscape(id)+"/cancel", nil, nil, nil)
}

// watch draws the progress until the extraction has ended and its features can be browsed.
func (c client) watch(ctx context.Context, id string, w *os.File) (j job, err error) {
	j.ID = id
	terminal := isTerminal(w)
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	last := ""
	for {
		var now job
		if err := c.call(ctx, http.MethodGet, "/extractions/"+url.PathEscape(id), nil, nil, &now); err != nil {
			return j, err
		}
		j = now
		line := progressLine(j)
		switch {
		case terminal:
			fmt.Fprintf(w, "\r\033[K%s", line)
		case line != last && (j.Status != "extracting" || last == ""):
			fmt.Fprintln(w, line)
		}
		last = line
		switch j.Status {
		case "completed", "failed", "cancelled":
			if terminal {
				fmt.Fprintln(w)
			}
			return j, nil
		}
		select {
		case <-ctx.Done():
			return j, ctx.Err()
		case <-tick.C:
		}
	}
}

func progressLine(j job) string {
	p := 0.0
	if j.Progress != nil {
		p = *j.Progress
	}
	const width = 32
	full := int(p*width + 0.5)
	b := fmt.Sprintf("%-10s [%s%s] %3.0f %%", j.Status, strings.Repeat("█", full), strings.Repeat("·", width-full), 100*p)
	if j.TokensPerSecond != nil && *j.TokensPerSecond > 0 {
		b += fmt.Sprintf("  %.0f tokens/s", *j.TokensPerSecond)
	}
	if j.ETA != nil && j.Status == "extracting" {
		b += "  ETA " + (time.Duration(*j.ETA * float64(time.Second))).Round(time.Second).String()
	}
	if j.Stage != "" && j.Status == "queued" {
		b += "  " + j.Stage
	}
	if j.Waiting != "" {
		b += "  waiting for a worker: " + j.Waiting
	}
	return b
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}
