package checkpoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// What a pickle may build here: nil, bool, int64, float64, string, []byte, and these. Nothing else, and nothing is ever called:
// a name that is not one of torch's few ways to rebuild a tensor is refused before anything is done with it.
type (
	pickleTuple  []any
	pickleList   struct{ items []any }
	pickleGlobal string // "torch FloatStorage"
	pickleMark   struct{}

	// pickleDict keeps the order of its keys, as Python does.
	pickleDict struct {
		keys   []any
		values map[any]any
	}

	// pickleStorage is a piece of memory that the pickle refers to: torch keeps it elsewhere in the file.
	pickleStorage struct {
		dtype    DType // "" where the tensor says it (UntypedStorage)
		key      string
		elements int64
	}

	// pickleTensor is a view of a storage.
	pickleTensor struct {
		storage       pickleStorage
		offset        int64
		shape, stride []int64
	}
)

// PickleError says that a pickle is damaged or asks for something that is no tensor, no number, no text and no container.
type PickleError struct {
	Path string
	At   int // byte in the pickle
	Fact string
	Want string
}

func (e *PickleError) Error() string {
	return fmt.Sprintf("%sthe pickle, at byte %d: %s%s", place(e.Path), e.At, e.Fact, expected(e.Want))
}

// A state dict of an SAE takes a few hundred steps; objects are bounded because one byte of a pickle may make a whole one.
const (
	maxPickleSteps = 400_000
	maxPickle      = 64 << 20
	maxPickleStack = 200_000
)

// unpickler is Python's pickle machine (Lib/pickletools.py), protocols 0 to 5, without its ways to run code.
type unpickler struct {
	path  string
	data  []byte
	at    int
	stack []any
	memo  map[uint32]any
}

// unpickle reads one pickle and says how long it is.
func unpickle(path string, data []byte) (value any, length int, err error) {
	if len(data) > maxPickle {
		data = data[:maxPickle]
	}
	u := &unpickler{path: path, data: data, memo: map[uint32]any{}}
	for range maxPickleSteps {
		op, err := u.take(1)
		if err != nil {
			return nil, 0, err
		}
		if op[0] == '.' {
			value, err := u.pop()
			return value, u.at, err
		}
		if err := u.step(op[0]); err != nil {
			return nil, 0, err
		}
	}
	return nil, 0, u.broken(fmt.Sprintf("it takes more than %d steps", maxPickleSteps), "the few that tensors take")
}

func (u *unpickler) broken(fact, want string) error {
	return &PickleError{Path: u.path, At: u.at, Fact: fact, Want: want}
}

// take gives the next n bytes, which are in the file or it is an error.
func (u *unpickler) take(n uint64) ([]byte, error) {
	if n > uint64(len(u.data)-u.at) {
		return nil, u.broken(fmt.Sprintf("%d bytes are wanted and %d are left", n, len(u.data)-u.at), "a whole file; this one is cut short")
	}
	from := u.at
	u.at += int(n)
	return u.data[from:u.at], nil
}

// sized gives what stands behind a length of so many bytes.
func (u *unpickler) sized(width int) ([]byte, error) {
	head, err := u.take(uint64(width))
	if err != nil {
		return nil, err
	}
	n := uint64(0)
	for i := width - 1; i >= 0; i-- {
		n = n<<8 | uint64(head[i])
	}
	return u.take(n)
}

func (u *unpickler) line() (string, error) {
	n := bytes.IndexByte(u.data[u.at:], '\n')
	if n < 0 {
		return "", u.broken("a line does not end", "a whole file; this one is cut short")
	}
	text, err := u.take(uint64(n) + 1)
	return string(text[:len(text)-1]), err
}

func (u *unpickler) push(v any) error {
	if len(u.stack) == maxPickleStack {
		return u.broken(fmt.Sprintf("its stack holds more than %d things", maxPickleStack), "the few that tensors take")
	}
	u.stack = append(u.stack, v)
	return nil
}

func (u *unpickler) pop() (any, error) {
	if len(u.stack) == 0 {
		return nil, u.broken("it takes from an empty stack", "")
	}
	v := u.stack[len(u.stack)-1]
	u.stack = u.stack[:len(u.stack)-1]
	return v, nil
}

