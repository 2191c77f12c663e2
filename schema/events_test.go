package schema_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/domain/event"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/domain/facts"
	"github.com/featuremill/featuremill/domain/source"
	"github.com/featuremill/featuremill/schema"
)

var update = flag.Bool("update", false, "write the schemas and asyncapi.yaml, and the samples of versions that have none")

// contract is what is kept of one version of one type.
type contract struct {
	name    string
	version int
}

func (c contract) sample() string { return fmt.Sprintf("%s.v%d.json", c.name, c.version) }
func (c contract) schema() string { return fmt.Sprintf("%s.v%d.schema.json", c.name, c.version) }

func TestEventsHaveASchemaAndASampleOfEveryVersionThatWasShipped(t *testing.T) {
	registry, err := facts.Registry()
	require.NoError(t, err)
	all, err := samples()
	require.NoError(t, err)
	current := map[string]event.Data{}
	for _, d := range all {
		require.NotContains(t, current, d.EventType())
		current[d.EventType()] = d
	}
	require.Equal(t, registry.Types(), slices.Sorted(maps.Keys(current)), "a sample of each registered type, and of no other")

	for name, d := range current {
		c := contract{name, registry.SchemaVersion(name)}
		shape, err := json.MarshalIndent(documentOf(c, d), "", "  ")
		require.NoError(t, err)
		same(t, filepath.Join("events", c.schema()), append(shape, '\n'), *update)
		sample, err := json.MarshalIndent(d, "", "  ")
		require.NoError(t, err)
		_, statErr := os.Stat(filepath.Join("events", c.sample()))
		// A sample that was shipped stays: a new shape is a new version.
		same(t, filepath.Join("events", c.sample()), append(sample, '\n'), *update && os.IsNotExist(statErr))
	}
	same(t, "asyncapi.yaml", asyncAPI(registry), *update)
}

// same holds a file against what it must be, or writes it.
func same(t *testing.T, path string, want []byte, write bool) {
	t.Helper()
	if write {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, want, 0o600))
		return
	}
	got, err := os.ReadFile(path)
	require.NoError(t, err, "go generate ./schema writes it")
	require.Equal(t, string(want), string(got), "%s: a changed shape is a new schema version and an upcaster, never an edit", path)
}

// TestEventsShippedOnceCanBeReadForEver decodes every sample that is in the folder, whatever its version.
func TestEventsShippedOnceCanBeReadForEver(t *testing.T) {
	t.Parallel()
	registry, err := facts.Registry()
	require.NoError(t, err)
	folder := schema.Events()
	entries, err := folder.ReadDir("events")
	require.NoError(t, err)
	shipped := map[contract]bool{}
	file := regexp.MustCompile(`^([A-Za-z]+)\.v(\d+)\.json$`)
	for _, e := range entries {
		m := file.FindStringSubmatch(e.Name())
		if m == nil {
			require.True(t, strings.HasSuffix(e.Name(), ".schema.json"), e.Name())
			continue
		}
		version, err := strconv.Atoi(m[2])
		require.NoError(t, err)
		c := contract{m[1], version}
		shipped[c] = true
		raw, err := folder.ReadFile("events/" + e.Name())
		require.NoError(t, err)
		require.NoError(t, compile(t, c).Validate(parse(t, raw)), e.Name())

		d, err := registry.Decode(event.Recorded{Position: 1, Type: c.name, SchemaVersion: c.version, Data: raw})
		require.NoError(t, err, e.Name())
		require.Equal(t, c.name, d.EventType())
		if c.version == registry.SchemaVersion(c.name) {
			again, err := json.Marshal(d)
			require.NoError(t, err)
			require.JSONEq(t, string(raw), string(again), "nothing is lost on the way")
		}
	}
	for _, name := range registry.Types() {
		for v := 1; v <= registry.SchemaVersion(name); v++ {
			require.True(t, shipped[contract{name, v}], "%s v%d has no sample", name, v)
		}
	}
}

func compile(t *testing.T, c contract) *jsonschema.Schema {
	t.Helper()
	folder := schema.Events()
	raw, err := folder.ReadFile("events/" + c.schema())
	require.NoError(t, err)
	compiler := jsonschema.NewCompiler()
	require.NoError(t, compiler.AddResource(c.schema(), parse(t, raw)))
	compiled, err := compiler.Compile(c.schema())
	require.NoError(t, err)
	return compiled
}

func parse(t *testing.T, raw []byte) any {
	t.Helper()
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	require.NoError(t, err)
	return v
}

type object = map[string]any

