package projectiontest

import (
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/projections/projector"
)

// Event is a recorded event with its decoded data.
type Event struct {
	event.Recorded
	Fact event.Data
}

// Law is what is compared.
type Law struct {
	Config     projector.Config
	Projection projector.Projection
	Volatile   []string           // "table.column" that may differ
	Plain      func([]Event) Rows // the fold in memory; nil = live and rebuilt only
}

// Advance brings the live tables to the end of the log.
func (l Law) Advance(t require.TestingT) {
	help(t)
	require.NoError(t, l.runner(t).RunToEnd(background(t)))
}

// RequireLive brings the live tables to the end of the log and compares them with the plain fold. It
// reads the whole log: a test that calls it after every command takes minutes.
func (l Law) RequireLive(t require.TestingT) string {
	help(t)
	l.Advance(t)
	live := Dump(t, l.Config.Pool, projector.Schema(l.Projection), l.Projection.Views(), l.Volatile...)
	if l.Plain != nil {
		require.Equal(t, Render(t, l.Plain(l.Events(t)), l.Volatile...), live, "plain fold (expected) and live tables (actual) differ")
	}
	return live
}

// RequireRebuilt compares the live tables with the plain fold and with tables that are built anew.
func (l Law) RequireRebuilt(t require.TestingT) {
	help(t)
	live := l.RequireLive(t)
	require.NoError(t, l.runner(t).Rebuild(background(t)))
	rebuilt := Dump(t, l.Config.Pool, projector.Schema(l.Projection), l.Projection.Views(), l.Volatile...)
	require.Equal(t, rebuilt, live, "rebuilt (expected) and live tables (actual) differ")
}

func (l Law) runner(t require.TestingT) *projector.Runner {
	r, err := projector.New(l.Config, l.Projection)
	require.NoError(t, err)
	return r
}

// Events returns the whole log, decoded.
func (l Law) Events(t require.TestingT) []Event {
	help(t)
	var out []Event
	for after := int64(0); ; after = out[len(out)-1].Position {
		recs, err := l.Config.Log.ReadAll(background(t), after, 1000)
		require.NoError(t, err)
		if len(recs) == 0 {
			return out
		}
		for _, rec := range recs {
			d, err := l.Config.Registry.Decode(rec)
			require.NoError(t, err)
			out = append(out, Event{Recorded: rec, Fact: d})
		}
	}
}

func help(t require.TestingT) {
	if h, ok := t.(interface{ Helper() }); ok {
		h.Helper()
	}
}
