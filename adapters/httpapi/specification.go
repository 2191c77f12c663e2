package httpapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"go.yaml.in/yaml/v3"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/featuremill/featuremill/domain/problem"
	"github.com/featuremill/featuremill/schema"
)

// specification checks requests against schema/openapi.yaml. Its schemas are compiled once.
type specification struct {
	operations map[string]operation // by method and gin's path
	fail       func(*gin.Context, error)
}

type operation struct {
	parameters []parameter
	body       *jsonschema.Schema
	required   bool            // the body
	keys       map[string]bool // of the body
}

type parameter struct {
	name, in string
	typ      string
	required bool
	schema   *jsonschema.Schema
}

const resource = "openapi.json"

func loadSpecification(fail func(*gin.Context, error)) (*specification, error) {
	var doc any
	if err := yaml.Unmarshal(schema.OpenAPI(), &doc); err != nil {
		return nil, fmt.Errorf("schema/openapi.yaml: %w", err)
	}
	asJSON, err := json.Marshal(doc) // numbers and maps as the compiler of JSON Schema knows them
	if err != nil {
		return nil, fmt.Errorf("schema/openapi.yaml: %w", err)
	}
	if doc, err = jsonschema.UnmarshalJSON(bytes.NewReader(asJSON)); err != nil {
		return nil, fmt.Errorf("schema/openapi.yaml: %w", err)
	}
	l := loader{doc: doc, compiler: jsonschema.NewCompiler()}
	l.compiler.DefaultDraft(jsonschema.Draft2020)
	if err := l.compiler.AddResource(resource, doc); err != nil {
		return nil, fmt.Errorf("schema/openapi.yaml: %w", err)
	}
	out := &specification{operations: map[string]operation{}, fail: fail}
	paths, _ := l.at("/paths").(map[string]any)
	for path := range paths {
		base := "/paths/" + escape(path)
		item, _ := l.at(base).(map[string]any)
		for _, method := range []string{"get", "post", "patch", "put", "delete"} {
			if item[method] == nil {
				continue
			}
			op, err := l.operation(base, base+"/"+method)
			if err != nil {
				return nil, fmt.Errorf("schema/openapi.yaml: %s %s: %w", method, path, err)
			}
			out.operations[strings.ToUpper(method)+" "+strings.NewReplacer("{", ":", "}", "").Replace(path)] = op
		}
	}
	return out, nil
}

// loader finds its way through the document by JSON pointers.
type loader struct {
	doc      any
	compiler *jsonschema.Compiler
}

func escape(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}

func (l loader) at(pointer string) any {
	v := l.doc
	for _, key := range strings.Split(pointer, "/")[1:] {
		key = strings.NewReplacer("~1", "/", "~0", "~").Replace(key)
		switch node := v.(type) {
		case map[string]any:
			v = node[key]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i < 0 || i >= len(node) {
				return nil
			}
			v = node[i]
		default:
			return nil
		}
	}
	return v
}

// resolve follows a reference.
func (l loader) resolve(pointer string) (string, map[string]any) {
	node, _ := l.at(pointer).(map[string]any)
	if ref, ok := node["$ref"].(string); ok {
		return l.resolve(strings.TrimPrefix(ref, "#"))
	}
	return pointer, node
}

func (l loader) compile(pointer string) (*jsonschema.Schema, error) {
	// A pointer is the fragment of a URL: the braces and blanks of paths must not stand in it.
	return l.compiler.Compile(resource + "#" + strings.NewReplacer("%", "%25", "{", "%7B", "}", "%7D", " ", "%20").Replace(pointer))
}

