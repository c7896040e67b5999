package api

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/tree"
	"github.com/orgd/orgd/internal/usage"
	"github.com/orgd/orgd/internal/web"
)

func (a *API) orgRoutes() []web.Route {
	return []web.Route{
		{Method: "GET", Pattern: "/org", Operation: "whoAmI", Action: "WHO_AM_I", Handle: a.whoAmI},
		{Method: "GET", Pattern: "/orgs", Operation: "listOrgs", Action: "LIST_ORGS", Rule: web.Rule{Permissions: []string{key.OrgsRead}}, Query: takes("name", "tag", "external_id", "roots", "limit", "cursor"), Handle: a.listOrgs},
		{Method: "POST", Pattern: "/orgs", Operation: "createOrg", Action: "CREATE_ORG", Rule: web.Rule{Permissions: []string{key.OrgsWrite}, May: mayCreate}, Handle: a.createOrg},
		{Method: "POST", Pattern: "/orgs/import", Operation: "importOrgs", Action: "IMPORT_ORGS", Rule: web.Rule{Permissions: []string{key.OrgsWrite}, May: mayCreate}, MaxBody: web.MaxBulkBody, Swell: importSwell, Query: takes("parent_id", "dry_run"), Handle: a.importOrgs},
		{Method: "GET", Pattern: "/orgs/{org_id}", Operation: "getOrg", Action: "GET_ORG", Rule: needs(key.OrgsRead), Query: takes("as_of"), Handle: a.getOrg},
		{Method: "PATCH", Pattern: "/orgs/{org_id}", Operation: "updateOrg", Action: "UPDATE_ORG", Rule: needs(key.OrgsWrite), Handle: a.updateOrg},
		{Method: "DELETE", Pattern: "/orgs/{org_id}", Operation: "deleteOrg", Action: "DELETE_ORG", Rule: needsAnd(a.mayDelete, key.OrgsDelete), Query: takes("cascade", "dry_run"), Handle: a.deleteOrg},
		{Method: "POST", Pattern: "/orgs/{org_id}/restore", Operation: "restoreOrg", Action: "RESTORE_ORG", Rule: web.Rule{Target: "org_id", Check: a.checkRestore}, Handle: a.restoreOrg},
		{Method: "POST", Pattern: "/orgs/{org_id}/move", Operation: "moveOrg", Action: "MOVE_ORG", Rule: needsAnd(mayMove, key.OrgsWrite), Query: takes("dry_run"), Handle: a.moveOrg},
		{Method: "GET", Pattern: "/orgs/{org_id}/children", Operation: "listChildren", Action: "LIST_CHILDREN", Rule: needs(key.OrgsRead), Query: takes("limit", "cursor"), Handle: a.listChildren},
		{Method: "POST", Pattern: "/orgs/{org_id}/children", Operation: "createChild", Action: "CREATE_ORG", Rule: needsAnd(mayCreate, key.OrgsWrite), Handle: a.createChild},
		{Method: "GET", Pattern: "/orgs/{org_id}/ancestors", Operation: "listAncestors", Action: "LIST_ANCESTORS", Rule: needs(key.OrgsRead), Handle: a.listAncestors},
		{Method: "GET", Pattern: "/orgs/{org_id}/descendants", Operation: "listDescendants", Action: "LIST_DESCENDANTS", Rule: needs(key.OrgsRead), Query: takes("depth", "as_of", "limit", "cursor"), Handle: a.listDescendants},
		{Method: "GET", Pattern: "/orgs/{org_id}/tags", Operation: "listTags", Action: "LIST_TAGS", Rule: needs(key.OrgsRead), Handle: a.listTags},
		{Method: "PUT", Pattern: "/orgs/{org_id}/tags/{tag}", Operation: "putTag", Action: "PUT_TAG", Rule: needs(key.TagsWrite), Handle: a.putTag},
		{Method: "DELETE", Pattern: "/orgs/{org_id}/tags/{tag}", Operation: "deleteTag", Action: "DELETE_TAG", Rule: needs(key.TagsWrite), Handle: a.deleteTag},
	}
}

