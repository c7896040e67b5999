package web

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/orgd/orgd/internal/auth"
	"github.com/orgd/orgd/internal/budget"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
)

func budgetServer(t *testing.T) (*Server, *budget.Budget) {
	t.Helper()
	b := budget.New(budget.Limits{budget.Requests: 64, budget.Bytes: 64 << 20, budget.Expensive: 2, budget.Streams: 10,
		budget.RequestsPerSecond: 1000, budget.ChangesPerSecond: 1000})
	s, err := NewServer(Config{Log: slog.New(slog.DiscardHandler), Now: time.Now, Metrics: prometheus.NewRegistry(), Budget: b}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s, b
}

// entered is a request of a root that the budget has let in.
func entered(t *testing.T, s *Server, method, root string, room int64) *Request {
	t.Helper()
	r := &Request{Request: httptest.NewRequest(method, "/", nil), At: time.Now(), Actor: &auth.Actor{Kind: auth.KindKey, RootID: root}, server: s, route: &Route{Rule: Rule{Open: true}}, maxBody: MaxBulkBody}
	if err := s.enter(&Route{Room: room}, r); err != nil {
		t.Fatalf("%s of %s: %v", method, root, err)
	}
	return r
}

func answer(n int) *Response { return Raw(http.StatusOK, make([]byte, n)) }

// An answer is charged in the place of the body and of the room that was kept
// for it, until it is sent; small ones are not.
func TestAnswersAreChargedUntilTheyAreSent(t *testing.T) {
	s, b := budgetServer(t)
	used := func() int64 { return b.UsedBy("a", time.Now())[budget.Bytes] }
	for _, tt := range []struct {
		method    string
		room      int64
		body      int
		answer    int
		before, n int64
	}{
		{"GET", 0, 0, 100, 0, 0},
		{"GET", 0, 0, 64<<10 - 1, 0, 0},
		{"GET", 0, 0, 64 << 10, 0, 64 << 10},
		{"GET", PageRoom, 0, 100, PageRoom, 0},
		{"GET", PageRoom, 0, 300 << 10, PageRoom, 300 << 10},
		{"GET", PageRoom, 0, 3 << 20, PageRoom, 3 << 20},
		{"POST", PageRoom, 4 << 10, 100, 0, 0},
		{"POST", 0, 5 << 10, 100, 4 * 5 << 10, 0},
		{"POST", 0, 5 << 20, 100, 4 * 5 << 20, 0},
		{"POST", 0, 5 << 20, 1 << 20, 4 * 5 << 20, 1 << 20},
	} {
		r := entered(t, s, tt.method, "a", tt.room)
		if _, err := s.handle(&Route{Room: tt.room, Handle: func(*Request) (*Response, error) { return nil, nil }}, r); err != nil {
			t.Fatal(err)
		}
		if tt.body > 0 {
			r.Request = httptest.NewRequest(tt.method, "/", strings.NewReader(strings.Repeat("x", tt.body)))
			if _, err := r.Raw(); err != nil {
				t.Fatal(err)
			}
		}
		if got := used(); got != tt.before {
			t.Errorf("%+v: %d bytes are charged before the answer", tt, got)
		}
		if err := s.settle(r, answer(tt.answer)); err != nil || used() != tt.n {
			t.Errorf("%+v: %d bytes are charged while the answer is sent, %v", tt, used(), err)
		}
		r.ticket.Leave()
		if used() != 0 {
			t.Errorf("%+v: %d bytes are charged after the answer", tt, used())
		}
	}
}

// When answers that nobody reads have taken the share of a root, it gets no
// further ones; but what it has changed it is told, and others get theirs.
func TestAnswersThatNobodyReads(t *testing.T) {
	s, b := budgetServer(t)
	var unread []*Request
	for {
		r := entered(t, s, "GET", "a", 0)
		if err := s.settle(r, answer(4<<20)); err != nil {
			if e := problem.From(err); e.Code != problem.QuotaExceeded || e.Extra["budget"] != "bytes_in_flight" {
				t.Errorf("the refusal is %v", err)
			}
			r.ticket.Leave()
			break
		}
		unread = append(unread, r)
	}
	if n := b.UsedBy("a", time.Now())[budget.Bytes]; n < 50<<20 || n > 64<<20 {
		t.Errorf("answers that nobody reads hold %d bytes", n)
	}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		r := entered(t, s, method, "a", 0)
		if err := s.settle(r, answer(4<<20)); err != nil {
			t.Errorf("%s: what was changed is not told: %v", method, err)
		}
		r.ticket.Leave()
	}
	for _, other := range []string{"b", ""} {
		r := entered(t, s, "GET", other, PageRoom)
		if err := s.settle(r, answer(2<<20)); err != nil {
			t.Errorf("%q is refused: %v", other, err)
		}
		r.ticket.Leave()
	}
	for _, r := range unread {
		r.ticket.Leave()
	}
	if n := b.Used(time.Now())[budget.Bytes]; n != 0 {
		t.Errorf("%d bytes are charged to nobody", n)
	}
}

// What a body becomes is charged by its length, or by what is in it if that is
// more: lines or objects, up to as many as the call takes.
func TestSwell(t *testing.T) {
	swell := Swell{Times: 3, Item: 1000, MaxItems: 5000}
	for _, tt := range []struct {
		name string
		body string
		want int64
	}{
		{"a small body", strings.Repeat("\n", smallBody), 0},
		{"long lines", strings.Repeat(strings.Repeat("x", 999)+"\n", 100), 300_000},
		{"short lines", strings.Repeat("xxxxxxxxx\n", 1000), 10_000 + 1_000_000},
		{"objects on one line", strings.Repeat(`{"a":1},  `, 1000), 10_000 + 1_000_000},
		{"more than the call takes", strings.Repeat("\n", 50_000), 50_000 + 5_000_000},
	} {
		if got := swell.chargeAll([]byte(tt.body)); got != tt.want {
			t.Errorf("%s: %d are charged, want %d", tt.name, got, tt.want)
		}
	}
}

// A body of unknown length is read whole and charged for what it takes.
func TestBodyOfUnknownLength(t *testing.T) {
	s, b := budgetServer(t)
	for _, n := range []int{0, 1, 4 << 10, 4<<10 + 1, 300_000, 3 << 20} {
		want := bytes.Repeat([]byte("0123456789"), n/10+1)[:n]
		r := entered(t, s, "POST", "a", 0)
		r.Request = httptest.NewRequest("POST", "/", struct{ *bytes.Reader }{bytes.NewReader(want)})
		r.ContentLength = -1
		got, err := r.Raw()
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("of %d bytes %d were read: %v", n, len(got), err)
		}
		if used := b.UsedBy("a", time.Now())[budget.Bytes]; used < usualSwell.Times*(int64(n)-smallBody) || used > usualSwell.Times*(int64(n)*2+bodyStep) {
			t.Errorf("for a body of %d bytes %d are charged", n, used)
		}
		r.ticket.Leave()
	}
	r := entered(t, s, "POST", "a", 0)
	r.login.Quota, r.maxBody = &org.Quota{}, 1<<20
	r.Request = httptest.NewRequest("POST", "/", strings.NewReader(strings.Repeat("x", 1<<20+1)))
	r.ContentLength = -1
	if _, err := r.Raw(); !problem.Is(err, problem.TooLarge) {
		t.Errorf("for a body that is too large the error is %v", err)
	}
}
