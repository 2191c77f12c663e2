package extraction_test

import (
	"encoding/json"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/eventlog"
	"github.com/featuremill/featuremill/domain/extraction"
)

func TestRunsAsText(t *testing.T) {
	t.Parallel()
	for text, runs := range map[string]extraction.Runs{
		"":                      nil,
		"0":                     {{From: 0, To: 1}},
		"0-4095,4100,4102-4200": {{From: 0, To: 4096}, {From: 4100, To: 4101}, {From: 4102, To: 4201}},
		"1048575":               {{From: 1<<20 - 1, To: 1 << 20}},
	} {
		got, err := runs.MarshalText()
		require.NoError(t, err)
		require.Equal(t, text, string(got))
		var back extraction.Runs
		require.NoError(t, back.UnmarshalText([]byte(text)))
		require.Equal(t, runs, back)
	}
	for _, wrong := range []string{",", "1,", "-1", "1-", "1-1", "2-1", "01", "+1", "1-02", "1,1", "1,2",
		"0-4,5", "0-4,3", "1048576", "0-1048576", "99999999999999999999", "1.0", "0x1", "1 ", "a"} {
		var r extraction.Runs
		require.Error(t, r.UnmarshalText([]byte(wrong)), wrong)
	}
	for _, wrong := range []extraction.Runs{{{From: 1, To: 1}}, {{From: -1, To: 1}}, {{From: 0, To: 1<<20 + 1}},
		{{From: 0, To: 2}, {From: 2, To: 3}}, {{From: 4, To: 5}, {From: 0, To: 1}}} {
		_, err := wrong.MarshalText()
		require.Error(t, err, wrong)
	}
}

func FuzzRunsAsText(f *testing.F) {
	for _, seed := range []string{"", "0", "0-4095,4100,4102-4200", "1,2", "1048575", "00", "1-1", "7-9,"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var r extraction.Runs
		if r.UnmarshalText([]byte(text)) != nil {
			return
		}
		again, err := r.MarshalText()
		require.NoError(t, err)
		require.Equal(t, text, string(again), "each list of runs has one text")
	})
}

func TestWhatIsMissingIsReadBackFromItsText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 300).Draw(t, "segments")
		s := given(requested(t), plan(0, 0, n, 1))
		for _, i := range rapid.SliceOfDistinct(rapid.IntRange(0, max(0, n-1)), rapid.ID[int]).Draw(t, "recorded") {
			if i < n {
				s = s.Evolve(record(s, i, "c"))
			}
		}
		text, err := json.Marshal(extraction.Runs(s.Missing()))
		require.NoError(t, err)
		var back extraction.Runs
		require.NoError(t, json.Unmarshal(text, &back))
		require.Equal(t, s.Missing(), []extraction.Run(back))
	})
}

// Of all sets of segments, none takes more text than this: longest[i] is the most that runs from segment i on can take. A run
// costs its first number, a comma, and where it has several segments another number and a dash; the next one may begin two
// after its end.
func TestWhateverIsMissingCanBeAppended(t *testing.T) {
	t.Parallel()
	digits := func(i int) int { return len(strconv.Itoa(i)) }
	longest, ending := make([]int, extraction.MaxSegments+3), make([]int, extraction.MaxSegments+3) // ending: of runs that end at i or later
	for i := extraction.MaxSegments - 1; i >= 0; i-- {
		ending[i] = max(ending[i+1], digits(i)+longest[i+2])
		longest[i] = max(longest[i+1], digits(i)+1+longest[i+2])
		if i+1 < extraction.MaxSegments {
			longest[i] = max(longest[i], digits(i)+2+ending[i+1])
		}
	}
	const others = 6 << 10 // ids, the profile and the metadata
	require.Less(t, longest[0]+others, eventlog.MaxEventBytes)

	for name, recorded := range map[string]func(int) bool{
		"every second": func(i int) bool { return i%2 == 1 },
		"every third":  func(i int) bool { return i%3 == 2 }, // two of three are missing: the longest text
		"none":         func(int) bool { return false },
	} {
		s := given(requested(t), plan(0, 0, extraction.MaxSegments, 1))
		for i := range extraction.MaxSegments {
			if recorded(i) {
				s = s.Evolve(record(s, i, "c"))
			}
		}
		s = s.Evolve(extraction.Cancelled{})
		data, err := s.DecideResume("sae_1")
		require.NoError(t, err)
		text, err := json.Marshal(data[0])
		require.NoError(t, err)
		require.Less(t, len(text)+others/2, eventlog.MaxEventBytes, name)
		var back extraction.Resumed
		require.NoError(t, json.Unmarshal(text, &back))
		require.Equal(t, data[0], event.Data(back))
	}
}

func TestALongListOfTheFirstVersionIsReadAsTheSameRuns(t *testing.T) {
	t.Parallel()
	var runs []extraction.Run
	for i := 0; i < 900_000; i += 97 { // as many segments as there could be then
		runs = append(runs, extraction.Run{From: i, To: i + 1 + i%90})
	}
	for name, missing := range map[string][]extraction.Run{"many": runs, "none": {}, "null": nil} {
		v1, err := json.Marshal(map[string]any{
			"source_key": "sae_sae_1", "model_id": "m", "dataset_id": "d", "plan": true, "missing": missing, "compute_profile": profile, "later": 1,
		})
		require.NoError(t, err)
		v2, err := extraction.ResumedFrom1(v1)
		require.NoError(t, err)
		var back extraction.Resumed
		require.NoError(t, json.Unmarshal(v2, &back), name)
		require.True(t, slices.Equal(missing, back.Missing), name)
		require.Equal(t, profile, back.Profile)
		require.True(t, back.Plan)
	}
	_, err := extraction.ResumedFrom1(json.RawMessage(`{"missing":[{"from":3,"to":3}]}`))
	require.Error(t, err)
}