// appendOrg appends the representation of an organization. It is written by
// hand because it is in every answer that has to be fast.
func appendOrg(b []byte, o *org.Organization) []byte {
	b = append(b, `{"id":"`...)
	b = append(b, o.ID...)
	b = append(b, `","name":`...)
	b = appendString(b, o.Name)
	b = append(b, `,"type":"`...)
	b = append(b, o.Type...)
	b = append(b, `","description":`...)
	b = appendString(b, o.Description)
	b = append(b, `,"parent_id":`...)
	b = appendNullable(b, o.ParentID)
	b = append(b, `,"root_id":"`...)
	b = append(b, o.RootID...)
	b = append(b, `","path":["`...)
	b = append(b, strings.ReplaceAll(strings.TrimSuffix(o.Path, "/"), "/", `","`)...)
	b = append(b, `"],"depth":`...)
	b = appendInt(b, int64(o.Depth))
	b = append(b, `,"external_id":`...)
	b = appendNullable(b, o.ExternalID)
	b = append(b, `,"tags":`...)
	b = appendStrings(b, o.Tags)
	b = append(b, `,"customizations":`...)
	b = append(b, o.Settings.Values...)
	b = append(b, `,"created_at":`...)
	b = appendTime(b, o.CreatedAt)
	b = append(b, `,"updated_at":`...)
	b = appendTime(b, o.UpdatedAt)
	return append(b, '}')
}

func appendOrgs(orgs []*org.Organization) []byte {
	b := append(make([]byte, 0, 512*len(orgs)+2), '[')
	for i, o := range orgs {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendOrg(b, o)
	}
	return append(b, ']')
}

func renderOrg(o *org.Organization) []byte { return appendOrg(make([]byte, 0, 512), o) }

// orgAnswer returns the answer whose body is an organization.
func orgAnswer(status int, o *org.Organization) *web.Response {
	return web.Raw(status, renderOrg(o)).With("Etag", o.ETag())
}

// location returns the path of an organization, below the base path if the
// request came there.
func (a *API) location(r *web.Request, id string) string {
	base := a.basePath
	if !strings.HasPrefix(r.URL.Path, base+"/") {
		base = ""
	}
	return base + "/orgs/" + id
}

func (a *API) whoAmI(r *web.Request) (*web.Response, error) {
	act := r.Actor
	v := struct {
		Kind        string     `json:"kind"`
		ID          string     `json:"id"`
		Name        string     `json:"name"`
		OrgID       *string    `json:"org_id"`
		RootID      *string    `json:"root_id"`
		Permissions []string   `json:"permissions"`
		Reach       string     `json:"reach"`
		ExpiresAt   *time.Time `json:"expires_at"`
	}{Kind: string(act.Kind), ID: act.ID, Name: act.Name, Permissions: act.Holds(act.Path), Reach: string(key.ReachSubtree), ExpiresAt: act.Until()}
	if act.Everywhere() {
		v.Reach = "all"
	} else {
		v.OrgID, v.RootID = &act.OrgID, &act.RootID
		if place, _ := act.Place(); place.Self {
			v.Reach = string(key.ReachSelf)
		}
	}
	return web.JSON(http.StatusOK, v), nil
}

func (a *API) getOrg(r *web.Request) (*web.Response, error) {
	if r.URL.RawQuery != "" {
		at, err := asOf(parameters(r))
		if err != nil {
			return nil, err
		}
		if !at.IsZero() {
			return a.getOrgAt(r, at)
		}
	}
	if inm := r.Header["If-None-Match"]; len(inm) == 1 && inm[0] == r.Org.ETag {
		return (&web.Response{Status: http.StatusNotModified}).With("Etag", r.Org.ETag), nil
	}
	return web.Raw(http.StatusOK, r.Org.Rendered(renderOrg)).With("Etag", r.Org.ETag), nil
}

// orgCreateBody is the body that creates an organization.
type orgCreateBody struct {
	ID             string         `json:"id"`
	Name           string         `json:"name"`
	ParentID       string         `json:"parent_id"`
	Type           string         `json:"type"`
	Description    string         `json:"description"`
	ExternalID     string         `json:"external_id"`
	Tags           []string       `json:"tags"`
	Customizations jsontext.Value `json:"customizations"`
}

func (b *orgCreateBody) org() org.Organization {
	o := org.Organization{ID: b.ID, Name: b.Name, Type: org.Type(b.Type), Description: b.Description, ExternalID: b.ExternalID, Tags: b.Tags}
	if string(b.Customizations) != "null" {
		o.Settings.Values = b.Customizations
	}
	return o
}

func mayCreate(r *web.Request) error { return tree.PermitBelow(r.Actor, r.Place()) }

func (a *API) createOrg(r *web.Request) (*web.Response, error) {
	var body orgCreateBody
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if r.Sought = body.ParentID; r.Sought != "" {
		parent, err := a.service.Find(r.Context(), r.Actor, body.ParentID)
		if err != nil {
			return nil, err
		}
		r.Org = parent
		return a.create(r, body.ParentID, &body)
	}
	return a.create(r, "", &body)
}

