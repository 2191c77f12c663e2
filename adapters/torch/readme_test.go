package torch

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	readme      = "../../README.md"
	parityBegin = "<!-- parity: begin; written by FEATUREMILL_WRITE_PARITY=1 go test ./adapters/torch/ -->\n"
	parityEnd   = "<!-- parity: end -->\n"
)

// README's table of what agrees with which reference is made from what the tests measured. Tests run
// in the order of their files' names: one run with FEATUREMILL_WRITE_PARITY=1 measures, then writes.
func TestReadmeHasTheMeasuredParity(t *testing.T) {
	var families []familyParity
	var formats []formatParity
	readJSON(t, familyParityFile, &families)
	readJSON(t, formatParityFile, &formats)
	text, err := os.ReadFile(readme)
	require.NoError(t, err)
	before, rest, found := strings.Cut(string(text), parityBegin)
	require.True(t, found, "README.md has no %q", parityBegin)
	was, after, found := strings.Cut(rest, parityEnd)
	require.True(t, found, "README.md has no %q", parityEnd)
	want := familyTable(families) + "\n" + formatTable(formats)
	if os.Getenv("FEATUREMILL_WRITE_PARITY") != "" {
		require.NoError(t, os.WriteFile(readme, []byte(before+parityBegin+want+parityEnd+after), 0o644)) //nolint:gosec // a file of the repository
		return
	}
	require.Equal(t, want, was, "README.md is not what was measured: FEATUREMILL_WRITE_PARITY=1 go test ./adapters/torch/")
}

// familyTable has a row for each hook and a column for each family.
func familyTable(cells []familyParity) string {
	var families, hooks, references, gguf []string
	worst := map[[2]string]float64{}
	add := func(to *[]string, name string) {
		if !slices.Contains(*to, name) {
			*to = append(*to, name)
		}
	}
	for _, c := range cells {
		add(&families, c.Family)
		add(&hooks, c.Hook)
		add(&references, c.Reference)
		if slices.Contains(c.Files, "GGUF") {
			add(&gguf, c.Family)
		}
		worst[[2]string{c.Family, c.Hook}] = c.Error
	}
	slices.Sort(hooks)
	var b strings.Builder
	fmt.Fprintf(&b, "Hook × family, against %s, from safetensors; from GGUF as well: %s.\n\n| |%s|\n|---|%s\n",
		strings.Join(references, ", "), strings.Join(gguf, ", "), strings.Join(families, "|"), strings.Repeat("---|", len(families)))
	for _, h := range hooks {
		fmt.Fprintf(&b, "| %s |", h)
		for _, f := range families {
			cell := "–"
			if e, ok := worst[[2]string{f, h}]; ok {
				cell = short(e)
			}
			fmt.Fprintf(&b, "%s|", cell)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func formatTable(cells []formatParity) string {
	var b strings.Builder
	b.WriteString("Format × architecture of SAEs and transcoders.\n\n| format | architecture | acts | decode | recon | reference |\n|---|---|---|---|---|---|\n")
	for _, c := range cells {
		fmt.Fprintf(&b, "| %s | %s |%s|%s|%s| %s |\n", c.Format, c.Architecture, short(c.Acts), short(c.Decode), short(c.Recon), c.Reference)
	}
	return b.String()
}

// short is an error with two digits: 1.8e-5.
func short(v float64) string {
	if v == 0 {
		return "0"
	}
	return strings.Replace(fmt.Sprintf("%.1e", v), "e-0", "e-", 1)
}
