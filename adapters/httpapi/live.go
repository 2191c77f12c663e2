package httpapi

import (
	"context"
	"encoding/json"
	"sync"
	"time"
)

// live is what all streams show of what goes on, each thing as JSON by its name: one look, once a tick, serves them all.
type live struct {
	look func(context.Context) (map[string][]byte, error)

	mu     sync.Mutex // never held while somebody looks
	looked time.Time
	frames map[string][]byte // nil before the first look
	one    chan struct{}     // whoever looks is in it
}

func newLive(look func(context.Context) (map[string][]byte, error)) *live {
	return &live{look: look, one: make(chan struct{}, 1)}
}

func (l *live) last() (frames map[string][]byte, looked time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.frames, l.looked
}

// now returns the last look where it is fresh, or while somebody else has a new one; else it looks. Only before the first
// look it waits for another.
func (l *live) now(ctx context.Context, fresh time.Duration) (map[string][]byte, error) {
	frames, looked := l.last()
	if time.Since(looked) < fresh {
		return frames, nil
	}
	select {
	case l.one <- struct{}{}:
	default:
		if frames != nil {
			return frames, nil
		}
		select {
		case l.one <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	defer func() { <-l.one }()
	if frames, looked = l.last(); time.Since(looked) < fresh {
		return frames, nil
	}
	frames, err := l.look(ctx)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.frames, l.looked = frames, time.Now()
	return frames, nil
}

// running is how the extractions stand that do not rest.
func (s *server) running(ctx context.Context) (map[string][]byte, error) {
	all, err := s.Extractions.Live(ctx)
	if err != nil {
		return nil, err
	}
	frames := make(map[string][]byte, len(all))
	for _, p := range all {
		out, err := s.encodeProgress(ctx, p)
		if err != nil {
			return nil, err
		}
		if frames[p.Extraction.ID], err = json.Marshal(out); err != nil {
			return nil, err
		}
	}
	return frames, nil
}

// fetched is how the downloads stand that somebody has asked for.
func (s *server) fetched(ctx context.Context) (map[string][]byte, error) {
	all, err := s.Library.Downloading(ctx)
	if err != nil {
		return nil, err
	}
	frames := make(map[string][]byte, len(all))
	for _, d := range all {
		f := downloadFrame{Kind: d.Kind, ID: d.ID, Status: "pending"}
		if d.Running {
			f.Status = "downloading"
			f.Progress, f.Download = progress(false, d.Progress)
		}
		if frames[d.Kind+"-"+d.ID], err = json.Marshal(f); err != nil {
			return nil, err
		}
	}
	return frames, nil
}
