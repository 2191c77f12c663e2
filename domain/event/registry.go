package event

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// Upcast rewrites the JSON of one schema version into the next one's.
type Upcast func(json.RawMessage) (json.RawMessage, error)

type registration struct {
	version int
	decode  func(json.RawMessage) (Data, error)
	upcasts map[int]Upcast // from version → to version + 1
}

// Registry knows every type of fact. Build one with Register, then only read it.
type Registry struct {
	types map[string]registration
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry { return &Registry{types: map[string]registration{}} }

// Register adds a type with its current schema version and the upcasters from all older versions.
// It is called while a program is put together; a type that is there already, or a missing
// upcaster, is returned as an error.
func Register[T Data](r *Registry, version int, upcasts map[int]Upcast) error {
	var zero T
	name := zero.EventType()
	if _, ok := r.types[name]; ok {
		return fmt.Errorf("event type %s is registered already", name)
	}
	for v := 1; v < version; v++ {
		if upcasts[v] == nil {
			return fmt.Errorf("event type %s: no upcaster from schema version %d", name, v)
		}
	}
	r.types[name] = registration{version: version, upcasts: upcasts, decode: func(b json.RawMessage) (Data, error) {
		var v T
		if err := json.Unmarshal(b, &v); err != nil {
			return nil, err
		}
		return v, nil
	}}
	return nil
}

// Types returns every registered type name in order.
func (r *Registry) Types() []string { return slices.Sorted(maps.Keys(r.types)) }

// SchemaVersion returns the current schema version of a type, 0 if it is unknown.
func (r *Registry) SchemaVersion(name string) int { return r.types[name].version }

// UnknownTypeError says that a recorded event has a type, or a schema version, that this program does not know.
type UnknownTypeError struct {
	Type     string
	Version  int
	Position int64
}

func (e *UnknownTypeError) Error() string {
	return fmt.Sprintf("event %d has type %s with schema version %d, which this program does not know: it was written by a newer one", e.Position, e.Type, e.Version)
}

// DecodeError says that a recorded event's data does not have the shape of its type.
type DecodeError struct {
	Type     string
	Position int64
	Err      error
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("event %d (%s): %v", e.Position, e.Type, e.Err)
}

func (e *DecodeError) Unwrap() error { return e.Err }

// ErrArchived says that an event's data has been archived: the digest is there, the data is not.
var ErrArchived = fmt.Errorf("the event's data was archived")

// Decode turns a recorded event into the current shape of its fact.
func (r *Registry) Decode(rec Recorded) (Data, error) {
	reg, ok := r.types[rec.Type]
	if !ok || rec.SchemaVersion > reg.version || rec.SchemaVersion < 1 {
		return nil, &UnknownTypeError{Type: rec.Type, Version: rec.SchemaVersion, Position: rec.Position}
	}
	if len(rec.Data) == 0 {
		return nil, &DecodeError{Type: rec.Type, Position: rec.Position, Err: ErrArchived}
	}
	data := rec.Data
	for v := rec.SchemaVersion; v < reg.version; v++ {
		var err error
		if data, err = reg.upcasts[v](data); err != nil {
			return nil, &DecodeError{Type: rec.Type, Position: rec.Position, Err: fmt.Errorf("upcast from schema version %d: %w", v, err)}
		}
	}
	d, err := reg.decode(data)
	if err != nil {
		return nil, &DecodeError{Type: rec.Type, Position: rec.Position, Err: err}
	}
	return d, nil
}
