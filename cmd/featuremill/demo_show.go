package main

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"sort"
	"strings"
	"text/tabwriter"

	"github.com/featuremill/featuremill/adapters/corpus"
	"github.com/featuremill/featuremill/cmd/featuremill/demo"
)

func readEmbedded(name string) string {
	b, err := fs.ReadFile(demo.Files, name)
	if err != nil {
		return ""
	}
	return string(b)
}

// shownExtraction is the part of an extraction that the demo shows.
type shownExtraction struct {
	Tokens   int64 `json:"tokens"`
	Postings int64 `json:"postings"`
	SelfTest struct {
		Hook string `json:"hook"`
		Taps []struct {
			Hook string   `json:"hook"`
			FVU  *float64 `json:"fvu"`
			L0   *float64 `json:"l0"`
		} `json:"taps"`
		PrependBOS bool     `json:"prepend_bos"`
		ReusedFrom string   `json:"reused_from"`
		SinkShare  float64  `json:"sink_share"`
		Rho        *float64 `json:"sparsity_rho"`
	} `json:"self_test"`
}

// rule picks latents: the strongest that pass the filters. Those that fire on a token in fifty or more
// are strong because a high-norm token is, and say little.
type rule struct {
	title string
	take  int
	query url.Values
}

func rules() []rule {
	return []rule{
		{"one token has more than 0.8 of the firings", 4, url.Values{"min_top_token_share": {"0.8"}, "min_firing_documents": {"10"}, "max_density": {"0.002"}, "sort_by": {"max_activation"}}},
		{"no token has 0.2 of the firings, ten documents or more", 4, url.Values{"max_top_token_share": {"0.2"}, "min_firing_documents": {"10"}, "max_density": {"0.002"}, "sort_by": {"max_activation"}}},
		{"density under 1 in 10,000", 2, url.Values{"max_density": {"0.0001"}, "sort_by": {"max_activation"}}},
	}
}

// show prints what the demo found, to be read in a minute.
func (d *demonstration) show(ctx context.Context) error {
	var e shownExtraction
	if err := d.call(ctx, http.MethodGet, "/extractions/"+url.PathEscape(d.ids.Extraction), nil, nil, &e); err != nil {
		return err
	}
	fmt.Printf("\nDoes the SAE belong at %s? Share of variance that it leaves unexplained (FVU), there and at its neighbours:\n", e.SelfTest.Hook)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "hook\tFVU\tL0\t")
	for _, tap := range e.SelfTest.Taps {
		mark := ""
		if tap.Hook == e.SelfTest.Hook {
			mark = "◀"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", tap.Hook, number(tap.FVU, "%.3f"), number(tap.L0, "%.1f"), mark)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if e.SelfTest.ReusedFrom != "" {
		fmt.Printf("as extraction %s measured it with the same model, SAE, text and options\n", e.SelfTest.ReusedFrom)
	}
	if e.SelfTest.Rho != nil {
		fmt.Printf("densities against the ones of training: Spearman's ρ %.3f; %.1f %% of the tokens are sinks\n", *e.SelfTest.Rho, 100*e.SelfTest.SinkShare)
	}
	fmt.Printf("\n%s tokens, %s firings. %s.\n%s.\n", thousands(e.Tokens), thousands(e.Postings), d.ids.Digests, d.ids.Parity)
	if err := d.latents(ctx); err != nil {
		return err
	}
	stages := d.ids.Stages
	if len(d.stages) > len(stages) {
		stages = d.stages
	}
	fmt.Println("\nWhere the time went:")
	for _, s := range stages {
		fmt.Printf("  %7.1f s  %s\n", s.Seconds, s.Name)
	}
	return nil
}

func number(v *float64, format string) string {
	if v == nil {
		return "not finite"
	}
	return fmt.Sprintf(format, *v)
}

