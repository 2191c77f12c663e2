package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestARegisteredSAEIsShownWithTheTapsAroundItsHook(t *testing.T) {
	t.Parallel()
	const record = `{"id":"sae_1","name":"speeches","status":"ready","architecture":"topk","n_features":3072,"d_model":576,"hook":"blocks.8.hook_resid_post","model_id":"m_1","self_test":`
	for name, test := range map[string]struct {
		selfTest string
		want     []string
	}{
		"whose test was made": {`{"status":"done","text":"built-in sample","report":{"hook":"blocks.8.hook_resid_post","tokens":4096,"prepend_bos":true,"bos":1,"mismatch":"blocks.7 fits better",
			"taps":[{"hook":"blocks.7.hook_resid_post","fvu":0.1,"l0":48,"dead_share":0.25,"sink_share":0.0165,"sparsity_rho":0.9},{"hook":"blocks.8.hook_resid_post","fvu":0.2,"l0":49},{"hook":"blocks.9.hook_resid_post","fvu":null,"l0":null}],
			"what_if":[{"if":"no BOS token were prepended","fvu":0.3,"l0":50}],"warnings":["dense"]}}`, []string{
			"features       3072 of width 576", "self-test: done, on 4096 tokens of the built-in sample, with BOS 1",
			"blocks.7.hook_resid_post   0.1000   48.0   0.250   0.0165   0.900  best", "blocks.8.hook_resid_post   0.2000   49.0       –        –       –  its own",
			"blocks.9.hook_resid_post        –      –", "FVU would be 0.3000 if no BOS", "warning: dense", "it does not fit: blocks.7 fits better",
		}},
		"whose neighbour a few tokens told from it": {`{"status":"done","text":"built-in sample","report":{"hook":"blocks.8.hook_resid_post","tokens":4096,
			"taps":[{"hook":"blocks.7.hook_resid_post","fvu":0.19,"l0":48,"tokens":256},{"hook":"blocks.8.hook_resid_post","fvu":0.2,"l0":49}]}}`, []string{
			"blocks.7.hook_resid_post   0.1900   48.0      –       –   –  not the better one, as 256 tokens tell\n", "blocks.8.hook_resid_post   0.2000   49.0      –       –   –  its own, best\n",
		}},
		"whose test failed":          {`{"status":"failed","code":"worker_lost","detail":"three died"}`, []string{"self-test: failed (worker_lost: three died)"}},
		"whose test is to be made":   {`{"status":"pending"}`, []string{"self-test: pending\n"}},
		"that nobody wanted to test": {`null`, []string{"self-test: none was asked for"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				require.Equal(t, "/api/v1/saes/sae_1", r.URL.Path)
				_, _ = w.Write([]byte(record + test.selfTest + "}"))
			}))
			defer s.Close()
			c := inspectCmd{Path: "sae_1", client: client{API: s.URL}}
			require.True(t, isRegistered(c.Path))
			var out bytes.Buffer
			require.NoError(t, c.registered(t.Context(), &out))
			for _, want := range test.want {
				require.Contains(t, out.String(), want)
			}
			c.JSON = true
			out.Reset()
			require.NoError(t, c.registered(t.Context(), &out))
			require.True(t, json.Valid(out.Bytes()) && strings.Contains(out.String(), `"sae_1"`))
		})
	}
}
