package checkpoint

import "encoding/binary"

// The K-quants: blocks of 256 with one or two float16 scales d (and dmin), and small integers that scale sub-blocks of 16 or 32.
// Elements are numbered as in the row; a sub-block finds its bits by its own number.

// unpackQ2K: 16 bytes with scale and minimum of each sub-block of 16, 64 bytes of 2-bit q, d, dmin; d·scale·q − dmin·minimum.
func unpackQ2K(b []byte, out []float32) {
	d, dmin := half(b[80:]), half(b[82:])
	for i := range 16 {
		scale, least := d*float32(b[i]&15), dmin*float32(b[i]>>4)
		q, to, shift := b[16+i/8*32+i%2*16:][:16], out[16*i:][:16], i%8/2*2
		for j := range to {
			to[j] = float32(scale*float32(q[j]>>shift&3)) - least
		}
	}
}

// unpackQ3K: 32 bytes with the third bits, 64 bytes with the other two, 12 bytes with 16 scales of 6 bits, d; d·(scale−32)·q, where
// q is 4 less where the third bit is not set.
func unpackQ3K(b []byte, out []float32) {
	scales, d := b[96:108], half(b[108:])
	for i := range 16 {
		low := scales[i%8] >> (i / 8 * 4) & 15
		high := scales[8+i%4] >> (i / 4 * 2) & 3
		scale := d * float32(int(low|high<<4)-32)
		q, third, to, shift := b[32+i/8*32+i%2*16:][:16], b[i%2*16:][:16], out[16*i:][:16], i%8/2*2
		for j := range to {
			to[j] = scale * float32(int(q[j]>>shift&3|third[j]>>(i/2)&1<<2)-4)
		}
	}
}

// sixBits takes scale and minimum of sub-block i of 8 from 12 bytes: the first four of each lie in the low bits of 8 bytes, the last
// four in nibbles of 4 bytes, and their upper bits above those of the first.
func sixBits(b []byte, i int) (scale, least float32) {
	if i < 4 {
		return float32(b[i] & 63), float32(b[4+i] & 63)
	}
	return float32(b[4+i]&15 | b[i-4]>>6<<4), float32(b[4+i]>>4 | b[i]>>6<<4)
}

// unpackQ4K: d, dmin, 12 bytes of scales and minima for sub-blocks of 32, 128 bytes of 4-bit q; d·scale·q − dmin·minimum.
func unpackQ4K(b []byte, out []float32) {
	d, dmin := half(b), half(b[2:])
	for i := range 8 {
		scale, least := sixBits(b[4:16], i)
		scale, least = d*scale, dmin*least
		q, to, shift := b[16+i/2*32:][:32], out[32*i:][:32], i%2*4
		for j := range to {
			to[j] = float32(scale*float32(q[j]>>shift&15)) - least
		}
	}
}

// unpackQ5K is unpackQ4K with 32 bytes of fifth bits before q: bit i of byte j belongs to element j of sub-block i.
func unpackQ5K(b []byte, out []float32) {
	d, dmin, fifth := half(b), half(b[2:]), b[16:48]
	for i := range 8 {
		scale, least := sixBits(b[4:16], i)
		scale, least = d*scale, dmin*least
		q, to, shift := b[48+i/2*32:][:32], out[32*i:][:32], i%2*4
		for j := range to {
			to[j] = float32(scale*float32(q[j]>>shift&15|fifth[j]>>i&1<<4)) - least
		}
	}
}

// unpackQ6K: 128 bytes with the low four bits, 64 bytes with the upper two, 16 signed scales for sub-blocks of 16, d; d·scale·(q−32).
func unpackQ6K(b []byte, out []float32) {
	d := half(b[208:])
	for i := range 16 {
		scale := d * float32(int8(b[192+i]))
		low, high := b[i/8*64+i%4*16:][:16], b[128+i/8*32+i%2*16:][:16]
		to, shift, shift2 := out[16*i:][:16], i%8/4*4, i%8/2*2
		for j := range to {
			to[j] = scale * float32(int(low[j]>>shift&15|high[j]>>shift2&3<<4)-32)
		}
	}
}

// unpackIQ4XS: d, upper bits and 4 bytes of lower bits of 8 scales for sub-blocks of 32, 128 bytes of codes; d·(scale−32)·curve(code).
func unpackIQ4XS(b []byte, out []float32) {
	d, upper := half(b), binary.LittleEndian.Uint16(b[2:])
	for i := range 8 {
		scale := d * float32(int(b[4+i/2]>>(i%2*4)&15|byte(upper>>(2*i)&3)<<4)-32)
		to := out[32*i:][:32]
		for j, q := range b[8+16*i:][:16] {
			to[j] = scale * ggmlCurve[q&15]
			to[j+16] = scale * ggmlCurve[q>>4]
		}
	}
}
