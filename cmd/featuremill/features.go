package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
)

type featuresCmd struct {
	client
	Extraction string  `help:"Id of the extraction." required:""`
	Sort       string  `help:"${enum}." enum:"density,activation_freq,max_activation,mean_activation,sink_share,top_token_share,firing_documents,interpretability,feature_id,name,category" default:"density"`
	Ascending  bool    `help:"Smallest first."`
	Search     string  `help:"A latent's number, or text in a label or in one of the ten tokens that it fires on most."`
	Limit      int     `help:"How many." default:"20"`
	Offset     int     `help:"How many to leave out."`
	Dead       bool    `help:"Dead latents too."`
	MinDensity float64 `help:"Fraction of the counted tokens."`
	MaxDensity float64 `help:"Fraction of the counted tokens."`
}

// feature is the part of a feature that is shown.
type feature struct {
	ID                  string   `json:"id"`
	NeuronIndex         int      `json:"neuron_index"`
	Name                string   `json:"name"`
	Density             float64  `json:"density"`
	ActivationFrequency float64  `json:"activation_frequency"`
	MaxActivation       float64  `json:"max_activation"`
	TopToken            string   `json:"top_token"`
	TopTokenShare       float64  `json:"top_token_share"`
	FiringDocuments     int64    `json:"firing_documents"`
	Example             *example `json:"example_context"`
	LabelSource         string   `json:"label_source"`
	LinearHistogram     []int64  `json:"linear_histogram"` // in a feature's details only
}

type example struct {
	Tokens        []string  `json:"tokens"`
	Activations   []float64 `json:"activations"`
	MaxActivation float64   `json:"max_activation"`
	SampleIndex   int64     `json:"sample_index"`
	PrimeIndex    int       `json:"prime_activation_index"`
}

type featurePage struct {
	Features []feature `json:"features"`
	Total    int       `json:"total"`
}

func (c *featuresCmd) Run(ctx context.Context) error {
	q := url.Values{"sort_by": {c.Sort}, "limit": {strconv.Itoa(c.Limit)}, "offset": {strconv.Itoa(c.Offset)}}
	if c.Ascending {
		q.Set("sort_order", "asc")
	}
	if c.Search != "" {
		q.Set("search", c.Search)
	}
	if c.Dead {
		q.Set("include_dead", "true")
	}
	for name, v := range map[string]float64{"min_density": c.MinDensity, "max_density": c.MaxDensity} {
		if v > 0 {
			q.Set(name, strconv.FormatFloat(v, 'g', -1, 64))
		}
	}
	var page featurePage
	if err := c.call(ctx, http.MethodGet, "/extractions/"+url.PathEscape(c.Extraction)+"/features", q, nil, &page); err != nil {
		return err
	}
	for i, f := range page.Features {
		if err := c.call(ctx, http.MethodGet, "/features/"+url.PathEscape(f.ID), url.Values{"extraction_id": {c.Extraction}}, nil, &page.Features[i]); err != nil {
			return err
		}
		page.Features[i].Example = f.Example
	}
	return printFeatures(os.Stdout, page)
}

func printFeatures(w io.Writer, page featurePage) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "latent\tdensity\tmax\t0 … max\ttop token\tshare\tdocuments\texample")
	for _, f := range page.Features {
		context := ""
		if f.Example != nil {
			context = window(*f.Example, 6, 3)
		}
		name := strconv.Itoa(f.NeuronIndex)
		if f.LabelSource != "auto" {
			name += " " + f.Name
		}
		fmt.Fprintf(t, "%s\t%.3g\t%.3g\t%s\t%s\t%.0f %%\t%d\t%s\n", name, f.Density, f.MaxActivation, sparkline(rebin(f.LinearHistogram, 10)), plain(f.TopToken), 100*f.TopTokenShare, f.FiringDocuments, context)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%d of %d\n", len(page.Features), page.Total)
	return err
}

// plain is a token's piece as people read it.
func plain(piece string) string {
	return strings.NewReplacer("Ġ", "␣", "▁", "␣", "Ċ", "⏎", "\n", "⏎", "\t", "⇥").Replace(piece)
}

// window is the text around the prime token, which stands in brackets.
func window(e example, before, after int) string {
	var b strings.Builder
	for i := max(0, e.PrimeIndex-before); i < min(len(e.Tokens), e.PrimeIndex+after+1); i++ {
		text := strings.NewReplacer("Ġ", " ", "▁", " ", "Ċ", "⏎", "\n", "⏎").Replace(e.Tokens[i])
		if i == e.PrimeIndex {
			text = " «" + strings.TrimSpace(text) + "»"
		}
		b.WriteString(text)
	}
	return strings.TrimSpace(b.String())
}

// sparkline draws counts on a logarithmic scale: an empty bin is blank, one firing the lowest bar.
func sparkline(counts []float64) string {
	const bars = "▁▂▃▄▅▆▇█"
	steps := []rune(bars)
	top := 0.0
	for _, c := range counts {
		top = max(top, c)
	}
	var b strings.Builder
	for _, c := range counts {
		if c <= 0 {
			b.WriteRune(' ')
			continue
		}
		level := len(steps) - 1
		if top > 1 {
			level = int(math.Round(math.Log1p(c) / math.Log1p(top) * float64(len(steps)-1)))
		}
		b.WriteRune(steps[level])
	}
	return b.String()
}

// rebin adds neighbouring bins up to n bins.
func rebin(counts []int64, n int) []float64 {
	if len(counts) == 0 {
		return nil
	}
	out := make([]float64, n)
	for i, c := range counts {
		out[i*n/len(counts)] += float64(c)
	}
	return out
}
