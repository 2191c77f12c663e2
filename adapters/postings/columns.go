package postings

// Columns is a table of postings as parallel slices. Row i says that latent Latent[i] has the value
// Activation[i] at token Offset[i] of sequence Sequence[i] of the corpus.
type Columns struct {
	Latent     []uint32
	Sequence   []uint32
	Offset     []uint16
	Activation []float32
}

// TokenRef names one token of a corpus.
type TokenRef struct {
	Sequence uint32
	Offset   uint16
}

// Len is the number of rows.
func (c *Columns) Len() int { return len(c.Latent) }

// Reset empties the table and keeps its memory.
func (c *Columns) Reset() { c.truncate(0) }

func (c *Columns) truncate(n int) {
	c.Latent, c.Sequence, c.Offset, c.Activation = c.Latent[:n], c.Sequence[:n], c.Offset[:n], c.Activation[:n]
}

// Append adds one row.
func (c *Columns) Append(latent, sequence uint32, offset uint16, activation float32) {
	c.Latent = append(c.Latent, latent)
	c.Sequence = append(c.Sequence, sequence)
	c.Offset = append(c.Offset, offset)
	c.Activation = append(c.Activation, activation)
}

func (c *Columns) appendAll(latent, sequence []uint32, offset []uint16, activation []float32) {
	c.Latent = append(c.Latent, latent...)
	c.Sequence = append(c.Sequence, sequence...)
	c.Offset = append(c.Offset, offset...)
	c.Activation = append(c.Activation, activation...)
}

// Sort orders the rows by latent and keeps the order of rows of one latent (a counting sort). Rows that
// come in (sequence, offset) order, as an encoder writes them, are then in (latent, sequence, offset)
// order. latents is the number of latents; a row beyond it is sorted too and refused by Write.
func (c *Columns) Sort(latents int) {
	n := c.Len()
	for _, l := range c.Latent {
		latents = max(latents, int(l)+1)
	}
	next := make([]int, latents+1)
	for _, l := range c.Latent {
		next[l+1]++
	}
	for l := range latents {
		next[l+1] += next[l]
	}
	sorted := Columns{
		Latent:     make([]uint32, n),
		Sequence:   make([]uint32, n),
		Offset:     make([]uint16, n),
		Activation: make([]float32, n),
	}
	for i, l := range c.Latent {
		to := next[l]
		next[l]++
		sorted.Latent[to] = l
		sorted.Sequence[to] = c.Sequence[i]
		sorted.Offset[to] = c.Offset[i]
		sorted.Activation[to] = c.Activation[i]
	}
	*c = sorted
}

func (c *Columns) grow(n int) {
	if cap(c.Latent) < n {
		*c = Columns{
			Latent:     make([]uint32, 0, n),
			Sequence:   make([]uint32, 0, n),
			Offset:     make([]uint16, 0, n),
			Activation: make([]float32, 0, n),
		}
	}
}
