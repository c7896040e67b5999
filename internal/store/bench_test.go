package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/orgd/orgd/internal/access"
	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/store"
	"github.com/orgd/orgd/internal/testkit"
	"github.com/orgd/orgd/internal/usage"
)

func plantRoots(b *testing.B, s *store.Store, n int) {
	b.Helper()
	err := testkit.Whole(s).Write(b.Context(), func(tx testkit.Tx) error {
		for i := range n {
			id := fmt.Sprintf("root-%d", i)
			o := &org.Organization{ID: id, RootID: id, Path: id + "/", Name: id, Type: org.TypeOrganization, Version: 1,
				Settings: org.Settings{Values: []byte(`{"branding":{"logo_url":"https://example.com/logo.png"}}`)}}
			if err := errors.Join(tx.InsertOrgs([]*org.Organization{o}), tx.NewLog(&audit.Head{RootID: id, LogID: id})); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// update makes the change that a PATCH makes.
func update(s *store.Store, rootID string) error {
	return testkit.Whole(s).Write(context.Background(), func(tx testkit.Tx) error { return change(tx, rootID) })
}

// updateTogether is update for a change that may share its transaction.
func updateTogether(s *store.Store, rootID string) error {
	return s.WriteTogether(context.Background(), rootID, func(tx org.Tx) error { return change(tx.(testkit.Tx), rootID) })
}

func change(tx testkit.Tx, rootID string) error {
	if _, err := tx.Org(rootID); err != nil {
		return err
	}
	head, err := tx.Lock(rootID)
	if err != nil {
		return err
	}
	o, err := tx.Org(rootID)
	if err != nil {
		return err
	}
	o.Description, o.Version = fmt.Sprint(o.Version), o.Version+1
	if err := tx.UpdateOrg(o); err != nil {
		return err
	}
	r := audit.Record{RootID: rootID, Epoch: head.Epoch, Seq: head.Size, ID: ident.New("aud_"), OrgID: rootID, Path: rootID + "/",
		Action: "organization.updated", ActorID: "operator", Leaf: make([]byte, 600), Values: []byte(`{"ip":"192.0.2.1","user_agent":"curl/8.0"}`)}
	head.Size++
	head.Range = make([]audit.Hash, 8)
	return tx.AppendAudit(head, []audit.Record{r})
}

func benchmarkUpdateOrg(b *testing.B, s *store.Store) {
	plantRoots(b, s, 64)
	for _, load := range []struct{ clients, roots int }{{1, 1}, {64, 1}, {64, 64}} {
		clients, roots := load.clients, load.roots
		b.Run(fmt.Sprintf("clients=%d/roots=%d", clients, roots), func(b *testing.B) {
			var next atomic.Int64
			done := make(chan error)
			for c := range clients {
				go func() {
					for next.Add(1) <= int64(b.N) {
						if err := update(s, fmt.Sprintf("root-%d", c%roots)); err != nil {
							done <- err
							return
						}
					}
					done <- nil
				}()
			}
			for range clients {
				if err := <-done; err != nil {
					b.Error(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "changes/s")
		})
	}
}

// benchmarkFlush stores batches of 1,000 events with their usage.
func benchmarkFlush(b *testing.B, s *store.Store) {
	plantRoots(b, s, 8)
	const size = 1000
	n := 0
	var position access.Position
	start := time.Now()
	for b.Loop() {
		batch := access.Batch{SpoolID: "spool", From: position, Position: access.Position{Segment: position.Segment + 1}}
		position = batch.Position
		for i := range size {
			n++
			rootID := fmt.Sprintf("root-%d", i%8)
			path := fmt.Sprintf("%s/group/org-%d/", rootID, i%50)
			batch.Events = append(batch.Events, access.Event{ID: ident.New("evt_"), Timestamp: start.Add(time.Duration(n) * time.Millisecond),
				RootID: rootID, OrgID: path, User: "deploy key", Action: "GET_ORG", Status: access.Success, IP: "192.0.2.1",
				UserAgent: "Go-http-client/1.1", Method: "GET", Path: "/orgs/org-123", RequestID: ident.New("req_"), APIKeyID: "key_1"})
			batch.Usage = append(batch.Usage, access.Usage{RootID: rootID, Path: path, At: start, Meter: usage.APICalls, Quantity: 1_000_000})
			batch.Uses = append(batch.Uses, access.KeyUse{KeyID: "key_1", At: start, IP: "192.0.2.1"})
		}
		if err := s.Flush(b.Context(), batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkSQLite(b *testing.B) {
	b.Run("UpdateOrg", func(b *testing.B) { benchmarkUpdateOrg(b, openSQLite(b, b.TempDir(), store.Options{})) })
	b.Run("Flush", func(b *testing.B) { benchmarkFlush(b, openSQLite(b, b.TempDir(), store.Options{})) })
	b.Run("Read", func(b *testing.B) {
		s := openSQLite(b, b.TempDir(), store.Options{})
		plantRoots(b, s, 1)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				err := testkit.Whole(s).Read(context.Background(), func(tx testkit.Tx) error {
					_, err := tx.Org("root-0")
					return err
				})
				if err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("Generation", func(b *testing.B) {
		s := openSQLite(b, b.TempDir(), store.Options{})
		plantRoots(b, s, 1)
		for b.Loop() {
			s.Generation("root-0")
		}
	})
	b.Run("Open", func(b *testing.B) {
		dir := b.TempDir()
		for b.Loop() {
			s, err := store.OpenSQLite(b.Context(), dir, store.Options{})
			if err != nil {
				b.Fatal(err)
			}
			s.Close()
		}
	})
}

func BenchmarkPostgres(b *testing.B) {
	b.Run("UpdateOrg", func(b *testing.B) { benchmarkUpdateOrg(b, openPostgres(b, testkit.Postgres(b))) })
	b.Run("Flush", func(b *testing.B) { benchmarkFlush(b, openPostgres(b, testkit.Postgres(b))) })
	b.Run("Generation", func(b *testing.B) {
		s := openPostgres(b, testkit.Postgres(b))
		eventually(b, "trust", func() bool { return trusted(s, "r") })
		for b.Loop() {
			s.Generation("r")
		}
	})
}
