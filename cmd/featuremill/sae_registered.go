package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/featuremill/featuremill/domain/extraction"
)

// registeredSAE is the part of an SAE's record that is shown.
type registeredSAE struct {
	registered
	Architecture  string `json:"architecture"`
	Features      int    `json:"n_features"`
	Width         int    `json:"d_model"`
	Hook          string `json:"hook"`
	HookOut       string `json:"hook_out"`
	Normalization string `json:"normalization"`
	ModelName     string `json:"model_name"`
	ModelID       string `json:"model_id"`
	Files         string `json:"files_sha256"`
	Error         string `json:"error_message"`
	SelfTest      *struct {
		Status string               `json:"status"`
		Text   string               `json:"text"`
		Report *extraction.SelfTest `json:"report"`
		Code   string               `json:"code"`
		Detail string               `json:"detail"`
	} `json:"self_test"`
}

// isRegistered reports whether an argument is the id of an SAE of ours. A file of that name comes first.
func isRegistered(argument string) bool {
	_, err := os.Lstat(argument)
	return strings.HasPrefix(argument, "sae_") && errors.Is(err, fs.ErrNotExist)
}

// registered shows what the API has on record.
func (c *inspectCmd) registered(ctx context.Context, out io.Writer) error {
	var raw json.RawMessage
	if err := c.call(ctx, http.MethodGet, "/saes/"+url.PathEscape(c.Path), nil, nil, &raw); err != nil {
		return err
	}
	if c.JSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(raw)
	}
	var s registeredSAE
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("read the record of %s: %w", c.Path, err)
	}
	return s.print(out)
}

func (s registeredSAE) print(out io.Writer) error {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 3, ' ', 0)
	for _, line := range [][2]string{
		{"id", s.ID}, {"name", s.Name}, {"status", s.Status}, {"error", s.Error}, {"architecture", s.Architecture}, {"features", fmt.Sprintf("%d of width %d", s.Features, s.Width)},
		{"hook", s.Hook}, {"hook_out", s.HookOut}, {"normalization", s.Normalization}, {"model", strings.TrimSpace(s.ModelID + " " + s.ModelName)}, {"files", s.Files},
	} {
		if line[1] != "" {
			_, _ = fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	text.WriteString("\n" + s.tested())
	_, err := io.WriteString(out, text.String())
	return err
}

// tested is the self-test, with the hook and its neighbours.
func (s registeredSAE) tested() string {
	t := s.SelfTest
	switch {
	case t == nil && s.ModelID == "":
		return "self-test: none, because it is not linked to a model\n"
	case t == nil:
		return "self-test: none was asked for (POST /api/v1/saes/" + s.ID + "/self-test)\n"
	case t.Status == "failed":
		return fmt.Sprintf("self-test: %s (%s: %s)\n", t.Status, t.Code, t.Detail)
	case t.Report == nil:
		return "self-test: " + t.Status + "\n"
	}
	r := t.Report
	var text strings.Builder
	fmt.Fprintf(&text, "self-test: %s, on %d tokens of the %s", t.Status, r.Tokens, t.Text)
	if r.PrependBOS {
		fmt.Fprintf(&text, ", with BOS %d", r.BOS)
	}
	text.WriteString("\n")
	best := -1
	for i, tap := range r.Taps {
		if tap.FVU != nil && tap.Tokens == 0 && (best < 0 || *tap.FVU < *r.Taps[best].FVU) {
			best = i
		}
	}
	w := tabwriter.NewWriter(&text, 0, 0, 3, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprintln(w, "hook\tFVU\tL0\tdead\tsinks\tρ\t")
	for i, tap := range r.Taps {
		name := tap.Hook
		if tap.HookOut != "" {
			name += " → " + tap.HookOut
		}
		var marks []string
		if tap.Hook == r.Hook && tap.HookOut == r.HookOut {
			marks = append(marks, "its own")
		}
		if i == best {
			marks = append(marks, "best")
		}
		if tap.Tokens > 0 {
			marks = append(marks, fmt.Sprintf("not the better one, as %d tokens tell", tap.Tokens))
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t  %s\n", name, measured(tap.FVU, "%.4f"), measured(tap.L0, "%.1f"), measured(tap.DeadShare, "%.3f"), measured(tap.SinkShare, "%.4f"), measured(tap.Rho, "%.3f"), strings.Join(marks, ", "))
	}
	_ = w.Flush() // a strings.Builder takes everything
	if r.PublishedL0 != nil {
		fmt.Fprintf(&text, "published L0: %.1f\n", *r.PublishedL0)
	}
	for _, other := range r.WhatIf {
		fmt.Fprintf(&text, "FVU would be %s if %s\n", measured(other.FVU, "%.4f"), other.If)
	}
	for _, warning := range r.Warnings {
		fmt.Fprintln(&text, "warning:", warning)
	}
	if r.Mismatch != "" {
		fmt.Fprintln(&text, "it does not fit:", r.Mismatch)
	}
	text.WriteString("An extraction tests it again, on its own dataset, and that test decides.\n")
	return text.String()
}

func measured(v *float64, format string) string {
	if v == nil {
		return "–"
	}
	return fmt.Sprintf(format, *v)
}
