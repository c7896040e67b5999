package server_test

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
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

// reports waits until the metrics say of the witness that it lacks logs, or
// disputes them.
func reports(t testing.TB, s *testkit.Server, metric, vkey string, want int) {
	t.Helper()
	name := strings.Join(strings.SplitN(vkey, "+", 3)[:2], "+")
	line := fmt.Sprintf("orgd_audit_witness_%s{witness=%q} %d\n", metric, name, want)
	var body []byte
	for range 500 {
		body = s.Must(http.StatusOK, "GET", "/metrics", "", "").Body
		if bytes.Contains(body, []byte(line)) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("the metrics lack %s\n%s", line, regexp.MustCompile(`(?m)^orgd_audit_.*$`).FindAll(body, -1))
}

// A witness that others wrote cosigns the checkpoints, and never a history that
// was rewritten, also if the whole data directory is an old one and nothing but
// the witness knows better. What it says of that is not signed: the log is signed
// on, whoever asks sees that the witness does not cosign, and the operator can
// let the log go on in a new epoch.
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

	disputed := func() {
		t.Helper()
		reports(t, tr.Server, "disputed_logs", w.vkey, 1)
		a := tr.Must(http.StatusOK, "GET", "/service_status", "", "")
		if d := a.String("checks", "audit_log", "detail"); !strings.Contains(d, "the witness witness.example/test+") {
			t.Errorf("/service_status says %q", d)
		}
		before := tr.checkpoint
		tr.grow(t, 1)
		if tr.keep(t); bytes.Equal(before, tr.checkpoint) {
			t.Error("the log is not signed on")
		}
		v, err := audit.NewWitnessVerifier(w.vkey)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := note.Open(tr.checkpoint, note.VerifierList(v)); err == nil {
			t.Error("the witness has cosigned a history that was rewritten")
		}
		if a := tr.Must(http.StatusOK, "GET", "/refused_audit_logs", tr.OperatorKey, ""); string(a.Body) != "[]" && string(a.Body) != "[]\n" {
			t.Errorf("the logs that are not signed are %s", a.Body)
		}
	}
	t.Run("shorter than what was cosigned", func(t *testing.T) {
		tr.again(t, func(db *sql.DB) { db.Close(); copyDir(t, backup, tr.Config.DataDir) })
		tr.grow(t, 1)
		disputed()
	})
	t.Run("longer, and another", func(t *testing.T) {
		interval := tr.Config.SignInterval
		tr.Config.SignInterval = -1
		tr.again(t, func(db *sql.DB) { db.Close(); copyDir(t, backup, tr.Config.DataDir) })
		tr.grow(t, 20)
		tr.Stop()
		tr.Config.SignInterval = interval
		tr.again(t, func(*sql.DB) {})
		disputed()

		// In a new epoch the witness knows nothing else.
		tr.Must(http.StatusConflict, "POST", "/orgs/other/audit_log/epochs", tr.OperatorKey, `{"reason":"nobody disputes it"}`)
		tr.Must(http.StatusCreated, "POST", "/orgs/acme/audit_log/epochs", tr.OperatorKey, `{"reason":"a backup was restored"}`)
		tr.keep(t)
		w.add(t, tr.vkey)
		tr.grow(t, 1)
		tr.cosigned(t, w)
		reports(t, tr.Server, "disputed_logs", w.vkey, 0)
	})
	tr.Stop()
}

// fakeWitness is a witness that answers as the test says.
type fakeWitness struct {
	private ed25519.PrivateKey
	vkey    string
	asked   atomic.Int64
	answer  atomic.Pointer[http.HandlerFunc] // nil to cosign
	config  string
}

func newFakeWitness(t testing.TB, name string) *fakeWitness {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	encoded := append([]byte{4}, public...)
	id := sha256.Sum256(append([]byte(name+"\n"), encoded...))
	w := &fakeWitness{private: private, vkey: fmt.Sprintf("%s+%x+%s", name, id[:4], base64.StdEncoding.EncodeToString(encoded))}
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.asked.Add(1)
		if answer := w.answer.Load(); answer != nil {
			(*answer)(rw, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		_, checkpoint, _ := strings.Cut(string(body), "\n\n")
		text, _, _ := strings.Cut(checkpoint, "\n\n")
		const at = 1_790_000_000
		sig := ed25519.Sign(private, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s\n", at, text))
		line := append(binary.BigEndian.AppendUint64(bytes.Clone(id[:4]), at), sig...)
		fmt.Fprintf(rw, "— %s %s\n", name, base64.StdEncoding.EncodeToString(line))
	}))
	t.Cleanup(srv.Close)
	w.config = srv.URL + " " + w.vkey
	return w
}

