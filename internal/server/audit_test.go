package server_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	_ "github.com/ncruces/go-sqlite3/driver"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// A trail is a server with the audit logs of two roots, and what a customer
// has kept of the first.
type trail struct {
	*testkit.Server
	vkey       string
	checkpoint []byte // of all that is in the log
	receipts   []audit.Receipt
}

const trailEntries = 300 // more than a tile

func newTrail(t testing.TB, s *testkit.Server) *trail {
	t.Helper()
	tr := &trail{Server: s}
	for _, id := range []string{"acme", "other"} {
		s.Must(http.StatusCreated, "POST", "/orgs", s.OperatorKey, `{"id":"`+id+`","name":"`+id+`"}`)
	}
	tr.grow(t, trailEntries-1)
	for i := range 5 {
		s.Must(http.StatusOK, "PATCH", "/orgs/other", s.OperatorKey, fmt.Sprintf(`{"name":"other %d"}`, i))
	}
	tr.keep(t)
	return tr
}

// grow makes n changes of acme and keeps their receipts.
func (tr *trail) grow(t testing.TB, n int) {
	t.Helper()
	for i := range n {
		a := tr.Must(http.StatusOK, "PATCH", "/orgs/acme", tr.OperatorKey, fmt.Sprintf(`{"description":"%d %d"}`, len(tr.receipts), i))
		r, err := audit.ParseReceipt(a.Header.Get("Orgd-Audit-Receipt"))
		if err != nil {
			t.Fatal(err)
		}
		tr.receipts = append(tr.receipts, r)
	}
}

// keep takes the key and the checkpoint, once it covers everything.
func (tr *trail) keep(t testing.TB) {
	t.Helper()
	if err := tr.SignAuditLogs(context.Background()); err != nil {
		t.Fatal(err)
	}
	tr.vkey = strings.TrimSpace(string(tr.Must(http.StatusOK, "GET", "/orgs/acme/audit_log/key", tr.OperatorKey, "").Body))
	tr.checkpoint = tr.Must(http.StatusOK, "GET", "/orgs/acme/audit_log/checkpoint", tr.OperatorKey, "").Body
}

func (tr *trail) export(t testing.TB) []byte {
	t.Helper()
	return tr.Must(http.StatusOK, "GET", "/orgs/acme/audit_log/export", tr.OperatorKey, "").Body
}

