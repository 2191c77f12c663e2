package fold

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood, 2014).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// golden keeps a run of zeros from hashing to zero.
const golden = 0x9e3779b97f4a7c15

// hash folds values one after the other: h₀ = mix(seed + golden), hᵢ = mix(hᵢ₋₁ ⊕ (vᵢ + golden)), modulo 2⁶⁴.
func hash(seed uint64, values ...uint64) uint64 {
	h := mix(seed + golden)
	for _, v := range values {
		h = mix(h ^ (v + golden))
	}
	return h
}

// The first value of every hash that samples something.
const (
	saltInterval = 1
	saltSequence = 2
	saltPosition = 3
	saltContext  = 4
)
