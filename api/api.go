// Package api holds the description of orgd's HTTP API.
package api

import _ "embed"

// YAML is the description, OpenAPI 3.1.
//
//go:embed openapi.yaml
var YAML []byte
