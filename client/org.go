package client

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"strconv"
	"time"
)

// Types of organizations. All but TypeUser may hold children.
const (
	TypeOrganization = "organization"
	TypeGroup        = "group"
	TypeUser         = "user"
)

// Org is an organization.
type Org struct {
	ID             string          `json:"id"`
	Name           string          `json:"name"`
	Type           string          `json:"type"`
	Description    string          `json:"description"`
	ParentID       string          `json:"parent_id"` // empty for a root
	RootID         string          `json:"root_id"`
	Path           []string        `json:"path"`        // ids from the root down to the organization itself
	Depth          int             `json:"depth"`       // 0 for a root
	ExternalID     string          `json:"external_id"` // empty if there is none
	Tags           []string        `json:"tags"`
	Customizations json.RawMessage `json:"customizations"` // its own, not what it inherits
	CreatedAt      time.Time       `json:"created_at"`
	UpdatedAt      time.Time       `json:"updated_at"`
	Meta           `json:"-"`
}

// OrgCreate describes a new organization. Only Name is required.
type OrgCreate struct {
	ID             string          `json:"id,omitempty"` // chosen by the caller; the server makes one if it is empty
	ParentID       string          `json:"parent_id,omitempty"`
	Name           string          `json:"name"`
	Type           string          `json:"type,omitempty"`
	Description    string          `json:"description,omitempty"`
	ExternalID     string          `json:"external_id,omitempty"`
	Tags           []string        `json:"tags,omitempty"`
	Customizations json.RawMessage `json:"customizations,omitempty"`
}

// OrgUpdate is a change of an organization. What is nil stays as it is.
type OrgUpdate struct {
	Name        *string   `json:"name,omitempty"`
	Description *string   `json:"description,omitempty"` // "" removes it
	ExternalID  *string   `json:"external_id,omitempty"` // "" removes it
	Tags        *[]string `json:"tags,omitempty"`        // replaces all tags
	// Customizations is merged into the own customizations (RFC 7396): a null
	// removes a member, so that it is inherited again.
	Customizations json.RawMessage `json:"customizations,omitempty"`
}

// Org returns an organization.
func (cl *Client) Org(ctx context.Context, id string, opts ...CallOption) (*Org, error) {
	return get[Org](ctx, cl, newCall("GET", []string{"orgs", id}, opts))
}

// CreateOrg creates an organization: a child of in.ParentID, or a root without
// one, which takes the operator key.
func (cl *Client) CreateOrg(ctx context.Context, in OrgCreate, opts ...CallOption) (*Org, error) {
	return get[Org](ctx, cl, newCall("POST", []string{"orgs"}, opts).json(in))
}

// UpdateOrg changes an organization.
func (cl *Client) UpdateOrg(ctx context.Context, id string, in OrgUpdate, opts ...CallOption) (*Org, error) {
	c := newCall("PATCH", []string{"orgs", id}, opts).json(in)
	c.contentType = "application/merge-patch+json"
	return get[Org](ctx, cl, c)
}

// DeleteOptions say how far a delete goes.
type DeleteOptions struct {
	Cascade bool // delete the descendants too
	DryRun  bool // change nothing, only count
}

// Deletion says what a delete removed, or would remove.
type Deletion struct {
	Message         string    `json:"message"`
	DryRun          bool      `json:"dry_run"`
	Organizations   int64     `json:"organizations"` // with the organization itself
	APIKeys         int64     `json:"api_keys"`
	RestorableUntil time.Time `json:"restorable_until"` // zero for a dry run
	Meta            `json:"-"`
}

// DeleteOrg deletes an organization. It can be restored until the server's
// restore window ends.
func (cl *Client) DeleteOrg(ctx context.Context, id string, opt DeleteOptions, opts ...CallOption) (*Deletion, error) {
	return get[Deletion](ctx, cl, newCall("DELETE", []string{"orgs", id}, opts).setBool("cascade", opt.Cascade).setBool("dry_run", opt.DryRun))
}

// Restore undoes a delete, with all that it deleted.
func (cl *Client) Restore(ctx context.Context, id string, opts ...CallOption) (*Org, error) {
	return get[Org](ctx, cl, newCall("POST", []string{"orgs", id, "restore"}, opts))
}

type moveBody struct {
	ParentID string `json:"parent_id"`
}

// Move moves an organization and its descendants below another parent in the
// same root.
func (cl *Client) Move(ctx context.Context, id, parentID string, opts ...CallOption) (*Org, error) {
	return get[Org](ctx, cl, newCall("POST", []string{"orgs", id, "move"}, opts).json(moveBody{parentID}))
}

// MovePreview says what a move would change.
type MovePreview struct {
	Path struct {
		Old []string `json:"old"`
		New []string `json:"new"`
	} `json:"path"`
	Organizations int64    `json:"organizations"` // that move
	Settings      []Change `json:"settings"`      // effective customizations of the organization
	Keys          struct {
		Gain []KeyRef `json:"gain"` // would reach the organization
		Lose []KeyRef `json:"lose"` // would no longer reach it
	} `json:"keys"`
	Limits struct {
		Gain []LimitRef `json:"gain"` // would begin to bind it
		Lose []LimitRef `json:"lose"` // would no longer bind it
	} `json:"limits"`
	Meta `json:"-"`
}

