package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/testkit"
)

// bearer adds a key to the requests of a client that knows nothing of orgd.
type bearer string

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(b))
	return http.DefaultTransport.RoundTrip(r)
}

// A client that others wrote for such logs reads this one: it fetches the
// tiles over HTTP, authenticates them against the checkpoint, and gets every
// entry.
func TestClientOfOthers(t *testing.T) {
	engines(t, func(t *testing.T, engine string) {
		tr := newTrail(t, testkit.Start(t, engine))
		tr.grow(t, 450)
		tr.keep(t)
		v, err := note.NewVerifier(tr.vkey)
		if err != nil {
			t.Fatal(err)
		}
		n, err := note.Open(tr.checkpoint, note.VerifierList(v))
		if err != nil {
			t.Fatal(err)
		}
		c, err := torchwood.ParseCheckpoint(n.Text)
		if err != nil {
			t.Fatal(err)
		}
		secret, _ := tr.NewKey("acme", `"permissions":["audit:read"]`)
		fetcher, err := torchwood.NewTileFetcher(tr.URL+"/orgs/acme/audit_log/", torchwood.WithHTTPClient(&http.Client{Transport: bearer(secret)}))
		if err != nil {
			t.Fatal(err)
		}
		client, err := torchwood.NewClient(fetcher)
		if err != nil {
			t.Fatal(err)
		}
		read := 0
		for i, entry := range client.AllEntries(t.Context(), c.Tree, 0) {
			if i < trailEntries-1 && i > 0 && tlog.RecordHash(entry) != tlog.Hash(tr.receipts[i-1].LeafHash) {
				t.Errorf("entry %d is not that of its receipt", i)
			}
			if bytes.Contains(entry, []byte("127.0.0.1")) {
				t.Errorf("entry %d shows an address", i)
			}
			read++
		}
		if err := client.Err(); err != nil {
			t.Fatal(err)
		}
		if int64(read) != c.N || read != trailEntries+450 {
			t.Errorf("read %d entries of %d", read, c.N)
		}
		for _, i := range []int64{0, 255, 256, 700} {
			entry, proof, err := client.Entry(t.Context(), c.Tree, i)
			if err != nil {
				t.Fatal(err)
			}
			if err := tlog.CheckRecord(proof, c.N, c.Hash, i, tlog.RecordHash(entry)); err != nil {
				t.Error(err)
			}
		}
	})
}

// litewitness is a running witness that others wrote.
type litewitness struct {
	dir, url, vkey string
}

