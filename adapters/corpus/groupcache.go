package corpus

import (
	"container/list"
	"sync"

	"github.com/featuremill/featuremill/domain/corpus"
)

// Cache bounds what several shards keep decoded together. It is safe for concurrent use.
type Cache struct{ groups *groupCache }

// NewCache returns a cache of 256 MiB.
func NewCache() *Cache { return &Cache{newGroupCache(cacheBytes)} }

// Share makes a shard keep what it decodes in a cache that others use, too. It is called before the shard is used.
func (s *Shard) Share(c *Cache) { s.cache = c.groups }

// groupCache keeps the row groups that were asked for last, decoded. Two callers that miss the same group wait
// for one decoding.
type groupCache struct {
	budget int64

	mu      sync.Mutex
	used    int64
	recent  *list.List // of *cachedGroup, the newest first
	entries map[groupKey]*list.Element
}

type groupKey struct {
	shard *Shard
	group int
}

type cachedGroup struct {
	key       groupKey
	once      sync.Once
	sequences []corpus.Sequence
	err       error
	bytes     int64 // under the cache's lock; 0 until it is decoded
}

func newGroupCache(budget int64) *groupCache {
	return &groupCache{budget: budget, recent: list.New(), entries: map[groupKey]*list.Element{}}
}

func (c *groupCache) get(key groupKey, decode func(group int) ([]corpus.Sequence, int64, error)) ([]corpus.Sequence, error) {
	c.mu.Lock()
	element, ok := c.entries[key]
	if ok {
		c.recent.MoveToFront(element)
	} else {
		element = c.recent.PushFront(&cachedGroup{key: key})
		c.entries[key] = element
	}
	entry := element.Value.(*cachedGroup)
	c.mu.Unlock()

	entry.once.Do(func() {
		var bytes int64
		entry.sequences, bytes, entry.err = decode(key.group)
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.entries[key] != element {
			return // dropped while it was decoded
		}
		entry.bytes = bytes
		c.used += bytes
		for c.used > c.budget && c.recent.Len() > 1 {
			last := c.recent.Back()
			old := last.Value.(*cachedGroup)
			c.recent.Remove(last)
			delete(c.entries, old.key)
			c.used -= old.bytes
		}
	})
	return entry.sequences, entry.err
}
