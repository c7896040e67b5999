package api

import (
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/tree"
	"github.com/orgd/orgd/internal/web"
)

func (a *API) keyRoutes() []web.Route {
	return []web.Route{
		{Method: "GET", Pattern: "/orgs/{org_id}/api_keys", Operation: "listKeys", Action: "LIST_KEYS", Rule: needs(key.KeysRead), Query: takes("limit", "cursor"), Handle: a.listKeys},
		{Method: "POST", Pattern: "/orgs/{org_id}/api_keys", Operation: "createKey", Action: "CREATE_KEY", Rule: needs(key.KeysWrite), Handle: a.createKey},
		{Method: "GET", Pattern: "/orgs/{org_id}/api_keys/{key_id}", Operation: "getKey", Action: "GET_KEY", Rule: needs(key.KeysRead), Handle: a.getKey},
		{Method: "PATCH", Pattern: "/orgs/{org_id}/api_keys/{key_id}", Operation: "updateKey", Action: "UPDATE_KEY", Rule: needsAnd(a.mayChangeKey, key.KeysWrite), Handle: a.updateKey},
		{Method: "DELETE", Pattern: "/orgs/{org_id}/api_keys/{key_id}", Operation: "revokeKey", Action: "REVOKE_KEY", Rule: needs(key.KeysWrite), Handle: a.revokeKey},
		{Method: "POST", Pattern: "/orgs/{org_id}/api_keys/{key_id}/rotate", Operation: "rotateKey", Action: "ROTATE_KEY", Rule: needsAnd(a.mayChangeKey, key.KeysWrite), Handle: a.rotateKey},
	}
}

// keyBody is the representation of an API key. The secret is in it only when
// the key has just got it.
type keyBody struct {
	ID           string         `json:"id"`
	OrgID        string         `json:"org_id"`
	Name         string         `json:"name"`
	Permissions  []string       `json:"permissions"`
	Reach        key.Reach      `json:"reach"`
	AllowedCIDRs []string       `json:"allowed_cidrs"`
	RateLimit    *key.RateLimit `json:"rate_limit"`
	Hint         string         `json:"hint"`
	CreatedAt    time.Time      `json:"created_at"`
	CreatedBy    string         `json:"created_by"`
	UpdatedAt    time.Time      `json:"updated_at"`
	ExpiresAt    *time.Time     `json:"expires_at"`
	LastUsedAt   *time.Time     `json:"last_used_at"`
	LastUsedIP   *string        `json:"last_used_ip"`
	OldSecret    *oldSecretBody `json:"old_secret,omitzero"`
	Secret       string         `json:"secret,omitzero"`
}

type oldSecretBody struct {
	Hint       string     `json:"hint"`
	ValidUntil time.Time  `json:"valid_until"`
	LastUsedAt *time.Time `json:"last_used_at"`
	LastUsedIP *string    `json:"last_used_ip"`
}

