package extraction

import "iter"

// fan is how many children a node has, and how many artifacts a leaf.
const fan = 32

// Recorded holds the artifacts of the recorded segments by their index. It is a value: With leaves the old one as it
// was. It copies one leaf and the nodes above it, not what was recorded before: a run of n segments is folded in the time
// and the space of n. The zero value is empty.
type Recorded struct {
	root  *node
	depth int // of inner nodes above the leaves
	n     int
}

// node is a leaf, or has children.
type node struct {
	children *[fan]*node
	leaf     *[fan]Artifact
	has      uint32 // of a leaf: the artifacts that are there, a bit each
}

// Len is the number of recorded segments.
func (r Recorded) Len() int { return r.n }

// room is the number of indexes that a tree of this depth has room for.
func room(depth int) int {
	n := fan
	for range depth {
		n *= fan
	}
	return n
}

// Get returns the artifact of a segment; ok is false where it is not recorded.
func (r Recorded) Get(index int) (a Artifact, ok bool) {
	if index < 0 || index >= room(r.depth) {
		return Artifact{}, false
	}
	at := r.root
	for below := room(r.depth) / fan; at != nil && below > 1; below /= fan {
		at = at.children[index/below%fan]
	}
	if at == nil || at.has&(1<<(index%fan)) == 0 {
		return Artifact{}, false
	}
	return at.leaf[index%fan], true
}

// With returns the same with one more segment, or with another artifact of a segment that is there. An index that no plan
// ever had is left out.
func (r Recorded) With(index int, a Artifact) Recorded {
	if index < 0 || index >= everPlanned {
		return r
	}
	for index >= room(r.depth) {
		if r.root != nil {
			r.root = &node{children: &[fan]*node{r.root}}
		}
		r.depth++
	}
	if _, there := r.Get(index); !there {
		r.n++
	}
	r.root = r.root.with(room(r.depth)/fan, index, a)
	return r
}

// with returns a copy of a node, below which each child has room for so many indexes, with one more artifact.
func (n *node) with(below, index int, a Artifact) *node {
	next := &node{}
	if n != nil {
		*next = *n
	}
	if below == 1 {
		leaf := [fan]Artifact{}
		if next.leaf != nil {
			leaf = *next.leaf
		}
		leaf[index%fan] = a
		next.leaf, next.has = &leaf, next.has|1<<(index%fan)
		return next
	}
	children := [fan]*node{}
	if next.children != nil {
		children = *next.children
	}
	child := &children[index/below%fan]
	*child = (*child).with(below/fan, index, a)
	next.children = &children
	return next
}

// All returns the recorded segments in the order of their indexes.
func (r Recorded) All() iter.Seq2[int, Artifact] {
	return func(yield func(int, Artifact) bool) { r.root.each(0, room(r.depth)/fan, yield) }
}

func (n *node) each(first, below int, yield func(int, Artifact) bool) bool {
	switch {
	case n == nil:
	case below == 1:
		for i := range fan {
			if n.has&(1<<i) != 0 && !yield(first+i, n.leaf[i]) {
				return false
			}
		}
	default:
		for i, child := range n.children {
			if !child.each(first+i*below, below/fan, yield) {
				return false
			}
		}
	}
	return true
}
