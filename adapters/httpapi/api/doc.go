// Package api holds what oapi-codegen makes of schema/openapi.yaml: the types of requests and answers,
// and the interface that a server implements. Only adapters/httpapi imports it.
package api

//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config config.yaml ../../../schema/openapi.yaml
