package fold

import "slices"

// smallest returns the n smallest keys, ascending; it reorders keys. Most latents have some thousand candidates
// for a list of a hundred: the rest is not sorted (quickselect, with a sort as the way out of bad pivots).
func smallest(keys []uint64, n int) []uint64 {
	n = min(n, len(keys))
	low, high := 0, len(keys) // the border after the n smallest is in here
	for rounds := 0; high-low > 64 && n > low && n < high; rounds++ {
		if rounds == 64 {
			break
		}
		a, b, c := keys[low], keys[(low+high)/2], keys[high-1]
		pivot := max(min(a, b), min(max(a, b), c))
		i, j := low, high-1
		for i <= j {
			for keys[i] < pivot {
				i++
			}
			for keys[j] > pivot {
				j--
			}
			if i <= j {
				keys[i], keys[j] = keys[j], keys[i]
				i++
				j--
			}
		}
		// low … j are at most the pivot, i … high-1 at least, what is between equal to it.
		switch {
		case n <= j:
			high = j + 1
		case n >= i:
			low = i
		default:
			low, high = n, n
		}
	}
	if n > low && n < high {
		slices.Sort(keys[low:high])
	}
	slices.Sort(keys[:n])
	return keys[:n]
}
