package corpus

import "math/bits"

// permutation is a seeded order of 0 … n−1 that needs no memory: a Feistel network on the smallest even number
// of bits that holds n, walked along its cycle until it lands below n (at most four steps on average).
// Its order is part of every corpus's identity: it must never change.
type permutation struct {
	n    uint64
	half uint // bits of each half
	keys [8]uint64
}

func newPermutation(n, seed uint64) permutation {
	p := permutation{n: n, half: uint(bits.Len64(max(n, 2)-1)+1) / 2}
	for i := range p.keys {
		seed = mix(seed + 0x9e3779b97f4a7c15)
		p.keys[i] = seed
	}
	return p
}

// at returns the i-th element of the order, i < n.
func (p permutation) at(i uint64) uint64 {
	for {
		i = p.shuffle(i)
		if i < p.n {
			return i
		}
	}
}

func (p permutation) shuffle(x uint64) uint64 {
	mask := uint64(1)<<p.half - 1
	left, right := x>>p.half, x&mask
	for _, key := range p.keys {
		left, right = right, left^(mix(right^key)&mask)
	}
	return left<<p.half | right
}

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection whose every output bit depends on
// every input bit.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
