package facts_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/model"
	"github.com/featuremill/featuremill/domain/sae"
)

func TestAFactThatNoTableCanHoldIsRefusedByName(t *testing.T) {
	t.Parallel()
	for field, fact := range map[string]event.Data{
		"facts.hook":     sae.Ready{Facts: sae.Facts{Hook: "blocks.1\x00"}},
		"facts.layer":    sae.Ready{Facts: sae.Facts{Layer: 1 << 33}},
		"facts.vocab":    model.Ready{Facts: model.Facts{Vocab: 1 << 31}},
		"name":           model.Registered{Name: strings.Repeat("n", 3000)},
		"facts.notes[1]": sae.Ready{Facts: sae.Facts{Notes: []string{"a", "\x00"}}},
	} {
		b, err := json.Marshal(fact)
		require.NoError(t, err)
		err = facts.Storable(fact.EventType(), b)
		var unstorable *eventlog.UnstorableError
		require.ErrorAs(t, err, &unstorable, field)
		require.Equal(t, field, unstorable.Field)
	}
	for _, fact := range []event.Data{sae.Ready{Facts: sae.Facts{Hook: "h", Layer: 8, K: 64}}, extraction.Completed{Tokens: 1 << 40}} {
		b, err := json.Marshal(fact)
		require.NoError(t, err)
		require.NoError(t, facts.Storable(fact.EventType(), b))
	}
}

func TestAnExtractionIsNeverActiveWithoutAReservation(t *testing.T) {
	t.Parallel()
	for _, fact := range []event.Data{extraction.Requested{}, extraction.Resumed{SourceKey: ""}, extraction.Extended{SourceKey: ""}} {
		_, err := facts.Effects("extraction-x", fact)
		require.Error(t, err, fact.EventType())
	}
}