func (a *API) createChild(r *web.Request) (*web.Response, error) {
	if err := org.CheckMatch(r.IfMatch(), r.Org.ETag); err != nil {
		return nil, err
	}
	var body orgCreateBody
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if body.ParentID != "" && body.ParentID != r.Org.ID {
		return nil, problem.Body("/parent_id", "differs from the organization in the path, %s", r.Org.ID).WithFix("Leave it out.")
	}
	return a.create(r, r.Org.ID, &body)
}

func (a *API) create(r *web.Request, parentID string, body *orgCreateBody) (*web.Response, error) {
	render := func(result any) *web.Response {
		o := result.(*org.Organization)
		return orgAnswer(http.StatusCreated, o).With("Location", a.location(r, o.ID))
	}
	var o *org.Organization
	var receipt audit.Receipt
	var err error
	if parentID == "" {
		o, receipt, err = a.tree.CreateRoot(r.Context(), r.Call(render), body.org())
	} else {
		o, receipt, err = a.tree.CreateChild(r.Context(), r.Call(render), parentID, body.org())
	}
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return render(o).Receipt(receipt), nil
}

// orgUpdateBody is the body that changes an organization. The members are
// kept as they were sent, since null and absent differ.
type orgUpdateBody struct {
	Name           jsontext.Value `json:"name"`
	Description    jsontext.Value `json:"description"`
	ExternalID     jsontext.Value `json:"external_id"`
	Tags           jsontext.Value `json:"tags"`
	Customizations jsontext.Value `json:"customizations"`
}

func (b *orgUpdateBody) update() (u tree.OrgUpdate, err error) {
	sent := map[string]jsontext.Value{"name": b.Name, "description": b.Description, "external_id": b.ExternalID, "tags": b.Tags}
	for i := range org.Texts {
		m := &org.Texts[i]
		v := sent[m.Name]
		if v == nil {
			continue
		}
		if m.Required && string(v) == "null" {
			return u, problem.Body(m.Pointer(), "cannot be removed: an organization always has a %s", m.Name)
		}
		text, err := member[string](m.Pointer(), v)
		if err != nil {
			return u, err
		}
		*m.Of(&u.To) = *text
		u.Members = append(u.Members, m.Name)
	}
	for i := range org.Lists {
		m := &org.Lists[i]
		v := sent[m.Name]
		if v == nil {
			continue
		}
		list, err := member[[]string](m.Pointer(), v)
		if err != nil {
			return u, err
		}
		*m.Of(&u.To) = *list
		u.Members = append(u.Members, m.Name)
	}
	switch {
	case b.Customizations == nil:
	case string(b.Customizations) == "null":
		return u, problem.Body("/customizations", "cannot be removed").
			WithFix("Set single members to null to inherit them again, or PUT {} to /customizations.")
	case b.Customizations.Kind() != '{':
		return u, problem.Body("/customizations", "must be an object")
	default:
		u.Customizations = b.Customizations
	}
	return u, nil
}

// member decodes one member of a merge patch; null gives the zero value.
func member[T any](pointer string, v jsontext.Value) (*T, error) {
	var t T
	if string(v) == "null" {
		return &t, nil
	}
	if err := web.DecodeJSON(v, &t); err != nil {
		e := problem.From(err)
		return nil, problem.Body(pointer+e.Fields[0].Pointer, "%s", e.Fields[0].Detail).WithFix("%s", e.Fix)
	}
	return &t, nil
}

func (a *API) updateOrg(r *web.Request) (*web.Response, error) {
	if err := org.CheckMatch(r.IfMatch(), r.Org.ETag); err != nil {
		return nil, err
	}
	var body orgUpdateBody
	if err := r.DecodeAs(&body, "application/merge-patch+json", "application/json"); err != nil {
		return nil, err
	}
	u, err := body.update()
	if err != nil {
		return nil, err
	}
	o, receipt, err := a.tree.Update(r.Context(), r.Call(nil), r.Org.ID, u)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return orgAnswer(http.StatusOK, o).Receipt(receipt), nil
}

// mayDelete checks that the key reaches all that would be deleted.
func (a *API) mayDelete(r *web.Request) error {
	if r.Actor.SeesBelow(r.Org.Path) {
		return nil
	}
	return a.tree.CheckDelete(r.Context(), r.Call(nil), r.Org.ID)
}