func nullable(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func newKeyBody(k *key.Key, secret string) keyBody {
	b := keyBody{ID: k.ID, OrgID: k.OrgID, Name: k.Name, Permissions: k.Permissions, Reach: k.Reach,
		AllowedCIDRs: k.AllowedCIDRs, RateLimit: k.RateLimit, Hint: k.Hint, CreatedAt: k.CreatedAt, CreatedBy: k.CreatedBy,
		UpdatedAt: k.UpdatedAt, ExpiresAt: k.ExpiresAt, LastUsedAt: k.LastUsedAt, LastUsedIP: nullable(k.LastUsedIP), Secret: secret}
	if k.Old != nil {
		b.OldSecret = &oldSecretBody{k.Old.Hint, k.Old.ValidUntil, k.Old.LastUsedAt, nullable(k.Old.LastUsedIP)}
	}
	return b
}

func keyAnswer(status int, k *key.Key, secret string) *web.Response {
	return web.JSON(status, newKeyBody(k, secret)).With("Etag", tree.KeyETag(k))
}

func (a *API) listKeys(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	limit := q.limit()
	after := a.cursorOf(q, 1)
	if q.err != nil {
		return nil, q.err
	}
	start := ""
	if after != nil {
		start = after[0]
	}
	keys, more, err := a.tree.Keys(r.Context(), r.Actor, r.Org.ID, start, limit, r.PageBytes())
	if err != nil {
		return nil, err
	}
	var next []string
	if more {
		next = []string{keys[len(keys)-1].ID}
	}
	bodies := make([]keyBody, len(keys))
	for i, k := range keys {
		bodies[i] = newKeyBody(k, "")
	}
	return a.next(q, web.JSON(http.StatusOK, bodies), next), nil
}

func (a *API) createKey(r *web.Request) (*web.Response, error) {
	var body struct {
		Name         string         `json:"name"`
		Permissions  []string       `json:"permissions"`
		Reach        key.Reach      `json:"reach"`
		ExpiresAt    *time.Time     `json:"expires_at"`
		AllowedCIDRs []string       `json:"allowed_cidrs"`
		RateLimit    *key.RateLimit `json:"rate_limit"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	render := func(result any) *web.Response {
		k := result.(*tree.NewKey)
		return keyAnswer(http.StatusCreated, k.Key, k.Secret).With("Location", a.location(r, k.OrgID)+"/api_keys/"+k.ID)
	}
	k, receipt, err := a.tree.CreateKey(r.Context(), r.Call(render), r.Org.ID, auth.Request{Name: body.Name,
		Permissions: body.Permissions, Reach: body.Reach, ExpiresAt: body.ExpiresAt, AllowedCIDRs: body.AllowedCIDRs, RateLimit: body.RateLimit})
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return render(k).Receipt(receipt), nil
}

func (a *API) getKey(r *web.Request) (*web.Response, error) {
	k, err := a.tree.Key(r.Context(), r.Actor, r.Org.ID, r.PathValue("key_id"))
	if err != nil {
		return nil, err
	}
	return keyAnswer(http.StatusOK, k, ""), nil
}

// matchKey finds the key of the path and checks the precondition.
func (a *API) matchKey(r *web.Request) (*key.Key, error) {
	k, err := a.tree.Key(r.Context(), r.Actor, r.Org.ID, r.PathValue("key_id"))
	if err != nil {
		return nil, err
	}
	return k, org.CheckMatch(r.IfMatch(), tree.KeyETag(k))
}

// mayChangeKey checks that the key of the path has no more power than the one
// that the request carries.
func (a *API) mayChangeKey(r *web.Request) error {
	k, err := a.tree.Key(r.Context(), r.Actor, r.Org.ID, r.PathValue("key_id"))
	if err != nil {
		return err
	}
	if p := auth.Covers(r.Actor, r.Org.Path, k); p != nil {
		return p
	}
	return nil
}

func (a *API) updateKey(r *web.Request) (*web.Response, error) {
	k, err := a.matchKey(r)
	if err != nil {
		return nil, err
	}
	var body struct {
		Name         jsontext.Value `json:"name"`
		Permissions  jsontext.Value `json:"permissions"`
		Reach        jsontext.Value `json:"reach"`
		ExpiresAt    jsontext.Value `json:"expires_at"`
		AllowedCIDRs jsontext.Value `json:"allowed_cidrs"`
		RateLimit    jsontext.Value `json:"rate_limit"`
	}
	if err := r.DecodeAs(&body, "application/merge-patch+json", "application/json"); err != nil {
		return nil, err
	}
	for _, m := range []struct {
		pointer string
		v       jsontext.Value
	}{{"/name", body.Name}, {"/permissions", body.Permissions}, {"/reach", body.Reach}} {
		if string(m.v) == "null" {
			return nil, problem.Body(m.pointer, "cannot be removed")
		}
	}
	var u tree.KeyUpdate
	if body.Name != nil {
		if u.Name, err = member[string]("/name", body.Name); err != nil {
			return nil, err
		}
	}
	if body.Permissions != nil {
		if u.Permissions, err = member[[]string]("/permissions", body.Permissions); err != nil {
			return nil, err
		}
	}
	if body.Reach != nil {
		if u.Reach, err = member[key.Reach]("/reach", body.Reach); err != nil {
			return nil, err
		}
	}
	if body.ExpiresAt != nil {
		if u.ExpiresAt, err = member[*time.Time]("/expires_at", body.ExpiresAt); err != nil {
			return nil, err
		}
	}
	if body.AllowedCIDRs != nil {
		if u.AllowedCIDRs, err = member[[]string]("/allowed_cidrs", body.AllowedCIDRs); err != nil {
			return nil, err
		}
	}
	if body.RateLimit != nil {
		if u.RateLimit, err = member[*key.RateLimit]("/rate_limit", body.RateLimit); err != nil {
			return nil, err
		}
	}
	k, receipt, err := a.tree.UpdateKey(r.Context(), r.Call(nil), r.Org.ID, k.ID, u)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return keyAnswer(http.StatusOK, k, "").Receipt(receipt), nil
}

func (a *API) revokeKey(r *web.Request) (*web.Response, error) {
	k, err := a.matchKey(r)
	if err != nil {
		return nil, err
	}
	if err := r.NoBody(); err != nil {
		return nil, err
	}
	receipt, err := a.tree.RevokeKey(r.Context(), r.Call(nil), r.Org.ID, k.ID)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return web.JSON(http.StatusOK, struct {
		Message string `json:"message"`
	}{"API key revoked"}).Receipt(receipt), nil
}

// Overlap of a rotation, in seconds.
const (
	defaultOverlapSeconds = 24 * 60 * 60
	maxOverlapSeconds     = 30 * 24 * 60 * 60
)

func (a *API) rotateKey(r *web.Request) (*web.Response, error) {
	k, err := a.matchKey(r)
	if err != nil {
		return nil, err
	}
	overlap := defaultOverlapSeconds
	raw, err := r.Raw()
	if err != nil {
		return nil, err
	}
	if len(raw) > 0 {
		body := struct {
			OverlapSeconds *int `json:"overlap_seconds"`
		}{}
		if err := r.Decode(&body); err != nil {
			return nil, err
		}
		if body.OverlapSeconds != nil {
			overlap = *body.OverlapSeconds
		}
	}
	if overlap < 0 || overlap > maxOverlapSeconds {
		return nil, problem.Body("/overlap_seconds", "must be from 0 to %d", maxOverlapSeconds)
	}
	render := func(result any) *web.Response {
		k := result.(*tree.NewKey)
		return keyAnswer(http.StatusOK, k.Key, k.Secret)
	}
	nk, receipt, err := a.tree.RotateKey(r.Context(), r.Call(render), r.Org.ID, k.ID, time.Duration(overlap)*time.Second)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return render(nk).Receipt(receipt), nil
}
