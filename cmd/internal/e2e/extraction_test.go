package e2e

import (
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/extraction"
)

// undisturbed is what a run comes to that nobody disturbs: what all others are held against.
var undisturbed struct {
	once sync.Once
	result
}

func wanted(t testing.TB) result {
	t.Helper()
	undisturbed.once.Do(func() {
		s := newStack(t, options{})
		s.serve("relay")
		s.serve("projector")
		s.extractor()
		id := s.begin(config())
		state := s.awaitStatus(id, extraction.StatusCompleted)
		require.GreaterOrEqual(t, state.Segments(), 12)
		require.Empty(t, state.SelfTest.SelfTest.Mismatch)
		require.False(t, state.SelfTest.Forced)
		s.awaitFolded(id)
		undisturbed.result = s.result(id)
		s.requireWhole()
	})
	require.NotEmpty(t, undisturbed.Dump, "the undisturbed run failed")
	return undisturbed.result
}

// finish waits for the end and requires that it is that of the undisturbed run.
func (s *stack) finish(id string) {
	s.t.Helper()
	s.awaitStatus(id, extraction.StatusCompleted)
	s.requireSame(id)
}

func (s *stack) requireSame(id string) {
	s.t.Helper()
	s.awaitFolded(id)
	got, want := s.result(id), wanted(s.t)
	require.Equal(s.t, want.Contents, got.Contents, "the segments' contents")
	requireSameDump(s.t, want.Dump, got.Dump)
	s.requireWhole()
}

// requireSameDump names the first line that differs; a whole dump is no message.
func requireSameDump(t testing.TB, want, got string) {
	t.Helper()
	if want == got {
		return
	}
	a, b := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(a), len(b)) {
		require.Equal(t, a[i], b[i], "line %d of the dump", i)
	}
	require.Equal(t, len(a), len(b), "lines of the dump")
}

func TestAnExtractionRunsFromTextToFeatures(t *testing.T) {
	t.Parallel()
	r := wanted(t)
	require.Len(t, r.Contents, 13)
	require.Contains(t, r.Dump, "example 0 0 0 ")
}
