package torch

// executor is the arithmetic of a decoder layer. Rows are tokens. There are two: fused runs our own
// kernels around libtorch's matrix products, on the CPU; composed is
// libtorch's operations alone, on any device and for what the kernels do not do, and the check of the other.
type executor interface {
	padded() bool              // whether batches must be padded
	begin(s *scope, b *packed) // once a batch
	embed(s *scope, b *packed, table weight) tensor
	norm(s *scope, x tensor, n gain) tensor
	attention(s *scope, b *packed, l *layer, x tensor) tensor // x as attention reads it → [rows, heads × d_head]
	hidden(s *scope, l *layer, x tensor) tensor               // x as the MLP reads it → [rows, d_ff]
	project(s *scope, x tensor, w linear) tensor              // x · Wᵀ + bias, good until the next call
	add(s *scope, x, y tensor) tensor                         // x + y; x must not be used afterwards
	addProjection(s *scope, x, h tensor, w linear) tensor     // x + h · Wᵀ + bias; likewise
}

func newExecutor(m *Model, d device) executor {
	if d == cpu && m.runtime.dtype == float32Type && fusedFits(m.config) {
		return &fused{m: m, threads: m.runtime.profile.Threads}
	}
	return &composed{m: m}
}
