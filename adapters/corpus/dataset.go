package corpus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

// maxRowBytes bounds the memory that one row can take.
const maxRowBytes = 64 << 20

// tokensColumn is the column that marks a dataset as tokenised already.
const tokensColumn = "input_ids"

// DatasetOptions says how to read a dataset.
type DatasetOptions struct {
	// TextColumn names the text. Empty: input_ids if there is one, else text, else the only column with text.
	// A column of integer lists is taken as token ids, whatever its name.
	TextColumn string
	// Split names one of the splits of a folder (train, test, …), as its files' or folders' names have them. A
	// folder with several needs it.
	Split   string
	MaxRows int // take the first rows only; 0 takes all
}

// Row is one row of a dataset. It has Text, or Tokens if the dataset is tokenised already.
type Row struct {
	Index  int64
	Text   string // valid UTF-8: broken parts of the file's bytes are U+FFFD
	Tokens []int32
	Other  map[string]any // the other columns: string, int64, float64, bool, nil, []any or map[string]any
}

// Dataset is an opened dataset. It is safe for concurrent use.
type Dataset struct {
	path    string
	paths   []string
	files   []dataFile
	starts  []int64 // first row of each file
	rows    int64
	column  string
	tokens  bool
	maxRows int
}

// dataFile is one file of a dataset.
type dataFile interface {
	rows() int64
	columns() []column
	// reader reads the given column; rows asked for in ascending order are cheapest.
	reader(column string, tokens bool) (rowReader, error)
	close() error
}

type column struct {
	name string
	kind columnKind
}

type columnKind int

const (
	textColumn columnKind = iota
	idsColumn             // lists of integers
	otherColumn
)

type rowReader interface {
	// read returns row i of the file; other asks for the row's other columns too.
	read(i int64, other bool) (Row, error)
	close() error
}

// OpenDataset opens a file, or a folder of files taken in the order of their names:
//
//   - .jsonl, .ndjson: an object a line; blank lines are no rows. A missing or null text is an empty row.
//   - .json: the same, or one array of objects.
//   - .parquet: a row a row.
//   - .arrow: Arrow's streaming or file format, as datasets' save_to_disk writes it; a row a row.
//   - .npy: integers [rows, tokens], tokenised already.
//   - .txt: prose. One file is cut at its blank lines, a paragraph a row; if it has none, a line is a row.
//     In a folder of .txt files each file is a row, and the column "file" has its name.
//
// JSON and text may be compressed (.gz, .zst). A folder may hold one kind of file (.txt and .json beside others are
// taken for a README and metadata), and its shards must be complete.
// Opening finds the rows and reads the first ones; Check reads all of them.
func OpenDataset(path string, o DatasetOptions) (*Dataset, error) {
	paths, kind, err := dataFiles(path)
	if err == nil && (len(paths) != 1 || paths[0] != path) {
		paths, err = chooseSplit(path, paths, o.Split)
	} else if err == nil && o.Split != "" && splitOf(filepath.Dir(path), path) != o.Split {
		err = &FileError{Path: path, Detail: fmt.Sprintf("a split (%q) is chosen in a folder, and this is one file", o.Split)}
	}
	if err != nil {
		return nil, err
	}
	d := &Dataset{path: path, paths: paths, maxRows: o.MaxRows}
	if kind == ".txt" && len(paths) > 0 && paths[0] != path {
		err = d.add(newTextFolder(path, paths))
	} else {
		for _, p := range paths {
			if err = d.add(openDataFile(p, kind)); err != nil {
				break
			}
		}
	}
	if err == nil {
		err = d.choose(o.TextColumn)
	}
	if err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

func openDataFile(path, kind string) (dataFile, error) {
	switch kind {
	case ".jsonl", ".json":
		return openJSONLines(path)
	case ".arrow":
		return openArrow(path)
	case ".parquet":
		return openParquet(path)
	case ".npy":
		return openNumpy(path)
	default:
		return openText(path)
	}
}

func (d *Dataset) add(f dataFile, err error) error {
	if err != nil {
		return err
	}
	d.files = append(d.files, f)
	d.starts = append(d.starts, d.rows)
	d.rows += f.rows()
	return nil
}

// dataFiles returns the files of a dataset and their kind.
func dataFiles(path string) ([]string, string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, "", fmt.Errorf("open dataset: %w", err)
	}
	if !info.IsDir() {
		kind := kindOf(path)
		if kind == "" {
			return nil, "", &FileError{Path: path, Detail: fmt.Sprintf("a dataset is .jsonl, .ndjson, .json, .txt (each also .gz or .zst), .parquet, .arrow or .npy, not %q", filepath.Ext(path))}
		}
		return []string{path}, kind, nil
	}
	found := map[string][]string{}
	err = filepath.WalkDir(path, func(p string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case p != path && strings.HasPrefix(entry.Name(), "."):
			if entry.IsDir() {
				return fs.SkipDir
			}
		case !entry.IsDir() && kindOf(p) != "" && !isMetadata(entry.Name()):
			found[kindOf(p)] = append(found[kindOf(p)], p)
		}
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("list dataset: %w", err)
	}
	for _, other := range []string{".txt", ".json"} {
		if len(found) > 1 {
			delete(found, other)
		}
	}
	kinds := make([]string, 0, len(found))
	for kind, paths := range found {
		kinds = append(kinds, fmt.Sprintf("%d %s", len(paths), kind))
	}
	sort.Strings(kinds)
	switch len(found) {
	case 0:
		return nil, "", &FileError{Path: path, Detail: "the folder has no .jsonl, .ndjson, .json, .txt, .parquet, .arrow or .npy file"}
	case 1:
		for kind, paths := range found {
			slices.Sort(paths)
			return paths, kind, nil
		}
	}
	return nil, "", &FileError{Path: path, Detail: fmt.Sprintf("the folder mixes kinds of files (%s); name one file, or a folder with one kind", strings.Join(kinds, ", "))}
}

