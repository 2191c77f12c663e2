package httpapi_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/schema"
)

// wrongBodies are, for each property of a request, a body that is right but for it. What is required beside it is made up.
func wrongBodies(t *testing.T, s *openapi3.Schema) (asked string, bodies map[string]string) {
	t.Helper()
	properties := maps.Clone(s.Properties)
	required := slices.Clone(s.Required)
	for _, part := range s.AllOf {
		if properties == nil {
			properties = openapi3.Schemas{}
		}
		maps.Copy(properties, part.Value.Properties)
		required = append(required, part.Value.Required...)
	}
	right := map[string]string{}
	for _, key := range required {
		right[key] = likely(properties[key].Value)
	}
	with := func(pairs ...string) string {
		var out []string
		if pairs[0] == "" {
			pairs = []string{"x", "1"}
		}
		for _, key := range slices.Sorted(maps.Keys(right)) {
			if key != pairs[0] {
				out = append(out, fmt.Sprintf("%q:%s", key, right[key]))
			}
		}
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, fmt.Sprintf("%q:%s", pairs[i], pairs[i+1]))
		}
		return "{" + strings.Join(out, ",") + "}"
	}
	bodies = map[string]string{}
	for key, p := range properties {
		v := p.Value
		value := likely(v)
		bodies[key+" in capitals"] = with(key, value, strings.ToUpper(key), value)
		bodies[key+" with one capital"] = with(strings.ToUpper(key[:1])+key[1:], value, "x", "1")
		bodies[key+" twice"] = with(key, value, key, value)
		if strings.Contains(key, "k") {
			bodies[key+" with a Kelvin sign"] = with(strings.Replace(key, "k", "\u212a", 1), value, "x", "1")
		}
		bodies[key+" as an object"] = with(key, `{"a":1}`)
		switch {
		case v.Type.Includes("boolean"):
			bodies[key+" as a number"] = with(key, "3")
		case v.Type.Includes("string"):
			bodies[key+" as a number"] = with(key, "3")
			if len(v.Enum) > 0 {
				bodies[key+" as none of the known"] = with(key, `"zzz"`)
			} else if v.MaxLength != nil {
				bodies[key+" too long"] = with(key, `"`+strings.Repeat("/", int(*v.MaxLength)+1)+`"`)
			}
		case v.Type.Includes("array"):
			bodies[key+" as a text"] = with(key, `"a"`)
			bodies[key+" of objects"] = with(key, `[{}]`)
			if v.MaxItems != nil {
				one := likely(v.Items.Value)
				bodies[key+" too long"] = with(key, "["+strings.Repeat(one+",", int(*v.MaxItems))+one+"]")
			}
		case v.Type.Includes("integer"):
			bodies[key+" as a text"] = with(key, `"3"`)
			bodies[key+" with a fraction"] = with(key, "3.5")
			bodies[key+" beyond 64 bits"] = with(key, "99999999999999999999")
			bodies[key+" far below"] = with(key, "-99999999999999999999")
			bodies[key+" beyond all"] = with(key, "1e300")
			if v.Max != nil {
				bodies[key+" above the most"] = with(key, fmt.Sprintf("%.0f", *v.Max+1))
			}
			if v.Min != nil {
				bodies[key+" below the least"] = with(key, fmt.Sprintf("%.0f", *v.Min-1))
			}
		case v.Type.Includes("number"):
			bodies[key+" as a text"] = with(key, `"3"`)
			bodies[key+" below"] = with(key, "-1e300")
		default:
			require.Fail(t, "a kind of property that this test does not know", key)
		}
	}
	return with(""), bodies
}

// likely is a value that a property allows.
func likely(s *openapi3.Schema) string {
	switch {
	case len(s.Enum) > 0:
		b, _ := json.Marshal(s.Enum[0])
		return string(b)
	case s.Type.Includes("boolean"):
		return "true"
	case strings.HasPrefix(s.Pattern, "^"):
		return `"a"`
	case s.Type.Includes("string"):
		return `"a/b"`
	case s.Type.Includes("array"):
		return "[" + likely(s.Items.Value) + "]"
	case s.Min != nil:
		return fmt.Sprintf("%.0f", *s.Min)
	}
	return "1"
}

var pathParameter = regexp.MustCompile(`\{[^}]*\}`)

func TestABodyIsReadInOneWay(t *testing.T) {
	t.Parallel()
	doc, err := openapi3.NewLoader().LoadFromData(schema.OpenAPI())
	require.NoError(t, err)
	b := newBundle(t)
	tried := 0
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.RequestBody == nil {
				continue
			}
			at := pathParameter.ReplaceAllString(path, "feat_sae_x_1")
			if strings.HasSuffix(at, "/extract-features") {
				at += "?dataset_id=d"
			}
			send := func(body string) *httptest.ResponseRecorder {
				return b.raw(t, method, at, func(r *http.Request) {
					r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
					r.Header.Set("Content-Type", "application/json")
				})
			}
			right, wrong := wrongBodies(t, op.RequestBody.Value.Content["application/json"].Schema.Value)
			a := send(right)
			require.NotContains(t, a.Body.String(), `"invalid_request"`, "%s %s: %s", method, at, right)
			for name, body := range wrong {
				a := send(body)
				require.Equal(t, http.StatusUnprocessableEntity, a.Code, "%s %s, %s: %s\n%s", method, at, name, body, a.Body)
				require.Contains(t, a.Body.String(), `"invalid_request"`, name)
				tried++
			}
		}
	}
	require.Greater(t, tried, 500)
}

func TestAWholeNumberMayBeWrittenInAnyWay(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	w := b.world(t)
	for _, number := range []string{"1e1", "10.0", "1.0E+1", "10"} {
		out := b.sent(t, 200, "POST", "/api/v1/saes/"+w.sae+"/extract-features?dry_run=true&dataset_id="+w.dataset, `{"evaluation_samples": `+number+`, "exclude_token_ids": [1e0]}`)
		require.NotEmpty(t, out)
	}
	b.refused(t, 422, "invalid_request", "POST", "/api/v1/saes/delete", `{"sae_ids":["a"],"SAE_IDS":["b"]}`, "sae_ids")
	b.refused(t, 422, "invalid_request", "POST", "/api/v1/saes/delete", `{"sae_ids":["a"],"x":{"deep":[{"y":1,"y":2}]}}`, "more than once")
}
