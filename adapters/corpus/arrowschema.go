package corpus

import (
	"errors"
)

// Kinds of types, as the schema numbers them.
const (
	arrowNull            = 1
	arrowInt             = 2
	arrowFloat           = 3
	arrowBinary          = 4
	arrowUtf8            = 5
	arrowBool            = 6
	arrowDecimal         = 7
	arrowInterval        = 11
	arrowList            = 12
	arrowStruct          = 13
	arrowUnion           = 14
	arrowFixedSizeBinary = 15
	arrowFixedSizeList   = 16
	arrowMap             = 17
	arrowDuration        = 18
	arrowLargeBinary     = 19
	arrowLargeUtf8       = 20
	arrowLargeList       = 21
	arrowRunEndEncoded   = 22
	arrowBinaryView      = 23
	arrowUtf8View        = 24
	arrowListView        = 25
	arrowLargeListView   = 26
)

// A schema may nest so deep, and have so many fields; a flatbuffer can say the same field again and again.
const (
	maxArrowDepth  = 32
	maxArrowFields = 1 << 14
)

// arrowField is a field of a schema.
type arrowField struct {
	name     string
	kind     byte
	width    int // bits of an integer; 16 << precision of a float
	signed   bool
	size     int  // of a list of fixed size
	dense    bool // of a union
	children []arrowField
	index    *arrowField // integers into a dictionary, which has the values
	dict     int64
}

func schemaFields(meta flat, schema int) ([]arrowField, error) {
	if at := meta.field(schema, 0); at > 0 && meta.short(at) != 0 {
		return nil, errors.New("its numbers are big-endian; write it on a machine of today")
	}
	left := maxArrowFields
	fields, err := readFields(meta, schema, 1, 0, &left)
	if err == nil && len(fields) == 0 {
		err = errors.New("its schema has no fields")
	}
	return fields, err
}

func readFields(meta flat, table, member, depth int, left *int) ([]arrowField, error) {
	at, n := meta.vector(table, member, 4)
	if *left -= n; *left < 0 || depth > maxArrowDepth {
		return nil, errors.New("its schema has too many fields")
	}
	var out []arrowField
	for i := range n {
		f, err := readField(meta, meta.table(at+4*i), depth, left)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

func readField(meta flat, table, depth int, left *int) (f arrowField, err error) {
	name := meta.text(table, 0)
	if *left -= len(name) / 64; *left < 0 {
		return f, errors.New("its schema has too long names")
	}
	f.name = validText([]byte(name))
	if at := meta.field(table, 2); at > 0 {
		f.kind = meta[at]
	}
	if at := meta.field(table, 3); at > 0 {
		f.readType(meta, meta.table(at))
	}
	if f.children, err = readFields(meta, table, 5, depth+1, left); err != nil {
		return f, err
	}
	if at := meta.field(table, 4); at > 0 {
		encoding := meta.table(at)
		f.index = &arrowField{kind: arrowInt, width: 32, signed: true}
		if at := meta.field(encoding, 0); at > 0 {
			f.dict = meta.long(at)
		}
		if at := meta.field(encoding, 1); at > 0 {
			f.index.readType(meta, meta.table(at))
		}
	}
	switch f.kind {
	case arrowList, arrowLargeList, arrowListView, arrowLargeListView, arrowFixedSizeList, arrowMap:
		if len(f.children) != 1 {
			return f, errors.New("a list has no items")
		}
	}
	return f, nil
}

func (f *arrowField) readType(meta flat, table int) {
	number := func(member int) int {
		if at := meta.field(table, member); at > 0 {
			return meta.int(at)
		}
		return 0
	}
	switch f.kind {
	case arrowInt:
		f.width = number(0)
		at := meta.field(table, 1)
		f.signed = at > 0 && meta[at] != 0
	case arrowFloat:
		if at := meta.field(table, 0); at > 0 {
			f.width = 16 << (meta.short(at) & 3)
		} else {
			f.width = 16
		}
	case arrowFixedSizeList, arrowFixedSizeBinary:
		f.size = number(0)
	case arrowUnion:
		if at := meta.field(table, 0); at > 0 {
			f.dense = meta.short(at) != 0
		}
	}
}

// columnKind tells text and token ids from the rest.
func (f arrowField) columnKind() columnKind {
	switch f.kind {
	case arrowUtf8, arrowLargeUtf8, arrowUtf8View:
		return textColumn
	case arrowList, arrowLargeList, arrowFixedSizeList:
		if f.children[0].kind == arrowInt && f.children[0].index == nil && f.index == nil {
			return idsColumn
		}
	}
	return otherColumn
}

// parts is how many buffers a field has of its own in a batch; variadic says that there are more, whose number the
// batch tells.
func (f arrowField) parts(oldUnions bool) (n int, variadic bool) {
	if f.index != nil {
		return 2, false
	}
	switch f.kind {
	case arrowNull, arrowRunEndEncoded:
		return 0, false
	case arrowStruct, arrowFixedSizeList:
		return 1, false
	case arrowUnion:
		n = 1
		if f.dense {
			n++
		}
		if oldUnions {
			n++
		}
		return n, false
	case arrowBinary, arrowUtf8, arrowLargeBinary, arrowLargeUtf8, arrowListView, arrowLargeListView:
		return 3, false
	case arrowBinaryView, arrowUtf8View:
		return 2, true
	}
	return 2, false // a bitmap of nulls, and numbers or offsets
}