func (l loader) operation(base, pointer string) (op operation, err error) {
	for _, list := range []string{base + "/parameters", pointer + "/parameters"} {
		all, _ := l.at(list).([]any)
		for i := range all {
			at, node := l.resolve(list + "/" + strconv.Itoa(i))
			p := parameter{}
			p.name, _ = node["name"].(string)
			p.in, _ = node["in"].(string)
			p.required, _ = node["required"].(bool)
			_, shape := l.resolve(at + "/schema")
			p.typ, _ = shape["type"].(string)
			if p.schema, err = l.compile(at + "/schema"); err != nil {
				return op, err
			}
			op.parameters = append(op.parameters, p)
		}
	}
	body, _ := l.at(pointer + "/requestBody").(map[string]any)
	if body == nil {
		return op, nil
	}
	op.required, _ = body["required"].(bool)
	at, _ := l.resolve(pointer + "/requestBody/content/application~1json/schema")
	op.keys = map[string]bool{}
	l.properties(at, op.keys)
	op.body, err = l.compile(at)
	return op, err
}

// properties collects the names of an object's properties, those of the shapes that it is put together from as well.
func (l loader) properties(pointer string, keys map[string]bool) {
	at, shape := l.resolve(pointer)
	own, _ := shape["properties"].(map[string]any)
	for key := range own {
		keys[key] = true
	}
	parts, _ := shape["allOf"].([]any)
	for i := range parts {
		l.properties(fmt.Sprintf("%s/allOf/%d", at, i), keys)
	}
}

// check refuses a request that the specification does not allow, with every field that is wrong.
func (s *specification) check(c *gin.Context) {
	op, ok := s.operations[c.Request.Method+" "+c.FullPath()]
	if !ok {
		return // no such route: what comes next says so
	}
	var wrong []problem.Field
	for _, p := range op.parameters {
		if field := p.check(c); field != nil {
			wrong = append(wrong, *field)
		}
	}
	if op.body != nil {
		wrong = append(wrong, op.checkBody(requestOf(c))...)
		rewind(c)
	}
	if len(wrong) > 0 {
		s.fail(c, problem.InvalidFields("invalid_request", wrong...))
	}
}

func (p parameter) check(c *gin.Context) *problem.Field {
	value, there := "", false
	switch p.in {
	case "path":
		value, there = c.Params.Get(p.name)
	case "query":
		value, there = c.GetQuery(p.name)
	case "header":
		values := c.Request.Header.Values(p.name)
		if len(values) > 1 {
			return &problem.Field{Name: p.name, Detail: "is there more than once"}
		}
		if there = len(values) == 1; there {
			value = values[0]
		}
	}
	if !there {
		if p.required {
			return &problem.Field{Name: p.name, Detail: "is required"}
		}
		return nil
	}
	var v any = value
	switch p.typ {
	case "integer", "number":
		v = json.Number(value)
		if _, err := strconv.ParseFloat(value, 64); err != nil || strings.ContainsAny(value, "xXpPiInN_") {
			return &problem.Field{Name: p.name, Detail: fmt.Sprintf("%q is not a number", value)}
		}
		if _, err := strconv.ParseInt(value, 10, 64); err != nil && p.typ == "integer" {
			return &problem.Field{Name: p.name, Detail: fmt.Sprintf("%q is not a whole number", value)}
		}
	case "boolean":
		b, err := strconv.ParseBool(value)
		if err != nil {
			return &problem.Field{Name: p.name, Detail: fmt.Sprintf("%q is not true or false", value)}
		}
		v = b
	}
	if fields := violations(p.schema.Validate(v), p.name); len(fields) > 0 {
		return &fields[0]
	}
	return nil
}

