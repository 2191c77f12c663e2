package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"

	"github.com/featuremill/featuremill/cmd/internal/wiring"
)

type importCmd struct {
	Model    importModelCmd    `cmd:"" help:"A HuggingFace folder (config.json, safetensors, tokenizer.json) or a GGUF file; or hf:owner/name."`
	SAE      importSAECmd      `cmd:"" name:"sae" help:"A folder or file with an SAE, of any format that is known; or hf:owner/name:path."`
	Dataset  importDatasetCmd  `cmd:"" help:"A .jsonl, .json or .txt file (each also .gz or .zst), .parquet, .arrow or .npy, or a folder of one kind of them; or hf:owner/name."`
	Training importTrainingCmd `cmd:"" help:"A finished training's checkpoint folder, with an SAE folder for each layer and hook."`
}

// registered is what the API answers to an import.
type registered struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Status string `json:"status"`
}

func (c client) importAt(ctx context.Context, path string, body map[string]any) error {
	var r registered
	if err := c.call(ctx, http.MethodPost, path, nil, body, &r); err != nil {
		return err
	}
	fmt.Printf("%s  %s  %s\n", r.ID, r.Name, r.Status)
	return nil
}

type importModelCmd struct {
	client
	download
	Path string `arg:"" help:"Folder or file, on the machine of the API; or hf:owner/name[@revision][:file.gguf]."`
	Name string `help:"What to call it. Empty: what it calls itself."`

	Quantization string `help:"From the hub: a GGUF by what its name says, such as Q8_0."`
}

func (c *importModelCmd) Run(ctx context.Context) error {
	if ref, ok, err := fromHub(c.Path); ok || err != nil {
		if err != nil {
			return err
		}
		body := with(with(c.body(ref), "name", c.Name), "filename", ref.Path)
		return c.fetch(ctx, c.client, "/models", with(body, "quantization", c.Quantization))
	}
	return c.importAt(ctx, "/models/import", with(map[string]any{"path": absolute(c.Path)}, "name", c.Name))
}

type importSAECmd struct {
	client
	download
	wiring.SAEFacts
	Path  string `arg:"" help:"Folder or file, on the machine of the API; or hf:owner/name[@revision][:path]."`
	Name  string `help:"What to call it. Empty: the folder's name."`
	Model string `help:"Id of the model that it was trained on. Empty: the one that its config names, if it is here."`
}

func (c *importSAECmd) Run(ctx context.Context) error {
	ref, ok, err := fromHub(c.Path)
	if err != nil {
		return err
	}
	name := c.Name
	if name == "" {
		name = filepath.Base(absolute(c.Path))
	}
	body := map[string]any{"file_path": absolute(c.Path), "name": name}
	if ok {
		body = with(with(c.body(ref), "filepath", ref.Path), "name", c.Name)
	}
	said, err := json.Marshal(c.Facts("")) // under the names that the API knows
	if err != nil {
		return err
	}
	if err := json.Unmarshal(said, &body); err != nil {
		return err
	}
	body = with(body, "model_id", c.Model)
	if ok {
		return c.fetch(ctx, c.client, "/saes", body)
	}
	return c.importAt(ctx, "/saes/import/file", body)
}

type importDatasetCmd struct {
	client
	download
	Path       string `arg:"" help:"File or folder, on the machine of the API; or hf:owner/name[@revision]."`
	Name       string `help:"What to call it. Empty: the file's name."`
	TextColumn string `help:"The column with the text. Empty: input_ids, else text, else the only column with text."`
	Split      string `help:"Of a folder with several splits: train, test, ..."`
	MaxRows    int64  `help:"The first rows only."`
	Config     string `help:"From the hub: the config of the dataset. Empty: its default one."`
}

func (c *importDatasetCmd) Run(ctx context.Context) error {
	ref, ok, err := fromHub(c.Path)
	if err != nil {
		return err
	}
	body := map[string]any{"path": absolute(c.Path)}
	if ok {
		config := c.Config
		if config == "" {
			config = ref.Path // hf:owner/name:config reads well
		}
		body = with(c.body(ref), "config", config)
	}
	body = with(with(body, "name", c.Name), "text_column", c.TextColumn)
	if c.MaxRows != 0 {
		body["max_rows"] = c.MaxRows
	}
	if ok {
		return c.fetch(ctx, c.client, "/datasets", with(body, "split", c.Split))
	}
	return c.importAt(ctx, "/datasets/import", with(body, "split", c.Split))
}

type importTrainingCmd struct {
	client
	Path  string `arg:"" help:"Checkpoint folder, on the machine of the API."`
	ID    string `help:"The training's id." required:""`
	Model string `help:"Id of the model that it was trained on." required:""`
	Name  string `help:"What to call it."`
}

func (c *importTrainingCmd) Run(ctx context.Context) error {
	return c.importAt(ctx, "/trainings/import", with(map[string]any{"path": absolute(c.Path), "training_id": c.ID, "model_id": c.Model}, "name", c.Name))
}

// with adds a value unless it is empty.
func with(body map[string]any, key, value string) map[string]any {
	if value != "" {
		body[key] = value
	}
	return body
}

func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}
