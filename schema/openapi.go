package schema

import _ "embed" // the specification travels with the program

//go:embed openapi.yaml
var openapi []byte

// OpenAPI returns the specification of the HTTP interface, in YAML.
func OpenAPI() []byte { return append([]byte(nil), openapi...) }