func (op operation) checkBody(r *request) []problem.Field {
	if len(bytes.TrimSpace(r.body)) == 0 {
		if op.required {
			return []problem.Field{{Name: "body", Detail: "is required: a JSON object"}}
		}
		return nil
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(r.body))
	if err != nil {
		return []problem.Field{{Name: "body", Detail: err.Error()}}
	}
	object, ok := v.(map[string]any)
	if !ok {
		return []problem.Field{{Name: "body", Detail: "must be a JSON object"}}
	}
	if key, twice := repeated(r.body); twice {
		return []problem.Field{{Name: key, Detail: "is there more than once"}}
	}
	var wrong []problem.Field
	for _, key := range slices.Sorted(maps.Keys(object)) {
		if op.keys[key] {
			continue
		}
		if meant := op.meant(key); meant != "" { // encoding/json would take it for that one, behind the schema's back
			wrong = append(wrong, problem.Field{Name: key, Detail: "is no field; there is " + meant})
		}
		r.unknown = append(r.unknown, key)
	}
	if wrong = append(wrong, violations(op.body.Validate(v), "")...); len(wrong) == 0 {
		if plain, changed := plainNumbers(v); changed {
			r.body, err = json.Marshal(plain)
			if err != nil {
				return []problem.Field{{Name: "body", Detail: err.Error()}}
			}
		}
	}
	return wrong
}

// meant is the field whose name differs from key in its letters' case alone.
func (op operation) meant(key string) string {
	for known := range op.keys {
		if strings.EqualFold(known, key) {
			return known
		}
	}
	return ""
}

// repeated returns the first key that an object of the body has twice.
func repeated(body []byte) (key string, twice bool) {
	d := json.NewDecoder(bytes.NewReader(body))
	var open []map[string]bool // keys of the objects around; nil for an array
	isKey := false
	for {
		token, err := d.Token()
		if err != nil {
			return "", false // the end: that it is JSON is known
		}
		switch token := token.(type) {
		case json.Delim:
			switch token {
			case '{':
				open, isKey = append(open, map[string]bool{}), true
				continue
			case '[':
				open, isKey = append(open, nil), false
				continue
			default:
				open = open[:len(open)-1]
			}
		case string:
			if isKey {
				keys := open[len(open)-1]
				if keys[token] {
					return token, true
				}
				keys[token], isKey = true, false
				continue
			}
		}
		isKey = len(open) > 0 && open[len(open)-1] != nil
	}
}

// plainNumbers writes whole numbers as the decoder of an integer wants them: to JSON Schema 1e3 and 1000.0 are integers too.
func plainNumbers(v any) (_ any, changed bool) {
	switch v := v.(type) {
	case json.Number:
		const exact = 1 << 53
		if f, err := v.Float64(); err == nil && strings.ContainsAny(v.String(), ".eE") && f == math.Trunc(f) && math.Abs(f) < exact {
			return json.Number(strconv.FormatInt(int64(f), 10)), true
		}
	case []any:
		for i := range v {
			n, yes := plainNumbers(v[i])
			v[i], changed = n, changed || yes
		}
	case map[string]any:
		for k := range v {
			n, yes := plainNumbers(v[k])
			v[k], changed = n, changed || yes
		}
	}
	return v, changed
}

// violations names every place where a value does not fit its schema.
func violations(err error, name string) []problem.Field {
	if err == nil {
		return nil
	}
	var invalid *jsonschema.ValidationError
	if v, ok := err.(*jsonschema.ValidationError); ok { //nolint:errorlint // the validator wraps nothing
		invalid = v
	} else {
		return []problem.Field{{Name: name, Detail: err.Error()}}
	}
	printer := message.NewPrinter(language.English)
	var out []problem.Field
	var walk func(*jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		if len(e.Causes) > 0 {
			for _, cause := range e.Causes {
				walk(cause)
			}
			return
		}
		where := name
		if len(e.InstanceLocation) > 0 {
			where = strings.Join(e.InstanceLocation, ".")
		}
		if required, ok := e.ErrorKind.(*kind.Required); ok {
			for _, missing := range required.Missing {
				out = append(out, problem.Field{Name: strings.TrimPrefix(where+"."+missing, "."), Detail: "is required"})
			}
			return
		}
		out = append(out, problem.Field{Name: where, Detail: e.ErrorKind.LocalizedString(printer)})
	}
	walk(invalid)
	return out
}