// documentOf is the JSON Schema of a fact's data. Readers must take fields that they do not know.
func documentOf(c contract, d event.Data) object {
	out := schemaOf(reflect.TypeOf(d))
	out["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	out["$id"] = "urn:featuremill:event:" + c.name + ":" + strconv.Itoa(c.version)
	out["title"] = c.name
	return out
}

func schemaOf(t reflect.Type) object {
	switch t {
	case reflect.TypeFor[source.Source]():
		one := func(name string) object {
			return object{"type": "object", "required": []string{name}, "properties": object{name: object{"type": "string", "minLength": 1}}}
		}
		return object{"description": "exactly one of the two", "oneOf": []object{one("training_id"), one("external_sae_id")}}
	case reflect.TypeFor[extraction.Runs]():
		return object{"type": "string", "description": "first and last segment of each run, in order: 0-4095,4100,4102-4200", "pattern": `^(\d+(-\d+)?(,\d+(-\d+)?)*)?$`}
	case reflect.TypeFor[event.ID]():
		return object{"type": "string", "format": "uuid"}
	}
	switch t.Kind() {
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Slice:
		return object{"type": []string{"array", "null"}, "items": schemaOf(t.Elem())} // null is the empty one
	case reflect.Map:
		return object{"type": "object", "additionalProperties": schemaOf(t.Elem())}
	case reflect.Pointer:
		return object{"anyOf": []object{schemaOf(t.Elem()), {"type": "null"}}}
	case reflect.Struct:
		return structSchema(t)
	}
	panic(fmt.Sprintf("a fact holds a %s, for which there is no schema", t))
}

func structSchema(t reflect.Type) object {
	properties, required := object{}, []string{}
	for i := range t.NumField() {
		name, options, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "" {
			panic(fmt.Sprintf("%s.%s has no name in JSON", t, t.Field(i).Name))
		}
		properties[name] = schemaOf(t.Field(i).Type)
		if !strings.Contains(options, "omitempty") && !strings.Contains(options, "omitzero") {
			required = append(required, name)
		}
	}
	slices.Sort(required)
	return object{"type": "object", "properties": properties, "required": required}
}

// asyncAPI describes the topic.
func asyncAPI(registry *event.Registry) []byte {
	var b strings.Builder
	b.WriteString(`# Written by go generate ./schema.
asyncapi: 3.0.0
info:
  title: Featuremill's events
  version: 1.0.0
  description: >-
    Every fact that Featuremill records, in the order of its log, as CloudEvents 1.0 in Kafka's binary content mode. The topic has
    one partition and keeps everything. Delivery is at least once: drop what is not newer than ce_logposition says, and check that
    ce_prevhash is the ce_hash before. An archived event has an empty value.
defaultContentType: application/json
channels:
  events:
    address: featuremill.events.v1
    messages:
`)
	for _, name := range registry.Types() {
		fmt.Fprintf(&b, "      %s: {$ref: '#/components/messages/%s'}\n", name, name)
	}
	b.WriteString(`operations:
  receiveEvents:
    action: receive
    channel: {$ref: '#/channels/events'}
components:
  messageTraits:
    CloudEvent:
      headers:
        type: object
        required: [ce_specversion, ce_id, ce_source, ce_type, ce_subject, ce_time, ce_dataschema, ce_logposition, ce_streamversion, ce_schemaversion, ce_prevhash, ce_hash]
        properties:
          ce_specversion: {type: string, const: '1.0'}
          ce_id: {type: string, format: uuid}
          ce_source: {type: string}
          ce_type: {type: string, description: The name of the message}
          ce_subject: {type: string, description: The stream; also the record's key}
          ce_time: {type: string, format: date-time, description: When it was recorded}
          ce_dataschema: {type: string}
          ce_logposition: {type: string, pattern: '^[1-9][0-9]*$', description: 'Place in the log: 1, 2, 3 … without a gap'}
          ce_streamversion: {type: string, pattern: '^[1-9][0-9]*$', description: Place in its stream}
          ce_schemaversion: {type: string, pattern: '^[1-9][0-9]*$'}
          ce_prevhash: {type: string, pattern: '^[0-9a-f]{64}$'}
          ce_hash: {type: string, pattern: '^[0-9a-f]{64}$'}
          ce_datasha256: {type: string, pattern: '^[0-9a-f]{64}$'}
          ce_metadata: {type: string, description: JSON}
          ce_metadatasha256: {type: string, pattern: '^[0-9a-f]{64}$'}
          ce_correlationid: {type: string}
          ce_causationid: {type: string}
          traceparent: {type: string}
  messages:
`)
	for _, name := range registry.Types() {
		c := contract{name, registry.SchemaVersion(name)}
		fmt.Fprintf(&b, "    %s:\n      name: %s\n      traits: [{$ref: '#/components/messageTraits/CloudEvent'}]\n      payload: {schemaFormat: 'application/schema+json;version=draft-2020-12', schema: {$ref: 'events/%s'}}\n", name, name, c.schema())
	}
	return []byte(b.String())
}
