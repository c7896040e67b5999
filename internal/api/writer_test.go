package api_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// A decision waits for no writer of SQLite, whatever it has to find out: about a
// key that was never used, an organization that was never read, or a limit under
// which nothing was decided yet. Nor do others' decisions wait because of one that
// has much to find out. A page of a log waits until what was recorded before it is
// stored, and is then answered.
func TestDecisionsWaitForNoWriter(t *testing.T) {
	s := testkit.Start(t, "sqlite")
	op := s.OperatorKey
	s.Must(201, "POST", "/orgs", op, `{"id":"root","name":"Root"}`)
	var keys []string
	for i := range 4 {
		id := fmt.Sprint("o", i)
		s.Must(201, "POST", "/orgs/root/children", op, `{"id":"`+id+`","name":"O"}`)
		k, _ := s.NewKey(id, `"permissions":["app:x","access_log:read"]`)
		keys = append(keys, k)
		s.Must(200, "PUT", "/orgs/"+id+"/limits/api_calls", op, `{"limit":10,"enforcement":"hard"}`)
	}
	const query = "/forward_auth?permission=app:x&meter=api_calls&quantity=1"
	s.Must(200, "GET", query, keys[0], "")

	const held = 3 * time.Second
	begun, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		err := testkit.Whole(s.Store).Write(context.Background(), func(testkit.Tx) error {
			select {
			case <-begun:
			default:
				close(begun)
			}
			time.Sleep(held)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}()
	<-begun
	start := time.Now()
	var wg sync.WaitGroup
	decide := func(key string, status int) {
		began := time.Now()
		s.Must(status, "GET", query, key, "")
		if took := time.Since(began); took > time.Second {
			t.Errorf("a decision took %v", took)
		}
	}
	for i, key := range keys {
		wg.Go(func() {
			// What has been let through counts, though the store does not know it yet.
			n := 10
			if i == 0 {
				n = 9
			}
			for range n {
				decide(key, 200)
			}
			decide(key, 429)
		})
	}
	wg.Wait()
	for time.Since(start) < held/2 { // the gauges are read again meanwhile
		time.Sleep(100 * time.Millisecond)
		for _, key := range keys {
			decide(key, 429)
		}
	}
	select {
	case <-ended:
		t.Error("the writer has ended too early for this test")
	default:
	}
	s.Must(200, "GET", "/orgs/o1/access_log?limit=1", keys[1], "")
	<-ended
}
