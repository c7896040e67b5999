package store_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/testkit"
)

// TestPostgresOrphans: the network is away for so long that what is under way is given
// up, of which the server hears nothing. Its locks are gone soon nevertheless.
func TestPostgresOrphans(t *testing.T) {
	machine := testkit.NewNetwork(t, 1).Machines[0]
	s := openPostgres(t, machine.Postgres(t).URL)
	plantRoot(t, s, "r")
	held, given := make(chan struct{}), make(chan struct{})
	var once sync.Once
	go func() {
		defer close(given)
		_ = testkit.Whole(s).Write(context.Background(), func(tx testkit.Tx) error {
			_, err := tx.Lock("r")
			once.Do(func() {
				close(held)
				time.Sleep(16 * time.Second)
			})
			return err
		})
	}()
	<-held
	time.Sleep(200 * time.Millisecond) // the server's answer is confirmed: it sends nothing again
	machine.Cut()
	<-given
	machine.Mend()
	begin := time.Now()
	eventually(t, "a change after the network is back", func() bool { return update(s, "r") == nil })
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("a change is made %v after the network is back", took)
	}
}
