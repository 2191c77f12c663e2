package hub_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/hub"
)

func listing(names ...string) []hub.File {
	var out []hub.File
	for _, n := range names {
		out = append(out, hub.File{Path: n, Size: 100, Git: strings.Repeat("a", 40)})
	}
	return out
}

func chosen(files []hub.File) []string {
	out := []string{}
	for _, f := range files {
		out = append(out, f.Path)
	}
	return out
}

func TestOnlyTheFilesOfAModelAreChosen(t *testing.T) {
	t.Parallel()
	one := []string{"README.md", "config.json", "flax_model.msgpack", "model.safetensors", "onnx/model.onnx", "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json", "vocab.json"}
	parts := []string{"config.json", "consolidated.safetensors", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"}
	gguf := []string{"README.md", "config.json", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-f16.gguf", "mmproj-m.gguf"}
	for name, c := range map[string]struct {
		files            []string
		at, quantization string
		want             []string
		open, refused    string
	}{
		"one file of weights":                   {files: one, want: []string{"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}},
		"weights in parts":                      {files: parts, want: []string{"config.json", "model.safetensors.index.json", "tokenizer.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}},
		"the whole one where both are there":    {files: append([]string{"model.safetensors"}, parts...), want: []string{"config.json", "tokenizer.json", "model.safetensors"}},
		"a part is missing":                     {files: append(append([]string(nil), parts[:3]...), parts[4:]...), refused: "1 of the 2 parts"},
		"no index":                              {files: append(append([]string(nil), parts[:4]...), parts[5]), refused: "no model.safetensors.index.json"},
		"no tokenizer":                          {files: []string{"config.json", "model.safetensors"}, refused: "no tokenizer.json"},
		"pickles only":                          {files: []string{"config.json", "pytorch_model.bin"}, refused: "pickles only"},
		"nothing":                               {files: []string{"README.md"}, refused: "no model.safetensors and no GGUF"},
		"a GGUF by its name":                    {files: gguf, at: "m-Q8_0.gguf", want: []string{"m-Q8_0.gguf"}, open: "m-Q8_0.gguf"},
		"a GGUF by its quantization":            {files: gguf, quantization: "Q4", want: []string{"m-Q4_K_M.gguf"}, open: "m-Q4_K_M.gguf"},
		"several GGUF, and none is named":       {files: gguf, refused: "name one of them"},
		"a quantization that is not there":      {files: gguf, quantization: "Q2", refused: "no whole GGUF of Q2; it has m-Q4_K_M.gguf"},
		"a quantization of safetensors":         {files: one, quantization: "Q4", refused: "not quantised here"},
		"a split GGUF":                          {files: []string{"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"}, at: "m-00001-of-00002.gguf", refused: "split GGUF"},
		"a folder of the repository":            {files: []string{"a/config.json", "a/model.safetensors", "a/tokenizer.json", "config.json", "model.safetensors", "tokenizer.json"}, at: "a", want: []string{"a/config.json", "a/tokenizer.json", "a/model.safetensors"}, open: "a"},
		"the only GGUF, in a folder of its own": {files: []string{"README.md", "q/m.gguf"}, want: []string{"q/m.gguf"}, open: "q/m.gguf"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := hub.ChooseModel(repo, listing(c.files...), c.at, c.quantization)
			if c.refused != "" {
				require.ErrorContains(t, err, c.refused)
				require.Equal(t, hub.Unsuitable, hub.CodeOf(err))
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, chosen(got.Files))
			require.Equal(t, c.open, got.Open)
		})
	}
}

func TestOnlyTheFilesOfAnSAEAreChosen(t *testing.T) {
	t.Parallel()
	saelens := []string{"README.md", "blocks.8.hook_resid_post/cfg.json", "blocks.8.hook_resid_post/sae_weights.safetensors", "blocks.8.hook_resid_post/sparsity.safetensors",
		"blocks.10.hook_resid_post/cfg.json", "blocks.10.hook_resid_post/sae_weights.safetensors"}
	scope := []string{"layer_20/width_16k/average_l0_139/params.npz", "layer_20/width_16k/average_l0_71/params.npz", "layer_9/width_16k/average_l0_10/params.npz"}
	llama := []string{"L0R-8x/checkpoints/final.safetensors", "L0R-8x/hyperparams.json", "L0R-8x/lm_config.json", "L1R-8x/checkpoints/final.safetensors", "L1R-8x/hyperparams.json"}
	flat := []string{"config.yaml", "layer_0.safetensors", "layer_1.safetensors", "wandb-config.yaml"}
	for name, c := range map[string]struct {
		files         []string
		at            string
		want          []string
		open, refused string
	}{
		"a folder": {files: saelens, at: "blocks.8.hook_resid_post", open: "blocks.8.hook_resid_post",
			want: []string{"blocks.8.hook_resid_post/cfg.json", "blocks.8.hook_resid_post/sae_weights.safetensors", "blocks.8.hook_resid_post/sparsity.safetensors"}},
		"its config means the folder": {files: saelens, at: "blocks.10.hook_resid_post/cfg.json", open: "blocks.10.hook_resid_post",
			want: []string{"blocks.10.hook_resid_post/cfg.json", "blocks.10.hook_resid_post/sae_weights.safetensors"}},
		"several are below":                {files: saelens, refused: "has 2 SAEs at its root: name one of them: blocks.8.hook_resid_post, blocks.10.hook_resid_post"},
		"several are below a folder":       {files: scope, at: "layer_20", refused: "name one of them: layer_20/width_16k/average_l0_71, layer_20/width_16k/average_l0_139"},
		"the only one below a folder":      {files: scope, at: "layer_9", want: []string{"layer_9/width_16k/average_l0_10/params.npz"}, open: "layer_9/width_16k/average_l0_10"},
		"a file":                           {files: scope, at: "layer_20/width_16k/average_l0_71/params.npz", want: []string{"layer_20/width_16k/average_l0_71/params.npz"}, open: "layer_20/width_16k/average_l0_71/params.npz"},
		"weights in a folder below":        {files: llama, at: "L1R-8x", want: []string{"L1R-8x/checkpoints/final.safetensors", "L1R-8x/hyperparams.json"}, open: "L1R-8x"},
		"configs of the folder come along": {files: flat, at: "layer_1.safetensors", want: []string{"layer_1.safetensors", "config.yaml", "wandb-config.yaml"}, open: "layer_1.safetensors"},
		"configs of the folders above":     {files: append([]string{"config.json"}, "layers.5.mlp/cfg.json", "layers.5.mlp/sae.safetensors", "layers.6/sae.safetensors"), at: "layers.5.mlp", want: []string{"config.json", "layers.5.mlp/cfg.json", "layers.5.mlp/sae.safetensors"}, open: "layers.5.mlp"},
		"a pair of files":                  {files: []string{"W_dec_3.safetensors", "W_enc_3.safetensors", "W_enc_4.safetensors", "config.yaml"}, at: "W_enc_3.safetensors", want: []string{"W_enc_3.safetensors", "W_dec_3.safetensors", "config.yaml"}, open: "W_enc_3.safetensors"},
		"the root":                         {files: []string{"cfg.json", "sae_weights.safetensors"}, want: []string{"cfg.json", "sae_weights.safetensors"}},
		"the only file of the root":        {files: []string{"README.md", "sae.pth"}, want: []string{"sae.pth"}, open: "sae.pth"},
		"no such folder":                   {files: saelens, at: "blocks.9.hook_resid_post", refused: "no SAE at blocks.9.hook_resid_post; it has blocks.8.hook_resid_post"},
		"no SAE":                           {files: []string{"README.md"}, refused: "has no SAE"},
		"a text":                           {files: saelens, at: "README.md", refused: "is no SAE"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := hub.ChooseSAE(repo, listing(c.files...), c.at)
			if c.refused != "" {
				require.ErrorContains(t, err, c.refused)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, chosen(got.Files))
			require.Equal(t, c.open, got.Open)
		})
	}
}

func TestThePlaceOfAnSAEHintsAtItsLayerAndWidth(t *testing.T) {
	t.Parallel()
	for path, want := range map[string][2]int{
		"layer_20/width_16k/average_l0_71":      {20, 16384},
		"blocks.8.hook_resid_post":              {8, 0},
		"layers.5.mlp":                          {5, 0},
		"resid_post/layer_12_width_1m_l0_small": {12, 1 << 20},
		"layer12.sae.pt":                        {12, 0},
		"Llama3_1-8B-Base-L7R-8x":               {7, 0},
		"Llama-3.1-8B-Instruct-SAE-l19.pth":     {19, 0},
		"trainer_0":                             {-1, 0},
	} {
		h := hub.HintOf(path)
		if want[0] < 0 {
			require.Nil(t, h.Layer, path)
		} else {
			require.NotNil(t, h.Layer, path)
			require.Equal(t, want[0], *h.Layer, path)
		}
		if want[1] == 0 {
			require.Nil(t, h.Features, path)
		} else {
			require.Equal(t, want[1], *h.Features, path)
		}
	}
}

func TestTheDataOfAConfigAndASplitIsChosen(t *testing.T) {
	t.Parallel()
	const card = "---\nlicense: mit\nconfigs:\n- config_name: en\n  default: true\n  data_files:\n  - split: train\n    path: en/train-*\n  - split: test\n    path: [\"en/test-*\"]\n- config_name: de\n  data_dir: de\n  data_files:\n    train: \"*.jsonl.zst\"\n- config_name: all\n  data_files: \"**/*.parquet\"\n---\n# text\n"
	files := []string{"README.md", "de/b.jsonl.zst", "de/a.jsonl.zst", "en/test-00000-of-00001.parquet", "en/train-00000-of-00002.parquet", "en/train-00001-of-00002.parquet", "x/y/z.parquet"}
	plain := []string{"README.md", "data/test-00000-of-00001.parquet", "data/train-00000-of-00011.parquet", "data/train-00010-of-00011.parquet", "data/train-00002-of-00011.parquet"}
	for name, c := range map[string]struct {
		files         []string
		card          string
		config, split string
		want          []string
		kind, refused string
	}{
		"the default config":            {files: files, card: card, want: files[4:6], kind: ".parquet"},
		"another split":                 {files: files, card: card, split: "test", want: files[3:4], kind: ".parquet"},
		"another config":                {files: files, card: card, config: "de", want: []string{"de/a.jsonl.zst", "de/b.jsonl.zst"}, kind: ".jsonl"},
		"a config of everything":        {files: files, card: card, config: "all", want: []string{"en/test-00000-of-00001.parquet", files[4], files[5], "x/y/z.parquet"}, kind: ".parquet"},
		"no such config":                {files: files, card: card, config: "fr", refused: "has no config fr; it has en, de, all"},
		"no such split":                 {files: files, card: card, split: "dev", refused: "has no split dev in config en; it has test, train"},
		"by the names of the files":     {files: plain, want: []string{plain[2], plain[4], plain[3]}, kind: ".parquet"},
		"by the names, test":            {files: plain, split: "test", want: plain[1:2], kind: ".parquet"},
		"no split in the names":         {files: []string{"a.jsonl", "b.jsonl"}, want: []string{"a.jsonl", "b.jsonl"}, kind: ".jsonl"},
		"Parquet before JSON":           {files: []string{"a.jsonl", "a.parquet"}, want: []string{"a.parquet"}, kind: ".parquet"},
		"folders that nobody explains":  {files: []string{"one/a.parquet", "two/a.parquet"}, refused: "name one of them as the config: one, two"},
		"a folder as the config":        {files: []string{"one/a.parquet", "two/a.parquet"}, config: "two", want: []string{"two/a.parquet"}, kind: ".parquet"},
		"nothing":                       {files: []string{"README.md", "x.py"}, refused: "no data that can be read"},
		"a card that is no YAML":        {files: plain, card: "---\nconfigs: [\n---\n", refused: "cannot be read"},
		"only a test split":             {files: []string{"test.jsonl"}, want: []string{"test.jsonl"}, kind: ".jsonl"},
		"several splits without a name": {files: []string{"test.jsonl", "dev.jsonl"}, refused: "name one; it has test, validation"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := hub.ChooseData(hub.Repo{Kind: hub.Dataset, ID: "owner/data"}, listing(c.files...), []byte(c.card), c.config, c.split)
			if c.refused != "" {
				require.ErrorContains(t, err, c.refused)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, chosen(got.Files))
			require.Equal(t, c.kind, got.Kind)
		})
	}
}
