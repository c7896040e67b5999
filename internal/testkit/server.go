package testkit

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"

	orgdapi "github.com/orgd/orgd/api"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/server"
)

// Server is a real server on a real database, listening on loopback. Where
// ORGD_TEST_SERVERS is set it is several behind a balancer: what is asked of it
// without HTTP is asked of the first.
type Server struct {
	*server.Server
	URL    string
	Config server.Config
	// Stop lets requests finish and closes the server.
	Stop func()

	members     []*member
	stopServing func()
	t           testing.TB
}

// Engines names the databases that tests run on.
var Engines = enginesToTest()

// Start starts a server on one of the Engines. When the test ends it is
// closed, after CheckSystem and CheckLogs.
func Start(t testing.TB, engine string, change ...func(*server.Config)) *Server {
	t.Helper()
	s := Open(t, engine, change...)
	t.Cleanup(func() {
		s.stopServing()
		// A test that has failed may have left its database behind.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, m := range s.members {
			if err := m.Recorder.Drain(ctx); err != nil {
				t.Error(err)
			}
		}
		CheckSystem(t, s.Store)
		for _, m := range s.members {
			CheckLogs(t, &Server{Server: m.Server, Config: m.config})
		}
		s.Stop()
	})
	return s
}

// Open starts a server on one of the Engines, for tests that do to it what
// breaks the system. It is closed by Stop, or when the test ends.
func Open(t testing.TB, engine string, change ...func(*server.Config)) *Server {
	t.Helper()
	skipOneProcess(t)
	if servers() > 1 {
		engine = "postgres"
	}
	c := server.Config{DataDir: dataDir(t), RestoreWindow: 30 * 24 * time.Hour, Version: "test", SignInterval: 20 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if engine == "postgres" {
		c.Database = Postgres(t)
	}
	for _, f := range change {
		f(&c)
	}
	if c.Database != "" && c.AuditKey == "" {
		c.AuditKey = strings.Repeat("5e", audit.SeedSize) // replicas share it
	}
	out := &Server{Config: c, t: t}
	out.stopServing = sync.OnceFunc(func() {
		for _, m := range out.members {
			m.stop()
		}
		for _, m := range out.members {
			if err := <-m.served; err != nil {
				t.Error(err)
			}
		}
	})
	out.Stop = sync.OnceFunc(func() {
		out.stopServing()
		var closed sync.WaitGroup
		for _, m := range out.members {
			closed.Go(func() {
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		closed.Wait()
	})
	t.Cleanup(out.Stop)
	for range servers() {
		m := serve(t, c)
		out.members = append(out.members, m)
		c.DataDir, c.OperatorKey = dataDir(t), m.OperatorKey
	}
	out.Server, out.URL = out.members[0].Server, "http://"+out.members[0].address
	if len(out.members) > 1 {
		out.URL = "http://" + balance(t, out.members)
	}
	return out
}

// CloseMonths closes all months whose time has come. A month waits for what any
// server may have recorded in it, so each of them is asked until all have told.
func (s *Server) CloseMonths(ctx context.Context) (err error) {
	for range s.members {
		for _, m := range s.members {
			_, err = m.Metering.CloseMonths(ctx)
		}
	}
	return err
}

// member is one of the servers that a Server is.
type member struct {
	*server.Server
	config  server.Config
	address string
	stop    context.CancelFunc // has it let requests finish
	served  chan error
}

// serve opens a server and has it answer.
func serve(t testing.TB, c server.Config) *member {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := server.Open(ctx, c)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	m := &member{s, c, l.Addr().String(), cancel, make(chan error, 1)}
	go func() { m.served <- s.Serve(ctx, l) }()
	return m
}

// dataDir returns a new data directory, as an operator would have it.
func dataDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// testWriter writes the server's log to the test's.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	defer func() { recover() }() // the test may have ended
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// Answer is what a server answered.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// JSON returns the member at a path of names; nil if there is none.
func (a *Answer) JSON(path ...string) any {
	var v any
	if err := json.Unmarshal(a.Body, &v); err != nil {
		return nil
	}
	for _, name := range path {
		m, _ := v.(map[string]any)
		v = m[name]
	}
	return v
}

// String returns the text at a path of names; empty if there is none.
func (a *Answer) String(path ...string) string {
	s, _ := a.JSON(path...).(string)
	return s
}

// Do makes a request with a bearer key ("" for none) and checks the answer
// against the API description. body is sent as JSON unless it is empty or the
// headers (names and values in turn) name another Content-Type.
func (s *Server) Do(method, path, key, body string, headers ...string) *Answer {
	s.t.Helper()
	a, err := s.TryDo(method, path, key, body, headers...)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// TryDo is Do for tests in which a request may fail, and for use from other
// goroutines than the test's.
func (s *Server) TryDo(method, path, key, body string, headers ...string) (*Answer, error) {
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, s.URL+path, r)
	if err != nil {
		return nil, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	CheckContract(s.t, req, resp, b)
	return &Answer{Status: resp.StatusCode, Header: resp.Header, Body: b}, nil
}

// Must is Do for a request that has to be answered with the given status.
func (s *Server) Must(status int, method, path, key, body string, headers ...string) *Answer {
	s.t.Helper()
	a := s.Do(method, path, key, body, headers...)
	if a.Status != status {
		s.t.Fatalf("%s %s: status %d, want %d: %s", method, path, a.Status, status, a.Body)
	}
	return a
}

// NewKey creates a key of an organization with the operator's power and
// returns its secret and its id.
func (s *Server) NewKey(orgID, members string) (secret, id string) {
	s.t.Helper()
	body := `{"name":"test"`
	if members != "" {
		body += "," + members
	}
	a := s.Must(http.StatusCreated, "POST", "/orgs/"+orgID+"/api_keys", s.OperatorKey, body+"}")
	return a.String("secret"), a.String("id")
}

var contract = sync.OnceValues(func() (validator.Validator, error) {
	doc, err := libopenapi.NewDocument(orgdapi.YAML)
	if err != nil {
		return nil, err
	}
	v, errs := validator.NewValidator(doc)
	if len(errs) > 0 {
		return nil, errs[0]
	}
	return v, nil
})

// contractLock serializes the validator, which is not safe for concurrent use.
var contractLock sync.Mutex

// CheckContract fails the test if the answer is not one that the API
// description allows for the request.
func CheckContract(t testing.TB, req *http.Request, resp *http.Response, body []byte) {
	t.Helper()
	v, err := contract()
	if err != nil {
		t.Errorf("the API description cannot be read: %v", err)
		return
	}
	if resp.StatusCode == http.StatusNotModified || strings.HasPrefix(resp.Header.Get("Content-Type"), "text/") || slices.Contains([]string{"application/x-ndjson", "application/octet-stream"}, resp.Header.Get("Content-Type")) {
		return
	}
	// The path of a tile has any number of segments, which OpenAPI cannot say.
	if i := strings.Index(req.URL.Path, "/audit_log/tile/"); i >= 0 {
		described := *req.URL
		described.Path = req.URL.Path[:i] + "/audit_log/tile/0/000"
		req = &http.Request{Method: req.Method, URL: &described, Header: req.Header, Host: req.Host}
	}
	contractLock.Lock()
	defer contractLock.Unlock()
	again := *resp
	again.Body = io.NopCloser(bytes.NewReader(body))
	if ok, errs := v.ValidateHttpResponse(req, &again); !ok {
		for _, e := range errs {
			t.Errorf("contract: %s %s answered %d: %s %s", req.Method, req.URL.Path, resp.StatusCode, e.Message, e.Reason)
			for _, s := range e.SchemaValidationErrors {
				t.Errorf("contract:   %s at %s", s.Reason, s.FieldPath)
			}
		}
		t.Logf("contract: the answer was %s", body)
	}
}

// NextPage returns the path and query of the next page of a list; empty after
// the last.
func NextPage(a *Answer) string {
	link, ok := strings.CutSuffix(a.Header.Get("Link"), `>; rel="next"`)
	if !ok {
		return ""
	}
	return strings.TrimPrefix(link, "<")
}
