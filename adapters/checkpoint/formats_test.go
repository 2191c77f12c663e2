package checkpoint_test

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/checkpoint"
)

// formatCase is one folder of testdata/formats and what testdata/formats.py says that it computes.
type formatCase struct {
	name, path, reference   string
	facts                   checkpoint.SAEFacts
	x, acts, decode, recon  []float64
	rows, sequence, latents int
}

func formatCases(t *testing.T) []formatCase {
	t.Helper()
	files, err := filepath.Glob("testdata/formats/*/*.expected.safetensors")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var cases []formatCase
	for _, file := range files {
		s, err := checkpoint.OpenSafetensors(file)
		require.NoError(t, err)
		meta := s.Metadata()
		c := formatCase{name: strings.TrimPrefix(strings.TrimSuffix(file, ".expected.safetensors"), "testdata/formats/"), reference: meta["reference"]}
		c.path = filepath.Join(strings.TrimSuffix(file, ".expected.safetensors"), filepath.FromSlash(meta["path"]))
		if meta["options"] != "" {
			require.NoError(t, json.Unmarshal([]byte(meta["options"]), &c.facts))
		}
		wide := func(name string) ([]float64, []int) {
			tensor, err := s.Tensor(name)
			require.NoError(t, err)
			values, err := tensor.Float32()
			require.NoError(t, err)
			out := make([]float64, len(values))
			for i, v := range values {
				out[i] = float64(v)
			}
			return out, tensor.Shape
		}
		var shape []int
		c.x, _ = wide("x")
		c.acts, shape = wide("acts")
		c.decode, _ = wide("decode")
		c.recon, _ = wide("recon")
		c.latents = shape[len(shape)-1]
		c.rows = len(c.acts) / c.latents
		if c.sequence = 1; len(shape) == 3 {
			c.sequence = shape[1]
		}
		require.NoError(t, s.Close())
		cases = append(cases, c)
	}
	return cases
}

// worst is the largest relative error of a row: ‖got − want‖ / ‖want‖.
func worst(t *testing.T, got, want []float64, rows int) float64 {
	t.Helper()
	require.Len(t, got, len(want))
	width, most := len(want)/rows, 0.0
	for r := range rows {
		var apart, size float64
		for i := r * width; i < (r+1)*width; i++ {
			apart += (got[i] - want[i]) * (got[i] - want[i])
			size += want[i] * want[i]
		}
		most = max(most, math.Sqrt(apart)/max(math.Sqrt(size), 1e-9))
	}
	return most
}

// The canonical form is right when plain arithmetic on it, in float64, gives what the publisher's own loader gives.
func TestEveryFormatComputesWhatItsPublisherMeant(t *testing.T) {
	t.Parallel()
	for _, c := range formatCases(t) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, err := checkpoint.OpenSAE(c.path, checkpoint.WithFacts(c.facts))
			require.NoError(t, err)
			defer shut(t, s)
			o := oracle{s: s, sequence: c.sequence}
			acts, recon := o.forward(c.x)
			decode := o.decode(c.acts, c.x)
			a, d, r := worst(t, acts, c.acts, c.rows), worst(t, decode, c.decode, c.rows), worst(t, recon, c.recon, c.rows)
			t.Logf("%s: worst relative error of a row: acts %.1e, decode %.1e, recon %.1e (%s)", c.name, a, d, r, c.reference)
			const most = 5e-5
			require.Less(t, a, most, "activations")
			require.Less(t, d, most, "decode")
			require.Less(t, r, most, "reconstruction")
		})
	}
}

func TestEveryFormatComputesTheSameWithItsDecoderNormsFolded(t *testing.T) {
	t.Parallel()
	for _, c := range formatCases(t) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, err := checkpoint.OpenSAE(c.path, checkpoint.WithFacts(c.facts))
			require.NoError(t, err)
			defer shut(t, s)
			if err := s.FoldDecoderNorm(); err != nil {
				var fold *checkpoint.FoldError
				require.ErrorAs(t, err, &fold)
				require.Contains(t, []string{"topk", "groupmax", "matching_pursuit", "temporal", "abstopk"}, s.Config.Architecture)
				return
			}
			o := oracle{s: s, sequence: c.sequence}
			_, recon := o.forward(c.x)
			require.Less(t, worst(t, recon, c.recon, c.rows), 5e-5, "what is put out does not change")
			for i := range s.Config.DSAE {
				row := s.WDec[i*s.Config.DOut : (i+1)*s.Config.DOut]
				sum := 0.0
				for _, v := range row {
					sum += float64(v) * float64(v)
				}
				require.InDelta(t, 1, sum, 1e-5, "row %d", i)
			}
		})
	}
}

