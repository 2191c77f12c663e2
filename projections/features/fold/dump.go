package fold

import (
	"fmt"
	"math"
)

// AppendDump appends the canonical dump of a latent to b: lines by kind and rank, floats as the hexadecimal of
// their bits, nothing that depends on when, where or how often it was computed. Two folds gave the
// same result if the dumps of their latents in ascending order, and of their summaries, are equal bytes.
func (l *Latent) AppendDump(b []byte) []byte {
	b = fmt.Appendf(b, "latent %d firings %d density %s sequences %d frequency %s documents %d max %s mean %s std %s sinks %d sink_share %s tokens %d interpretability %s\n",
		l.Index, l.Firings, bits64(l.Density), l.FiringSequences, bits64(l.ActivationFrequency), l.FiringDocuments,
		bits32(l.Max), bits64(l.Mean), bits64(l.Std), l.SinkFirings, bits64(l.SinkShare), l.DistinctTokens, bits64(l.InterpretabilityScore))
	if l.Interval != nil {
		b = fmt.Appendf(b, "latent %d interval %s %s\n", l.Index, bits64(l.Interval.Low), bits64(l.Interval.High))
	}
	if l.Dead() {
		return b
	}
	for i, q := range l.Quantiles {
		b = fmt.Appendf(b, "latent %d quantile %d %s\n", l.Index, QuantilePercents[i], bits32(q))
	}
	for _, h := range l.LogHistogram {
		b = fmt.Appendf(b, "latent %d log %d %d\n", l.Index, h.Bin, h.Count)
	}
	for i, n := range l.LinearHistogram {
		if n > 0 {
			b = fmt.Appendf(b, "latent %d linear %d %d\n", l.Index, i, n)
		}
	}
	for i, s := range l.IntervalShares {
		b = fmt.Appendf(b, "latent %d share %d %s\n", l.Index, i, bits64(s))
	}
	for _, t := range l.Tokens {
		b = fmt.Appendf(b, "latent %d token %d count %d share %s rate %s mean %s\n", l.Index, t.ID, t.Count, bits64(t.Share), bits64(t.Rate), bits64(t.Mean))
	}
	for _, e := range l.Examples {
		b = fmt.Appendf(b, "latent %d %s %d interval %d activation %s row %d sequence %d offset %d piece %d collapsed %d window %d %d",
			l.Index, e.Kind, e.Rank, e.Interval, bits32(e.Activation), e.Row, e.Sequence, e.Offset, e.Piece, e.Collapsed, e.Start, e.End)
		for _, a := range e.Activations {
			b = append(append(b, ' '), bits32(a)...)
		}
		b = append(b, '\n')
	}
	return b
}

// AppendDump appends the canonical dump of a summary to b.
func (s Summary) AppendDump(b []byte) []byte {
	b = fmt.Appendf(b, "summary latents %d alive %d dead %d sequences %d tokens %d counted %d sinks %d documents %d counted_documents %d postings %d firings %d l0 %s\n",
		s.Latents, s.Alive, s.Dead, s.Sequences, s.Tokens, s.CountedTokens, s.SinkTokens, s.Documents, s.CountedDocuments, s.Postings, s.Firings, bits64(s.MeanL0))
	for _, d := range s.LogDensity {
		b = fmt.Appendf(b, "summary density %d %d\n", d.Bin, d.Latents)
	}
	for _, l := range s.L0 {
		b = fmt.Appendf(b, "summary l0 %d %d\n", l.L0, l.Tokens)
	}
	return b
}

func bits64(v float64) string { return fmt.Sprintf("%016x", math.Float64bits(v)) }
func bits32(v float32) string { return fmt.Sprintf("%08x", math.Float32bits(v)) }
