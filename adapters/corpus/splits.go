package corpus

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// shardName is how shards are named on the hub and by save_to_disk: train-00000-of-00002.parquet, sometimes with a
// digest at the end.
var shardName = regexp.MustCompile(`^(.*)-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?\.[a-z.]+$`)

// splitNames are the names by which a file or folder is known for a split.
var splitNames = []string{"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}

// splitOf returns the split that a file belongs to: the name of its shards, of the file, or of a folder below root.
// "" where nothing says so.
func splitOf(root, path string) string {
	name := filepath.Base(path)
	if m := shardName.FindStringSubmatch(name); m != nil && m[1] != "data" && m[1] != "part" {
		return m[1]
	}
	stem, _, _ := strings.Cut(name, ".")
	if slices.Contains(splitNames, strings.ToLower(stem)) {
		return stem
	}
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return ""
	}
	for dir := filepath.Dir(rel); dir != "." && dir != string(filepath.Separator); dir = filepath.Dir(dir) {
		if part := filepath.Base(dir); slices.Contains(splitNames, strings.ToLower(part)) || isSavedSplit(filepath.Join(root, dir)) {
			return part
		}
	}
	return ""
}

// isSavedSplit reports whether a folder is one split of what save_to_disk wrote.
func isSavedSplit(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "state.json"))
	return err == nil
}

// chooseSplit returns the files of the wanted split. Where there are several splits, one must be named.
func chooseSplit(root string, paths []string, wanted string) ([]string, error) {
	bySplit := map[string][]string{}
	for _, p := range paths {
		split := splitOf(root, p)
		bySplit[split] = append(bySplit[split], p)
	}
	known := maps.Clone(bySplit)
	delete(known, "")
	names := strings.Join(slices.Sorted(maps.Keys(known)), ", ")
	switch {
	case wanted != "" && len(bySplit[wanted]) == 0:
		if names == "" {
			return nil, &FileError{Path: root, Detail: fmt.Sprintf("there is no split %q: nothing in the names of its files tells splits apart; leave the split out, or name the files' folder", wanted)}
		}
		return nil, &FileError{Path: root, Detail: fmt.Sprintf("there is no split %q; its splits are %s", wanted, names)}
	case wanted != "":
		paths = bySplit[wanted]
	case len(known) > 1:
		return nil, &FileError{Path: root, Detail: fmt.Sprintf("which split? it has %s; name one with the split option", names)}
	}
	return paths, completeShards(root, paths)
}

// completeShards refuses a dataset with a shard missing.
func completeShards(root string, paths []string) error {
	have := map[string][]bool{}
	for _, p := range paths {
		m := shardName.FindStringSubmatch(filepath.Base(p))
		if m == nil {
			continue
		}
		i, err := strconv.Atoi(m[2])
		n, err2 := strconv.Atoi(m[3])
		if err != nil || err2 != nil || i >= n {
			return &FileError{Path: p, Detail: "its name says that it is shard " + m[2] + " of " + m[3]}
		}
		key := filepath.Join(filepath.Dir(p), m[1]+"-*-of-"+m[3])
		if have[key] == nil {
			have[key] = make([]bool, n)
		}
		have[key][i] = true
	}
	for _, key := range slices.Sorted(maps.Keys(have)) {
		if i := slices.Index(have[key], false); i >= 0 {
			return &FileError{Path: root, Detail: fmt.Sprintf("shard %05d of %d is missing (%s)", i, len(have[key]), key)}
		}
	}
	dirs := map[string]bool{}
	for _, p := range paths {
		if dir := filepath.Dir(p); !dirs[dir] {
			dirs[dir] = true
			if err := completeState(dir, paths); err != nil {
				return err
			}
		}
	}
	return nil
}

// completeState checks a folder of save_to_disk against its state.json.
func completeState(dir string, paths []string) error {
	file := filepath.Join(dir, "state.json")
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open dataset: %w", err)
	}
	var state struct {
		DataFiles []struct {
			Filename string `json:"filename"`
		} `json:"_data_files"`
		IndicesFiles []json.RawMessage `json:"_indices_data_files"`
	}
	if info.Size() > 16<<20 {
		return &FileError{Path: file, Detail: fmt.Sprintf("it has %d bytes, too many for what save_to_disk writes", info.Size())}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("open dataset: %w", err)
	}
	if err := json.Unmarshal(data, &state); err != nil {
		return &FileError{Path: file, Detail: fmt.Sprintf("not what save_to_disk writes: %v", err), Err: err}
	}
	if len(state.IndicesFiles) > 0 {
		return &FileError{Path: file, Detail: "the dataset has an indices mapping, which is not read; save it with flatten_indices().save_to_disk()"}
	}
	for _, f := range state.DataFiles {
		if !slices.Contains(paths, filepath.Join(dir, filepath.Base(f.Filename))) {
			return &FileError{Path: file, Detail: fmt.Sprintf("it names the file %s, which is not there", f.Filename)}
		}
	}
	return nil
}
