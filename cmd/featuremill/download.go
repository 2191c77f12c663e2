package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/featuremill/featuremill/adapters/hub"
)

// download is what every import from a hub can be told.
type download struct {
	AccessToken string `help:"From the hub: a token for this download alone. Empty: the API's own."`
	Detach      bool   `help:"From the hub: do not watch; print the id and end."`
}

// fromHub reads hf:owner/name@revision:path. A plain owner/name means the hub too, unless there is such a path here.
func fromHub(path string) (hub.Ref, bool, error) {
	if strings.HasPrefix(path, "hf:") {
		ref, err := hub.ParseRef(path)
		return ref, err == nil, err
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) || strings.HasPrefix(path, ".") || strings.HasPrefix(path, "/") || strings.HasPrefix(path, "~") {
		return hub.Ref{}, false, nil
	}
	ref, err := hub.ParseRef(path)
	return ref, err == nil, nil // what is no reference is a path, and the API says that it is not there
}

func (d download) body(ref hub.Ref) map[string]any {
	return with(with(map[string]any{"repo_id": ref.ID}, "revision", ref.Revision), "access_token", d.AccessToken)
}

// thing is the part of a model, an SAE or a dataset that is shown while it is fetched.
type thing struct {
	registered
	Progress float64 `json:"progress"`
	Commit   string  `json:"hf_revision"`
	Error    string  `json:"error_message"`
	Download *struct {
		Stage          string   `json:"stage"`
		BytesDone      int64    `json:"bytes_done"`
		BytesTotal     int64    `json:"bytes_total"`
		BytesPerSecond float64  `json:"bytes_per_second"`
		ETA            *float64 `json:"eta_seconds"`
	} `json:"download"`
}

// fetch asks for a download and watches it.
func (d download) fetch(ctx context.Context, c client, kind string, body map[string]any) error {
	var t thing
	if err := c.call(ctx, http.MethodPost, kind+"/download", nil, body, &t); err != nil {
		return err
	}
	if d.Detach {
		fmt.Printf("%s  %s  %s\n", t.ID, t.Name, t.Status)
		return nil
	}
	terminal := isTerminal(os.Stderr)
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	last := ""
	for t.Status == "pending" || t.Status == "downloading" {
		line := t.line()
		switch {
		case terminal:
			fmt.Fprintf(os.Stderr, "\r\033[K%s", line)
		case t.Status != last:
			fmt.Fprintln(os.Stderr, line)
		}
		last = t.Status
		select {
		case <-ctx.Done():
			fmt.Fprintf(os.Stderr, "\nit goes on: %s\n", t.ID)
			return ctx.Err()
		case <-tick.C:
		}
		t.Download = nil
		if err := c.call(ctx, http.MethodGet, kind+"/"+t.ID, nil, nil, &t); err != nil && ctx.Err() == nil {
			return err
		}
	}
	if terminal {
		fmt.Fprintln(os.Stderr)
	}
	if t.Status != "ready" {
		return fmt.Errorf("%s is %s: %s", t.ID, t.Status, t.Error)
	}
	fmt.Printf("%s  %s  %s  commit %s\n", t.ID, t.Name, t.Status, t.Commit)
	return nil
}

func (t thing) line() string {
	const width = 32
	full := int(t.Progress/100*width + 0.5)
	b := fmt.Sprintf("%-11s [%s%s] %3.0f %%", t.Status, strings.Repeat("█", full), strings.Repeat("·", width-full), t.Progress)
	d := t.Download
	if d == nil {
		return b
	}
	b += fmt.Sprintf("  %s  %.1f of %.1f MB", d.Stage, float64(d.BytesDone)/1e6, float64(d.BytesTotal)/1e6)
	if d.BytesPerSecond > 0 {
		b += fmt.Sprintf("  %.1f MB/s", d.BytesPerSecond/1e6)
	}
	if d.ETA != nil {
		b += "  ETA " + time.Duration(*d.ETA*float64(time.Second)).Round(time.Second).String()
	}
	return b
}
