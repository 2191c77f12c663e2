package collect

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/featuremill/featuremill/adapters/blob"
	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
)

// Times after which what nobody names goes.
const (
	Grace       = 24 * time.Hour      // stored files, partial files, folders of links
	VerdictLife = 30 * 24 * time.Hour // kept self-tests: they are measured again when they are wanted
	PassLife    = time.Hour           // forward passes that the SAEs of a batch share
	KeyLife     = 7 * 24 * time.Hour  // idempotency keys
)

// Keys forgets idempotency keys.
type Keys interface {
	ForgetKeys(ctx context.Context, before time.Time, dry bool) (int64, error)
}

// Sweeper removes what nobody names. Log, Registry, Store and Artifact are required.
type Sweeper struct {
	Log      eventlog.Log
	Registry *event.Registry
	Store    blob.Store
	Artifact ArtifactKey
	Keys     Keys             // nil: idempotency keys stay
	Cache    string           // this machine's cache folder, "" = none
	Grace    time.Duration    // 0 = Grace
	Dry      bool             // look, and remove nothing
	Now      func() time.Time // nil = time.Now
	Removed  func(Removal)    // told of each removal, nil = nobody
}

// Removal is something that was removed, or would be.
type Removal struct {
	What  string // a key or a path
	Why   string
	Bytes int64
}

// Report sums up a sweep.
type Report struct {
	Files   int
	Bytes   int64
	Kept    int // stored files that are named, or too young to tell
	Unknown int // under keys that are not ours: they stay
	Keys    int64
}

// Sweep removes what is old and named by nobody.
func (s *Sweeper) Sweep(ctx context.Context) (Report, error) {
	var r Report
	if s.Grace == 0 {
		s.Grace = Grace
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	named, err := Read(ctx, s.Log, s.Registry)
	if err != nil {
		return r, err
	}
	var errs []error
	errs = append(errs, s.stored(ctx, named, &r), s.leftovers(ctx, &r))
	if s.Cache != "" {
		errs = append(errs, s.cached(ctx, named, &r), s.links(named, &r), s.passes(&r))
	}
	if s.Keys != nil {
		n, err := s.Keys.ForgetKeys(ctx, s.Now().Add(-KeyLife), s.Dry)
		r.Keys = n
		errs = append(errs, err)
	}
	return r, errors.Join(errs...)
}

func (s *Sweeper) removed(r *Report, what, why string, bytes int64) {
	r.Files++
	r.Bytes += bytes
	if s.Removed != nil {
		s.Removed(Removal{What: what, Why: why, Bytes: bytes})
	}
}

// stored removes blobs. The list is made first, and what is named is read again after it: what was stored before an event
// named it is then known. A blob that has been stored again meanwhile stays.
func (s *Sweeper) stored(ctx context.Context, named *Named, r *Report) error {
	var old []blob.Item
	for item, err := range s.Store.List(ctx, "") {
		if err != nil {
			return err
		}
		life, ours := s.life(item.Key)
		switch {
		case !ours:
			r.Unknown++
		case s.Now().Sub(item.Modified) > life:
			old = append(old, item)
		default:
			r.Kept++
		}
	}
	if err := named.Advance(ctx, s.Log, s.Registry); err != nil {
		return err
	}
	keys := named.Keys(s.Artifact)
	for _, item := range old {
		if _, wanted := keys[item.Key]; wanted {
			r.Kept++
			continue
		}
		gone, err := s.remove(ctx, item)
		if err != nil {
			return err
		}
		if gone {
			s.removed(r, item.Key, "no recorded fact names it", item.Bytes)
		} else {
			r.Kept++
		}
	}
	return nil
}

// life is how long a blob stays that nobody names.
func (s *Sweeper) life(key string) (life time.Duration, ours bool) {
	kind, _, _ := strings.Cut(key, "/")
	switch kind {
	case "files", "extractions":
		return s.Grace, true
	case "selftests":
		return VerdictLife, true
	}
	return 0, false
}

func (s *Sweeper) remove(ctx context.Context, item blob.Item) (bool, error) {
	if s.Dry {
		return true, nil
	}
	life, _ := s.life(item.Key)
	return s.Store.DeleteOlder(ctx, item.Key, s.Now().Add(-life))
}

func (s *Sweeper) leftovers(ctx context.Context, r *Report) error {
	found, err := s.Store.Leftovers(ctx)
	if err != nil {
		return err
	}
	for _, f := range found {
		if s.Now().Sub(f.Modified) <= s.Grace {
			continue
		}
		if !s.Dry {
			cleared, err := s.Store.Clear(ctx, f)
			if err != nil {
				return err
			}
			if !cleared {
				continue
			}
		}
		s.removed(r, f.Path, "whoever wrote it did not come to an end", f.Bytes)
	}
	return nil
}

func (s *Sweeper) removeFile(path string) error {
	if s.Dry {
		return nil
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// cached removes copies on this machine of files that nobody names any more.
func (s *Sweeper) cached(ctx context.Context, named *Named, r *Report) error {
	b, ok := s.Store.(*blob.Bucket)
	if !ok {
		return nil
	}
	keys := named.Keys(s.Artifact)
	for item, err := range b.Cached(ctx) {
		if err != nil {
			return err
		}
		if _, wanted := keys[item.Key]; wanted || s.Now().Sub(item.Modified) <= s.Grace {
			continue
		}
		if !s.Dry {
			if err := b.Uncache(ctx, item.Key); err != nil {
				return err
			}
		}
		s.removed(r, item.Key, "a copy on this machine of what no recorded fact names", item.Bytes)
	}
	return nil
}

// links removes folders of links to files of sets that nobody names any more.
func (s *Sweeper) links(named *Named, r *Report) error {
	sets := named.Sets()
	return s.old(filepath.Join(s.Cache, "sets"), s.Grace, func(path string, _ fs.FileInfo) error {
		if sets[filepath.Base(path)] {
			return nil
		}
		s.removed(r, path, "links to files of a set that no recorded fact names", 0)
		return s.removeFile(path)
	})
}

// passes removes forward passes that no batch will ask for again.
func (s *Sweeper) passes(r *Report) error {
	return s.old(filepath.Join(s.Cache, "taps"), PassLife, func(path string, info fs.FileInfo) error {
		s.removed(r, path, "a forward pass that no batch asks for any more", info.Size())
		return s.removeFile(path)
	})
}

// old visits what lies in a folder and is older than life.
func (s *Sweeper) old(folder string, life time.Duration, visit func(string, fs.FileInfo) error) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if s.Now().Sub(info.ModTime()) > life {
			if err := visit(filepath.Join(folder, entry.Name()), info); err != nil {
				return err
			}
		}
	}
	return nil
}

// Missing returns the named keys that the store does not have, with what names each, and how many blobs, of how many
// bytes, nobody names.
func Missing(ctx context.Context, named *Named, store blob.Store, artifact ArtifactKey) (missing map[string]string, unnamed int, bytes int64, err error) {
	missing = named.Keys(artifact)
	for item, err := range store.List(ctx, "") {
		if err != nil {
			return nil, 0, 0, err
		}
		if _, wanted := missing[item.Key]; wanted {
			delete(missing, item.Key)
		} else if !strings.HasPrefix(item.Key, "selftests/") {
			unnamed++
			bytes += item.Bytes
		}
	}
	return missing, unnamed, bytes, nil
}