// startWitness starts litewitness of filippo.io/torchwood. Its key is in an
// SSH agent of the test's.
func startWitness(t testing.TB) *litewitness {
	t.Helper()
	w := &litewitness{dir: t.TempDir()}
	install := exec.Command("go", "install", "filippo.io/torchwood/cmd/litewitness@v0.9.0")
	install.Env = append(os.Environ(), "GOBIN="+w.dir, "GOFLAGS=")
	if out, err := install.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "" {
			t.Skipf("no litewitness: %v\n%s", err, out)
		}
		t.Fatalf("litewitness is required: %v\n%s", err, out)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := agent.NewKeyring()
	if err := keys.Add(agent.AddedKey{PrivateKey: private}); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(w.dir, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	go func() {
		for {
			c, err := socket.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(keys, c)
		}
	}()
	sshKey, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	w.url = "http://" + address
	cmd := exec.Command(filepath.Join(w.dir, "litewitness"), "-name", "witness.example/test", "-db", w.db(),
		"-ssh-agent", filepath.Join(w.dir, "agent"), "-key", ssh.FingerprintSHA256(sshKey), "-listen", address)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	vkey := make(chan string, 1)
	go func() {
		for in := bufio.NewScanner(log); in.Scan(); {
			if m := regexp.MustCompile(`vkey="?([^" ]+)"?`).FindStringSubmatch(in.Text()); m != nil {
				vkey <- m[1]
			}
		}
	}()
	select {
	case w.vkey = <-vkey:
	case <-time.After(30 * time.Second):
		t.Fatal("litewitness does not start")
	}
	for range 300 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			return w
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("litewitness does not listen")
	return nil
}

func (w *litewitness) db() string { return filepath.Join(w.dir, "witness.db") }

// add makes the witness know a log, as its witnessctl does.
func (w *litewitness) add(t testing.TB, vkey string) {
	t.Helper()
	origin, _, _ := strings.Cut(vkey, "+")
	db, err := sql.Open("sqlite3", "file:"+w.db())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	execute(t, db, `PRAGMA busy_timeout = 5000`)
	execute(t, db, `INSERT INTO log (origin, tree_size, tree_hash) VALUES ($1, 0, $2)`, origin, base64.StdEncoding.EncodeToString(audit.EmptyRoot[:]))
	execute(t, db, `INSERT INTO key (origin, key) VALUES ($1, $2)`, origin, vkey)
}

// cosigned waits until the witness has cosigned all of acme's log.
func (tr *trail) cosigned(t testing.TB, w *litewitness) {
	t.Helper()
	v, err := audit.NewWitnessVerifier(w.vkey)
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		tr.keep(t)
		if _, err := note.Open(tr.checkpoint, note.VerifierList(v)); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the checkpoint is not cosigned:\n%s", tr.checkpoint)
}

func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// A witness that others wrote cosigns the checkpoints, and refuses a history
// that was rewritten, also if the whole data directory is an old one and
// nothing but the witness knows better.
func TestWitness(t *testing.T) {
	w := startWitness(t)
	tr := newTrail(t, testkit.Open(t, "sqlite"))
	w.add(t, tr.vkey)
	tr.Stop()
	tr.Config.Witnesses = []string{w.url + " " + w.vkey}
	tr.again(t, func(*sql.DB) {})
	tr.grow(t, 3)
	tr.cosigned(t, w)
	backup := filepath.Join(t.TempDir(), "backup")
	tr.again(t, func(db *sql.DB) { db.Close(); copyDir(t, tr.Config.DataDir, backup) })
	tr.grow(t, 4)
	tr.cosigned(t, w)
	report, err := audit.Verify(bytes.NewReader(tr.export(t)), audit.Expect{Keys: []string{tr.vkey}, Witnesses: []string{w.vkey}})
	if err != nil || !report.OK() || len(report.Checkpoints) == 0 ||
		strings.Join(report.Checkpoints[len(report.Checkpoints)-1].Witnesses, "") != "witness.example/test" {
		t.Errorf("%+v %v", report, err)
	}
	last, err := audit.ParseCheckpoint(tr.checkpoint)
	if err != nil {
		t.Fatal(err)
	}

	refused := func(reason string) {
		t.Helper()
		var a *testkit.Answer
		for range 500 {
			a = tr.Must(http.StatusOK, "GET", "/refused_audit_logs", tr.OperatorKey, "")
			if bytes.Contains(a.Body, []byte(reason)) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if !bytes.Contains(a.Body, []byte(reason)) {
			t.Fatalf("the refused logs are %s", a.Body)
		}
		before := tr.Must(http.StatusOK, "GET", "/orgs/acme/audit_log/checkpoint", tr.OperatorKey, "").Body
		tr.grow(t, 10)
		if err := tr.SignLogs(context.Background()); err != nil {
			t.Fatal(err)
		}
		if after := tr.Must(http.StatusOK, "GET", "/orgs/acme/audit_log/checkpoint", tr.OperatorKey, "").Body; !bytes.Equal(before, after) {
			t.Error("the log is signed on")
		}
	}
	t.Run("shorter than what was cosigned", func(t *testing.T) {
		tr.again(t, func(db *sql.DB) { db.Close(); copyDir(t, backup, tr.Config.DataDir) })
		tr.grow(t, 1)
		refused(fmt.Sprintf("has cosigned a log of size %d, but only", last.Size))
	})
	t.Run("longer, and another", func(t *testing.T) {
		interval := tr.Config.SignInterval
		tr.Config.SignInterval = -1
		tr.again(t, func(db *sql.DB) { db.Close(); copyDir(t, backup, tr.Config.DataDir) })
		tr.grow(t, 20)
		tr.Stop()
		tr.Config.SignInterval = interval
		tr.again(t, func(*sql.DB) {})
		refused("that this one does not go on from")
	})
	tr.Stop()
}

// A witness that is away is asked again, and holds up nothing.
func TestWitnessAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	public := append([]byte{4}, make([]byte, ed25519.PublicKeySize)...)
	id := sha256.Sum256(append([]byte("witness.example\n"), public...))
	vkey := fmt.Sprintf("witness.example+%x+%s", id[:4], base64.StdEncoding.EncodeToString(public))
	s := testkit.Start(t, "sqlite", func(c *server.Config) { c.Witnesses = []string{"http://" + l.Addr().String() + " " + vkey} })
	newTrail(t, s)
	for range 300 {
		if a := s.Must(http.StatusOK, "GET", "/service_status", "", ""); a.String("checks", "audit_log", "status") == "failed" {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("/service_status does not say that a witness is away")
}
