package web

import (
	"bytes"
	"crypto/sha256"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// A fingerprint covers all that decides about what a request does, and nothing
// that does not.
func TestFingerprint(t *testing.T) {
	const body = `{"quantity":1}`
	of := func(method, target, body string, fields ...string) []byte {
		r := httptest.NewRequest(method, target, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i < len(fields); i += 2 {
			r.Header.Add(fields[i], fields[i+1])
		}
		return fingerprint(&Request{Request: r}, []byte(body))
	}
	event := []string{"ce-specversion", "1.0", "ce-id", "1", "ce-source", "gw"}
	base := of("POST", "/a", body, event...)
	seen := map[string]string{string(base): "the first"}
	for name, other := range map[string][]byte{
		"another method":         of("PUT", "/a", body, event...),
		"another target":         of("POST", "/a?dry_run=true", body, event...),
		"another body":           of("POST", "/a", body+" ", event...),
		"another id":             of("POST", "/a", body, "ce-specversion", "1.0", "ce-id", "2", "ce-source", "gw"),
		"another source":         of("POST", "/a", body, "ce-specversion", "1.0", "ce-id", "1", "ce-source", "gw2"),
		"swapped attributes":     of("POST", "/a", body, "ce-specversion", "1.0", "ce-id", "gw", "ce-source", "1"),
		"a time":                 of("POST", "/a", body, append(slices.Clone(event), "ce-time", "2026-11-14T12:00:00Z")...),
		"an extension":           of("POST", "/a", body, append(slices.Clone(event), "ce-tenant", "x")...),
		"a second value":         of("POST", "/a", body, append(slices.Clone(event), "ce-id", "2")...),
		"a condition":            of("POST", "/a", body, append(slices.Clone(event), "If-Match", `"1"`)...),
		"another condition":      of("POST", "/a", body, append(slices.Clone(event), "If-Match", `"2"`)...),
		"a coding":               of("POST", "/a", body, append(slices.Clone(event), "Content-Encoding", "gzip")...),
		"no attribute":           of("POST", "/a", body),
		"attributes in the body": of("POST", "/a", body+"ce-id\x001\nce-source\x00gw\nce-specversion\x001.0\x00"),
	} {
		if is := seen[string(other)]; is != "" {
			t.Errorf("%s has the fingerprint of %s", name, is)
		}
		seen[string(other)] = name
	}
	for name, same := range map[string][]byte{
		"another order": of("POST", "/a", body, "ce-source", "gw", "ce-id", "1", "ce-specversion", "1.0"),
		"another case":  of("POST", "/a", body, "CE-SpecVersion", "1.0", "cE-iD", "1", "Ce-Source", "gw"),
		"other fields":  of("POST", "/a", body, append(slices.Clone(event), "User-Agent", "x", "Traceparent", "y", "Content-Encoding", "identity")...),
	} {
		if !bytes.Equal(same, base) {
			t.Errorf("%s changes the fingerprint", name)
		}
	}
}

// What was kept by an orgd that knew no header fields is still found by the
// requests that have none of them.
func TestFingerprintWithoutFieldsStays(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/orgs?x=1", nil)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "client")
	want := sha256.Sum256([]byte("POST\x00/orgs?x=1\x00application/json\x00{}"))
	if got := fingerprint(&Request{Request: r}, []byte("{}")); !bytes.Equal(got, want[:]) {
		t.Errorf("fingerprint %x, want %x", got, want)
	}
}
