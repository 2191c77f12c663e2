package torch

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Taps keeps what forward passes gave at hooks, so that SAEs which read the same hook of the same model
// on the same text share them. It may forget, but what it gives back must be the bits that were stored.
type Taps interface {
	// Load fills x, [rows, d_in], with what was stored under the key, or says that it has nothing.
	Load(key [sha256.Size]byte, x []float32) bool
	Store(key [sha256.Size]byte, x []float32)
}

// Share makes the engine look into taps before it runs the model, and leave there what the model gave.
// model names the model's weights, such as the digest of its files. Postings stay what they are to the bit: a pass is found by
// everything that it depends on, the sequences that ran in it together among them.
func (e *Engine) Share(taps Taps, model string) {
	e.shared = taps
	e.passes = sha256.Sum256(fmt.Appendf(nil, "%q %q %q %v %d", model, e.model.runtime.Profile().Requirement(), e.hook, e.hook.Centred, e.sae.config.DIn))
}

func (e *Engine) tapKey(ids [][]int32) (key [sha256.Size]byte) {
	h := sha256.New()
	h.Write(e.passes[:])
	for _, sequence := range ids {
		b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+4*len(sequence)), uint32(len(sequence)))
		for _, id := range sequence {
			b = binary.LittleEndian.AppendUint32(b, uint32(id))
		}
		h.Write(b)
	}
	h.Sum(key[:0])
	return key
}
