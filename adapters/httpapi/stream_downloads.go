package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
)

// liveDownloads is what all streams show of the running downloads: one look serves them all.
type liveDownloads struct {
	mu     sync.Mutex
	looked time.Time
	frames map[string][]byte
}

// downloadFrame is one download as event streams show it.
type downloadFrame struct {
	Kind     string        `json:"kind"` // model, sae, dataset
	ID       string        `json:"id"`
	Status   string        `json:"status"` // pending until somebody takes it
	Progress float64       `json:"progress"`
	Download *api.Download `json:"download,omitempty"`
}

func (l *liveDownloads) now(ctx context.Context, s *server) (map[string][]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.looked) < s.Tick*9/10 {
		return l.frames, nil
	}
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
	l.looked, l.frames = time.Now(), frames
	return frames, nil
}

// downloads sends how the running downloads stand, where that has changed. How one ended is a fact.
func (s *stream) downloads() (sent bool, err error) {
	if s.id != "" {
		return false, nil
	}
	now, err := s.server.fetching.now(s.ctx, s.server)
	if err != nil {
		return false, err
	}
	for key := range s.moved {
		if _, running := now[key]; !running {
			delete(s.moved, key)
		}
	}
	for key, frame := range now {
		if bytes.Equal(s.moved[key], frame) {
			continue
		}
		s.moved[key] = frame
		if err := s.write("event: download\ndata: " + string(frame) + "\n\n"); err != nil {
			return sent, err
		}
		sent = true
	}
	return sent, nil
}
