package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/tokenizer"
)

func TestTokenizeAnswersEachLine(t *testing.T) {
	t.Parallel()
	tk, err := tokenizer.Load("../../adapters/tokenizer/testdata/bytefallback.tokenizer.json")
	require.NoError(t, err)
	defer tk.Close()

	var out bytes.Buffer
	require.NoError(t, tokeniseLines(t.Context(), tk, strings.NewReader("{\"text\": \"\"}\n\n{\"text\": \"a\\ud800\"}\r\n{\"text\":\"a\"}"), &out))
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 3, "a blank line is no text; the last line needs no end")
	require.Equal(t, `{"ids":[],"offsets":[],"ids_special":[1]}`, lines[0])
	require.Contains(t, lines[1], `[1,2]`, "half a surrogate pair is one character, U+FFFD")

	for input, want := range map[string]string{
		"{\"text\": \"a\"}\n{\"text\"": "line 2: want",
		`{"txt": "a"}`:                 `there is no "text"`,
		`{"text": 5}`:                  "line 1: want",
	} {
		require.ErrorContains(t, tokeniseLines(t.Context(), tk, strings.NewReader(input), &out), want)
	}
}
