package checkpoint

import (
	"fmt"
	"slices"
	"strings"
)

// storageTypes are torch's names of memory, with the dtype of what is in it.
func storageTypes() map[pickleGlobal]DType {
	return map[pickleGlobal]DType{
		"torch FloatStorage": F32, "torch DoubleStorage": F64, "torch HalfStorage": F16, "torch BFloat16Storage": BF16,
		"torch LongStorage": I64, "torch IntStorage": I32, "torch ShortStorage": I16, "torch CharStorage": I8, "torch ByteStorage": U8, "torch BoolStorage": Bool,
		"torch.storage UntypedStorage": "", "torch.storage _UntypedStorage": "",
	}
}

// dtypeNames are torch's names of dtypes, which some files hold as values.
func dtypeNames() map[pickleGlobal]DType {
	return map[pickleGlobal]DType{
		"torch float32": F32, "torch float64": F64, "torch float16": F16, "torch bfloat16": BF16,
		"torch int64": I64, "torch int32": I32, "torch int16": I16, "torch int8": I8, "torch uint8": U8, "torch bool": Bool,
	}
}

const (
	orderedDict    pickleGlobal = "collections OrderedDict"
	defaultDict    pickleGlobal = "collections defaultdict"
	rebuildTensor  pickleGlobal = "torch._utils _rebuild_tensor"
	rebuildTensor2 pickleGlobal = "torch._utils _rebuild_tensor_v2"
	rebuildTensor3 pickleGlobal = "torch._utils _rebuild_tensor_v3" // says its dtype: its storage does not
	rebuildParam   pickleGlobal = "torch._utils _rebuild_parameter"
	torchSize      pickleGlobal = "torch Size"
	torchDevice    pickleGlobal = "torch device"
	builtinSet     pickleGlobal = "builtins set"
	builtinSet2    pickleGlobal = "__builtin__ set"
	encodeText     pickleGlobal = "_codecs encode" // how protocol 2 writes bytes
)

// known says whether a name may stand in a pickle at all.
func (g pickleGlobal) known() bool {
	if _, ok := storageTypes()[g]; ok {
		return true
	}
	if _, ok := dtypeNames()[g]; ok {
		return true
	}
	return slices.Contains([]pickleGlobal{orderedDict, defaultDict, rebuildTensor, rebuildTensor2, rebuildTensor3, rebuildParam, torchSize, torchDevice, builtinSet, builtinSet2, encodeText}, g)
}

// named does what has to do with names: the only instructions that could run code, if anything here did.
func (u *unpickler) named(op byte) error {
	switch op {
	case 'c':
		module, err := u.line()
		if err != nil {
			return err
		}
		name, err := u.line()
		if err != nil {
			return err
		}
		return u.global(module, name)
	case 0x93:
		items, err := u.popMany(2)
		if err != nil {
			return err
		}
		module, ok1 := items[0].(string)
		name, ok2 := items[1].(string)
		if !ok1 || !ok2 {
			return u.broken("a name is no text", "")
		}
		return u.global(module, name)
	case 'Q':
		id, err := u.pop()
		if err != nil {
			return err
		}
		s, err := u.storage(id)
		if err != nil {
			return err
		}
		return u.push(s)
	}
	items, err := u.popMany(2)
	if err != nil {
		return err
	}
	if op == 'b' { // BUILD sets attributes: a state dict's _metadata, which nobody reads here
		switch items[0].(type) {
		case *pickleDict, *pickleList, *pickleTensor:
			return u.push(items[0])
		}
		return u.broken(fmt.Sprintf("it sets the state of a %T", items[0]), "tensors and plain containers, which have none")
	}
	g, ok := items[0].(pickleGlobal)
	arguments, tuple := items[1].(pickleTuple)
	if !ok || !tuple {
		return u.broken("it calls something that is no name of torch's", "tensors and plain containers")
	}
	v, err := u.rebuild(g, arguments)
	if err != nil {
		return err
	}
	return u.push(v)
}

func (u *unpickler) global(module, name string) error {
	g := pickleGlobal(module + " " + name)
	if !g.known() {
		return u.broken(fmt.Sprintf("it asks for %.80s.%.80s, which is Python code", module, name), "tensors, numbers, text and plain containers only: code in a checkpoint is never run; save the state dict alone, or as safetensors")
	}
	return u.push(g)
}

