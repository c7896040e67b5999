package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/durable"
	"github.com/orgd/orgd/internal/org"
)

// seedMark is the mark of a database that servers share under which the id of
// the first server's newest seed is noted. Once it is there, no server makes a
// seed of its own.
const seedMark = "audit_seed"

// keyring takes the seeds of the signing keys from the configuration, or from
// the data directory, where the first start on a new database writes one.
func (s *Server) keyring(ctx context.Context) (*audit.Keyring, error) {
	path := filepath.Join(s.config.DataDir, "audit.key")
	text, from := s.config.AuditKey, "ORGD_AUDIT_KEY"
	if text == "" {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return s.makeSeed(ctx, path)
		}
		if err != nil {
			return nil, fmt.Errorf("the key of the audit logs cannot be read: %w", err)
		}
		if err := durable.Settle(path); err != nil {
			return nil, fmt.Errorf("the key of the audit logs cannot be made durable: %w", err)
		}
		text, from = string(b), path
	}
	k, err := audit.ParseKeyring(text)
	if err != nil {
		return nil, s.damagedSeed(ctx, from, err)
	}
	if err := s.markSeed(ctx, k); err != nil && !errors.Is(err, org.ErrStale) {
		return nil, err
	}
	return k, nil
}

// damagedSeed says what is wrong with seeds, and what to do. What is signed with
// the seed that is meant is signed with no other one: making another is the last
// resort, and only where nothing is signed no loss.
func (s *Server) damagedSeed(ctx context.Context, from string, damage error) error {
	var signing []string
	if err := s.marks().Read(ctx, func(v marksView) (err error) { signing, err = v.SigningSeeds(s.config.Now()); return err }); err != nil {
		return err
	}
	if len(signing) == 0 {
		return fmt.Errorf("%s: %w; 'orgd keygen --audit' makes one", from, damage)
	}
	return fmt.Errorf(`%s: %w. The audit logs of this database are signed with %s: restore it from a copy, or from another server
of the database. Another seed in its place could not go on with these logs`, from, damage, seedNames(signing))
}

// makeSeed makes the seed of a new database, and writes it to the file. It
// fails if logs have been signed, or if another server has made a seed: a
// second one could not sign what the first has signed, and nobody could sign
// what it would sign.
func (s *Server) makeSeed(ctx context.Context, path string) (*audit.Keyring, error) {
	var signing []string
	var first string
	err := s.marks().Read(ctx, func(v marksView) (err error) {
		if signing, err = v.SigningSeeds(s.config.Now()); err != nil || len(signing) > 0 {
			return err
		}
		first, err = v.Mark(seedMark)
		if errors.Is(err, org.ErrAbsent) {
			err = nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(signing) > 0 {
		return nil, fmt.Errorf(`the audit logs of this database are signed with %s, and this server has none: there is no %s.
Restore that file from a copy, or set ORGD_AUDIT_KEY as on the other servers of the database.
If no copy is left, put a new seed into the file ('orgd keygen --audit' makes one), start, and open a new epoch
of each log: orgd audit new-epoch --reason …`, seedNames(signing), path)
	}
	if first != "" {
		return nil, fmt.Errorf(`another server of this database has begun with the seed %s of the audit log keys, and this server has none: there is no %s.
All servers of a database need the same seed: copy that file from there, or set ORGD_AUDIT_KEY for all of them`, first, path)
	}
	seed := audit.NewSeed(rand.Reader)
	k, err := audit.ParseKeyring(seed)
	if err != nil {
		return nil, err
	}
	if err := durable.Write(path, []byte(seed+"\n")); err != nil {
		return nil, fmt.Errorf("the seed of the audit log keys cannot be written: %w", err)
	}
	if err := s.markSeed(ctx, k); errors.Is(err, org.ErrStale) {
		// Another server was faster, at this very moment.
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		return s.makeSeed(ctx, path)
	} else if err != nil {
		return nil, err
	}
	s.config.Log.Info("made the seed of the audit log keys; keep a copy of the file", "file", path, "seed", k.Newest())
	return k, nil
}

// markSeed notes in a database that servers share that there is a seed.
// org.ErrStale if that is noted already. The database of a data directory has
// one server, and needs no note.
func (s *Server) markSeed(ctx context.Context, k *audit.Keyring) error {
	if s.config.Database == "" {
		return nil
	}
	err := s.marks().Read(ctx, func(v marksView) error { _, err := v.Mark(seedMark); return err })
	if err == nil {
		return org.ErrStale
	}
	if !errors.Is(err, org.ErrAbsent) {
		return err
	}
	return s.marks().Write(ctx, func(tx marksTx) error { return tx.PutMark(seedMark, k.Newest()) })
}

// seedNames names seeds by their ids.
func seedNames(ids []string) string {
	if len(ids) == 1 {
		return "the seed " + ids[0]
	}
	return "the seeds " + strings.Join(ids, ", ")
}
