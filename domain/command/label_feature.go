package command

import (
	"context"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/feature"
)

// LabelFeature names, describes, notes or stars a latent: one event for each thing that changes.
func (h *Handler) LabelFeature(ctx context.Context, call Call, c feature.Label) (Result, error) {
	return change(ctx, h, call, feature.Stream(c.Latent.Source, c.Latent.Index), c.Latent.Source.FeatureID(c.Latent.Index),
		func(s feature.State) ([]event.Data, error) { return s.DecideLabel(c) })
}