// again starts the server again, after what was done to its data.
func (tr *trail) again(t testing.TB, do func(db *sql.DB)) {
	t.Helper()
	tr.Stop()
	c := tr.Config
	db := openDB(t, c)
	do(db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	tr.Server = testkit.Open(t, "", func(n *server.Config) { *n = c })
}

func openDB(t testing.TB, c server.Config) *sql.DB {
	t.Helper()
	driver, source := "sqlite3", "file:"+filepath.Join(c.DataDir, "orgd.db")
	if c.Database != "" {
		driver, source = "pgx", c.Database
	}
	db, err := sql.Open(driver, source)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func execute(t testing.TB, db *sql.DB, text string, args ...any) {
	t.Helper()
	if _, err := db.Exec(text, args...); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// leaves reads a log as it is stored.
func leaves(t testing.TB, db *sql.DB, rootID string) (all [][]byte) {
	t.Helper()
	rows, err := db.Query(`SELECT leaf FROM audit_entries WHERE root_id = $1 ORDER BY seq`, rootID)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// rewrite replaces a log by one with other leaves, with every hash up to the
// root recomputed: what somebody does who owns the database.
func rewrite(t testing.TB, db *sql.DB, rootID string, all [][]byte) {
	t.Helper()
	head := audit.NewHead(rootID, "")
	execute(t, db, `DELETE FROM audit_tiles WHERE root_id = $1`, rootID)
	execute(t, db, `DELETE FROM audit_entries WHERE root_id = $1 AND seq >= $2`, rootID, len(all))
	execute(t, db, `DELETE FROM audit_values WHERE root_id = $1 AND seq >= $2`, rootID, len(all))
	for seq, leaf := range all {
		hash := sha256.Sum256(append([]byte{0}, leaf...))
		execute(t, db, `UPDATE audit_entries SET leaf = $1, leaf_hash = $2 WHERE root_id = $3 AND seq = $4`, leaf, hash[:], rootID, seq)
		for level, h := range head.Extend(hash) {
			execute(t, db, `INSERT INTO audit_tiles (root_id, epoch, level, place, hash) VALUES ($1, 0, $2, $3, $4)`,
				rootID, level+1, seq>>(8*(level+1)), h[:])
		}
	}
	var compact []byte
	for _, h := range head.Range {
		compact = append(compact, h[:]...)
	}
	execute(t, db, `UPDATE audit_heads SET size = $1, root_hash = $2, hashes = $3 WHERE root_id = $4`, head.Size, head.Root[:], compact, rootID)
}

// mustRefuse checks that a log is not signed any more, that the server says so
// to everybody who may know, and that work goes on.
func (tr *trail) mustRefuse(t testing.TB) {
	t.Helper()
	tr.Must(http.StatusOK, "PATCH", "/orgs/acme", tr.OperatorKey, `{"name":"written on"}`)
	tr.Must(http.StatusOK, "PATCH", "/orgs/other", tr.OperatorKey, `{"name":"written on"}`)
	if err := tr.SignAuditLogs(context.Background()); err != nil {
		t.Fatal(err)
	}
	if now := tr.Must(http.StatusOK, "GET", "/orgs/acme/audit_log/checkpoint", tr.OperatorKey, "").Body; !bytes.Equal(now, tr.checkpoint) {
		c, err := audit.ParseCheckpoint(now)
		t.Errorf("the log was signed again, at size %d (%v)", c.Size, err)
	}
	// A log that is no longer than what was signed of it is noticed by its
	// anchor, in the background.
	for range 500 {
		if len(tr.Must(http.StatusOK, "GET", "/refused_audit_logs", tr.OperatorKey, "").JSON().([]any)) > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	status := tr.Must(http.StatusOK, "GET", "/service_status", "", "")
	if status.String("status") != "degraded" || status.String("checks", "audit_log", "status") != "failed" {
		t.Errorf("/service_status says %s", status.Body)
	}
	if bytes.Contains(status.Body, []byte("acme")) {
		t.Errorf("/service_status names a customer to everybody: %s", status.Body)
	}
	metrics := tr.Must(http.StatusOK, "GET", "/metrics", "", "").Body
	if !bytes.Contains(metrics, []byte("\norgd_audit_refused_logs 1\n")) {
		t.Error("the metric orgd_audit_refused_logs is not 1")
	}
	refused := tr.Must(http.StatusOK, "GET", "/refused_audit_logs", tr.OperatorKey, "")
	if !bytes.Contains(refused.Body, []byte(`"root_id":"acme"`)) || bytes.Contains(refused.Body, []byte(`"other"`)) {
		t.Errorf("the refused logs are %s", refused.Body)
	}
	// The other log is as it was, and signed.
	c, err := audit.ParseCheckpoint(tr.Must(http.StatusOK, "GET", "/orgs/other/audit_log/checkpoint", tr.OperatorKey, "").Body)
	if err != nil || c.Size < 7 {
		t.Errorf("the log of the other root is not signed: size %d, %v", c.Size, err)
	}
}

// mustFail checks that whoever has kept something finds out.
func (tr *trail) mustFail(t testing.TB, export []byte) {
	t.Helper()
	for name, expect := range map[string]audit.Expect{
		"the key":                  {Keys: []string{tr.vkey}},
		"the key and a checkpoint": {Keys: []string{tr.vkey}, Checkpoints: [][]byte{tr.checkpoint}},
		"the key and receipts":     {Keys: []string{tr.vkey}, Receipts: tr.receipts},
	} {
		report, err := audit.Verify(bytes.NewReader(export), expect)
		if err != nil || report.OK() {
			t.Errorf("the export verifies with %s (%v)", name, err)
		}
	}
}

func engines(t *testing.T, test func(t *testing.T, engine string)) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) { test(t, engine) })
	}
}

// Whoever owns the database rewrites the log, with every hash that is stored.
// The server notices, refuses to sign, and says so; and so does everybody who
// checks what the server serves.
func TestAttacksOnTheDatabase(t *testing.T) {
	replace := func(leaf []byte, old, new string) []byte {
		out := bytes.Replace(leaf, []byte(old), []byte(new), 1)
		if bytes.Equal(out, leaf) {
			panic("the leaf " + string(leaf) + " does not have " + old)
		}
		return out
	}
	for _, attack := range []struct {
		name string
		do   func(t *testing.T, db *sql.DB)
	}{
		{"an early leaf is edited", func(t *testing.T, db *sql.DB) {
			all := leaves(t, db, "acme")
			all[7] = replace(all[7], `"id":"operator"`, `"id":"somebody"`)
			rewrite(t, db, "acme", all)
		}},
		{"the last leaf is edited", func(t *testing.T, db *sql.DB) {
			all := leaves(t, db, "acme")
			n := len(all) - 1
			all[n] = replace(all[n], `"organization.updated"`, `"organization.deleted"`)
			rewrite(t, db, "acme", all)
		}},
		{"the last entry is deleted", func(t *testing.T, db *sql.DB) {
			all := leaves(t, db, "acme")
			rewrite(t, db, "acme", all[:len(all)-1])
		}},
		{"an entry in the middle is deleted", func(t *testing.T, db *sql.DB) {
			all := leaves(t, db, "acme")
			rewrite(t, db, "acme", append(all[:100:100], all[101:]...))
		}},
		{"two entries are swapped", func(t *testing.T, db *sql.DB) {
			all := leaves(t, db, "acme")
			all[41], all[42] = all[42], all[41]
			rewrite(t, db, "acme", all)
		}},
		{"an entry comes from another root", func(t *testing.T, db *sql.DB) {
			all := leaves(t, db, "acme")
			all[3] = leaves(t, db, "other")[3]
			rewrite(t, db, "acme", all)
		}},
		{"an entry is inserted", func(t *testing.T, db *sql.DB) {
			all := leaves(t, db, "acme")
			all[50] = replace(all[50], `"action":"`, `"action":"x.`)
			rewrite(t, db, "acme", all)
		}},
		{"the log is truncated and written on", func(t *testing.T, db *sql.DB) {
			rewrite(t, db, "acme", leaves(t, db, "acme")[:20])
		}},
	} {
		t.Run(attack.name, func(t *testing.T) {
			engines(t, func(t *testing.T, engine string) {
				tr := newTrail(t, testkit.Open(t, engine))
				tr.again(t, func(db *sql.DB) { attack.do(t, db) })
				tr.mustRefuse(t)
				// The server cuts an export short if it lacks what is signed.
				if a, err := tr.TryDo("GET", "/orgs/acme/audit_log/export", tr.OperatorKey, ""); err == nil {
					tr.mustFail(t, a.Body)
				}
			})
		})
	}
}

// The stored hashes alone are altered: nothing that the log serves verifies.
func TestAttacksOnHashes(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		tr := newTrail(t, testkit.Open(t, engine))
		tr.again(t, func(db *sql.DB) {
			execute(t, db, `UPDATE audit_tiles SET hash = $1 WHERE root_id = 'acme' AND level = 1 AND place = 0`, make([]byte, 32))
		})
		tr.mustRefuse(t)
	})
}

