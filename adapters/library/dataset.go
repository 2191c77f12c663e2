package library

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/featuremill/featuremill/adapters/corpus"
	"github.com/featuremill/featuremill/domain/dataset"
	"github.com/featuremill/featuremill/domain/problem"
)

// DatasetOptions is what a person says about a dataset.
type DatasetOptions struct {
	TextColumn string // "" = input_ids, else text, else the only column with text
	Split      string // of a folder with several
	MaxRows    int    // the first rows only; 0 = all
}

// Dataset reads a file, or a folder of files of one kind, checks every row, and stores the files.
func (l *Library) Dataset(ctx context.Context, path string, o DatasetOptions) (facts dataset.Facts, err error) {
	return l.dataset(ctx, path, corpus.DatasetOptions{TextColumn: o.TextColumn, Split: o.Split, MaxRows: o.MaxRows})
}

func (l *Library) dataset(ctx context.Context, path string, o corpus.DatasetOptions) (facts dataset.Facts, err error) {
	path, err = l.resolve(path)
	if err != nil {
		return facts, err
	}
	d, err := corpus.OpenDataset(path, o)
	if err != nil {
		return facts, unreadable("dataset", path, err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := d.Check(ctx); err != nil {
		return facts, unreadable("dataset", path, err)
	}
	if d.Rows() == 0 {
		return facts, problem.New(problem.Invalid, "dataset_empty", "%s has no rows", path)
	}
	paths := d.Files()
	base := path
	if st, err := os.Stat(path); err == nil && !st.IsDir() {
		base = filepath.Dir(path)
	} else {
		facts.Folder = true
	}
	facts.Format = corpus.Format(paths[0])
	facts.TextColumn, facts.Tokenised, facts.Columns, facts.Rows = d.TextColumn(), d.Tokenised(), slices.Clone(d.Columns()), d.Rows()
	facts.MaxRows = int64(o.MaxRows)
	if facts.Tokenised {
		facts.TextColumn = o.TextColumn
	}
	if facts.Files, err = l.put(ctx, base, paths); err != nil {
		return facts, err
	}
	return facts, nil
}

// OpenDataset opens a dataset that was imported.
func (l *Library) OpenDataset(ctx context.Context, facts dataset.Facts) (*corpus.Dataset, error) {
	dir, err := l.Folder(ctx, facts.Files)
	if err != nil {
		return nil, err
	}
	return corpus.OpenDataset(facts.Path(dir), corpus.DatasetOptions{TextColumn: facts.TextColumn, MaxRows: int(facts.MaxRows)})
}
