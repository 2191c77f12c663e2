package httpapi

import (
	"bytes"
	"fmt"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
)

// downloadFrame is one download as event streams show it.
type downloadFrame struct {
	Kind     string        `json:"kind"` // model, sae, dataset
	ID       string        `json:"id"`
	Status   string        `json:"status"` // pending until somebody takes it
	Progress float64       `json:"progress"`
	Download *api.Download `json:"download,omitempty"`
}

// downloads sends how the running downloads stand, where that has changed. How one ended is a fact.
func (s *stream) downloads() (sent bool, err error) {
	if s.id != "" {
		return false, nil
	}
	now, err := s.server.fetching.now(s.ctx, s.server.fresh())
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
		if err := s.write(fmt.Appendf(nil, "event: download\ndata: %s\n\n", frame)); err != nil {
			return sent, err
		}
		sent = true
	}
	return sent, nil
}
