package client

import (
	"context"
	"encoding/json"
	"time"
)

// Customizations are an organization's settings.
type Customizations struct {
	OrgID          string            `json:"org_id"`
	Customizations json.RawMessage   `json:"customizations"` // its own
	Effective      json.RawMessage   `json:"effective"`      // its own over what it inherits
	Locked         []string          `json:"locked"`         // JSON Pointers that descendants may not set
	Sources        map[string]string `json:"sources"`        // JSON Pointer to the id of the organization that sets it; only of ExplainCustomizations
	UpdatedAt      time.Time         `json:"updated_at"`
	Meta           `json:"-"`
}

// Customizations returns an organization's own settings and those in effect.
func (cl *Client) Customizations(ctx context.Context, id string, opts ...CallOption) (*Customizations, error) {
	return get[Customizations](ctx, cl, newCall("GET", []string{"orgs", id, "customizations"}, opts))
}

// ExplainCustomizations is Customizations with the Sources.
func (cl *Client) ExplainCustomizations(ctx context.Context, id string, opts ...CallOption) (*Customizations, error) {
	return get[Customizations](ctx, cl, newCall("GET", []string{"orgs", id, "customizations"}, opts).setBool("explain", true))
}

// CustomizationsPut replaces an organization's own settings. A nil Locked
// leaves the locks as they are.
type CustomizationsPut struct {
	Customizations json.RawMessage `json:"customizations"`
	Locked         *[]string       `json:"locked,omitempty"`
}

// PutCustomizations replaces an organization's own settings. UpdateOrg merges
// into them instead.
func (cl *Client) PutCustomizations(ctx context.Context, id string, in CustomizationsPut, opts ...CallOption) (*Customizations, error) {
	return get[Customizations](ctx, cl, newCall("PUT", []string{"orgs", id, "customizations"}, opts).json(in))
}

// Schema is the JSON Schema of the customizations in a root's tree; it is in
// Raw.
type Schema struct {
	Meta `json:"-"`
}

// CustomizationSchema returns the schema of a root.
func (cl *Client) CustomizationSchema(ctx context.Context, rootID string, opts ...CallOption) (*Schema, error) {
	return getSchema(ctx, cl, newCall("GET", []string{"orgs", rootID, "customization_schema"}, opts))
}

// PutCustomizationSchema sets the schema of a root (draft 2020-12). It is
// checked from the next write on.
func (cl *Client) PutCustomizationSchema(ctx context.Context, rootID string, schema json.RawMessage, opts ...CallOption) (*Schema, error) {
	return getSchema(ctx, cl, newCall("PUT", []string{"orgs", rootID, "customization_schema"}, opts).json(schema))
}

// getSchema is get for an answer that has no members to decode: a schema may
// be true or false.
func getSchema(ctx context.Context, cl *Client, c *call) (*Schema, error) {
	resp, body, err := cl.do(ctx, c)
	if err != nil {
		return nil, err
	}
	return &Schema{Meta{Raw: body, ETag: resp.Header.Get("ETag"), Receipt: resp.Header.Get("Orgd-Audit-Receipt"), RequestID: resp.Header.Get("X-Request-Id")}}, nil
}

// DeleteCustomizationSchema removes the schema of a root.
func (cl *Client) DeleteCustomizationSchema(ctx context.Context, rootID string, opts ...CallOption) error {
	_, _, err := cl.do(ctx, newCall("DELETE", []string{"orgs", rootID, "customization_schema"}, opts))
	return err
}
