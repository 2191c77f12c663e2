package command

import (
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// weighty is a state of so many bytes.
type weighty int

func (w weighty) Bytes() int { return int(w) }

func TestStatesAreKeptByTheMemoryTheyTakeTheLastUsedLongest(t *testing.T) {
	t.Parallel()
	c := newStates(100)
	kept := func(stream string) bool { _, _, ok := c.get(stream); return ok }
	for i := range 10 {
		c.put(fmt.Sprint(i), weighty(10), 1)
	}
	require.True(t, kept("0"), "it is used now")
	c.put("10", weighty(10), 1)
	require.True(t, kept("0"))
	require.False(t, kept("1"), "it was used longest ago")
	c.put("0", weighty(95), 2)
	state, version, ok := c.get("0")
	require.True(t, ok)
	require.Equal(t, weighty(95), state)
	require.EqualValues(t, 2, version)
	require.Equal(t, 1, c.order.Len())
	c.put("0", weighty(1), 1)
	_, version, _ = c.get("0")
	require.EqualValues(t, 2, version, "an older state does not replace a later one")
	c.put("large", weighty(1000), 1)
	require.True(t, kept("large"), "one stays, however large")
	require.False(t, kept("0"))
	require.Equal(t, 1000, c.bytes)
	c.put("small", "says nothing", 1)
	require.False(t, kept("large"))
	require.Equal(t, stateBytes, c.bytes)
}

func TestStatesAreUsedByMany(t *testing.T) {
	t.Parallel()
	c := newStates(50)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 500 {
				stream := fmt.Sprint((w + i) % 9)
				if _, version, _ := c.get(stream); version < int64(i) {
					c.put(stream, weighty(10), int64(i))
				}
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, c.bytes, 50)
	require.Len(t, c.of, c.order.Len())
}
