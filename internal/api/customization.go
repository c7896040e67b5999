package api

import (
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/tree"
	"github.com/orgd/orgd/internal/web"
)

func (a *API) customizationRoutes() []web.Route {
	return []web.Route{
		{Method: "GET", Pattern: "/orgs/{org_id}/customizations", Operation: "getCustomizations", Action: "GET_CUSTOMIZATIONS", Rule: needs(key.CustomizationsRead), Query: takes("explain", "as_of"), Handle: a.getCustomizations},
		{Method: "PUT", Pattern: "/orgs/{org_id}/customizations", Operation: "putCustomizations", Action: "PUT_CUSTOMIZATIONS", Rule: needs(key.CustomizationsWrite), Handle: a.putCustomizations},
		{Method: "GET", Pattern: "/orgs/{org_id}/customization_schema", Operation: "getCustomizationSchema", Action: "GET_CUSTOMIZATION_SCHEMA", Rule: needs(key.CustomizationsRead), Handle: a.getSchema},
		{Method: "PUT", Pattern: "/orgs/{org_id}/customization_schema", Operation: "putCustomizationSchema", Action: "PUT_CUSTOMIZATION_SCHEMA", Rule: needs(key.CustomizationsWrite), Handle: a.putSchema},
		{Method: "DELETE", Pattern: "/orgs/{org_id}/customization_schema", Operation: "deleteCustomizationSchema", Action: "DELETE_CUSTOMIZATION_SCHEMA", Rule: needs(key.CustomizationsWrite), Handle: a.deleteSchema},
	}
}

func customizationsAnswer(c *org.Customizations) *web.Response {
	return web.JSON(http.StatusOK, struct {
		OrgID          string            `json:"org_id"`
		Customizations jsontext.Value    `json:"customizations"`
		Effective      jsontext.Value    `json:"effective"`
		Locked         []string          `json:"locked"`
		Sources        map[string]string `json:"sources,omitzero"`
		UpdatedAt      time.Time         `json:"updated_at"`
	}{c.OrgID, c.Own, c.Effective, c.Locked, c.Sources, c.UpdatedAt}).With("Etag", c.ETag)
}

func (a *API) getCustomizations(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	explain := q.bool("explain")
	at, err := asOf(q)
	if err != nil {
		return nil, err
	}
	if !at.IsZero() {
		c, err := a.trail.CustomizationsAt(r.Watched(), r.Actor, r.Org.Organization, at, explain)
		if err != nil {
			return nil, err
		}
		return customizationsAnswer(c), nil
	}
	c, err := a.tree.Customizations(r.Context(), r.Actor, r.Org.ID, explain)
	if err != nil {
		return nil, err
	}
	return customizationsAnswer(c), nil
}

func (a *API) putCustomizations(r *web.Request) (*web.Response, error) {
	if r.IfMatch() != "" {
		if err := a.tree.CheckCustomizations(r.Context(), r.Call(nil), r.Org.ID); err != nil {
			return nil, err
		}
	}
	var body struct {
		Customizations jsontext.Value `json:"customizations"`
		Locked         *[]string      `json:"locked"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if body.Customizations == nil {
		return nil, problem.Body("/customizations", "is missing").WithFix(`Send {"customizations": {…}}.`)
	}
	c, receipt, err := a.tree.PutCustomizations(r.Context(), r.Call(nil), r.Org.ID, tree.SettingsPut{Values: body.Customizations, Locked: body.Locked})
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return customizationsAnswer(c).Receipt(receipt), nil
}

func (a *API) getSchema(r *web.Request) (*web.Response, error) {
	schema, err := a.tree.Schema(r.Context(), r.Actor, r.Org.ID)
	if err != nil {
		return nil, err
	}
	return web.Raw(http.StatusOK, schema).With("Etag", tree.SchemaETag(schema)), nil
}

func (a *API) putSchema(r *web.Request) (*web.Response, error) {
	if err := a.tree.CheckSchema(r.Context(), r.Call(nil), r.Org.ID); err != nil {
		return nil, err
	}
	var schema jsontext.Value
	if err := r.DecodeAs(&schema, "application/json", "application/schema+json"); err != nil {
		return nil, err
	}
	if err := schema.Compact(); err != nil {
		return nil, err
	}
	receipt, err := a.tree.PutSchema(r.Context(), r.Call(nil), r.Org.ID, schema)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return web.Raw(http.StatusOK, schema).With("Etag", tree.SchemaETag(schema)).Receipt(receipt), nil
}

func (a *API) deleteSchema(r *web.Request) (*web.Response, error) {
	if err := a.tree.CheckSchema(r.Context(), r.Call(nil), r.Org.ID); err != nil {
		return nil, err
	}
	if err := r.NoBody(); err != nil {
		return nil, err
	}
	receipt, err := a.tree.PutSchema(r.Context(), r.Call(nil), r.Org.ID, nil)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return web.JSON(http.StatusOK, struct {
		Message string `json:"message"`
	}{"Customization schema deleted"}).Receipt(receipt), nil
}