// Values that are removed or altered without an erasure entry are noticed by
// whoever checks an export, although the tree is what it was.
func TestAttacksOnValues(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		tr := newTrail(t, testkit.Open(t, engine))
		tr.again(t, func(db *sql.DB) {
			execute(t, db, `UPDATE audit_values SET content = '{}' WHERE root_id = 'acme' AND seq = 12`)
			execute(t, db, `UPDATE audit_values SET content = (SELECT content FROM audit_values WHERE root_id = 'acme' AND epoch = 0 AND seq = 13)
				WHERE root_id = 'acme' AND seq = 14`)
		})
		report, err := audit.Verify(bytes.NewReader(tr.export(t)), audit.Expect{Keys: []string{tr.vkey}})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, f := range report.Failures {
			found[fmt.Sprintf("%s %d", f.Check, f.Seq)] = true
		}
		if !found["erasure 12"] || !found["commitment 14"] {
			t.Errorf("the failures are %v", report.Failures)
		}
	})
}

// A stored checkpoint that the server has not signed is not taken for one.
func TestAttackOnTheCheckpoint(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		tr := newTrail(t, testkit.Open(t, engine))
		var before []byte
		tr.again(t, func(db *sql.DB) {
			all := leaves(t, db, "acme")
			rewrite(t, db, "acme", all[:250])
			head := audit.NewHead("acme", strings.Split(tr.receipts[0].Origin, "/")[1])
			for _, leaf := range all[:250] {
				head.Extend(sha256.Sum256(append([]byte{0}, leaf...)))
			}
			own, err := audit.DeriveKey(make([]byte, audit.SeedSize), head.LogID, 0, 1)
			if err != nil {
				t.Fatal(err)
			}
			if before, err = audit.SignCheckpoint(head, own); err != nil {
				t.Fatal(err)
			}
			execute(t, db, `UPDATE audit_checkpoints SET size = 250, content = $1 WHERE root_id = 'acme'`, before)
		})
		tr.checkpoint = before
		tr.mustRefuse(t)
		tr.Must(http.StatusConflict, "GET", "/orgs/acme/audit_log/key", tr.OperatorKey, "")
		tr.Must(http.StatusConflict, "GET", "/orgs/acme/audit_log/export", tr.OperatorKey, "")
	})
}

