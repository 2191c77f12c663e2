package torch

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
	"github.com/featuremill/featuremill/adapters/postings"
)

// BenchmarkWhatSharingAForwardSaves measures, in CPU time a token (the machine may have other work),
// a forward to layer 8 of SmolLM2 and an encode by SAEs of two sizes: n SAEs one after the other take
// n × (forward + encode), sharing the forward takes forward + n × encode.
func BenchmarkWhatSharingAForwardSaves(b *testing.B) {
	source, err := checkpoint.OpenModel(smolLM2(b))
	require.NoError(b, err)
	m, err := testRuntime.LoadModel(b.Context(), source)
	require.NoError(b, err)
	hook := Hook{Layer: 8, Point: ResidPost}
	sequences := make([][]int32, 16)
	for i := range sequences {
		for j := range 128 {
			sequences[i] = append(sequences[i], int32((i*7919+j*104729)%49000+100))
		}
	}
	tokens := float64(len(sequences) * 128)
	cpu := func(n int, f func() error) float64 {
		require.NoError(b, f()) // the workspace grows
		var before, after syscall.Rusage
		require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &before))
		for range n {
			require.NoError(b, f())
		}
		require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &after))
		seconds := func(r syscall.Rusage) float64 {
			return float64(r.Utime.Sec+r.Stime.Sec) + float64(r.Utime.Usec+r.Stime.Usec)/1e6
		}
		return (seconds(after) - seconds(before)) / float64(n) / tokens * 1e6
	}
	forward := func(visit func(*scope, *packed, tensor)) func() error {
		return func() error {
			for _, g := range groups(sequences, m.tokensPerForward) {
				err := testRuntime.do(b.Context(), func(s *scope) error {
					batch := pack(sequences[g[0]:g[1]], m.exec.padded())
					m.forward(s, batch, map[Hook]bool{hook: true}, false, func(s *scope, _ Hook, x tensor) { visit(s, batch, x) })
					return s.err
				})
				if err != nil {
					return err
				}
			}
			return nil
		}
	}
	alone := cpu(b.N, forward(func(*scope, *packed, tensor) {}))
	b.ReportMetric(alone, "cpu-µs/token(forward)")
	for _, latents := range []int{3072, 16384, 65536} {
		s := &checkpoint.SAE{
			Config: checkpoint.SAEConfig{Architecture: "topk", DIn: 576, DSAE: latents, DOut: 576, K: 64, ApplyBDecToInput: true},
			WEnc:   random(1, 576*latents, 0.05), BEnc: random(2, latents, 0.1), WDec: random(3, 576*latents, 0.05), BDec: random(4, 576, 0.1),
		}
		a, err := testRuntime.LoadSAE(b.Context(), s)
		require.NoError(b, err)
		e, err := NewEngine(m, a, hook)
		require.NoError(b, err)
		var out postings.Columns
		both := cpu(b.N, func() error {
			out.Reset()
			_, err := e.Batch(b.Context(), sequences, 0, &out)
			return err
		})
		b.ReportMetric(both-alone, map[int]string{3072: "cpu-µs/token(encode-3k)", 16384: "cpu-µs/token(encode-16k)", 65536: "cpu-µs/token(encode-65k)"}[latents])
		require.NoError(b, a.Close())
	}
	require.NoError(b, m.Close())
	require.NoError(b, source.Close())
}