func (a *API) deleteOrg(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	opt := tree.DeleteOptions{Cascade: q.bool("cascade"), DryRun: q.bool("dry_run")}
	if q.err != nil {
		return nil, q.err
	}
	if err := org.CheckMatch(r.IfMatch(), r.Org.ETag); err != nil {
		return nil, err
	}
	if err := r.NoBody(); err != nil {
		return nil, err
	}
	d, receipt, err := a.tree.Delete(r.Context(), r.Call(nil), r.Org.ID, opt)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	v := struct {
		Message         string     `json:"message"`
		DryRun          bool       `json:"dry_run,omitzero"`
		Organizations   int64      `json:"organizations"`
		APIKeys         int64      `json:"api_keys"`
		RestorableUntil *time.Time `json:"restorable_until,omitzero"`
	}{Message: "Organization deleted successfully", Organizations: d.Organizations, APIKeys: d.APIKeys, RestorableUntil: &d.RestorableUntil}
	if d.DryRun {
		v.Message, v.DryRun, v.RestorableUntil = "Dry run: nothing was deleted", true, nil
	}
	return web.JSON(http.StatusOK, v).Receipt(receipt), nil
}

func (a *API) checkRestore(r *web.Request) error {
	id := r.PathValue("org_id")
	if !ident.Valid(id) {
		return org.NotFound()
	}
	o, err := a.tree.CheckRestore(r.Context(), r.Call(nil), id)
	if o != nil { // what is refused is in its access log too
		r.Org = &org.Snapshot{Organization: o, ETag: o.ETag()}
	}
	if o != nil && problem.Is(err, problem.Conflict) && r.Header.Get("Idempotency-Key") != "" {
		// A repeated request finds what it restored the first time; the kept
		// answer is looked for next.
		return nil
	}
	return err
}

func (a *API) restoreOrg(r *web.Request) (*web.Response, error) {
	if err := org.CheckMatch(r.IfMatch(), r.Org.ETag); err != nil {
		return nil, err
	}
	if err := r.NoBody(); err != nil {
		return nil, err
	}
	render := func(result any) *web.Response { return orgAnswer(http.StatusOK, result.(*org.Organization)) }
	o, receipt, err := a.tree.Restore(r.Context(), r.Call(render), r.Org.ID)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return render(o).Receipt(receipt), nil
}

func mayMove(r *web.Request) error { return tree.PermitMove(r.Actor, r.Org.Organization) }

