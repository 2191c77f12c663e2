package library

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/featuremill/featuremill/adapters/corpus"
	"github.com/featuremill/featuremill/adapters/hub"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/domain/sae"
)

// Progress is how far a download is.
type Progress = hub.Progress

// Hub imports what lies on a hub: it pins a request to a commit, fetches the files that are needed, and has the library
// check and store them. A token that is "" is the configured one; no token is kept.
type Hub struct {
	library *Library
	client  *hub.Client
}

// NewHub returns a Hub.
func NewHub(l *Library, client *hub.Client) *Hub { return &Hub{library: l, client: client} }

// ReadmeFile is where a repository on the hub describes itself.
const ReadmeFile = "README.md"

// repository is a repository at the commit that a request is pinned to.
type repository struct {
	hub.Info
	client *hub.Client
	files  []hub.File
}

func (h *Hub) open(ctx context.Context, token string, kind hub.Kind, id, revision string) (repository, error) {
	r := repository{client: h.client.WithToken(token)}
	var err error
	if r.Info, err = r.client.Resolve(ctx, hub.Repo{Kind: kind, ID: id}, revision); err != nil {
		return r, refused(err)
	}
	if r.files, err = r.client.List(ctx, r.Repo, r.Commit, ""); err != nil {
		return r, refused(err)
	}
	return r, nil
}

func (r repository) file(name string) (hub.File, bool) {
	for _, f := range r.files {
		if f.Path == name {
			return f, true
		}
	}
	return hub.File{}, false
}

// refused turns what the hub refuses into words for people.
func refused(err error) error {
	var e *hub.Error
	if !errors.As(err, &e) {
		return err
	}
	kind := problem.Unavailable
	switch e.Code {
	case hub.BadReference, hub.Unsuitable, hub.FileNotFound:
		kind = problem.Invalid
	case hub.RepoNotFound, hub.RevisionNotFound:
		kind = problem.NotFound
	case hub.Gated, hub.Forbidden, hub.BadToken:
		kind = problem.Forbidden
	}
	p := problem.New(kind, string(e.Code), "%s", err.Error())
	p.Err = err
	if len(e.Choices) > 0 {
		p = p.With("candidates", e.Choices)
	}
	return p
}

// PinModel finds the commit and the files of a model, or says why there are none.
func (h *Hub) PinModel(ctx context.Context, token string, r model.DownloadRequested) (model.DownloadRequested, error) {
	repo, err := h.open(ctx, token, hub.Model, r.Repo, r.Revision)
	if err != nil {
		return r, err
	}
	choice, err := chooseModel(repo, r)
	r.Commit, r.Bytes = repo.Commit, choice.Bytes()
	return r, refused(err)
}

func chooseModel(repo repository, r model.DownloadRequested) (hub.Choice, error) {
	return hub.ChooseModel(repo.Repo, repo.files, r.File, r.Quantization)
}

// PinSAE finds the commit and the files of an SAE, or says why there are none.
func (h *Hub) PinSAE(ctx context.Context, token string, r sae.DownloadRequested) (sae.DownloadRequested, error) {
	repo, err := h.open(ctx, token, hub.Model, r.Repo, r.Revision)
	if err != nil {
		return r, err
	}
	choice, err := hub.ChooseSAE(repo.Repo, repo.files, r.File)
	r.Commit, r.Bytes = repo.Commit, choice.Bytes()
	return r, refused(err)
}

// PinDataset finds the commit and the files of a dataset's split, or says why there are none.
func (h *Hub) PinDataset(ctx context.Context, token string, r dataset.DownloadRequested) (dataset.DownloadRequested, error) {
	repo, err := h.open(ctx, token, hub.Dataset, r.Repo, r.Revision)
	if err != nil {
		return r, err
	}
	choice, err := repo.chooseData(ctx, r.Config, r.Split)
	if err != nil {
		return r, refused(err)
	}
	r.Commit, r.Config, r.Split = repo.Commit, choice.Config, choice.Split
	r.Bytes = hub.Choice{Files: choice.Files}.Bytes()
	return r, nil
}

func (r repository) chooseData(ctx context.Context, config, split string) (hub.DataChoice, error) {
	var card []byte
	if f, ok := r.file(ReadmeFile); ok {
		var err error
		if card, err = r.client.ReadFile(ctx, r.Repo, r.Commit, f); err != nil {
			return hub.DataChoice{}, err
		}
	}
	return hub.ChooseData(r.Repo, r.files, card, config, split)
}

