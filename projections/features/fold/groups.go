package fold

// contextGroups counts the documents whose strongest firing has the same context, and keeps the first of each
// by its sort key: a hash table that is emptied in no time.
//
// Contexts are equal if their 64-bit hashes are: of a million different ones in one latent two are taken
// for equal with a probability of 3 in 10⁸.
type contextGroups struct {
	slots []contextGroup
	used  []int32 // slots of this round
	round uint32
}

type contextGroup struct {
	context uint64
	key     uint64
	count   int32
	round   uint32
}

// reset makes room for so many contexts.
func (g *contextGroups) reset(contexts int) {
	size := max(len(g.slots), 1024)
	for size < 2*contexts {
		size *= 2
	}
	if size != len(g.slots) {
		g.slots = make([]contextGroup, size)
		g.round = 0
	}
	g.round++
	if g.round == 0 {
		clear(g.slots)
		g.round = 1
	}
	g.used = g.used[:0]
}

func (g *contextGroups) slot(context uint64) *contextGroup {
	mask := uint64(len(g.slots) - 1)
	for at := context & mask; ; at = (at + 1) & mask {
		s := &g.slots[at]
		if s.round != g.round {
			g.used = append(g.used, int32(at))
			*s = contextGroup{context: context, key: ^uint64(0), round: g.round}
			return s
		}
		if s.context == context {
			return s
		}
	}
}

func (g *contextGroups) add(context, key uint64) {
	s := g.slot(context)
	s.key = min(s.key, key)
	s.count++
}

// size is the number of documents with a context that was added.
func (g *contextGroups) size(context uint64) int { return int(g.slot(context).count) }

// strongest appends the n smallest keys to keys, ascending.
func (g *contextGroups) strongest(keys []uint64, n int) []uint64 {
	for _, at := range g.used {
		keys = append(keys, g.slots[at].key)
	}
	return smallest(keys, n)
}
