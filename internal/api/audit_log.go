package api

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/evidence"
	"github.com/orgd/orgd/internal/key"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/web"
)

// Signer signs the audit logs.
type Signer interface {
	// Refused returns the logs that are not signed, by root: the database
	// lacks what was signed before, or the server lacks the key.
	Refused() []evidence.Refusal
	// OpenEpoch opens a new epoch of a log that is refused.
	OpenEpoch(ctx context.Context, call *org.Call, rootID, reason string) (origin string, receipt audit.Receipt, err error)
	// Abandon gives up a refused log that the database does not have.
	Abandon(logID, reason string) error
}

func (a *API) auditLogRoutes() []web.Route {
	read := web.Rule{Target: "org_id", Permissions: []string{key.AuditRead}}
	operator := web.Rule{Target: "org_id", Operator: true}
	return []web.Route{
		{Method: "GET", Pattern: "/orgs/{org_id}/audit_log/checkpoint", Operation: "getAuditCheckpoint", Action: "GET_AUDIT_CHECKPOINT", Rule: read, Query: takes("epoch"), Handle: a.getCheckpoint},
		{Method: "GET", Pattern: "/orgs/{org_id}/audit_log/key", Operation: "getAuditKey", Action: "GET_AUDIT_KEY", Rule: read, Handle: a.getVerifierKey},
		{Method: "GET", Pattern: "/orgs/{org_id}/audit_log/consistency", Operation: "getAuditConsistency", Action: "GET_AUDIT_CONSISTENCY", Rule: read, Query: takes("from", "to", "epoch"), Handle: a.getConsistency},
		{Method: "GET", Pattern: "/orgs/{org_id}/audit_log/tile/{level}/{tile...}", Operation: "getAuditTile", Action: "GET_AUDIT_TILE", Rule: read, Query: takes("epoch"), Handle: a.getTile},
		{Method: "GET", Pattern: "/orgs/{org_id}/audit_log/export", Operation: "exportAuditLog", Action: "EXPORT_AUDIT_LOG", Rule: read, Query: takes("epoch", "seq"), Handle: a.exportAuditLog},
		{Method: "POST", Pattern: "/orgs/{org_id}/audit_log/epochs", Operation: "openAuditEpoch", Action: "OPEN_AUDIT_EPOCH", Rule: operator, Handle: a.openEpoch},
		{Method: "POST", Pattern: "/orgs/{org_id}/audit_log/rotate_key", Operation: "rotateAuditKey", Action: "ROTATE_AUDIT_KEY", Rule: operator, Handle: a.rotateAuditKey},
		{Method: "GET", Pattern: "/orgs/{org_id}/children_audit/{entry_id}/proof", Operation: "getAuditProof", Action: "GET_AUDIT_PROOF", Rule: read, Handle: a.getProof},
		{Method: "GET", Pattern: "/refused_audit_logs", Operation: "listRefusedAuditLogs", Action: "LIST_REFUSED_AUDIT_LOGS", Rule: web.Rule{Operator: true}, Handle: a.listRefused},
		{Method: "DELETE", Pattern: "/refused_audit_logs/{log_id}", Operation: "abandonAuditLog", Action: "ABANDON_AUDIT_LOG", Rule: web.Rule{Operator: true}, Query: takes("reason"), Handle: a.abandonAuditLog},
	}
}

func text(body []byte) *web.Response {
	return &web.Response{Status: http.StatusOK, ContentType: "text/plain; charset=utf-8", Body: body}
}

// epoch returns the parameter epoch, -1 without one.
func (q *query) epoch() int64 { return int64(q.int("epoch", 0, 1<<20, -1)) }

// size returns a parameter that counts entries.
func (q *query) size(name string, otherwise int64) int64 {
	return int64(q.int(name, 0, 1<<org.EpochBits-1, int(otherwise)))
}

// whole fails unless the request is about a root, with a key that sees all
// below it.
func whole(r *web.Request) error {
	if r.Org.ParentID != "" {
		return problem.New(problem.Conflict, "Only a root organization has this; %s is not a root.", r.Org.ID).
			WithFix("Use the root organization, %s.", r.Org.RootID)
	}
	if !r.Actor.SeesBelow(r.Org.Path) {
		return problem.New(problem.PermissionDenied, "This key reaches its own organization only, and the log holds entries of all below it.").
			WithFix("Use a key with the reach subtree.")
	}
	return nil
}

func (a *API) getCheckpoint(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	epoch := q.epoch()
	if q.err != nil {
		return nil, q.err
	}
	l, err := a.evidence.Log(r.Context(), r.Org.RootID, epoch)
	if err != nil {
		return nil, err
	}
	return text(l.Signature.Checkpoint), nil
}

func (a *API) getVerifierKey(r *web.Request) (*web.Response, error) {
	l, err := a.evidence.Log(r.Context(), r.Org.RootID, -1)
	if err != nil {
		return nil, err
	}
	vkey, err := a.evidence.VerifierKey(l)
	if err != nil {
		return nil, err
	}
	return text([]byte(vkey + "\n")), nil
}

