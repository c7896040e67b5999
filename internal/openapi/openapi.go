// Package openapi turns the API description into the forms in which it is served:
// JSON, and a reference page.
package openapi

import (
	"bytes"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
	"go.yaml.in/yaml/v3"
)

// JSON returns a YAML document as indented JSON with its members in the
// same order.
func JSON(doc []byte) ([]byte, error) {
	root, err := parseYAML(doc)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := writeJSON(jsontext.NewEncoder(&b, jsontext.WithIndent("  ")), root); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func parseYAML(doc []byte) (*yaml.Node, error) {
	var n yaml.Node
	if err := yaml.Unmarshal(doc, &n); err != nil {
		return nil, err
	}
	if n.Kind != yaml.DocumentNode {
		return nil, fmt.Errorf("the YAML document is empty")
	}
	return n.Content[0], nil
}

func writeJSON(e *jsontext.Encoder, n *yaml.Node) error {
	switch n.Kind {
	case yaml.AliasNode:
		return writeJSON(e, n.Alias)
	case yaml.MappingNode:
		if err := e.WriteToken(jsontext.BeginObject); err != nil {
			return err
		}
		for i := 0; i < len(n.Content); i += 2 {
			if err := e.WriteToken(jsontext.String(n.Content[i].Value)); err != nil {
				return err
			}
			if err := writeJSON(e, n.Content[i+1]); err != nil {
				return err
			}
		}
		return e.WriteToken(jsontext.EndObject)
	case yaml.SequenceNode:
		if err := e.WriteToken(jsontext.BeginArray); err != nil {
			return err
		}
		for _, item := range n.Content {
			if err := writeJSON(e, item); err != nil {
				return err
			}
		}
		return e.WriteToken(jsontext.EndArray)
	}
	return e.WriteToken(scalar(n))
}

// scalar returns the JSON value of a YAML scalar: null, a boolean, a number or
// a string.
func scalar(n *yaml.Node) jsontext.Token {
	switch n.ShortTag() {
	case "!!null":
		return jsontext.Null
	case "!!bool":
		var b bool
		if n.Decode(&b) == nil {
			return jsontext.Bool(b)
		}
	case "!!int":
		var i int64
		if n.Decode(&i) == nil {
			return jsontext.Int(i)
		}
	case "!!float":
		var f float64
		if n.Decode(&f) == nil {
			return jsontext.Float(f)
		}
	}
	return jsontext.String(n.Value)
}