func (a *API) moveOrg(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	dryRun := q.bool("dry_run")
	if q.err != nil {
		return nil, q.err
	}
	if err := org.CheckMatch(r.IfMatch(), r.Org.ETag); err != nil {
		return nil, err
	}
	var body struct {
		ParentID string `json:"parent_id"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if body.ParentID == "" {
		return nil, problem.Body("/parent_id", "is missing").WithFix("Name the organization to move below.")
	}
	r.Sought = body.ParentID
	if dryRun {
		p, err := a.tree.PreviewMove(r.Context(), r.Call(nil), r.Org.ID, body.ParentID)
		if err != nil {
			return nil, err
		}
		return web.JSON(http.StatusOK, movePreview(p)), nil
	}
	render := func(result any) *web.Response { return orgAnswer(http.StatusOK, result.(*org.Organization)) }
	o, receipt, err := a.tree.Move(r.Context(), r.Call(render), r.Org.ID, body.ParentID)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return render(o).Receipt(receipt), nil
}

func movePreview(p *tree.MovePreview) any {
	type keyRef struct {
		ID    string `json:"id"`
		OrgID string `json:"org_id"`
		Name  string `json:"name"`
	}
	type limitRef struct {
		OrgID       string            `json:"org_id"`
		Meter       string            `json:"meter"`
		Limit       usage.Decimal     `json:"limit"`
		Enforcement usage.Enforcement `json:"enforcement"`
	}
	var v struct {
		DryRun bool `json:"dry_run"`
		Path   struct {
			Old []string `json:"old"`
			New []string `json:"new"`
		} `json:"path"`
		Organizations int64 `json:"organizations"`
		Settings      any   `json:"settings"`
		Keys          struct {
			Gain []keyRef `json:"gain"`
			Lose []keyRef `json:"lose"`
		} `json:"keys"`
		Limits struct {
			Gain []limitRef `json:"gain"`
			Lose []limitRef `json:"lose"`
		} `json:"limits"`
	}
	v.DryRun, v.Path.Old, v.Path.New, v.Organizations, v.Settings = true, p.OldPath, p.NewPath, p.Organizations, p.Settings
	for _, k := range p.Gain {
		v.Keys.Gain = append(v.Keys.Gain, keyRef{k.ID, k.OrgID, k.Name})
	}
	for _, k := range p.Lose {
		v.Keys.Lose = append(v.Keys.Lose, keyRef{k.ID, k.OrgID, k.Name})
	}
	for _, l := range p.GainLimits {
		v.Limits.Gain = append(v.Limits.Gain, limitRef{l.OrgID, l.Meter, l.Amount, l.Enforcement})
	}
	for _, l := range p.LoseLimits {
		v.Limits.Lose = append(v.Limits.Lose, limitRef{l.OrgID, l.Meter, l.Amount, l.Enforcement})
	}
	return v
}

func (a *API) listOrgs(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	oq := org.OrgQuery{NamePrefix: q.text("name"), Tag: q.text("tag"), ExternalID: q.text("external_id"), RootsOnly: q.bool("roots")}
	return a.orgPage(r, q, oq)
}

func (a *API) listChildren(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	return a.orgPage(r, q, org.OrgQuery{RootID: r.Org.RootID, Path: r.Org.Path, ParentID: r.Org.ID})
}

func (a *API) listDescendants(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	oq := org.OrgQuery{RootID: r.Org.RootID, Path: r.Org.Path}
	depth := q.int("depth", 1, org.MaxDepth, 0)
	if q.values.Has("as_of") {
		return a.listDescendantsAt(r, q, depth)
	}
	if depth > 0 {
		oq.MaxDepth = r.Org.Depth + depth
	}
	return a.orgPage(r, q, oq)
}

func (a *API) orgPage(r *web.Request, q *query, oq org.OrgQuery) (*web.Response, error) {
	oq.Limit, oq.MaxBytes = q.limit(), r.PageBytes()
	oq.After = a.cursorOf(q, oq.PositionLength())
	if q.err != nil {
		return nil, q.err
	}
	page, err := a.tree.List(r.Context(), r.Actor, oq)
	if err != nil {
		return nil, err
	}
	return a.next(q, web.Raw(http.StatusOK, appendOrgs(page.Orgs)), page.Next), nil
}

func (a *API) listAncestors(r *web.Request) (*web.Response, error) {
	orgs, err := a.tree.Ancestors(r.Context(), r.Actor, r.Org.ID)
	if err != nil {
		return nil, err
	}
	return web.Raw(http.StatusOK, appendOrgs(orgs)), nil
}

func (a *API) importOrgs(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	opt := tree.ImportOptions{ParentID: q.text("parent_id"), DryRun: q.bool("dry_run"), MaxRows: int(r.Quota().ImportRows)}
	if q.err != nil {
		return nil, q.err
	}
	if opt.ParentID == "" && !r.Actor.Everywhere() {
		opt.ParentID = r.Actor.OrgID
	}
	if r.Sought = opt.ParentID; opt.ParentID != "" {
		var err error
		if r.Org, err = a.service.Find(r.Context(), r.Actor, opt.ParentID); err != nil {
			return nil, err
		}
	}
	mt, err := r.MediaType("text/csv", "application/x-ndjson")
	if err != nil {
		return nil, err
	}
	opt.Format = "csv"
	if mt != "text/csv" {
		opt.Format = "ndjson"
	}
	body, err := r.Raw()
	if err != nil {
		return nil, err
	}
	render := func(result any) *web.Response {
		res := result.(*tree.ImportResult)
		return web.JSON(http.StatusOK, struct {
			Created int64 `json:"created"`
			Roots   int64 `json:"roots"`
			DryRun  bool  `json:"dry_run"`
		}{res.Created, res.Roots, res.DryRun})
	}
	res, receipt, err := a.tree.Import(r.Context(), r.Call(render), bytes.NewReader(body), opt)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return render(res).Receipt(receipt), nil
}

func (a *API) listTags(r *web.Request) (*web.Response, error) {
	return tagsAnswer(r.Org.Organization), nil
}

func tagsAnswer(o *org.Organization) *web.Response {
	return web.Raw(http.StatusOK, appendStrings(nil, o.Tags)).With("Etag", o.ETag())
}

func (a *API) putTag(r *web.Request) (*web.Response, error) {
	return a.changeTag(r, a.tree.PutTag)
}

func (a *API) deleteTag(r *web.Request) (*web.Response, error) {
	return a.changeTag(r, a.tree.DeleteTag)
}

func (a *API) changeTag(r *web.Request, change func(context.Context, *org.Call, string, string) (*org.Organization, audit.Receipt, error)) (*web.Response, error) {
	if err := org.CheckMatch(r.IfMatch(), r.Org.ETag); err != nil {
		return nil, err
	}
	if err := r.NoBody(); err != nil {
		return nil, err
	}
	o, receipt, err := change(r.Context(), r.Call(nil), r.Org.ID, r.PathValue("tag"))
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return tagsAnswer(o).Receipt(receipt), nil
}
