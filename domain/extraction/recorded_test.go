package extraction_test

import (
	"maps"
	"math/rand/v2"
	"runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
)

// Whatever is recorded in whatever order: it reads as a map does, and every state that there ever was still says what it said.
func TestRecordedIsAMapWhoseOldVersionsStay(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		type version struct {
			recorded extraction.Recorded
			plain    map[int]extraction.Artifact
		}
		versions := []version{{plain: map[int]extraction.Artifact{}}}
		index := rapid.OneOf(rapid.IntRange(0, 40), rapid.IntRange(0, 2000), rapid.IntRange(0, extraction.MaxSegments-1),
			rapid.SampledFrom([]int{31, 32, 1023, 1024, 32767, 32768, 65535, 1<<20 - 1}))
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			from := versions[rapid.IntRange(0, len(versions)-1).Draw(t, "from")] // any that there ever was, not only the last
			at, a := index.Draw(t, "index"), extraction.Artifact{ContentSHA256: strconv.Itoa(i), Postings: int64(i)}
			next := version{from.recorded.With(at, a), maps.Clone(from.plain)}
			next.plain[at] = a
			versions = append(versions, next)
		}
		for _, v := range versions {
			if v.recorded.Len() != len(v.plain) {
				t.Fatalf("%d are recorded, not %d", v.recorded.Len(), len(v.plain))
			}
			last := -1
			for i, a := range v.recorded.All() {
				if got, ok := v.recorded.Get(i); !ok || i <= last || got != a || a != v.plain[i] {
					t.Fatalf("segment %d is %v, not %v", i, a, v.plain[i])
				}
				last = i
			}
			for _, i := range []int{-1, index.Draw(t, "another"), 1 << 21} {
				_, want := v.plain[i]
				if _, ok := v.recorded.Get(i); ok != want {
					t.Fatalf("segment %d: %v", i, ok)
				}
			}
		}
	})
	require.Zero(t, extraction.Recorded{}.With(-1, extraction.Artifact{}).With(1<<60, extraction.Artifact{}).Len(), "no plan has such segments")
}

// run is a plan of so many segments and what was recorded of them, in the order of a crowd of workers.
func run(t testing.TB, segments int) []event.Data {
	s := given(requested(t), plan(0, 0, segments, 1))
	out := make([]event.Data, segments)
	for i := range out {
		out[i] = record(s, i, strconv.Itoa(i))
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range out { // each is done soon before or after its turn
		j := min(segments-1, i+random.IntN(8))
		out[i], out[j] = out[j], out[i]
	}
	return out
}

// fold decides and folds every event, as command handlers do.
func fold(t testing.TB, segments int, events []event.Data) extraction.State {
	s := given(requested(t), plan(0, 0, segments, 1))
	for _, e := range events {
		decided, err := s.DecideRecord(e.(extraction.SegmentRecorded))
		require.NoError(t, err)
		for _, d := range decided {
			s = s.Evolve(d)
		}
	}
	require.Equal(t, extraction.StatusCompleted, s.Status)
	return s
}

func BenchmarkFoldingTheLargestRun(b *testing.B) {
	events := run(b, extraction.MaxSegments)
	b.ReportAllocs()
	for b.Loop() {
		fold(b, extraction.MaxSegments, events)
	}
}

// Twice the segments take twice the memory, not four times: nothing that grows with the run is copied for each event. It counts
// what the whole process allocates, so it does not run beside others.
func TestFoldingARunTakesMemoryInProportionToItsLength(t *testing.T) {
	const n = 8192
	taken := func(segments int) float64 {
		events := run(t, segments)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		fold(t, segments, events)
		runtime.ReadMemStats(&after)
		return float64(after.TotalAlloc - before.TotalAlloc)
	}
	require.Less(t, taken(2*n)/taken(n), 2.5)
}

func TestTheLargestRunIsFoldedWhole(t *testing.T) {
	t.Parallel()
	s := fold(t, extraction.MaxSegments, run(t, extraction.MaxSegments))
	require.Equal(t, extraction.MaxSegments, s.Recorded.Len())
	require.Empty(t, s.Missing())
}