// Nothing that a witness answers keeps a log from being signed. It is asked
// again until it cosigns, and who operates the server hears which witness it is.
func TestWitnessAnswers(t *testing.T) {
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(code); io.WriteString(w, body) }
	}
	n := 0
	for _, tt := range []struct {
		name     string
		disputed int
		answer   http.HandlerFunc
	}{
		{"an unsigned 409 with a size ahead", 1, status(409, "999999\n")},
		{"an unsigned 409 with the size that was sent", 1, func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			w.WriteHeader(409)
			io.WriteString(w, strings.Split(string(b[bytes.Index(b, []byte("\n\n"))+2:]), "\n")[1]+"\n")
		}},
		{"an unsigned 422", 1, status(422, "the consistency proof does not hold")},
		{"409 without a size", 0, status(409, "conflict")},
		{"409 with another size each time", 0, func(w http.ResponseWriter, r *http.Request) { n++; status(409, fmt.Sprint(n%2+1))(w, r) }},
		{"403", 0, status(403, "")},
		{"404 for a log that it does not know", 0, status(404, "")},
		{"500", 0, status(500, "internal error")},
		{"200 without a signature", 0, status(200, "")},
		{"200 with a signature of another key", 0, status(200, "— witness.example "+base64.StdEncoding.EncodeToString(make([]byte, 76))+"\n")},
		{"200 with garbage without end", 0, func(w http.ResponseWriter, r *http.Request) {
			for range 1000 {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}},
		{"a redirect", 0, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }},
		{"a connection that breaks off", 0, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		{"no answer", 0, func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, good := newFakeWitness(t, "witness.example"), newFakeWitness(t, "good.example")
			w.answer.Store(&tt.answer)
			s := testkit.Start(t, "sqlite", func(c *server.Config) { c.Witnesses = []string{w.config, good.config} })
			s.Must(http.StatusCreated, "POST", "/orgs", s.OperatorKey, `{"id":"acme","name":"acme"}`)
			tr := &trail{Server: s}
			var last int64
			for range 3 {
				tr.grow(t, 1)
				tr.keep(t)
				c, err := audit.ParseCheckpoint(tr.checkpoint)
				if err != nil || c.Size <= last {
					t.Fatalf("the log is signed with %d entries after %d: %v", c.Size, last, err)
				}
				last = c.Size
			}
			tr.cosigned(t, &litewitness{vkey: good.vkey})
			if tt.name != "no answer" { // which takes as long as a witness may take
				reports(t, s, "lacking_logs", w.vkey, 1)
				reports(t, s, "disputed_logs", w.vkey, tt.disputed)
			}
			reports(t, s, "lacking_logs", good.vkey, 0)
			if a := s.Must(http.StatusOK, "GET", "/refused_audit_logs", s.OperatorKey, ""); !bytes.HasPrefix(a.Body, []byte("[]")) {
				t.Errorf("not signed: %s", a.Body)
			}
			if tt.name == "no answer" {
				return
			}
			asked := w.asked.Load()
			w.answer.Store(nil)
			tr.cosigned(t, &litewitness{vkey: w.vkey})
			reports(t, s, "lacking_logs", w.vkey, 0)
			if w.asked.Load() <= asked {
				t.Error("the witness was not asked again")
			}
		})
	}
}

// A key is one witness, and no witness has a name under which its cosignatures
// could be taken for the log's own signatures.
func TestWitnessesOfAConfiguration(t *testing.T) {
	a, same, b := newFakeWitness(t, "witness.example"), newFakeWitness(t, "witness.example"), newFakeWitness(t, "other.example")
	elsewhere := "https://mirror.example/witness " + a.vkey
	log := newFakeWitness(t, audit.Origin("6f0c1d2e3f405162738495a6b7c8d9e0", 0))
	for _, tt := range []struct {
		name  string
		texts []string
		err   string
	}{
		{"two of different names", []string{a.config, b.config}, ""},
		{"two keys of one name, as while a witness changes its key", []string{a.config, same.config}, ""},
		{"one twice", []string{a.config, b.config, a.config}, "is given twice"},
		{"one twice, under two URLs", []string{a.config, elsewhere}, "is given twice"},
		{"one with the name of a log", []string{log.config}, "has the name of an audit log"},
		{"one with the key of a log", []string{"https://w.example " + verifierKeyOf(t)}, "is not the verifier key of a witness"},
		{"one with a space in its name that is not ASCII", []string{"https://w.example " + newFakeWitness(t, "a\u00a0b").vkey}, "is not"},
	} {
		err := server.CheckWitnesses(tt.texts)
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
	}
}

func verifierKeyOf(t testing.TB) string {
	t.Helper()
	k, err := audit.DeriveKey(make([]byte, audit.SeedSize), "6f0c1d2e3f405162738495a6b7c8d9e0", 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	return k.Verifier()
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
