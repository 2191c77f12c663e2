package httpapi

import (
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/gin-gonic/gin"
	"github.com/stretchr/testify/require"

	"github.com/featuremill/featuremill/adapters/httpapi/api"
	"github.com/featuremill/featuremill/domain/extraction"
	"github.com/featuremill/featuremill/schema"
)

func TestTheSpecificationIsValidAndKnowsEveryRoute(t *testing.T) {
	t.Parallel()
	doc, err := openapi3.NewLoader().LoadFromData(schema.OpenAPI())
	require.NoError(t, err)
	require.NoError(t, doc.Validate(t.Context()))

	spec, err := loadSpecification(nil)
	require.NoError(t, err)
	e := gin.New()
	api.RegisterHandlers(e, nil)
	for _, r := range e.Routes() {
		require.Contains(t, spec.operations, r.Method+" "+r.Path)
	}
	require.Len(t, spec.operations, len(e.Routes()))
}

func TestTheSpecificationNamesTheDefaultsOfTheDomain(t *testing.T) {
	t.Parallel()
	doc, err := openapi3.NewLoader().LoadFromData(schema.OpenAPI())
	require.NoError(t, err)
	var body strings.Builder
	body.WriteString("{")
	for name, p := range doc.Components.Schemas["ExtractionConfigRequest"].Value.Properties {
		if p.Value.Default == nil {
			continue
		}
		value, err := openapi3.NewSchema().WithDefault(p.Value.Default).MarshalJSON()
		require.NoError(t, err)
		_, literal, _ := strings.Cut(strings.TrimSuffix(string(value), "}"), ":")
		if body.Len() > 1 {
			body.WriteString(",")
		}
		body.WriteString(`"` + name + `":` + literal)
	}
	body.WriteString("}")
	in, err := decodeStart([]byte(body.String()))
	require.NoError(t, err, body.String())
	require.Equal(t, extraction.DefaultConfig(), in.Config)
}
