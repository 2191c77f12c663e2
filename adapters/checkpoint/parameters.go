package checkpoint

import (
	"fmt"
	"slices"
)

// wanted is a parameter that a decoder needs.
type wanted struct {
	name  string // Hugging Face's, or one of Modules' where the file fuses
	role  string // llama.cpp's name of the part, which every family shares
	layer int    // −1 outside the layers
	leaf  string // ".weight", ".bias"
	shape []int  // row-major
	why   string // the shape in words: "[heads × d_head, d_model]"
	from  slot
}

// slot says where in a file a parameter lies: its tensor's rows first … , or those that order names.
type slot struct {
	shape  []int // of the whole tensor
	turned bool  // the file has [in, out]
	first  int
	order  func(row int) int // nil: as they lie
	plus   float32           // added to every value
}

func (p slot) whole() bool { return !p.turned && p.first == 0 && p.order == nil }

// fileWhy says the shape of the file's tensor in words.
func (w wanted) fileWhy() string {
	switch {
	case slices.Equal(w.shape, w.from.shape):
		return w.why
	case w.from.turned && len(w.shape) == 2 && w.from.shape[1] == w.shape[0]:
		return "turned " + w.why
	default:
		return "all that it fuses"
	}
}

const (
	roleEmbedding = "token_embd"
	rolePositions = "position_embd"
	roleFinalNorm = "output_norm"
	roleHead      = "output"
	roleQKV       = "attn_qkv"
	roleGateUp    = "ffn_up" // phi3's, fused
)

// parameters lists what the decoder needs, and where files that store it so have it, tensor names left open. Call it only after
// the number of layers was held against the file.
func (f family) parameters(c ModelConfig, st storage) []wanted {
	m := f.modules
	q, kv := c.Heads*c.DHead, c.KVHeads*c.DHead
	out := make([]wanted, 0, 3+c.Layers*9)
	add := func(w wanted) *wanted {
		if w.from.shape == nil {
			w.from.shape = w.shape
		}
		out = append(out, w)
		return &out[len(out)-1]
	}
	norm := func(role, name string, layer, width int) {
		if name == "" {
			return
		}
		w := add(wanted{role: role, layer: layer, name: name, leaf: ".weight", shape: []int{width}, why: fmt.Sprintf("[%d]", width)})
		if w.why = "[d_model]"; width != c.DModel {
			w.why = "one for each dimension that is normalised"
		}
		if st.plusOne {
			w.from.plus = 1
		}
		if c.Norm == LayerNorm {
			add(wanted{role: role, layer: layer, name: name, leaf: ".bias", shape: []int{width}, why: "[d_model]"})
		}
	}
	// projection adds a matrix, and its bias; rows first … of fused where the file has one tensor for several.
	projection := func(role, name string, layer int, bias bool, why string, rows, columns int, place slot, all int) {
		if all == 0 {
			all = rows
		}
		w := add(wanted{role: role, layer: layer, name: name, leaf: ".weight", shape: []int{rows, columns}, why: why, from: place})
		if w.from.shape = []int{all, columns}; w.from.turned {
			w.from.shape = []int{columns, all}
		}
		if bias {
			place.turned = false
			w = add(wanted{role: role, layer: layer, name: name, leaf: ".bias", shape: []int{rows}, why: "the rows of " + why, from: place})
			w.from.shape = []int{all}
		}
	}
	plain := slot{turned: st.turned}

	add(wanted{role: roleEmbedding, layer: -1, name: m.Embedding, leaf: ".weight", shape: []int{c.Vocab, c.DModel}, why: "[vocab, d_model]"})
	if c.LearnedPositions {
		add(wanted{role: rolePositions, layer: -1, name: m.Positions, leaf: ".weight", shape: []int{c.MaxPositions, c.DModel}, why: "[positions, d_model]"})
	}
	for l := range c.Layers {
		norm("attn_norm", m.AttnNorm, l, c.DModel)
		for i, p := range []struct {
			role, name, why string
			rows, first     int
		}{
			{"attn_q", m.Q, "[heads × d_head, d_model]", q, 0},
			{"attn_k", m.K, "[kv_heads × d_head, d_model]", kv, q},
			{"attn_v", m.V, "[kv_heads × d_head, d_model]", kv, q + kv},
		} {
			place, all, role := plain, 0, p.role
			switch {
			case st.qkv == stacked:
				place.first, all, role = p.first, q+2*kv, roleQKV
			case st.qkv == perHead:
				d := c.DHead
				place.order, all, role = func(row int) int { return (row/d*3+i)*d + row%d }, q+2*kv, roleQKV
			case st.permuted && i < 2:
				place.order = unpermuted(c.DHead)
			}
			projection(role, p.name, l, c.AttentionBias, p.why, p.rows, c.DModel, place, all)
		}
		projection("attn_output", m.O, l, c.OutputBias, "[d_model, heads × d_head]", c.DModel, q, plain, 0)
		switch c.QKNorm {
		case NormHeads:
			norm("attn_q_norm", m.QNorm, l, c.DHead)
			norm("attn_k_norm", m.KNorm, l, c.DHead)
		case NormProjections:
			norm("attn_q_norm", m.QNorm, l, q)
			norm("attn_k_norm", m.KNorm, l, kv)
		}
		norm("post_attention_norm", m.AttnPostNorm, l, c.DModel)
		norm("ffn_norm", m.MLPNorm, l, c.DModel)
		if c.Gated {
			place, all, role := plain, 0, "ffn_gate"
			if st.gateUp == stacked {
				all, role = 2*c.DFF, roleGateUp
			}
			projection(role, m.Gate, l, c.MLPBias, "[d_ff, d_model]", c.DFF, c.DModel, place, all)
		}
		place, all := plain, 0
		if st.gateUp == stacked {
			place.first, all = c.DFF, 2*c.DFF
		}
		projection("ffn_up", m.Up, l, c.MLPBias, "[d_ff, d_model]", c.DFF, c.DModel, place, all)
		projection("ffn_down", m.Down, l, c.MLPBias, "[d_model, d_ff]", c.DModel, c.DFF, plain, 0)
		norm("post_ffw_norm", m.MLPPostNorm, l, c.DModel)
	}
	norm(roleFinalNorm, m.FinalNorm, -1, c.DModel)
	add(wanted{role: roleHead, layer: -1, name: m.Head, leaf: ".weight", shape: []int{c.Vocab, c.DModel}, why: "[vocab, d_model]"})
	if c.HeadBias {
		add(wanted{role: roleHead, layer: -1, name: m.Head, leaf: ".bias", shape: []int{c.Vocab}, why: "[vocab]"})
	}
	for i := range out {
		w := &out[i]
		if w.layer < 0 {
			w.name = m.Name(w.name) + w.leaf
		} else {
			w.name = m.InLayer(w.layer, w.name) + w.leaf
		}
	}
	return out
}

