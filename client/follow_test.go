package client_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/orgd/orgd/client"
)

// A stream that breaks off goes on where it was; one that is refused ends.
func TestFollow(t *testing.T) {
	var lastIDs []string
	connections := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("follow") != "true" || r.Header.Get("Accept") != "text/event-stream" {
			t.Errorf("GET %s, Accept %s", r.URL, r.Header.Get("Accept"))
		}
		lastIDs = append(lastIDs, r.Header.Get("Last-Event-ID"))
		connections++
		switch connections {
		case 1:
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprint(w, "retry: 1000\n: following\nid: a\n\nid: b\ndata: {\"seq\":1}\n\nid: c\ndata: {\"seq\":2}\n\nid: d\ndata: {\"se")
		case 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 3:
			w.Header().Set("Content-Type", "text/event-stream")
			fmt.Fprint(w, ": following\r\n\r\ndata:{\"seq\":3}\r\nid:d\r\n\r\nevent: problem\ndata: {\"status\":401,\"code\":\"unauthorized\",\"detail\":\"Gone.\"}\n\n")
		default:
			t.Error("it did not end")
		}
	}))
	defer s.Close()
	c := client.New(s.URL, "key")
	var seqs []int64
	var failure error
	for e, err := range c.FollowChildrenAudit(t.Context(), "acme", client.AuditQuery{}) {
		if failure = err; err != nil {
			break
		}
		seqs = append(seqs, e.Seq)
	}
	var answer *client.Error
	if !errors.As(failure, &answer) || answer.Status != 401 || answer.Code != "unauthorized" {
		t.Errorf("it ended with %v", failure)
	}
	if !slices.Equal(seqs, []int64{1, 2, 3}) || !slices.Equal(lastIDs, []string{"", "c", "c"}) {
		t.Errorf("entries %d, resumed at %q", seqs, lastIDs)
	}

	// Who wants no more ends it.
	connections = 0
	for range c.FollowChildrenAudit(t.Context(), "acme", client.AuditQuery{From: time.Unix(0, 0)}) {
		break
	}
	if connections != 1 {
		t.Errorf("%d connections", connections)
	}
}