// KeyRef names an API key.
type KeyRef struct {
	ID    string `json:"id"`
	OrgID string `json:"org_id"`
	Name  string `json:"name"`
}

// PreviewMove says what Move would change, and changes nothing.
func (cl *Client) PreviewMove(ctx context.Context, id, parentID string, opts ...CallOption) (*MovePreview, error) {
	return get[MovePreview](ctx, cl, newCall("POST", []string{"orgs", id, "move"}, opts).setBool("dry_run", true).json(moveBody{parentID}))
}

// Children lists the children of an organization.
func (cl *Client) Children(ctx context.Context, id string, opts ...CallOption) iter.Seq2[Org, error] {
	return list[Org](ctx, cl, newCall("GET", []string{"orgs", id, "children"}, opts))
}

// Descendants lists all that is below an organization, depth first, so that
// every parent comes before its children. depth is how many levels below the
// organization to list; 0 lists all.
func (cl *Client) Descendants(ctx context.Context, id string, depth int, opts ...CallOption) iter.Seq2[Org, error] {
	c := newCall("GET", []string{"orgs", id, "descendants"}, opts)
	if depth > 0 {
		c.set("depth", strconv.Itoa(depth))
	}
	return list[Org](ctx, cl, c)
}

// Ancestors returns the organizations above an organization that the key can
// see, root first.
func (cl *Client) Ancestors(ctx context.Context, id string, opts ...CallOption) ([]Org, error) {
	orgs, err := get[[]Org](ctx, cl, newCall("GET", []string{"orgs", id, "ancestors"}, opts))
	if err != nil {
		return nil, err
	}
	return *orgs, nil
}

// OrgQuery selects organizations. Its members narrow the result together; the
// zero OrgQuery selects all that the key can see.
type OrgQuery struct {
	Name       string // prefix of the name, case-insensitive
	Tag        string
	ExternalID string
	Roots      bool // roots only
}

// Search lists the organizations that q selects.
func (cl *Client) Search(ctx context.Context, q OrgQuery, opts ...CallOption) iter.Seq2[Org, error] {
	return list[Org](ctx, cl, newCall("GET", []string{"orgs"}, opts).
		set("name", q.Name).set("tag", q.Tag).set("external_id", q.ExternalID).setBool("roots", q.Roots))
}

// Tags returns the tags of an organization, sorted.
func (cl *Client) Tags(ctx context.Context, id string, opts ...CallOption) ([]string, error) {
	return cl.tags(ctx, newCall("GET", []string{"orgs", id, "tags"}, opts))
}

// PutTag adds a tag and returns all tags.
func (cl *Client) PutTag(ctx context.Context, id, tag string, opts ...CallOption) ([]string, error) {
	return cl.tags(ctx, newCall("PUT", []string{"orgs", id, "tags", tag}, opts))
}

// DeleteTag removes a tag and returns the others.
func (cl *Client) DeleteTag(ctx context.Context, id, tag string, opts ...CallOption) ([]string, error) {
	return cl.tags(ctx, newCall("DELETE", []string{"orgs", id, "tags", tag}, opts))
}

func (cl *Client) tags(ctx context.Context, c *call) ([]string, error) {
	tags, err := get[[]string](ctx, cl, c)
	if err != nil {
		return nil, err
	}
	return *tags, nil
}

// Formats of imports.
const (
	CSV    = "text/csv"
	NDJSON = "application/x-ndjson"
)

// ImportOptions say what an import does with its rows.
type ImportOptions struct {
	Format   string // CSV or NDJSON
	ParentID string // where rows without a parent go; the key's organization if empty, or roots for the operator
	DryRun   bool   // change nothing, only check and count
	// Progress is called as the rows are sent, with the bytes sent so far and
	// in all. It starts over if the request is repeated.
	Progress func(sent, total int64)
}

// ImportResult says what an import created, or would create.
type ImportResult struct {
	Created int64 `json:"created"`
	Roots   int64 `json:"roots"` // of those, the ones without a parent
	DryRun  bool  `json:"dry_run"`
	Meta    `json:"-"`
}

// Import creates the organizations that the rows of r describe, all or none of
// them. Bad rows are an *Error with the code import_invalid, whose Errors name
// the lines. The rows are read into memory first; a server takes at most 32
// MiB.
func (cl *Client) Import(ctx context.Context, r io.Reader, opt ImportOptions, opts ...CallOption) (*ImportResult, error) {
	rows, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	c := newCall(http.MethodPost, []string{"orgs", "import"}, opts).set("parent_id", opt.ParentID).setBool("dry_run", opt.DryRun)
	c.body, c.contentType, c.progress = rows, opt.Format, opt.Progress
	return get[ImportResult](ctx, cl, c)
}
