package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/extraction"
)

// envSoak is how many runs TestWhateverIsKilledWhenever makes, each with its own seed.
const envSoak = "FEATUREMILL_TEST_SOAK"

func TestWhateverIsKilledWhenever(t *testing.T) {
	t.Parallel()
	runs := 1
	if text := os.Getenv(envSoak); text != "" {
		var err error
		runs, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	for seed := range runs {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { soak(t, uint64(seed)) })
	}
}

// soak kills parts at random moments from before the self-test to after the fold, until the run has come through.
func soak(t *testing.T, seed uint64) {
	began := time.Now()
	r := rand.New(rand.NewPCG(seed, 7))
	s := newStack(t, options{ownServer: true})
	restarts := map[string]func() *process{
		"relay":     func() *process { return s.serve("relay") },
		"projector": func() *process { return s.serve("projector") },
		"extractor": func() *process { return s.extractor(failpoints(slowly)) },
	}
	running := map[string]*process{}
	for name, begin := range restarts {
		running[name] = begin()
	}
	id := s.begin(config())
	extractors := 0
	for range 8 {
		pause := time.NewTimer(time.Duration(r.IntN(900)) * time.Millisecond)
		select {
		case <-pause.C:
		case <-t.Context().Done():
		}
		victims := []string{"relay", "projector", "postgres", "broker"}
		if extractors < 2 { // the third loss of one lease fails the run, rightly
			victims = append(victims, "extractor", "extractor")
		}
		victim := victims[r.IntN(len(victims))]
		t.Logf("%5.1f s: kill the %s", time.Since(began).Seconds(), victim)
		switch victim {
		case "postgres":
			s.server.Kill()
			s.server.Restart()
		case "broker":
			s.broker.Kill()
			s.broker.Restart()
		case "extractor":
			extractors++
			fallthrough
		default:
			running[victim].Kill()
			running[victim] = restarts[victim]()
		}
	}
	s.awaitStatus(id, extraction.StatusCompleted)
	t.Logf("%5.1f s: completed", time.Since(began).Seconds())
	s.requireSame(id)
	t.Logf("%5.1f s: folded, verified", time.Since(began).Seconds())
	s.requireTopic()
	t.Logf("%5.1f s: the topic is whole", time.Since(began).Seconds())
	for name, p := range running {
		require.False(t, p.Ended(), "%s ended", name)
		require.Zero(t, p.Stop(), "the exit code of %s", name)
		t.Logf("%5.1f s: the %s has stopped", time.Since(began).Seconds(), name)
	}
	state, _, ok := s.load(id)
	require.True(t, ok)
	require.Equal(t, extraction.StatusCompleted, state.Status)
}