// storage reads a persistent id: ("storage", type, key, where it was, elements).
func (u *unpickler) storage(id any) (pickleStorage, error) {
	t, ok := id.(pickleTuple)
	if !ok || len(t) < 5 || t[0] != "storage" {
		return pickleStorage{}, u.broken("a persistent id is no storage", `("storage", type, key, location, elements)`)
	}
	kind, ok1 := t[1].(pickleGlobal)
	dtype, ok2 := storageTypes()[kind]
	key, ok3 := t[2].(string)
	elements, ok4 := t[4].(int64)
	if !ok1 || !ok2 || !ok3 || !ok4 || elements < 0 {
		return pickleStorage{}, u.broken("a storage is not described as torch describes it", `("storage", type, key, location, elements)`)
	}
	if len(t) > 5 && t[5] != nil {
		return pickleStorage{}, u.broken("a storage is a view of another (a torch of before 0.4)", "a file of a torch from this decade")
	}
	return pickleStorage{dtype: dtype, key: key, elements: elements}, nil
}

// rebuild makes what a name of torch's stands for; it runs nothing.
func (u *unpickler) rebuild(g pickleGlobal, a pickleTuple) (any, error) {
	switch g {
	case orderedDict, defaultDict:
		d := &pickleDict{}
		if g == defaultDict || len(a) == 0 { // a default's type is not a value
			return d, nil
		}
		pairs, ok := a[0].(*pickleList)
		if !ok {
			return nil, u.broken("an OrderedDict is not made of pairs", "pairs")
		}
		var flat []any
		for _, p := range pairs.items {
			switch p := p.(type) {
			case pickleTuple:
				flat = append(flat, p...)
			case *pickleList:
				flat = append(flat, p.items...)
			}
		}
		if len(flat) != 2*len(pairs.items) {
			return nil, u.broken("an OrderedDict is not made of pairs", "pairs")
		}
		at := &unpickler{path: u.path, at: u.at, stack: []any{d}}
		return d, at.fill(flat)
	case rebuildTensor, rebuildTensor2, rebuildTensor3:
		return u.tensor(g, a)
	case rebuildParam:
		if len(a) > 0 {
			if t, ok := a[0].(*pickleTensor); ok {
				return t, nil
			}
		}
		return nil, u.broken("a parameter is not made of a tensor", "one")
	case torchSize, builtinSet, builtinSet2:
		if len(a) == 0 {
			return &pickleList{}, nil
		}
		switch v := a[0].(type) {
		case pickleTuple:
			return v, nil
		case *pickleList:
			return v, nil
		}
	case torchDevice:
		return fmt.Sprintf("%v", a), nil
	case encodeText:
		if len(a) > 0 {
			if text, ok := a[0].(string); ok {
				return text, nil
			}
		}
	}
	return nil, u.broken(fmt.Sprintf("it calls %s with what torch does not give it", strings.ReplaceAll(string(g), " ", ".")), "what torch.save writes")
}

func (u *unpickler) tensor(g pickleGlobal, a pickleTuple) (any, error) {
	if len(a) < 4 {
		return nil, u.broken("a tensor has too few facts", "storage, offset, shape, strides")
	}
	s, ok1 := a[0].(pickleStorage)
	offset, ok2 := a[1].(int64)
	shape, ok3 := whole(a[2])
	stride, ok4 := whole(a[3])
	if !ok1 || !ok2 || !ok3 || !ok4 || len(shape) != len(stride) || offset < 0 {
		return nil, u.broken("a tensor is not described as torch describes it", "storage, offset, shape, strides, none below 0")
	}
	if g == rebuildTensor3 {
		if len(a) < 7 {
			return nil, u.broken("a tensor has too few facts", "its dtype")
		}
		name, _ := a[6].(pickleGlobal)
		s.dtype = dtypeNames()[name]
	}
	if s.dtype == "" {
		return nil, u.broken("a tensor's memory has no dtype", "one of torch's storages")
	}
	return &pickleTensor{storage: s, offset: offset, shape: shape, stride: stride}, nil
}

// whole reads a tuple of whole numbers that are not below 0.
func whole(v any) ([]int64, bool) {
	t, ok := v.(pickleTuple)
	if !ok || len(t) > 8 {
		return nil, false
	}
	out := make([]int64, len(t))
	for i, item := range t {
		n, ok := item.(int64)
		if !ok || n < 0 {
			return nil, false
		}
		out[i] = n
	}
	return out, true
}