func TestEveryFactOfAnSAESaysWhereItCameFrom(t *testing.T) {
	t.Parallel()
	for _, c := range formatCases(t) {
		s, err := checkpoint.OpenSAE(c.path, checkpoint.WithFacts(c.facts))
		require.NoError(t, err, c.name)
		g := s.Config
		for fact, known := range map[string]bool{
			"architecture": true, "d_in": true, "d_sae": true, "normalization": true, "apply_b_dec_to_input": !g.Transcoder,
			"k": g.K > 0, "hook": g.Hook != "", "hook_out": g.HookOut != "", "model_name": g.ModelName != "", "scaling_factor": g.ScalingFactor != 0,
		} {
			if known {
				require.NotEmpty(t, g.Origins[fact], "%s: %s", c.name, fact)
			}
		}
		require.Contains(t, checkpoint.SAEFormats(), g.Format)
		require.NotEmpty(t, g.DType, c.name)
		require.Len(t, g.SHA256, 64)
		require.NotEmpty(t, g.Files)
		require.NoError(t, s.Close())
	}
}

// oracle computes what the package documentation says of SAEConfig, in float64 and one value at a time.
type oracle struct {
	s        *checkpoint.SAE
	sequence int // tokens of a sequence: only a temporal SAE looks back
}

// normalised gives the input as the encoder sees it before b_dec, and what undoes it on a row of output.
func (o oracle) normalised(x []float64) (u []float64, undo func([]float64)) {
	u, c := slices.Clone(x), o.s.Config
	undo = func([]float64) {}
	switch c.Normalization {
	case checkpoint.NormConstant:
		by := math.Sqrt(float64(c.DIn)) / norm(x)
		each(u, func(v float64) float64 { return v * by })
		undo = func(y []float64) { each(y, func(v float64) float64 { return v / by }) }
	case checkpoint.NormLayer:
		mean, sum := 0.0, 0.0
		for _, v := range x {
			mean += v / float64(len(x))
		}
		for _, v := range x {
			sum += (v - mean) * (v - mean)
		}
		std := math.Sqrt(sum / float64(len(x)-1))
		each(u, func(v float64) float64 { return (v - mean) / (std + 1e-5) })
		undo = func(y []float64) { each(y, func(v float64) float64 { return v*std + mean }) }
	}
	if t := o.s.Temporal; t != nil {
		each(u, func(v float64) float64 { return v * t.ActivationScale })
		before := undo
		undo = func(y []float64) { before(y); each(y, func(v float64) float64 { return v / t.ActivationScale }) }
	}
	if c.Transcoder {
		undo = func([]float64) {}
	}
	return u, undo
}

func (o oracle) input(x []float64) []float64 {
	u, _ := o.normalised(x)
	if o.s.Config.ApplyBDecToInput {
		for i := range u {
			u[i] -= float64(o.s.BDec[i])
		}
	}
	return u
}

// forward gives activations and reconstructions of rows of d_in.
func (o oracle) forward(x []float64) (acts, recon []float64) {
	c := o.s.Config
	if o.s.Temporal != nil {
		return o.temporal(x)
	}
	for at := 0; at < len(x); at += c.DIn {
		row := x[at : at+c.DIn]
		a := o.encode(o.input(row))
		acts = append(acts, a...)
		y := o.decode(a, row)
		if o.s.WSkip != nil {
			for i := range y {
				for j, v := range row {
					y[i] += v * float64(o.s.WSkip[i*c.DIn+j])
				}
			}
		}
		recon = append(recon, y...)
	}
	return acts, recon
}