// popMark gives everything above the last mark, and takes the mark away.
func (u *unpickler) popMark() ([]any, error) {
	for i := len(u.stack) - 1; i >= 0; i-- {
		if _, ok := u.stack[i].(pickleMark); ok {
			items := slices.Clone(u.stack[i+1:])
			u.stack = u.stack[:i]
			return items, nil
		}
	}
	return nil, u.broken("there is no mark on the stack", "")
}

func (u *unpickler) popMany(n int) ([]any, error) {
	if len(u.stack) < n {
		return nil, u.broken("it takes from an empty stack", "")
	}
	items := slices.Clone(u.stack[len(u.stack)-n:])
	u.stack = u.stack[:len(u.stack)-n]
	return items, nil
}

func (u *unpickler) top() (any, error) {
	if len(u.stack) == 0 {
		return nil, u.broken("it looks at an empty stack", "")
	}
	return u.stack[len(u.stack)-1], nil
}

// step does one instruction. The groups are numbers and texts; containers; memory; names.
func (u *unpickler) step(op byte) error {
	switch op {
	case 0x80: // PROTO
		version, err := u.take(1)
		if err == nil && version[0] > 5 {
			err = u.broken(fmt.Sprintf("it is of protocol %d", version[0]), "0 to 5")
		}
		return err
	case 0x95: // FRAME: its length is a hint
		_, err := u.take(8)
		return err
	case 'N', 0x88, 0x89, 'K', 'M', 'J', 0x8a, 0x8b, 'I', 'L', 'G', 'F', 'X', 0x8c, 0x8d, 'U', 'T', 'V', 'S', 'C', 'B', 0x8e:
		v, err := u.scalar(op)
		if err != nil {
			return err
		}
		return u.push(v)
	case '(', ')', '}', ']', 0x8f, 't', 0x85, 0x86, 0x87, 'd', 'l', 's', 'u', 'a', 'e', 0x90, 0x91:
		return u.container(op)
	case 'q', 'r', 'p', 0x94, 'h', 'j', 'g', '0', '1', '2':
		return u.memory(op)
	case 'c', 0x93, 'R', 0x81, 'b', 'Q':
		return u.named(op)
	}
	return u.broken(fmt.Sprintf("the instruction %#02x is not one that tensors take", op), "what torch.save writes for a state dict; a pickle that runs code is never read")
}

func (u *unpickler) scalar(op byte) (any, error) {
	le := binary.LittleEndian
	fixed := func(n uint64, f func([]byte) any) (any, error) {
		b, err := u.take(n)
		if err != nil {
			return nil, err
		}
		return f(b), nil
	}
	words := func(width int) (any, error) {
		b, err := u.sized(width)
		return string(b), err
	}
	switch op {
	case 'N':
		return nil, nil // Python's None
	case 0x88:
		return true, nil
	case 0x89:
		return false, nil
	case 'K':
		return fixed(1, func(b []byte) any { return int64(b[0]) })
	case 'M':
		return fixed(2, func(b []byte) any { return int64(le.Uint16(b)) })
	case 'J':
		return fixed(4, func(b []byte) any { return int64(int32(le.Uint32(b))) })
	case 'G':
		return fixed(8, func(b []byte) any { return math.Float64frombits(binary.BigEndian.Uint64(b)) })
	case 'X', 'T':
		return words(4)
	case 0x8c, 'U':
		return words(1)
	case 0x8d:
		return words(8)
	case 'C':
		return u.sized(1)
	case 'B':
		return u.sized(4)
	case 0x8e:
		return u.sized(8)
	case 0x8a:
		return u.long(1)
	case 0x8b:
		return u.long(4)
	}
	text, err := u.line()
	if err != nil {
		return nil, err
	}
	return u.spelled(op, text)
}

// long is a number in two's complement. What does not fit an int64 stays as its digits in hexadecimal: only a magic does that.
func (u *unpickler) long(width int) (any, error) {
	b, err := u.sized(width)
	if err != nil {
		return nil, err
	}
	if len(b) > 8 {
		if len(b) > 64 {
			return nil, u.broken(fmt.Sprintf("a whole number has %d bytes", len(b)), "at most 8")
		}
		b = slices.Clone(b)
		slices.Reverse(b)
		return fmt.Sprintf("%x", b), nil
	}
	n := uint64(0)
	for i := len(b) - 1; i >= 0; i-- {
		n = n<<8 | uint64(b[i])
	}
	if len(b) > 0 && len(b) < 8 && b[len(b)-1]&0x80 != 0 {
		n |= math.MaxUint64 << (8 * len(b))
	}
	return int64(n), nil
}