// latents prints ten features by rule, with contexts from different speeches and the firing rate by decade.
func (d *demonstration) latents(ctx context.Context) error {
	type group struct {
		rule     rule
		features []feature
	}
	var groups []group
	var wanted []int
	for _, r := range rules() {
		q := r.query
		q.Set("limit", fmt.Sprint(r.take))
		var page featurePage
		if err := d.call(ctx, http.MethodGet, "/extractions/"+url.PathEscape(d.ids.Extraction)+"/features", q, nil, &page); err != nil {
			return err
		}
		groups = append(groups, group{r, page.Features})
		for _, f := range page.Features {
			wanted = append(wanted, f.NeuronIndex)
		}
	}
	speeches, err := readSpeeches(ctx, d.text)
	if err != nil {
		return err
	}
	decades, err := d.byDecade(ctx, wanted, speeches)
	if err != nil {
		return err
	}
	fmt.Printf("\nTen latents by rule: of those that fit and fire on at most 1 token in 500, the strongest. Firing rate by decade, %s:\n", decades.span())
	i := 0
	for _, g := range groups {
		fmt.Printf("\n%s:\n", g.rule.title)
		for _, f := range g.features {
			fmt.Printf("  %5d  %s  density %.2g, top token %s %.0f %%, %d speeches\n", f.NeuronIndex, decades.line(i), f.Density, plain(f.TopToken), 100*f.TopTokenShare, f.FiringDocuments)
			i++
			var examples []example
			if err := d.call(ctx, http.MethodGet, "/features/"+url.PathEscape(f.ID)+"/examples", url.Values{"limit": {"10"}, "kind": {"top"}}, nil, &examples); err != nil {
				return err
			}
			for _, e := range examples[:min(3, len(examples))] { // at most one example a speech
				fmt.Printf("         %d  …%s…\n", speeches.year[e.SampleIndex], strings.ReplaceAll(window(e, 9, 4), "\n", " "))
			}
		}
		if len(g.features) < g.rule.take {
			fmt.Printf("  (%d of %d: there are no more)\n", len(g.features), g.rule.take)
		}
	}
	return nil
}

// speeches says when each row of the text was spoken.
type speeches struct{ year map[int64]int }

func readSpeeches(ctx context.Context, path string) (s speeches, err error) {
	data, err := corpus.OpenDataset(path, corpus.DatasetOptions{})
	if err != nil {
		return s, err
	}
	defer func() { err = closing(err, data.Close) }()
	s.year = map[int64]int{}
	for i := range data.Rows() {
		row, err := data.Row(i)
		if err != nil {
			return s, err
		}
		switch y := row.Other["year"].(type) {
		case int64:
			s.year[i] = int(y)
		case float64:
			s.year[i] = int(y)
		}
	}
	return s, ctx.Err()
}

func closing(err error, close func() error) error {
	if cerr := close(); err == nil {
		return cerr
	}
	return err
}

// decades holds firing rates by latent and decade.
type decades struct {
	first, last int
	rates       [][]float64
}

func (d *demonstration) byDecade(ctx context.Context, latents []int, s speeches) (decades, error) {
	var out decades
	table, err := d.folder.Documents(ctx, d.ids.Extraction, latents)
	if err != nil {
		return out, err
	}
	tokens := map[int]int64{}
	var all []int
	for i, row := range table.Rows {
		decade := s.year[row] / 10 * 10
		if tokens[decade] == 0 {
			all = append(all, decade)
		}
		tokens[decade] += table.CountedTokens[i]
	}
	sort.Ints(all)
	if len(all) == 0 {
		return out, nil
	}
	out.first, out.last = all[0], all[len(all)-1]
	for l := range latents {
		firings := map[int]int64{}
		for i, row := range table.Rows {
			firings[s.year[row]/10*10] += table.Firings[l][i]
		}
		rates := make([]float64, 0, len(all))
		for decade := out.first; decade <= out.last; decade += 10 {
			rate := 0.0
			if tokens[decade] > 0 {
				rate = float64(firings[decade]) / float64(tokens[decade])
			}
			rates = append(rates, rate)
		}
		out.rates = append(out.rates, rates)
	}
	return out, nil
}

func (d decades) span() string { return fmt.Sprintf("%ds to %ds", d.first, d.last) }

// line draws a latent's rates on a linear scale: the tallest bar is its highest rate.
func (d decades) line(latent int) string {
	steps := []rune("▁▂▃▄▅▆▇█")
	top := 0.0
	for _, r := range d.rates[latent] {
		top = max(top, r)
	}
	var b strings.Builder
	for _, r := range d.rates[latent] {
		switch {
		case r == 0:
			b.WriteByte(' ')
		default:
			b.WriteRune(steps[min(len(steps)-1, int(r/top*float64(len(steps))))])
		}
	}
	return b.String()
}