func kindOf(path string) string {
	switch ext := extension(path); ext {
	case ".jsonl", ".ndjson":
		return ".jsonl"
	case ".json", ".txt":
		return ext
	case ".parquet", ".npy", ".arrow":
		if compressionOf(path) == "" {
			return ext
		}
	}
	return ""
}

// Format names the kind of a dataset's file: jsonl, json, txt, parquet, arrow or npy, however it is compressed.
func Format(path string) string { return strings.TrimPrefix(extension(path), ".") }

// extension is what a file is called for its contents, compressed or not.
func extension(path string) string {
	path = strings.ToLower(path)
	return filepath.Ext(strings.TrimSuffix(path, compressionOf(path)))
}

// isMetadata tells the files that describe a dataset on the hub from its data.
func isMetadata(name string) bool {
	switch name {
	case "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "added_tokens.json", "generation_config.json":
		return true
	}
	return false
}

// choose finds the column with the text or the token ids, which every file must have.
func (d *Dataset) choose(wanted string) error {
	first := slices.IndexFunc(d.files, func(f dataFile) bool { return f.rows() > 0 })
	if first < 0 {
		return &FileError{Path: d.path, Detail: "the dataset has no rows"}
	}
	d.column = wanted
	if wanted == "" {
		d.column = defaultColumn(d.files[first].columns())
	}
	for i, f := range d.files {
		if f.rows() == 0 {
			continue // an empty shard
		}
		at := slices.IndexFunc(f.columns(), func(c column) bool { return c.name == d.column })
		if at < 0 {
			return &MissingColumnError{Path: d.pathOf(i), Column: d.column, Columns: names(f.columns())}
		}
		c := f.columns()[at]
		if c.kind == otherColumn {
			return &FileError{Path: d.pathOf(i), Detail: fmt.Sprintf("column %q is neither text nor lists of token ids; its columns are %s", c.name, strings.Join(names(f.columns()), ", "))}
		}
		if i > first && d.tokens != (c.kind == idsColumn) {
			return &FileError{Path: d.pathOf(i), Detail: fmt.Sprintf("column %q is not of the same kind as in %s", c.name, d.pathOf(first))}
		}
		d.tokens = c.kind == idsColumn
	}
	return nil
}

func defaultColumn(columns []column) string {
	var texts []string
	for _, c := range columns {
		if c.name == tokensColumn && c.kind == idsColumn {
			return tokensColumn
		}
		if c.kind == textColumn {
			texts = append(texts, c.name)
		}
	}
	if slices.Contains(texts, "text") {
		return "text"
	}
	if len(texts) == 1 {
		return texts[0]
	}
	return ""
}

func names(columns []column) []string {
	out := make([]string, len(columns))
	for i, c := range columns {
		out[i] = c.name
	}
	return out
}

func (d *Dataset) pathOf(file int) string {
	if p, ok := d.files[file].(interface{ name() string }); ok {
		return p.name()
	}
	return d.path
}