// decode gives Σ acts·W_dec + b_dec of rows, normalised back.
func (o oracle) decode(acts, x []float64) []float64 {
	c := o.s.Config
	norms := o.decoderNorms()
	var out []float64
	for r := range len(acts) / c.DSAE {
		y := make([]float64, c.DOut)
		for i, a := range acts[r*c.DSAE : (r+1)*c.DSAE] {
			if c.RescaleActsByDecoderNorm {
				a /= norms[i]
			}
			for j := range y {
				y[j] += a * float64(o.s.WDec[i*c.DOut+j])
			}
		}
		o.addBDec(y)
		_, undo := o.normalised(x[r*c.DIn : (r+1)*c.DIn])
		undo(y)
		out = append(out, y...)
	}
	return out
}

// addBDec leaves b_dec out where the encoder is the decoder and does not subtract it.
func (o oracle) addBDec(y []float64) {
	tied := o.s.Pursuit != nil || o.s.Temporal != nil && o.s.Temporal.Tied
	if tied && !o.s.Config.ApplyBDecToInput {
		return
	}
	for j := range y {
		y[j] += float64(o.s.BDec[j])
	}
}

func (o oracle) decoderNorms() []float64 {
	c := o.s.Config
	norms := make([]float64, c.DSAE)
	for i := range norms {
		norms[i] = norm(float64s(o.s.WDec[i*c.DOut : (i+1)*c.DOut]))
	}
	return norms
}

func (o oracle) encode(u []float64) []float64 {
	s, c := o.s, o.s.Config
	if s.Pursuit != nil {
		return o.pursue(u)
	}
	z := times(u, s.WEnc, c.DSAE)
	acts := make([]float64, c.DSAE)
	switch c.Architecture {
	case "gated":
		for i := range acts {
			if z[i]+float64(s.BGate[i]) > 0 {
				acts[i] = max(0, z[i]*math.Exp(float64(s.RMag[i]))+float64(s.BMag[i]))
			}
		}
		return acts
	case "standard", "jumprelu", "topk", "groupmax":
	default:
		return nil // an architecture that is not known here: the comparison says so
	}
	for i := range z {
		z[i] += float64(s.BEnc[i])
	}
	if c.RescaleActsByDecoderNorm {
		for i, n := range o.decoderNorms() {
			z[i] *= n
		}
	}
	keep := func(chosen []int) {
		for _, i := range chosen {
			acts[i] = max(0, z[i])
		}
	}
	switch all := indices(len(z)); c.Architecture {
	case "standard":
		keep(all)
	case "jumprelu":
		keep(slices.DeleteFunc(all, func(i int) bool { return z[i] <= float64(s.Threshold[i]) }))
	case "topk":
		keep(largest(z, c.K))
	case "groupmax":
		width := c.DSAE / c.K
		for g := range c.K {
			keep([]int{g*width + largest(z[g*width:(g+1)*width], 1)[0]})
		}
	}
	return acts
}

// pursue is matching pursuit for one token.
func (o oracle) pursue(u []float64) []float64 {
	c, p := o.s.Config, o.s.Pursuit
	acts, left := make([]float64, c.DSAE), slices.Clone(u)
	steps := p.MaxIterations
	if steps == 0 {
		steps = c.DIn
	}
	row := func(i int) []float64 { return float64s(o.s.WDec[i*c.DIn : (i+1)*c.DIn]) }
	for range steps {
		best, most := 0, 0.0
		for i := range c.DSAE {
			if d := dot(left, row(i)); d > most {
				best, most = i, d
			}
		}
		fresh := acts[best] == 0 && most > 0
		acts[best] += most
		for j, v := range row(best) {
			left[j] -= most * v
		}
		if p.StopOnDuplicateSupport && !fresh || p.ResidualThreshold > 0 && norm(left) < p.ResidualThreshold {
			break
		}
	}
	return acts
}