// FetchModel fetches what PinModel pinned, checks it and stores it.
func (h *Hub) FetchModel(ctx context.Context, token string, r model.DownloadRequested, progress func(Progress)) (facts model.Facts, err error) {
	repo, err := h.open(ctx, token, hub.Model, r.Repo, r.Commit)
	if err != nil {
		return facts, err
	}
	choice, err := chooseModel(repo, r)
	if err != nil {
		return facts, refused(err)
	}
	err = h.staged(ctx, repo, choice.Files, progress, func(dir string) error {
		facts, _, err = h.library.trusting().Model(ctx, filepath.Join(dir, filepath.FromSlash(choice.Open)))
		return err
	})
	return facts, err
}

// FetchSAE fetches what PinSAE pinned, checks it and stores it.
func (h *Hub) FetchSAE(ctx context.Context, token string, r sae.DownloadRequested, progress func(Progress)) (facts sae.Facts, err error) {
	repo, err := h.open(ctx, token, hub.Model, r.Repo, r.Commit)
	if err != nil {
		return facts, err
	}
	choice, err := hub.ChooseSAE(repo.Repo, repo.files, r.File)
	if err != nil {
		return facts, refused(err)
	}
	said := r.Stated
	if said.Repo == "" {
		said.Repo = r.Repo
	}
	err = h.staged(ctx, repo, choice.Files, progress, func(dir string) error {
		facts, err = h.library.trusting().sae(ctx, dir, filepath.Join(dir, filepath.FromSlash(choice.Open)), said)
		return err
	})
	return facts, err
}

// FetchDataset fetches what PinDataset pinned, checks it and stores it. With a bound on rows, files are fetched until they
// hold that many.
func (h *Hub) FetchDataset(ctx context.Context, token string, r dataset.DownloadRequested, progress func(Progress)) (facts dataset.Facts, err error) {
	repo, err := h.open(ctx, token, hub.Dataset, r.Repo, r.Commit)
	if err != nil {
		return facts, err
	}
	choice, err := repo.chooseData(ctx, r.Config, r.Split)
	if err != nil {
		return facts, refused(err)
	}
	files := choice.Files
	if r.MaxRows > 0 {
		if files, err = h.enough(ctx, repo, files, r, progress); err != nil {
			return facts, err
		}
	}
	o := corpus.DatasetOptions{TextColumn: r.TextColumn, MaxRows: int(r.MaxRows)}
	dir, clean, err := h.stage(ctx, repo, files, progress, numbered)
	if err != nil {
		return facts, err
	}
	defer func() { err = errors.Join(err, clean()) }()
	if len(files) == 1 {
		dir = filepath.Join(dir, numbered(0, files[0]))
	}
	return h.library.trusting().dataset(ctx, dir, o)
}

// numbered names the files of a dataset by their order alone: a name such as train-00003-of-00010 would promise the others.
func numbered(i int, f hub.File) string {
	_, ext, _ := strings.Cut(strings.ToLower(path.Base(f.Path)), ".")
	for _, known := range []string{"parquet", "arrow", "jsonl.gz", "jsonl.zst", "json.gz", "json.zst", "ndjson.gz", "ndjson.zst", "jsonl", "ndjson", "json", "txt"} {
		if strings.HasSuffix("."+ext, "."+known) {
			ext = known
			break
		}
	}
	return fmt.Sprintf("%05d.%s", i, ext)
}

// enough fetches files one by one until they hold the rows that are wanted.
func (h *Hub) enough(ctx context.Context, repo repository, files []hub.File, r dataset.DownloadRequested, progress func(Progress)) ([]hub.File, error) {
	rows := int64(0)
	for i := range files {
		dir, clean, err := h.stage(ctx, repo, files[:i+1], progress, numbered)
		if err != nil {
			return nil, err
		}
		d, err := corpus.OpenDataset(filepath.Join(dir, numbered(i, files[i])), corpus.DatasetOptions{TextColumn: r.TextColumn})
		if err != nil {
			return nil, errors.Join(unreadable("dataset", files[i].Path, err), clean())
		}
		rows += d.Rows()
		if err := errors.Join(d.Close(), clean()); err != nil {
			return nil, err
		}
		if rows >= r.MaxRows {
			return files[:i+1], nil
		}
	}
	return files, nil
}

func (h *Hub) staged(ctx context.Context, repo repository, files []hub.File, progress func(Progress), use func(dir string) error) (err error) {
	dir, clean, err := h.stage(ctx, repo, files, progress, func(_ int, f hub.File) string { return f.Path })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clean()) }()
	return use(dir)
}

