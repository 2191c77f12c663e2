package event_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/event"
)

func TestAFactSaysWhereItHoldsNul(t *testing.T) {
	t.Parallel()
	for want, value := range map[string]any{
		"":                    map[string]any{"a": `the six characters \u0000`, "b": []any{`\\u0000`}},
		"facts.files[2].name": map[string]any{"facts": map[string]any{"files": []any{map[string]any{"name": "a"}, []any{1, "x"}, map[string]any{"bytes": 3, "name": "b\x00"}}}},
		"a":                   map[string]any{"a": "\x00"},
		"[1]":                 []any{"x", "\x00"},
		"k␀":                  map[string]any{"k\x00": 1},
	} {
		b, err := json.Marshal(value)
		require.NoError(t, err)
		require.Equal(t, want, event.NulField(b), "%s", b)
		clean := event.WithoutNul(b)
		require.True(t, json.Valid(clean))
		require.Empty(t, event.NulField(clean))
		if want == "" {
			require.Equal(t, string(b), string(clean))
		}
	}
}

func TestATextForPeopleIsCleanAndNotEndless(t *testing.T) {
	t.Parallel()
	require.Equal(t, "a␀b\uFFFD", event.CleanText("a\x00b\xff"))
	long := event.CleanText(strings.Repeat("ü", 5000))
	require.True(t, utf8.ValidString(long))
	require.Less(t, len(long), 4100)
	require.True(t, strings.HasSuffix(long, "…"))
}

func FuzzWithoutNul(f *testing.F) {
	f.Add([]byte(`{"a": "\u0000", "b": "\\u0000", "c": ["\ud800"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if !json.Valid(data) {
			_ = event.NulField(data)
			_ = event.WithoutNul(data)
			return
		}
		clean := event.WithoutNul(data)
		if !json.Valid(clean) || event.NulField(clean) != "" {
			t.Fatalf("%q became %q", data, clean)
		}
	})
}