// copyFile copies a file, such as a database that nobody has open.
func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Yesterday's database file is restored and written on. The server refuses to
// sign until the operator opens a new epoch; then everything verifies, and the
// gap shows.
func TestRestoredBackup(t *testing.T) {
	tr := newTrail(t, testkit.Open(t, "sqlite"))
	path := filepath.Join(tr.Config.DataDir, "orgd.db")
	yesterday := filepath.Join(t.TempDir(), "backup.db")
	early := tr.checkpoint
	tr.again(t, func(*sql.DB) { copyFile(t, path, yesterday) })
	tr.grow(t, 30)
	tr.Must(http.StatusCreated, "POST", "/orgs", tr.OperatorKey, `{"id":"later","name":"Later"}`)
	tr.keep(t)
	late := tr.checkpoint
	tr.again(t, func(db *sql.DB) { db.Close(); copyFile(t, yesterday, path) })

	// The log of acme is behind, that of later is gone.
	waitRefused := func(n int) *testkit.Answer {
		t.Helper()
		var a *testkit.Answer
		for range 200 {
			if a = tr.Must(http.StatusOK, "GET", "/refused_audit_logs", tr.OperatorKey, ""); len(a.JSON().([]any)) == n {
				return a
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("the refused logs are %s", a.Body)
		return nil
	}
	refused := waitRefused(2)
	var missing string
	for _, l := range refused.JSON().([]any) {
		if m := l.(map[string]any); m["root_id"] == "later" && m["missing"] == true {
			missing = m["log_id"].(string)
		}
	}
	if missing == "" {
		t.Fatalf("the refused logs are %s", refused.Body)
	}
	tr.grow(t, 3)
	if err := tr.SignAuditLogs(context.Background()); err != nil {
		t.Fatal(err)
	}
	if now := tr.Must(http.StatusOK, "GET", "/orgs/acme/audit_log/checkpoint", tr.OperatorKey, "").Body; !bytes.Equal(now, early) {
		t.Errorf("the log is signed: %s", now)
	}
	tr.Must(http.StatusConflict, "POST", "/orgs/other/audit_log/epochs", tr.OperatorKey, `{"reason":"nothing is wrong with it"}`)
	tr.Must(http.StatusBadRequest, "POST", "/orgs/acme/audit_log/epochs", tr.OperatorKey, `{"reason":" "}`)
	opened := tr.Must(http.StatusCreated, "POST", "/orgs/acme/audit_log/epochs", tr.OperatorKey, `{"reason":"the disk failed"}`, "Idempotency-Key", "once")
	again := tr.Must(http.StatusCreated, "POST", "/orgs/acme/audit_log/epochs", tr.OperatorKey, `{"reason":"the disk failed"}`, "Idempotency-Key", "once")
	if !bytes.Equal(opened.Body, again.Body) || !strings.HasSuffix(opened.String("origin"), "/1") {
		t.Errorf("the epochs opened are %s and %s", opened.Body, again.Body)
	}
	tr.Must(http.StatusOK, "DELETE", "/refused_audit_logs/"+missing+"?reason=the+disk+failed", tr.OperatorKey, "")
	tr.Must(http.StatusNotFound, "DELETE", "/refused_audit_logs/"+missing+"?reason=the+disk+failed", tr.OperatorKey, "")
	waitRefused(0)
	if status := tr.Must(http.StatusOK, "GET", "/service_status", "", ""); status.String("status") != "ok" {
		t.Errorf("/service_status says %s", status.Body)
	}
	// And after another start it stays so.
	tr.again(t, func(*sql.DB) {})
	tr.grow(t, 5)
	tr.keep(t)
	waitRefused(0)

	export := tr.export(t)
	report, err := audit.Verify(bytes.NewReader(export), audit.Expect{Keys: []string{tr.vkey}, Checkpoints: [][]byte{early, tr.checkpoint}})
	if err != nil || !report.OK() || report.Epoch != 1 || report.Size != 6 {
		t.Errorf("the log of both epochs: epoch %d, size %d, %v, %v", report.Epoch, report.Size, report.Failures, err)
	}
	if len(report.Notes) != 1 || !strings.Contains(report.Notes[0], "the disk failed") {
		t.Errorf("the notes are %q", report.Notes)
	}
	// Whoever has kept a checkpoint or receipts of what is gone finds out.
	report, err = audit.Verify(bytes.NewReader(export), audit.Expect{Keys: []string{tr.vkey}, Checkpoints: [][]byte{late}})
	if err != nil || report.OK() {
		t.Errorf("the lost entries are not noticed (%v)", err)
	}
	testkit.CheckSystem(t, tr.Store)
	tr.Stop()
}

// Servers that sign the logs of one database at the same time never sign two
// trees of the same size, and each anchors what the others sign.
func TestServersSignTogether(t *testing.T) {
	url := testkit.Postgres(t)
	var servers []*testkit.Server
	for range 3 {
		servers = append(servers, testkit.Open(t, "", func(c *server.Config) {
			c.Database, c.SignInterval = url, time.Millisecond
			if len(servers) > 0 {
				c.OperatorKey = servers[0].OperatorKey
			}
		}))
	}
	one := newTrail(t, servers[0])
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(func() {
			for i := range 60 {
				if a, err := s.TryDo("PATCH", "/orgs/acme", s.OperatorKey, fmt.Sprintf(`{"name":"%d"}`, i)); err != nil || a.Status != http.StatusOK {
					t.Errorf("%v %v", a, err)
				}
			}
		})
	}
	wg.Wait()
	one.keep(t)
	deadline := time.Now().Add(10 * time.Second)
	logID := strings.Split(one.receipts[0].Origin, "/")[1]
	roots := map[int64]audit.Hash{}
	var all [][]byte
	for i, s := range servers {
		for {
			signed := testkit.Anchored(t, s)[logID]
			if len(signed) > 0 && bytes.Contains(signed[len(signed)-1], one.checkpoint[:bytes.Index(one.checkpoint, []byte("\n\n"))]) {
				all = append(all, signed...)
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("server %d has not anchored the last checkpoint", i)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	for _, signed := range all {
		c, err := audit.OpenCheckpoint(signed, one.vkey)
		if err != nil {
			t.Fatal(err)
		}
		if root, ok := roots[c.Size]; ok && root != c.Root {
			t.Errorf("two trees of size %d are signed", c.Size)
		}
		roots[c.Size] = c.Root
	}
	report, err := audit.Verify(bytes.NewReader(one.export(t)), audit.Expect{Keys: []string{one.vkey}, Checkpoints: all})
	if err != nil || !report.OK() {
		t.Errorf("%v %v", report.Failures, err)
	}
	t.Logf("%d checkpoints of %d sizes", len(all), len(roots))

	// A server with another key does not sign, and says so.
	stranger := testkit.Open(t, "", func(c *server.Config) {
		c.Database, c.OperatorKey, c.AuditKey = url, one.OperatorKey, strings.Repeat("77", audit.SeedSize)
	})
	for _, s := range servers {
		s.Stop()
	}
	stranger.Must(http.StatusOK, "PATCH", "/orgs/acme", stranger.OperatorKey, `{"name":"by a stranger"}`)
	if err := stranger.SignAuditLogs(context.Background()); err != nil {
		t.Fatal(err)
	}
	if now := stranger.Must(http.StatusOK, "GET", "/orgs/acme/audit_log/checkpoint", stranger.OperatorKey, "").Body; !bytes.Equal(now, one.checkpoint) {
		t.Error("a server with another key has signed")
	}
	if status := stranger.Must(http.StatusOK, "GET", "/service_status", "", ""); status.String("checks", "audit_log", "status") != "failed" {
		t.Errorf("/service_status says %s", status.Body)
	}
	if len(testkit.Anchored(t, stranger)) > 0 {
		t.Error("a server with another key has anchored")
	}
	stranger.Must(http.StatusServiceUnavailable, "GET", "/orgs/acme/audit_log/key", stranger.OperatorKey, "")
}

// The database falls back to what a lagging standby had. Every server that
// knows of later signatures refuses, also one that made none of them.
func TestDatabaseFallsBack(t *testing.T) {
	url := testkit.Postgres(t)
	one := newTrail(t, testkit.Open(t, "", func(c *server.Config) { c.Database = url }))
	idle := testkit.Open(t, "", func(c *server.Config) { c.Database, c.OperatorKey = url, one.OperatorKey })
	one.grow(t, 3)
	one.keep(t)
	for range 100 {
		if bytes.Contains(bytes.Join(testkit.Anchored(t, idle)[strings.Split(one.receipts[0].Origin, "/")[1]], nil), one.checkpoint) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	one.Stop()
	db := openDB(t, one.Config)
	defer db.Close()
	all := leaves(t, db, "acme")
	rewrite(t, db, "acme", all[:trailEntries])
	// The stored signature is as old as the rest.
	var before []byte
	for _, signed := range testkit.Anchored(t, one.Server)[strings.Split(one.receipts[0].Origin, "/")[1]] {
		if c, err := audit.ParseCheckpoint(signed); err == nil && c.Size <= trailEntries {
			before = signed
			execute(t, db, `UPDATE audit_checkpoints SET size = $1, content = $2 WHERE root_id = 'acme'`, c.Size, signed)
		}
	}
	one.Server, one.checkpoint = idle, before
	one.mustRefuse(t)
}

// The key of a log is rotated: both keys sign until the overlap ends, then the
// new one alone, and whoever has the old verifier key is led to the new one.
func TestRotatedLogKey(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		tr := newTrail(t, testkit.Start(t, engine))
		old, kept := tr.vkey, tr.checkpoint
		tr.Must(http.StatusBadRequest, "POST", "/orgs/acme/audit_log/rotate_key", tr.OperatorKey, `{"overlap_seconds":-1}`)
		a := tr.Must(http.StatusOK, "POST", "/orgs/acme/audit_log/rotate_key", tr.OperatorKey, `{"overlap_seconds":2}`, "Idempotency-Key", "once")
		if again := tr.Must(http.StatusOK, "POST", "/orgs/acme/audit_log/rotate_key", tr.OperatorKey, `{"overlap_seconds":2}`, "Idempotency-Key", "once"); !bytes.Equal(a.Body, again.Body) {
			t.Errorf("the key was rotated twice: %s %s", a.Body, again.Body)
		}
		tr.keep(t)
		if tr.vkey == old || tr.vkey != a.String("key") {
			t.Errorf("the key is %s, rotated to %s from %s", tr.vkey, a.String("key"), old)
		}
		for _, vkey := range []string{old, tr.vkey} {
			if _, err := audit.OpenCheckpoint(tr.checkpoint, vkey); err != nil {
				t.Errorf("during the overlap: %v", err)
			}
		}
		time.Sleep(2100 * time.Millisecond)
		tr.grow(t, 2)
		tr.keep(t)
		if _, err := audit.OpenCheckpoint(tr.checkpoint, tr.vkey); err != nil {
			t.Error(err)
		}
		if _, err := audit.OpenCheckpoint(tr.checkpoint, old); err == nil {
			t.Error("the old key signs after its end")
		}
		for _, vkey := range []string{old, tr.vkey} {
			report, err := audit.Verify(bytes.NewReader(tr.export(t)), audit.Expect{Keys: []string{vkey}, Checkpoints: [][]byte{kept, tr.checkpoint}, Receipts: tr.receipts})
			if err != nil || !report.OK() {
				t.Errorf("with %s: %v %v", vkey, report.Failures, err)
			}
		}
	})
}

// A key that has signed nothing yet is not rotated: what the one before it has signed
// could not be checked any more.
func TestRotatedBeforeSigned(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		s := testkit.Start(t, engine, func(c *server.Config) { c.SignInterval = time.Hour })
		s.Must(http.StatusCreated, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"Acme"}`)
		rotate := func(status int) {
			t.Helper()
			s.Must(status, "POST", "/orgs/acme/audit_log/rotate_key", s.OperatorKey, `{"overlap_seconds":60}`)
		}
		sign := func() {
			t.Helper()
			if err := s.SignAuditLogs(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		sign()
		rotate(http.StatusOK)
		rotate(http.StatusConflict)
		s.Must(http.StatusOK, "PATCH", "/orgs/acme", s.OperatorKey, `{"name":"Acme 2"}`)
		rotate(http.StatusConflict)
		sign()
		rotate(http.StatusOK)
		sign()
		rotate(http.StatusOK)
	})
}

// A new seed in the server's key file takes over with a rotation.
func TestRotatedSeed(t *testing.T) {
	tr := newTrail(t, testkit.Open(t, "sqlite"))
	old := tr.vkey
	path := filepath.Join(tr.Config.DataDir, "audit.key")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key file: %v %v", info.Mode(), err)
	}
	tr.again(t, func(*sql.DB) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(f, strings.Repeat("42", audit.SeedSize))
		f.Close()
	})
	tr.grow(t, 2)
	tr.keep(t)
	if tr.vkey != old {
		t.Error("another seed signs without a rotation")
	}
	tr.Must(http.StatusOK, "POST", "/orgs/acme/audit_log/rotate_key", tr.OperatorKey, "")
	tr.grow(t, 2)
	tr.keep(t)
	want, err := audit.DeriveKey(bytes.Repeat([]byte{0x42}, audit.SeedSize), strings.Split(tr.receipts[0].Origin, "/")[1], 0, 2)
	if err != nil || tr.vkey != want.Verifier() {
		t.Errorf("the key is %s, not that of the new seed, %s (%v)", tr.vkey, want.Verifier(), err)
	}
	report, err := audit.Verify(bytes.NewReader(tr.export(t)), audit.Expect{Keys: []string{old}})
	if err != nil || !report.OK() {
		t.Errorf("%v %v", report.Failures, err)
	}
	testkit.CheckSystem(t, tr.Store)
	testkit.CheckLogs(t, tr.Server)
	tr.Stop()
}

// The seed of a log is lost for good, and the server goes on with another one:
// it does not sign the log until a new epoch is opened, with a key of the seed
// that it has. Both keys together prove the whole log, and so does the new one
// from where it goes on.
func TestLostSeed(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		tr := newTrail(t, testkit.Open(t, engine))
		old, kept, logID := tr.vkey, tr.checkpoint, strings.Split(tr.receipts[0].Origin, "/")[1]
		// With another seed in its place, explicitly, the server starts.
		another := strings.Repeat("42", audit.SeedSize)
		tr.Config.AuditKey = another
		tr.again(t, func(*sql.DB) {})
		tr.grow(t, 2)
		if err := tr.SignAuditLogs(context.Background()); err != nil {
			t.Fatal(err)
		}
		if status := tr.Must(http.StatusOK, "GET", "/service_status", "", ""); status.String("checks", "audit_log", "status") != "failed" {
			t.Errorf("/service_status says %s", status.Body)
		}
		opened := tr.Must(http.StatusCreated, "POST", "/orgs/acme/audit_log/epochs", tr.OperatorKey, `{"reason":"the seed was lost"}`)
		if !strings.HasSuffix(opened.String("origin"), "/1") {
			t.Errorf("opened %s", opened.Body)
		}
		tr.grow(t, 2)
		tr.keep(t)
		want, err := audit.DeriveKey(bytes.Repeat([]byte{0x42}, audit.SeedSize), logID, 1, 2)
		if err != nil || tr.vkey != want.Verifier() {
			t.Errorf("the key is %s, not the next one of the new seed, %s (%v)", tr.vkey, want.Verifier(), err)
		}
		if c, err := audit.OpenCheckpoint(tr.checkpoint, tr.vkey); err != nil || c.Size != 3 {
			t.Errorf("signed: %+v %v", c, err)
		}
		tr.Must(http.StatusConflict, "POST", "/orgs/acme/audit_log/epochs", tr.OperatorKey, `{"reason":"again"}`)
		export := tr.export(t)
		for _, keys := range [][]string{{old, tr.vkey}, {tr.vkey}} {
			expect := audit.Expect{Keys: keys, Checkpoints: [][]byte{tr.checkpoint}, Receipts: tr.receipts}
			if len(keys) > 1 {
				expect.Checkpoints = append(expect.Checkpoints, kept)
			}
			report, err := audit.Verify(bytes.NewReader(export), expect)
			if err != nil || !report.OK() || !strings.Contains(strings.Join(report.Notes, "\n"), "has another one, "+tr.vkey) {
				t.Errorf("with the keys %v: %v %v %v", keys, report.Failures, report.Notes, err)
			}
		}
		if report, err := audit.Verify(bytes.NewReader(export), audit.Expect{Keys: []string{old}}); err != nil || report.OK() {
			t.Errorf("the lost key vouches for what another one has signed (%v)", err)
		}
		// It stays so after another start, and the key can be rotated.
		tr.Must(http.StatusCreated, "POST", "/orgs/other/audit_log/epochs", tr.OperatorKey, `{"reason":"the seed was lost"}`)
		tr.again(t, func(*sql.DB) {})
		lost := tr.vkey
		tr.Must(http.StatusOK, "POST", "/orgs/acme/audit_log/rotate_key", tr.OperatorKey, `{"overlap_seconds":0}`)
		tr.grow(t, 2)
		tr.keep(t)
		if status := tr.Must(http.StatusOK, "GET", "/service_status", "", ""); status.String("status") != "ok" {
			t.Errorf("/service_status says %s", status.Body)
		}
		report, err := audit.Verify(bytes.NewReader(tr.export(t)), audit.Expect{Keys: []string{old, lost}, Receipts: tr.receipts})
		if err != nil || !report.OK() {
			t.Errorf("after a rotation: %v %v", report.Failures, err)
		}
		// An epoch of which nothing was ever signed has nothing to go on from.
		tr.Config.AuditKey, tr.Config.SignInterval = strings.Repeat("43", audit.SeedSize), -1
		reopen := func(status int) *testkit.Answer {
			tr.again(t, func(*sql.DB) {})
			tr.grow(t, 1)
			if err := tr.SignAuditLogs(context.Background()); err != nil {
				t.Fatal(err)
			}
			return tr.Must(status, "POST", "/orgs/acme/audit_log/epochs", tr.OperatorKey, `{"reason":"lost again"}`)
		}
		reopen(http.StatusCreated)
		tr.Config.AuditKey = another
		if a := reopen(http.StatusConflict); !strings.Contains(a.String("detail"), "Nothing of orgd.audit/"+logID+"/2 has been signed") {
			t.Errorf("%s", a.Body)
		}
		testkit.CheckSystem(t, tr.Store)
		tr.Stop()
	})
}
