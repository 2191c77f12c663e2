package command

import (
	"container/list"
	"sync"
)

// states keeps the last folded states of the streams that were used last. It only saves reading: the log decides. It is
// safe for concurrent use, because states are values.
type states struct {
	limit int // in bytes

	mu    sync.Mutex
	bytes int
	of    map[string]*list.Element
	order list.List // of folded, the one that was used last in front
}

type folded struct {
	stream  string
	state   any
	version int64
	bytes   int
}

// What the states of a process may take together, and what is reckoned for one that does not say.
const (
	maxStateBytes = 64 << 20
	stateBytes    = 4 << 10
)

func newStates(limit int) *states { return &states{limit: limit, of: map[string]*list.Element{}} }

func (c *states) get(stream string) (state any, version int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.of[stream]
	if !ok {
		return nil, 0, false
	}
	c.order.MoveToFront(e)
	f := e.Value.(folded)
	return f.state, f.version, true
}

// put keeps a state unless a later one is there. What was not used for the longest time goes first; one state stays, however
// large it is.
func (c *states) put(stream string, state any, version int64) {
	f := folded{stream, state, version, stateBytes}
	if s, ok := state.(interface{ Bytes() int }); ok {
		f.bytes = s.Bytes()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.of[stream]; ok {
		if e.Value.(folded).version >= version {
			return
		}
		c.remove(e)
	}
	c.of[stream] = c.order.PushFront(f)
	c.bytes += f.bytes
	for c.bytes > c.limit && c.order.Len() > 1 {
		c.remove(c.order.Back())
	}
}

func (c *states) remove(e *list.Element) {
	f := c.order.Remove(e).(folded)
	delete(c.of, f.stream)
	c.bytes -= f.bytes
}
