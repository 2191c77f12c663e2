package command_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/command"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
	"github.com/featuremill/featuremill/domain/training"
)

// overtaken is a log on which somebody is faster once: just before the first append to a stream of a kind.
type overtaken struct {
	eventlog.Log
	kind string
	do   func()
}

func (o *overtaken) Append(ctx context.Context, r eventlog.Request) (eventlog.Appended, error) {
	if do := o.do; do != nil && strings.HasPrefix(r.Streams[0].Stream, o.kind) {
		o.do = nil
		do()
	}
	return o.Log.Append(ctx, r)
}

func TestNothingIsLinkedToAModelThatIsDeletedAtTheSameTime(t *testing.T) {
	t.Parallel()
	for name, link := range map[string]func(*command.Handler, *testing.T) error{
		"an SAE that is imported": func(h *command.Handler, t *testing.T) error {
			_, err := h.ImportSAE(t.Context(), call, sae.Import{ID: "sae_new", Name: "new", ModelID: "late", Facts: fits()})
			return err
		},
		"an SAE that is linked": func(h *command.Handler, t *testing.T) error {
			_, err := h.LinkSAE(t.Context(), call, "sae_a", "late")
			return err
		},
		"an SAE that is to be tested": func(h *command.Handler, t *testing.T) error {
			_, err := h.RequestSAESelfTest(t.Context(), call, "sae_a", "late")
			return err
		},
		"a training": func(h *command.Handler, t *testing.T) error {
			_, err := h.ImportTraining(t.Context(), call, training.Import{ID: "t_new", Name: "new", ModelID: "late", SAEs: []training.SAE{{Path: "a", Facts: fits()}}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			_, err := b.ImportModel(t.Context(), call, model.Import{ID: "late", Name: "late", Facts: model.Facts{Layers: 12, DModel: 16}})
			require.NoError(t, err)
			registry, err := facts.Registry()
			require.NoError(t, err)
			kind := "sae-"
			if name == "a training" {
				kind = "training-"
			}
			h := command.NewHandler(&overtaken{Log: b.log, kind: kind, do: func() {
				_, err := b.DeleteModel(t.Context(), call, "late")
				require.NoError(t, err)
			}}, registry, time.Now)
			refusal(t, link(h, t), "model_not_found")
		})
	}
}