// Rows is the number of rows, after MaxRows.
func (d *Dataset) Rows() int64 {
	if d.maxRows > 0 {
		return min(d.rows, int64(d.maxRows))
	}
	return d.rows
}

// Files returns the paths of the dataset's files in the order of their rows.
func (d *Dataset) Files() []string { return slices.Clone(d.paths) }

// TextColumn is the column that is read.
func (d *Dataset) TextColumn() string { return d.column }

// Tokenised reports whether rows are token ids instead of text.
func (d *Dataset) Tokenised() bool { return d.tokens }

// Columns lists the columns of the first file that has rows.
func (d *Dataset) Columns() []string {
	for _, f := range d.files {
		if f.rows() > 0 {
			return names(f.columns())
		}
	}
	return nil
}

// Row returns one row with all its columns.
func (d *Dataset) Row(i int64) (Row, error) {
	var out Row
	err := d.read(context.Background(), []int64{i}, true, func(_ int, r Row) error {
		out = r
		return nil
	})
	return out, err
}

// Read calls use for each of the rows, which are given in any order and read in ascending order: k is the index
// into rows. The rows' other columns are not read.
func (d *Dataset) Read(ctx context.Context, rows []int64, use func(k int, r Row) error) error {
	return d.read(ctx, rows, false, use)
}

// Check reads every row, and so finds what OpenDataset could not see.
func (d *Dataset) Check(ctx context.Context) error {
	batch := make([]int64, 0, 1024)
	for i := int64(0); i < d.Rows(); {
		batch = batch[:0]
		for ; i < d.Rows() && len(batch) < cap(batch); i++ {
			batch = append(batch, i)
		}
		if err := d.Read(ctx, batch, func(int, Row) error { return nil }); err != nil {
			return err
		}
	}
	return nil
}

func (d *Dataset) read(ctx context.Context, rows []int64, other bool, use func(k int, r Row) error) (err error) {
	order := make([]int, len(rows))
	for k := range order {
		order[k] = k
	}
	sort.Slice(order, func(a, b int) bool { return rows[order[a]] < rows[order[b]] })

	open := -1
	var reader rowReader
	defer func() {
		if reader != nil {
			if closeErr := reader.close(); err == nil {
				err = closeErr
			}
		}
	}()
	for _, k := range order {
		i := rows[k]
		if i < 0 || i >= d.Rows() {
			return fmt.Errorf("row %d is not in the dataset, which has %d rows", i, d.Rows())
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		file := sort.Search(len(d.starts), func(f int) bool { return d.starts[f] > i }) - 1
		if file != open {
			if reader != nil {
				if err := reader.close(); err != nil {
					return err
				}
			}
			if reader, err = d.files[file].reader(d.column, d.tokens); err != nil {
				return err
			}
			open = file
		}
		row, err := reader.read(i-d.starts[file], other)
		if err != nil {
			return d.rowError(file, i, err)
		}
		row.Index = i
		if err := use(k, row); err != nil {
			return err
		}
	}
	return nil
}

// rowError tells the row by its number in the dataset.
func (d *Dataset) rowError(file int, i int64, err error) error {
	return &RowError{Path: d.pathOf(file), Row: i, Detail: err.Error(), Err: err}
}

// Digest is the lower-case hexadecimal sha256 of a file's bytes; of a folder, that of the lines
// "sha256  name\n" of its files, as sha256sum prints them.
func (d *Dataset) Digest(ctx context.Context) (string, error) {
	if len(d.paths) == 1 && d.paths[0] == d.path {
		return fileDigest(ctx, d.path)
	}
	list := sha256.New()
	for _, p := range d.paths {
		sum, err := fileDigest(ctx, p)
		if err != nil {
			return "", err
		}
		name, err := filepath.Rel(d.path, p)
		if err != nil {
			return "", fmt.Errorf("name of a dataset's file: %w", err)
		}
		fmt.Fprintf(list, "%s  %s\n", sum, filepath.ToSlash(name))
	}
	return hex.EncodeToString(list.Sum(nil)), nil
}

func fileDigest(ctx context.Context, path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("hash dataset: %w", err)
	}
	defer file.Close()
	sum := sha256.New()
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		_, err := io.CopyN(sum, file, 64<<20)
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(sum.Sum(nil)), nil
		}
		if err != nil {
			return "", fmt.Errorf("hash dataset: %w", err)
		}
	}
}

// Close closes the dataset's files.
func (d *Dataset) Close() error {
	var first error
	for _, f := range d.files {
		if err := f.close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}
