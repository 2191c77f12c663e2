package torch

// #include "native.h"
import "C"

import (
	"fmt"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"
)

// On a GPU the host must not wait for each piece: while it turns one piece's firings into postings, the
// next piece's travel to the host, and the one after that is computed.
//
//	launch  the device computes what fires; the host does not wait
//	collect on a second stream, which waits for that piece alone: coordinates and values, copied into page-locked memory
//	land    the host waits for that copy, and reads
//
// Each of the three works on another piece at a time; two blocks of page-locked memory take turns.

// ahead says whether it pays to work ahead.
func (e *composedEncoder) ahead() bool { return e.a.runtime.device != cpu || e.always }

// flight is a piece on its way.
type flight struct {
	s       *scope // owns its tensors
	piece   piece
	x       tensor
	f       *firings
	done    event // what was launched
	arrived event // what was collected
	pairs   []int64
	values  []float32
}

// encodeAhead is encode with three pieces on their way.
func (a *SAE) encodeAhead(s *scope, e *composedEncoder, x tensor, pieces []piece, visit func(s *scope, first int64, x tensor, f *firings)) {
	var landings [2]landing
	var launched, collected *flight
	defer func() {
		for _, l := range []*flight{collected, launched} {
			l.free()
		}
		for i := range landings {
			landings[i].free()
		}
	}()
	land := func(l *flight) {
		if l == nil {
			return
		}
		defer l.free()
		if e.land(l); l.s.err == nil {
			visit(l.s, l.piece.first, l.x, l.f)
		}
		s.failIf(l.s.err)
	}
	for i, p := range pieces {
		if !s.alive() {
			return
		}
		next := &flight{s: &scope{ctx: s.ctx, device: s.device}, piece: p}
		next.x = next.s.narrow(x, 0, p.first, p.rows)
		next.f = e.launch(next.s, next.x)
		next.done = e.a.runtime.side.mark(next.s)
		e.collect(launched, &landings[i%2])
		before := collected
		launched, collected = next, launched
		land(before)
	}
	e.collect(launched, &landings[len(pieces)%2])
	for _, l := range []*flight{collected, launched} {
		if s.err == nil {
			land(l)
		}
	}
}

// collect asks for coordinates and values: nonzero lists them by token, then latent. It knows how many there are only when that
// piece is computed, and waits for it, but for nothing that was launched since.
func (e *composedEncoder) collect(l *flight, to *landing) {
	if l == nil || l.s.err != nil || l.f.fires == nil {
		return
	}
	s, side := l.s, e.a.runtime.side
	side.enter(s, l.done)
	at := s.nonzero(l.f.fires)
	values := s.masked(l.f.dense, l.f.fires)
	if s.err == nil {
		n := shapeOf(at)[0]
		if to.room(s, 20*n) {
			l.pairs, l.values = unsafe.Slice((*int64)(to.data), 2*n), unsafe.Slice((*float32)(unsafe.Add(to.data, 16*n)), n)
			s.copyToHost(at, unsafe.Pointer(unsafe.SliceData(l.pairs)))
			s.copyToHost(values, unsafe.Pointer(unsafe.SliceData(l.values)))
		}
	}
	l.arrived = side.mark(s)
	side.leave(s)
}

// land waits for what was collected.
func (e *composedEncoder) land(l *flight) {
	if l.s.err != nil || l.f.fires == nil {
		return
	}
	l.arrived.wait(l.s)
	if l.s.err == nil {
		l.f.values = l.values
		l.f.place(l.pairs, int(shapeOf(l.f.dense)[0]))
	}
}

func (l *flight) free() {
	if l == nil || l.s == nil {
		return
	}
	l.arrived.wait(l.s) // the device must not write to what is given back
	l.done.free()
	l.arrived.free()
	l.s.free()
	l.s = nil
}

// landing is memory that a GPU copies to by itself.
type landing struct {
	t     tensor
	data  unsafe.Pointer
	bytes int64
}

func (l *landing) room(s *scope, bytes int64) bool {
	if s.err != nil || bytes <= l.bytes {
		return s.err == nil
	}
	l.free()
	bytes = bytes/2*3 + 1<<12
	var t, data unsafe.Pointer
	locked := C.int(0)
	if s.device != cpu {
		locked = 1
	}
	if message := C.fm_host_memory(C.int64_t(bytes), locked, &t, &data); message != nil { //nolint:gocritic // cgo writes the comparison
		s.fail(&OpError{Op: "empty", Shapes: []string{fmt.Sprint(bytes)}, Detail: goString(message)})
		return false
	}
	l.t, l.data, l.bytes = tensor(t), data, bytes
	return true
}

func (l *landing) free() {
	if l.t != nil {
		lib.AtFree(l.t)
	}
	*l = landing{}
}

func (s *scope) copyToHost(t tensor, data unsafe.Pointer) {
	if s.err != nil || data == nil {
		return
	}
	s.failOp("copy", t, C.fm_copy_to_host(unsafe.Pointer(t), data))
}

func (s *scope) failOp(op string, t tensor, message *C.char) {
	if message != nil {
		s.fail(&OpError{Op: op, Shapes: shapesOf([]tensor{t}), Detail: goString(message)})
	}
}

// sideStream is a GPU's second stream; nil on the CPU, where everything is done when it returns.
type sideStream struct{ handle unsafe.Pointer }

// event is a point in a stream's work; the zero event has passed.
type event struct{ handle unsafe.Pointer }

func openSideStream(d device) (*sideStream, error) {
	if d == cpu {
		return nil, nil //nolint:nilnil // there is none
	}
	side := &sideStream{}
	if message := C.fm_side_open(C.int(d), &side.handle); message != nil { //nolint:gocritic // cgo writes the comparison
		return nil, &DeviceError{Device: d.String(), Reason: goString(message)}
	}
	return side, nil
}

func (side *sideStream) close() {
	if side != nil {
		C.fm_side_close(side.handle)
	}
}

func (side *sideStream) mark(s *scope) (e event) {
	if side != nil && s.err == nil {
		s.failOp("record event", nil, C.fm_side_mark(side.handle, &e.handle)) //nolint:gocritic // cgo writes the comparison
	}
	return e
}

func (side *sideStream) enter(s *scope, after event) {
	if side != nil && s.err == nil && after.handle != nil {
		s.failOp("enter stream", nil, C.fm_side_enter(side.handle, after.handle))
	}
}

// leave is for work that failed, too.
func (side *sideStream) leave(s *scope) {
	if side != nil {
		s.failOp("leave stream", nil, C.fm_side_leave(side.handle))
	}
}

func (e event) wait(s *scope) {
	if e.handle != nil {
		s.failOp("wait for event", nil, C.fm_event_wait(e.handle))
	}
}

func (e event) free() {
	if e.handle != nil {
		C.fm_event_free(e.handle)
	}
}