// stage fetches files and links to them from a folder that holds nothing else: other downloads of the commit share its
// snapshot in the cache.
func (h *Hub) stage(ctx context.Context, repo repository, files []hub.File, progress func(Progress), name func(int, hub.File) string) (dir string, clean func() error, err error) {
	snapshot, err := repo.client.Snapshot(ctx, repo.Repo, repo.Commit, files, progress)
	if err != nil {
		return "", nil, refused(err)
	}
	parent := filepath.Join(h.library.cache, "staging")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(parent, "hub-"); err != nil {
		return "", nil, err
	}
	clean = func() error { return os.RemoveAll(dir) }
	for i, f := range files {
		link := filepath.Join(dir, filepath.FromSlash(name(i, f)))
		err := os.MkdirAll(filepath.Dir(link), 0o755)
		if err == nil {
			err = os.Symlink(filepath.Join(snapshot, filepath.FromSlash(f.Path)), link)
		}
		if err != nil {
			return "", nil, errors.Join(err, clean())
		}
	}
	return dir, clean, nil
}

// LocateSAE fetches an SAE that is named as hf:owner/name@revision:path and returns where it lies in the cache. What only
// looks at it needs a client alone, no store.
func LocateSAE(ctx context.Context, client *hub.Client, ref hub.Ref, progress func(Progress)) (string, error) {
	info, err := client.Resolve(ctx, hub.Repo{Kind: hub.Model, ID: ref.ID}, ref.Revision)
	if err != nil {
		return "", refused(err)
	}
	files, err := client.List(ctx, info.Repo, info.Commit, "")
	if err != nil {
		return "", refused(err)
	}
	choice, err := hub.ChooseSAE(info.Repo, files, ref.Path)
	if err != nil {
		return "", refused(err)
	}
	dir, err := client.Snapshot(ctx, info.Repo, info.Commit, choice.Files, progress)
	if err != nil {
		return "", refused(err)
	}
	return filepath.Join(dir, filepath.FromSlash(choice.Open)), nil
}

// Preview is what a repository holds.
type Preview struct {
	Repo, Commit string
	Description  string
	ModelName    string // that its first SAE, or its card, names; "" = neither does
	Files        []hub.File
	SAEs         []PreviewedSAE
}

// PreviewedSAE is one SAE of a repository. What is known of it comes from the names of its folders.
type PreviewedSAE struct {
	Path  string
	Bytes int64
	hub.SAEHint
}

// PreviewSAEs lists the SAEs of a repository.
func (h *Hub) PreviewSAEs(ctx context.Context, token, id, revision string) (Preview, error) {
	repo, err := h.open(ctx, token, hub.Model, id, revision)
	if err != nil {
		return Preview{}, err
	}
	out := Preview{Repo: id, Commit: repo.Commit, Files: repo.files, ModelName: repo.BaseModel}
	for _, at := range hub.SAEPaths(repo.files) {
		one := PreviewedSAE{Path: at, SAEHint: hub.HintOf(at)}
		for _, f := range repo.files {
			if f.Path == at || strings.HasPrefix(f.Path, at+"/") {
				one.Bytes += f.Size
			}
		}
		out.SAEs = append(out.SAEs, one)
	}
	if f, ok := repo.file(ReadmeFile); ok {
		if card, err := repo.client.ReadFile(ctx, repo.Repo, repo.Commit, f); err == nil {
			out.Description = firstLine(card)
		}
	}
	for _, f := range repo.files {
		if base := path.Base(f.Path); base != "cfg.json" && base != "config.json" || f.Size > 1<<20 {
			continue
		}
		if b, err := repo.client.ReadFile(ctx, repo.Repo, repo.Commit, f); err == nil {
			if name := modelNameIn(b); name != "" {
				out.ModelName = name
			}
		}
		break
	}
	return out, nil
}

// modelNameIn reads the model that an SAE's config names, in the words of the usual formats.
func modelNameIn(config []byte) string {
	var doc struct {
		ModelName string `json:"model_name"`
		Metadata  struct {
			ModelName string `json:"model_name"`
		} `json:"metadata"`
		Trainer struct {
			LMName string `json:"lm_name"`
		} `json:"trainer"`
	}
	if json.Unmarshal(config, &doc) != nil {
		return ""
	}
	for _, name := range []string{doc.ModelName, doc.Metadata.ModelName, doc.Trainer.LMName} {
		if name != "" {
			return name
		}
	}
	return ""
}

// firstLine is a card's first line of prose.
func firstLine(card []byte) string {
	text := strings.ReplaceAll(string(card), "\r\n", "\n")
	if rest, ok := strings.CutPrefix(text, "---\n"); ok {
		if _, after, ok := strings.Cut(rest, "\n---"); ok {
			text = after
		}
	}
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(strings.TrimLeft(line, "#-> "))
		if line != "" && !strings.HasPrefix(line, "<") && !strings.HasPrefix(line, "!") {
			return strings.ToValidUTF8(line[:min(len(line), 500)], "")
		}
	}
	return ""
}