func (a *API) getConsistency(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	from, to, epoch := q.size("from", 0), q.size("to", -1), q.epoch()
	if q.err == nil && !q.values.Has("from") {
		q.fail(problem.Param("from", "is missing").WithFix("Give the size of the checkpoint that you have."))
	}
	if q.err != nil {
		return nil, q.err
	}
	proof, err := a.evidence.Consistency(r.Context(), r.Org.RootID, epoch, from, to)
	if err != nil {
		return nil, err
	}
	return text(audit.FormatHashes(proof)), nil
}

func (a *API) getTile(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	epoch := q.epoch()
	if q.err != nil {
		return nil, q.err
	}
	if err := whole(r); err != nil {
		return nil, err
	}
	tile, err := audit.ParseTilePath("tile/" + r.PathValue("level") + "/" + r.PathValue("tile"))
	if err != nil {
		return nil, problem.New(problem.NotFound, "This is not the path of a tile.").
			WithFix("Tiles are at tile/<level>/<index> and tile/entries/<index>, as C2SP tlog-tiles describes it.")
	}
	b, err := a.evidence.Tile(r.Context(), r.Org.RootID, epoch, tile)
	if err != nil {
		return nil, err
	}
	return &web.Response{Status: http.StatusOK, ContentType: "application/octet-stream", Body: b}, nil
}

func (a *API) exportAuditLog(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	epoch, seq := max(q.epoch(), 0), q.size("seq", 0)
	if q.err != nil {
		return nil, q.err
	}
	if err := whole(r); err != nil {
		return nil, err
	}
	x, err := a.evidence.ExportLog(r.Context(), r.Org.RootID, epoch, seq)
	if err != nil {
		return nil, err
	}
	ctx := r.Watched()
	return &web.Response{Status: http.StatusOK, ContentType: "application/x-ndjson",
		Stream: func(w io.Writer) error { return x.Write(ctx, w) }}, nil
}

func (a *API) getProof(r *web.Request) (*web.Response, error) {
	p, err := a.evidence.ProveEntry(r.Context(), r.Actor, r.Org, r.PathValue("entry_id"))
	if err != nil {
		return nil, err
	}
	return text(p.Text()), nil
}

func (a *API) openEpoch(r *web.Request) (*web.Response, error) {
	var body struct {
		Reason string `json:"reason"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if err := checkReason("/reason", body.Reason); err != nil {
		return nil, err
	}
	if r.Org.ParentID != "" {
		return nil, whole(r)
	}
	render := func(result any) *web.Response {
		return web.JSON(http.StatusCreated, struct {
			Origin string `json:"origin"`
		}{result.(string)}).With("Location", a.location(r, r.Org.ID)+"/audit_log/checkpoint")
	}
	origin, receipt, err := a.signer.OpenEpoch(r.Context(), r.Call(render), r.Org.ID, body.Reason)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return render(origin).Receipt(receipt), nil
}

func checkReason(pointer, reason string) error {
	if strings.TrimSpace(reason) == "" || len(reason) > 1000 {
		return problem.Body(pointer, "must say why, in at most 1000 bytes")
	}
	return nil
}

// maxKeyOverlap is how long the old key of a log may sign too.
const maxKeyOverlap = 366 * 24 * time.Hour

func (a *API) rotateAuditKey(r *web.Request) (*web.Response, error) {
	body := struct {
		OverlapSeconds int64 `json:"overlap_seconds"`
	}{OverlapSeconds: 7 * 24 * 60 * 60}
	if b, err := r.Raw(); err != nil {
		return nil, err
	} else if len(b) > 0 {
		if err := r.Decode(&body); err != nil {
			return nil, err
		}
	}
	if body.OverlapSeconds < 0 || body.OverlapSeconds > int64(maxKeyOverlap/time.Second) {
		return nil, problem.Body("/overlap_seconds", "must be a whole number from 0 to %d", int64(maxKeyOverlap/time.Second))
	}
	render := func(result any) *web.Response { return web.JSON(http.StatusOK, result) }
	rotated, receipt, err := a.evidence.RotateLogKey(r.Context(), r.Call(render), r.Org.ID, time.Duration(body.OverlapSeconds)*time.Second)
	if err != nil {
		return nil, err
	}
	r.Receipt = receipt
	return render(rotated).Receipt(receipt), nil
}

type refusalBody struct {
	RootID  string `json:"root_id"`
	LogID   string `json:"log_id"`
	Missing bool   `json:"missing"`
	Detail  string `json:"detail"`
}

func (a *API) listRefused(r *web.Request) (*web.Response, error) {
	list := []refusalBody{}
	for _, x := range a.signer.Refused() {
		list = append(list, refusalBody{RootID: x.RootID, LogID: x.LogID, Missing: x.Missing, Detail: problem.From(x.Err).Detail})
	}
	return web.JSON(http.StatusOK, list), nil
}

func (a *API) abandonAuditLog(r *web.Request) (*web.Response, error) {
	q := parameters(r)
	reason := q.text("reason")
	if q.err == nil && strings.TrimSpace(reason) == "" {
		q.fail(problem.Param("reason", "is missing: it must say why"))
	}
	if q.err != nil {
		return nil, q.err
	}
	if err := a.signer.Abandon(r.PathValue("log_id"), reason); err != nil {
		return nil, err
	}
	r.Did = "The audit log was abandoned"
	return web.JSON(http.StatusOK, struct {
		Message string `json:"message"`
	}{"Audit log abandoned"}), nil
}
