package hub

import (
	"net/http"
	"net/url"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzParseTree(f *testing.F) {
	f.Add([]byte(`[{"type":"file","oid":"da39a3ee5e6b4b0d3255bfef95601890afd80709","size":0,"path":"a/b"},{"type":"directory","path":"a","oid":"x"}]`))
	f.Add([]byte(`[{"type":"file","path":"w","oid":"","size":1,"lfs":{"oid":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":99999999999999999999}}]`))
	f.Add([]byte(`[{"type":"file","path":"../x","oid":"da39a3ee5e6b4b0d3255bfef95601890afd80709"}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		files, err := parseTree(b)
		if err != nil {
			return
		}
		for _, file := range files {
			require.True(t, filepath.IsLocal(file.Path))
			require.True(t, isHex(file.blob(), 40) || isHex(file.blob(), 64))
			require.GreaterOrEqual(t, file.Size, int64(0))
		}
		_, _ = ChooseModel(Repo{Model, "a/b"}, files, "", "")
		_, _ = ChooseSAE(Repo{Model, "a/b"}, files, "a")
		_, _ = ChooseData(Repo{Dataset, "a/b"}, files, nil, "", "")
	})
}

func FuzzParseInfo(f *testing.F) {
	f.Add([]byte(`{"sha":"da39a3ee5e6b4b0d3255bfef95601890afd80709","config":{"model_type":"llama"},"cardData":{"base_model":["a/b"]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if info, err := parseInfo(b); err == nil {
			require.True(t, isCommit(info.Commit))
		}
	})
}

func FuzzNextPage(f *testing.F) {
	f.Add(`<https://hub/api?cursor=x>; rel="next"`)
	f.Add(`<a>; rel=prev,<b,c>; rel="x next"; t="<", <d>`)
	from := &url.URL{Scheme: "https", Host: "hub", Path: "/api"}
	f.Fuzz(func(t *testing.T, link string) {
		_, _ = nextPage(http.Header{"Link": {link}}, from)
	})
}

func FuzzCard(f *testing.F) {
	f.Add([]byte("---\nconfigs:\n- config_name: a\n  data_files:\n  - split: s\n    path: [x, 'y*']\n---\n"), "en/[a-z]*/**/x?.parquet", "en/b/c/xy.parquet")
	f.Fuzz(func(t *testing.T, card []byte, pattern, name string) {
		if len(card) < 1<<16 {
			_, _ = cardConfigs(card)
		}
		_ = matches(pattern, name)
		_, _ = ParseRef(name)
		_ = HintOf(name)
	})
}

func TestTheNextPageIsFound(t *testing.T) {
	t.Parallel()
	from := &url.URL{Scheme: "https", Host: "hub", Path: "/api/x"}
	for link, want := range map[string]string{
		`<https://hub/n?cursor=a,b>; rel="next"`:          "https://hub/n?cursor=a,b",
		`</n>; rel=next`:                                  "https://hub/n",
		`<p>; rel="prev", <n>; rel="next"`:                "https://hub/api/n",
		`<p>; rel="prev",<n>; title="x"; rel="last next"`: "https://hub/api/n",
		`<p>; rel="prev"`:                                 "",
		``:                                                "",
		`nonsense`:                                        "",
	} {
		next, err := nextPage(http.Header{"Link": {link}}, from)
		require.NoError(t, err)
		if want == "" {
			require.Nil(t, next, link)
		} else {
			require.Equal(t, want, next.String(), link)
		}
	}
}
