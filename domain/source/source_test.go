package source_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/domain/source"
)

func TestASourceIsExactlyOneOfTrainingAndSAE(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"both":                     `{"training_id":"t1","external_sae_id":"s1"}`,
		"neither":                  `{}`,
		"training that reads sae_": `{"training_id":"sae_1"}`,
		"slash in the id":          `{"external_sae_id":"a/b"}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var s source.Source
			require.Error(t, json.Unmarshal([]byte(body), &s))
		})
	}
	_, err := json.Marshal(source.Source{})
	require.Error(t, err, "the zero source cannot be written")
}

func TestIDsAreReadBackAsTheyWereMade(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.StringMatching(`[a-z0-9_.-]{1,40}`).Draw(t, "id")
		s, err := source.FromSAE(id)
		if rapid.Bool().Draw(t, "training") && id[:min(4, len(id))] != "sae_" {
			s, err = source.FromTraining(id)
		}
		require.NoError(t, err)
		at := time.UnixMicro(rapid.Int64Range(0, 1<<50).Draw(t, "at"))
		got, err := source.ParseExtractionID(s.ExtractionID(at))
		require.NoError(t, err)
		require.Equal(t, s, got)
		index := rapid.IntRange(0, 1<<24).Draw(t, "index")
		latent, err := source.ParseFeatureID(s.FeatureID(index) + "@" + s.ExtractionID(at))
		require.NoError(t, err)
		require.Equal(t, source.Latent{Source: s, Index: index, Extraction: s.ExtractionID(at)}, latent)
		b, err := json.Marshal(s)
		require.NoError(t, err)
		var back source.Source
		require.NoError(t, json.Unmarshal(b, &back))
		require.Equal(t, s, back)
	})
}

func TestAFeatureIDIsRefusedWithTheShapeThatWouldBeRight(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"", "feat_", "feat_1", "feat_sae_x_-1", "feat_sae_x_01", "feat_x_99999999999", "ext_sae_x_1", "feat_x_1@nonsense"} {
		_, err := source.ParseFeatureID(id)
		require.Error(t, err, id)
	}
}
