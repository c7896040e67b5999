package api_test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/testkit"
)

// verifierKey returns the key of an organization's log, as a customer gets it.
func verifierKey(s *testkit.Server, orgID string) string {
	return strings.TrimSpace(string(s.Must(http.StatusOK, "GET", "/orgs/"+orgID+"/audit_log/key", s.OperatorKey, "").Body))
}

// checkpoint returns the last checkpoint of a log, checked.
func checkpoint(t testing.TB, s *testkit.Server, orgID, vkey string) ([]byte, audit.Checkpoint) {
	t.Helper()
	signed := s.Must(http.StatusOK, "GET", "/orgs/"+orgID+"/audit_log/checkpoint", s.OperatorKey, "").Body
	c, err := audit.OpenCheckpoint(signed, vkey)
	if err != nil {
		t.Fatal(err)
	}
	return signed, c
}

// mustHold fails the test unless a verification was made and everything held.
func mustHold(t testing.TB, r *audit.Report, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Failures {
		t.Errorf("%s: entry %d of epoch %d, line %d: %s", f.Check, f.Seq, f.Epoch, f.Line, f.Detail)
	}
}

// A customer takes receipts, a checkpoint and the key, and later checks the
// export, and the proofs of single entries, with nothing else.
func TestAuditLogCanBeChecked(t *testing.T) {
	bothEngines(t, func(t *testing.T, s *testkit.Server) {
		newFixture(s, "f-")
		vkey := verifierKey(s, "f-root")
		old, oldSaid := checkpoint(t, s, "f-own", vkey)
		var receipts []audit.Receipt
		for i := range 300 {
			a := s.Must(http.StatusOK, "PATCH", "/orgs/f-child", s.OperatorKey, fmt.Sprintf(`{"description":"change %d"}`, i))
			r, err := audit.ParseReceipt(a.Header.Get("Orgd-Audit-Receipt"))
			if err != nil {
				t.Fatal(err)
			}
			receipts = append(receipts, r)
		}
		export := s.Must(http.StatusOK, "GET", fmt.Sprintf("/orgs/f-root/audit_log/export?seq=%d", 0), s.OperatorKey, "").Body
		export = slices.Concat(export, awaitExport(t, s, "f-root", receipts[299].Seq, int64(bytes.Count(export, []byte(`{"leaf":`)))))
		report, err := audit.Verify(bytes.NewReader(export), audit.Expect{Keys: []string{vkey}, Checkpoints: [][]byte{old}, Receipts: receipts})
		mustHold(t, report, err)
		if report.Receipts != 300 || report.Entries < 300 || report.Values == 0 || !slices.ContainsFunc(report.Checkpoints, func(c audit.CheckedCheckpoint) bool { return c.Kept && c.Size == oldSaid.Size }) {
			t.Errorf("checked %d receipts, %d entries, %d values, checkpoints %v", report.Receipts, report.Entries, report.Values, report.Checkpoints)
		}
		foreign := verifierKey(s, "f-foreign")
		if report, err := audit.Verify(bytes.NewReader(export), audit.Expect{Keys: []string{foreign}}); err != nil || report.OK() {
			t.Errorf("the log verifies with the key of another root: %v", err)
		}

		// The log only grew, by what another implementation says.
		_, said := checkpoint(t, s, "f-root", vkey)
		hashes, err := audit.ParseHashes(s.Must(http.StatusOK, "GET", fmt.Sprintf("/orgs/f-own/audit_log/consistency?from=%d&to=%d", oldSaid.Size, said.Size), s.OperatorKey, "").Body)
		if err != nil {
			t.Fatal(err)
		}
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, uint64(oldSaid.Size), uint64(said.Size), raw(hashes), oldSaid.Root[:], said.Root[:]); err != nil {
			t.Error(err)
		}

		// Somebody who sees one organization only can prove its entries.
		secret, _ := s.NewKey("f-child", `"permissions":["read"]`)
		for _, e := range s.Must(http.StatusOK, "GET", "/orgs/f-child/children_audit?limit=3", secret, "").JSON().([]any) {
			id := e.(map[string]any)["id"].(string)
			text := s.Must(http.StatusOK, "GET", "/orgs/f-child/children_audit/"+id+"/proof", secret, "").Body
			report, err := audit.VerifyProof(text, audit.Expect{Keys: []string{vkey}})
			mustHold(t, report, err)
			if bytes.Contains(text, []byte("f-sibling")) {
				t.Error("the proof of an entry shows another")
			}
			p, err := audit.ParseProof(text)
			if err != nil {
				t.Fatal(err)
			}
			c, err := audit.OpenCheckpoint(p.Checkpoint, vkey)
			if err != nil {
				t.Fatal(err)
			}
			if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(p.Seq), uint64(c.Size), rfc6962.DefaultHasher.HashLeaf(p.Leaf), raw(p.Hashes), c.Root[:]); err != nil {
				t.Error(err)
			}
		}
		sibling := s.Must(http.StatusOK, "GET", "/orgs/f-sibling/children_audit?limit=1", s.OperatorKey, "").JSON().([]any)[0].(map[string]any)["id"].(string)
		s.Must(http.StatusNotFound, "GET", "/orgs/f-child/children_audit/"+sibling+"/proof", secret, "")
		s.Must(http.StatusNotFound, "GET", "/orgs/f-child/children_audit/aud_none/proof", secret, "")
	})
}

func raw(hashes []audit.Hash) [][]byte {
	list := make([][]byte, len(hashes))
	for i := range hashes {
		list[i] = hashes[i][:]
	}
	return list
}

// awaitExport returns exports from seq on that together have the entry last.
func awaitExport(t testing.TB, s *testkit.Server, rootID string, last, seq int64) []byte {
	t.Helper()
	var all []byte
	for range 500 {
		if seq > last {
			return all
		}
		time.Sleep(10 * time.Millisecond)
		more := s.Must(http.StatusOK, "GET", fmt.Sprintf("/orgs/%s/audit_log/export?seq=%d", rootID, seq), s.OperatorKey, "").Body
		if n := int64(bytes.Count(more, []byte(`{"leaf":`))); n > 0 {
			all = append(all, more...)
			seq += n
		}
	}
	t.Fatalf("entry %d is not exported", last)
	return nil
}

// Exports that are made while the log grows, and resumed again and again,
// verify as one.
func TestAuditExportsWhileTheLogGrows(t *testing.T) {
	bothEngines(t, func(t *testing.T, s *testkit.Server) {
		newFixture(s, "f-")
		vkey := verifierKey(s, "f-root")
		stop := make(chan struct{})
		var writers sync.WaitGroup
		for w := range 4 {
			writers.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := s.TryDo("PATCH", "/orgs/f-child", s.OperatorKey, fmt.Sprintf(`{"name":"%d %d"}`, w, i)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		var all []byte
		var seq int64
		for range 20 {
			part := s.Must(http.StatusOK, "GET", "/orgs/f-root/audit_log/export?seq="+strconv.FormatInt(seq, 10), s.OperatorKey, "").Body
			n := int64(bytes.Count(part, []byte(`{"leaf":`)))
			time.Sleep(20 * time.Millisecond)
			if n == 0 {
				continue
			}
			all, seq = append(all, part...), seq+n
		}
		close(stop)
		writers.Wait()
		report, err := audit.Verify(bytes.NewReader(all), audit.Expect{Keys: []string{vkey}})
		mustHold(t, report, err)
		if report.Entries != seq || len(report.Checkpoints) < 2 {
			t.Errorf("%d entries of %d, %d checkpoints", report.Entries, seq, len(report.Checkpoints))
		}
	})
}
