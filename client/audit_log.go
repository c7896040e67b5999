package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// AuditCheckpoint returns the last signed checkpoint of the audit log of an
// organization's root (C2SP tlog-checkpoint), to be kept byte for byte.
func (cl *Client) AuditCheckpoint(ctx context.Context, orgID string, opts ...CallOption) ([]byte, error) {
	_, body, err := cl.do(ctx, newCall("GET", []string{"orgs", orgID, "audit_log", "checkpoint"}, opts))
	return body, err
}

// AuditKey returns the verifier key of the audit log of an organization's root
// (C2SP signed-note).
func (cl *Client) AuditKey(ctx context.Context, orgID string, opts ...CallOption) (string, error) {
	_, body, err := cl.do(ctx, newCall("GET", []string{"orgs", orgID, "audit_log", "key"}, opts))
	return strings.TrimSpace(string(body)), err
}

// AuditProof returns an audit entry of an organization with the proof that it
// is in the signed log (C2SP tlog-proof).
func (cl *Client) AuditProof(ctx context.Context, orgID, entryID string, opts ...CallOption) ([]byte, error) {
	_, body, err := cl.do(ctx, newCall("GET", []string{"orgs", orgID, "children_audit", entryID, "proof"}, opts))
	return body, err
}

// AuditExport writes the audit log of a root to w, from an entry on: all that
// a verifier needs. It is not repeated by itself: what was written of an
// export that fails is worth nothing without its last line. Successive exports
// that are put behind each other are one.
func (cl *Client) AuditExport(ctx context.Context, rootID string, epoch, seq int64, w io.Writer, opts ...CallOption) error {
	return cl.copy(ctx, newCall("GET", []string{"orgs", rootID, "audit_log", "export"}, opts).
		set("epoch", strconv.FormatInt(epoch, 10)).set("seq", strconv.FormatInt(seq, 10)), w)
}

// copy makes the call once and writes the answer to w as it comes.
func (cl *Client) copy(ctx context.Context, c *call, w io.Writer) error {
	req, err := cl.request(ctx, c)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "*/*")
	resp, err := cl.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		if err != nil {
			return err
		}
		return newError(resp, body)
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("the server's answer was cut short: %w", err)
	}
	return nil
}

// AuditEpoch is an epoch of an audit log that was opened.
type AuditEpoch struct {
	Origin string `json:"origin"` // the first line of its checkpoints
	Meta   `json:"-"`
}

// OpenAuditEpoch opens a new epoch of the audit log of a root that lacks what
// was signed of it before. Only the operator may.
func (cl *Client) OpenAuditEpoch(ctx context.Context, rootID, reason string, opts ...CallOption) (*AuditEpoch, error) {
	return get[AuditEpoch](ctx, cl, newCall("POST", []string{"orgs", rootID, "audit_log", "epochs"}, opts).json(map[string]string{"reason": reason}))
}

// RotatedAuditKey is the outcome of a rotation.
type RotatedAuditKey struct {
	Key          string    `json:"key"` // the new verifier key
	OldKeyEndsAt time.Time `json:"old_key_ends_at"`
	Meta         `json:"-"`
}

// RotateAuditKey lets another key sign the audit log of a root. The old one
// signs too until overlap, in whole seconds, has passed. Only the operator may.
func (cl *Client) RotateAuditKey(ctx context.Context, rootID string, overlap time.Duration, opts ...CallOption) (*RotatedAuditKey, error) {
	return get[RotatedAuditKey](ctx, cl, newCall("POST", []string{"orgs", rootID, "audit_log", "rotate_key"}, opts).
		json(map[string]int64{"overlap_seconds": int64(overlap / time.Second)}))
}

// RefusedAuditLog is an audit log that the server does not sign.
type RefusedAuditLog struct {
	RootID  string `json:"root_id"`
	LogID   string `json:"log_id"`
	Missing bool   `json:"missing"` // the database does not have it at all
	Detail  string `json:"detail"`
}

// RefusedAuditLogs lists the audit logs that the server does not sign, since
// the database lacks what was signed before or the server lacks the key. Only
// the operator may.
func (cl *Client) RefusedAuditLogs(ctx context.Context, opts ...CallOption) ([]RefusedAuditLog, error) {
	_, body, err := cl.do(ctx, newCall("GET", []string{"refused_audit_logs"}, opts))
	if err != nil {
		return nil, err
	}
	var logs []RefusedAuditLog
	return logs, json.NewDecoder(bytes.NewReader(body)).Decode(&logs)
}

// AbandonAuditLog gives up an audit log that the database does not have. Only
// the operator may.
func (cl *Client) AbandonAuditLog(ctx context.Context, logID, reason string, opts ...CallOption) error {
	_, _, err := cl.do(ctx, newCall("DELETE", []string{"refused_audit_logs", logID}, opts).set("reason", reason))
	return err
}