// unpermuted: llama.cpp interleaves the two halves of every head of q and k, for its own layout of rotary embeddings: row
// h·d + 2i + j of the file is row h·d + j·d/2 + i of Hugging Face's, for q over the heads and for k over the key/value heads, both
// with d rows a head. Biases follow their rows.
func unpermuted(d int) func(row int) int {
	return func(row int) int { return row/d*d + row%d%(d/2)*2 + row%d/(d/2) }
}

// inHuggingFace names a parameter's tensor as the family's files do, body being what stands before their names.
func (m Modules) inHuggingFace(w wanted, body string, st storage) string {
	if w.role == roleHead {
		return m.Head + w.leaf
	}
	name := w.name[len(m.Bodies[0]):]
	switch {
	case st.qkv != apart && w.role == roleQKV:
		name = m.Layers + "." + itoa(w.layer) + "." + m.QKV + w.leaf
	case st.gateUp != apart && w.role == roleGateUp:
		name = m.Layers + "." + itoa(w.layer) + "." + m.GateUp + w.leaf
	}
	return body + name
}

// inGGUF names it as llama.cpp does.
func inGGUF(w wanted) string {
	if w.layer < 0 {
		return w.role + w.leaf
	}
	return "blk." + itoa(w.layer) + "." + w.role + w.leaf
}

// take cuts a parameter out of a file's tensor: a view where rows lie together as they are, else a copy.
func (p slot) take(t Tensor, shape []int) (Tensor, error) {
	switch {
	case p.whole() && slices.Equal(t.Shape, shape):
	case p.turned || p.order != nil:
		t.Data, t.Fresh = p.gather(t, shape), true
	default:
		row := len(t.Data) / t.Shape[0]
		t.Data = t.Data[p.first*row : (p.first+shape[0])*row : (p.first+shape[0])*row]
	}
	t.Shape = slices.Clone(shape)
	if p.plus == 0 {
		return t, nil
	}
	values, err := t.Float32()
	if err != nil {
		return Tensor{}, err
	}
	out := make([]float32, len(values))
	for i, v := range values {
		out[i] = p.plus + v
	}
	t = Float32Tensor(t.Name, out, shape...)
	t.Fresh = true
	return t, nil
}

func (p slot) gather(t Tensor, shape []int) []byte {
	size := t.DType.Bits() / 8
	columns := 1
	if len(shape) == 2 {
		columns = shape[1]
	}
	out := make([]byte, shape[0]*columns*size)
	inParallel(shape[0]*columns, func(from, to int) {
		for r := (from + columns - 1) / columns; r*columns < to; r++ { // a row belongs to the part in which it begins
			row := p.first + r
			if p.order != nil {
				row = p.first + p.order(r)
			}
			target := out[r*columns*size:][:columns*size]
			if !p.turned {
				copy(target, t.Data[row*columns*size:])
				continue
			}
			stride := t.Shape[1] * size
			for c := range columns {
				copy(target[c*size:(c+1)*size], t.Data[c*stride+row*size:])
			}
		}
	})
	return out
}