// spelled reads what protocol 0 writes as text.
func (u *unpickler) spelled(op byte, text string) (any, error) {
	switch op {
	case 'I':
		switch text {
		case "00":
			return false, nil
		case "01":
			return true, nil
		}
		fallthrough
	case 'L':
		if n, err := strconv.ParseInt(strings.TrimSuffix(text, "L"), 10, 64); err == nil {
			return n, nil
		}
	case 'F':
		if f, err := strconv.ParseFloat(text, 64); err == nil {
			return f, nil
		}
	case 'V':
		return text, nil
	case 'S':
		if n := len(text); n >= 2 && (text[0] == '\'' || text[0] == '"') && text[n-1] == text[0] && !strings.Contains(text, `\`) {
			return text[1 : n-1], nil
		}
	}
	return nil, u.broken(fmt.Sprintf("%.40q is no value", text), "")
}

func (u *unpickler) container(op byte) error {
	switch op {
	case '(':
		return u.push(pickleMark{})
	case ')':
		return u.push(pickleTuple{})
	case '}':
		return u.push(&pickleDict{})
	case ']', 0x8f:
		return u.push(&pickleList{})
	case 0x85, 0x86, 0x87:
		items, err := u.popMany(int(op) - 0x84)
		if err != nil {
			return err
		}
		return u.push(pickleTuple(items))
	case 'a':
		items, err := u.popMany(1)
		if err != nil {
			return err
		}
		return u.extend(items)
	case 's':
		items, err := u.popMany(2)
		if err != nil {
			return err
		}
		return u.fill(items)
	}
	items, err := u.popMark()
	if err != nil {
		return err
	}
	switch op {
	case 't':
		return u.push(pickleTuple(items))
	case 'l', 0x91:
		return u.push(&pickleList{items: items})
	case 'd':
		if err := u.push(&pickleDict{}); err != nil {
			return err
		}
		return u.fill(items)
	case 'u':
		return u.fill(items)
	default: // 'e' and 0x90
		return u.extend(items)
	}
}

func (u *unpickler) extend(items []any) error {
	v, err := u.top()
	if err != nil {
		return err
	}
	list, ok := v.(*pickleList)
	if !ok {
		return u.broken(fmt.Sprintf("it appends to a %T", v), "a list")
	}
	list.items = append(list.items, items...)
	return nil
}

// fill sets keys and values, which alternate.
func (u *unpickler) fill(items []any) error {
	v, err := u.top()
	if err != nil {
		return err
	}
	dict, ok := v.(*pickleDict)
	if !ok || len(items)%2 != 0 {
		return u.broken(fmt.Sprintf("it sets %d keys and values of a %T", len(items), v), "pairs, and a dict")
	}
	if dict.values == nil {
		dict.values = map[any]any{}
	}
	for i := 0; i < len(items); i += 2 {
		key := items[i]
		switch key.(type) {
		case string, int64, float64, bool, nil, pickleGlobal:
		default:
			return u.broken(fmt.Sprintf("a dict has a key of the type %T", key), "texts and numbers as keys")
		}
		if _, ok := dict.values[key]; !ok {
			dict.keys = append(dict.keys, key)
		}
		dict.values[key] = items[i+1]
	}
	return nil
}

func (u *unpickler) memory(op byte) error {
	index := uint32(0)
	switch op {
	case '0':
		_, err := u.pop()
		return err
	case '1':
		_, err := u.popMark()
		return err
	case 'q', 'h':
		b, err := u.take(1)
		if err != nil {
			return err
		}
		index = uint32(b[0])
	case 'r', 'j':
		b, err := u.take(4)
		if err != nil {
			return err
		}
		index = binary.LittleEndian.Uint32(b)
	case 'p', 'g':
		text, err := u.line()
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil {
			return u.broken(fmt.Sprintf("%.40q is no place in memory", text), "")
		}
		index = uint32(n)
	case 0x94:
		index = uint32(len(u.memo))
	}
	if op == 'h' || op == 'j' || op == 'g' {
		v, ok := u.memo[index]
		if !ok {
			return u.broken(fmt.Sprintf("it recalls %d, which it never kept", index), "")
		}
		return u.push(v)
	}
	v, err := u.top()
	if err != nil {
		return err
	}
	if op == '2' {
		return u.push(v)
	}
	u.memo[index] = v
	return nil
}