// temporal follows SAELens 6.54, temporal_sae.py, one sequence after the other.
func (o oracle) temporal(x []float64) (acts, recon []float64) {
	s, c, t := o.s, o.s.Config, o.s.Temporal
	wEnc := s.WEnc
	if t.Tied {
		wEnc = make([]float32, c.DIn*c.DSAE)
		for i := range c.DSAE {
			for j := range c.DIn {
				wEnc[j*c.DSAE+i] = s.WDec[i*c.DIn+j]
			}
		}
	}
	codes := func(left []float64) []float64 {
		z := times(left, wEnc, c.DSAE)
		each(z, func(v float64) float64 { return max(0, v*t.Lambda) })
		return z
	}
	for at := 0; at < len(x); at += o.sequence * c.DIn {
		left, predicted := make([][]float64, o.sequence), make([][]float64, o.sequence)
		for i := range left {
			left[i], predicted[i] = o.input(x[at+i*c.DIn:at+(i+1)*c.DIn]), make([]float64, c.DSAE)
		}
		for _, layer := range t.Layers {
			z := make([][]float64, o.sequence)
			for i := range z {
				z[i] = codes(left[i])
			}
			for i, p := range o.attention(layer, z) {
				back := times(p, s.WDec, c.DIn)
				scale := dot(back, left[i]) / math.Pow(norm(back)+1e-6, 2)
				for k := range p {
					predicted[i][k] += p[k] * scale
				}
				for k := range back {
					left[i][k] -= scale * back[k]
				}
			}
		}
		for i := range left {
			novel := codes(left[i])
			if t.TopK > 0 {
				kept := make([]float64, c.DSAE)
				for _, k := range largest(novel, t.TopK) {
					kept[k] = novel[k]
				}
				novel = kept
			}
			acts = append(acts, novel...)
			both := slices.Clone(novel)
			for k := range both {
				both[k] += predicted[i][k]
			}
			recon = append(recon, o.decode(both, x[at+i*c.DIn:at+(i+1)*c.DIn])...)
		}
	}
	return acts, recon
}

// attention looks from each code at the codes before it, the first of which is zero, and gives what they predict.
func (o oracle) attention(l checkpoint.TemporalLayer, z [][]float64) [][]float64 {
	d, heads, narrow := o.s.Config.DSAE, o.s.Temporal.Heads, o.s.Temporal.BottleneckDim
	linear := func(x []float64, weight, bias []float32, out int) []float64 {
		y := make([]float64, out)
		for i := range y {
			y[i] = dot(x, float64s(weight[i*len(x):(i+1)*len(x)]))
			if bias != nil {
				y[i] += float64(bias[i])
			}
		}
		return y
	}
	var q, k, v [][]float64
	for i := range z {
		context := make([]float64, d)
		if i > 0 {
			context = z[i-1]
		}
		q = append(q, linear(z[i], l.QWeight, l.QBias, narrow))
		k = append(k, linear(context, l.KWeight, l.KBias, narrow))
		v = append(v, linear(context, l.VWeight, l.VBias, d))
	}
	out := make([][]float64, len(z))
	for i := range z {
		mixed := make([]float64, d)
		for h := range heads {
			qk, dv := narrow/heads, d/heads
			weights, sum := make([]float64, i+1), 0.0
			for j := range weights {
				weights[j] = math.Exp(dot(q[i][h*qk:(h+1)*qk], k[j][h*qk:(h+1)*qk]) / math.Sqrt(float64(qk)))
				sum += weights[j]
			}
			for j, w := range weights {
				for e := h * dv; e < (h+1)*dv; e++ {
					mixed[e] += w / sum * v[j][e]
				}
			}
		}
		out[i] = linear(mixed, l.CWeight, l.CBias, d)
		each(out[i], func(v float64) float64 { return max(0, v) })
	}
	return out
}

func times(u []float64, w []float32, columns int) []float64 {
	z := make([]float64, columns)
	for j, v := range u {
		for i := range z {
			z[i] += v * float64(w[j*columns+i])
		}
	}
	return z
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for i := range a {
		sum += a[i] * b[i]
	}
	return sum
}

func norm(a []float64) float64 { return math.Sqrt(dot(a, a)) }

func each(values []float64, f func(float64) float64) {
	for i := range values {
		values[i] = f(values[i])
	}
}

func float64s(values []float32) []float64 {
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = float64(v)
	}
	return out
}

func indices(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// largest gives the places of the k largest values.
func largest(z []float64, k int) []int {
	all := indices(len(z))
	slices.SortStableFunc(all, func(a, b int) int {
		if z[a] != z[b] && z[a] > z[b] {
			return -1
		} else if z[a] < z[b] {
			return 1
		}
		return 0
	})
	return all[:k]
}

func TestTheGoldenSAEsStaySmall(t *testing.T) {
	t.Parallel()
	var total int64
	require.NoError(t, filepath.WalkDir("testdata/formats", func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		total += info.Size()
		return err
	}))
	require.Less(t, total, int64(3<<20))
}
