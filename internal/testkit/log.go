package testkit

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
)

// merkleTree computes the tree of a log by another implementation than the
// product's.
type merkleTree struct {
	*compact.Range
	tiles map[int]map[int64]audit.Hash // by level and index: the roots of complete tiles
}

func newMerkleTree() *merkleTree {
	return &merkleTree{Range: (&compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}).NewEmptyRange(0), tiles: map[int]map[int64]audit.Hash{}}
}

func (tr *merkleTree) add(t testing.TB, leaf audit.Hash) {
	t.Helper()
	if err := tr.Append(leaf[:], func(id compact.NodeID, hash []byte) {
		if level := int(id.Level) / audit.TileHeight; level > 0 && id.Level%audit.TileHeight == 0 {
			if tr.tiles[level] == nil {
				tr.tiles[level] = map[int64]audit.Hash{}
			}
			tr.tiles[level][int64(id.Index)] = audit.Hash(hash)
		}
	}); err != nil {
		t.Fatal(err)
	}
}

func (tr *merkleTree) root(t testing.TB) audit.Hash {
	t.Helper()
	root, err := tr.GetRootHash(nil)
	if err != nil {
		t.Fatal(err)
	}
	if tr.End() == 0 {
		return audit.EmptyRoot
	}
	return audit.Hash(root)
}

// check compares the tree with the stored head and tiles of an epoch.
func (tr *merkleTree) check(t testing.TB, s database, rootID string, epoch int64) {
	t.Helper()
	if err := s.Read(context.Background(), func(tx Tx) error {
		head, err := tx.Head(rootID, "", epoch)
		if err != nil {
			return err
		}
		if tr.End() != uint64(head.Size) || tr.root(t) != head.Root {
			t.Errorf("the head of epoch %d of the log of %s (size %d) does not follow from its %d entries", epoch, rootID, head.Size, tr.End())
		}
		for level := 1; level <= len(tr.tiles)+1; level++ {
			stored, err := tx.LogHashes(head, level, 0, head.Size)
			if err != nil {
				return err
			}
			if len(stored) != len(tr.tiles[level]) {
				t.Errorf("epoch %d of the log of %s has %d hashes of level %d, not %d", epoch, rootID, len(stored), level, len(tr.tiles[level]))
			}
			for i, h := range stored {
				if tr.tiles[level][int64(i)] != h {
					t.Errorf("epoch %d of the log of %s: hash %d of level %d is not the root of its tile", epoch, rootID, i, level)
				}
			}
		}
		return nil
	}); err != nil {
		t.Errorf("the log of %s: %v", rootID, err)
	}
}

// Anchored returns the checkpoints in a server's anchor, by the id of the log.
func Anchored(t testing.TB, s *Server) map[string][][]byte {
	t.Helper()
	path := s.Config.AuditAnchor
	if path == "" {
		path = filepath.Join(s.Config.DataDir, "audit.anchor")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	logs := map[string][][]byte{}
	for in := bufio.NewScanner(f); in.Scan(); {
		var line struct {
			Checkpoint string `json:"checkpoint"`
		}
		if json.Unmarshal(in.Bytes(), &line) != nil {
			continue // a full disk can cut a line short
		}
		c, err := audit.ParseCheckpoint([]byte(line.Checkpoint))
		if err != nil {
			continue
		}
		logID, _, err := audit.ParseOrigin(c.Origin)
		if err != nil {
			t.Fatal(err)
		}
		logs[logID] = append(logs[logID], []byte(line.Checkpoint))
	}
	return logs
}

// CheckLogs checks, as a customer can, the audit log of every live root of a
// server that answers no more requests: once it is signed, its export holds,
// and with it every checkpoint that was ever anchored.
func CheckLogs(t testing.TB, s *Server) {
	t.Helper()
	if s.Config.SignInterval < 0 {
		return
	}
	ctx := context.Background()
	if err := s.SignAuditLogs(ctx); err != nil {
		t.Errorf("the audit logs cannot be signed: %v", err)
		return
	}
	anchored := Anchored(t, s)
	for _, rootID := range liveRoots(t, Whole(s.Store)) {
		l, err := s.Evidence.Log(ctx, rootID, -1)
		if err != nil {
			t.Errorf("the log of %s: %v", rootID, err)
			continue
		}
		if l.Signature.Size != l.Head.Size {
			t.Errorf("the log of %s has %d entries, of which %d are signed", rootID, l.Head.Size, l.Signature.Size)
		}
		vkey, err := s.Evidence.VerifierKey(l)
		if err != nil {
			t.Errorf("the log of %s: %v", rootID, err)
			continue
		}
		var export bytes.Buffer
		x, err := s.Evidence.ExportLog(ctx, rootID, 0, 0)
		if err == nil {
			err = x.Write(ctx, &export)
		}
		if err != nil {
			t.Errorf("the log of %s cannot be exported: %v", rootID, err)
			continue
		}
		checkpoints := anchored[l.Head.LogID]
		report, err := audit.Verify(&export, audit.Expect{Keys: []string{vkey}, Checkpoints: checkpoints})
		if err != nil {
			t.Errorf("the log of %s: %v", rootID, err)
			continue
		}
		for _, f := range report.Failures {
			t.Errorf("the log of %s, entry %d: %s: %s", rootID, f.Seq, f.Check, f.Detail)
		}
		kept := 0
		for _, c := range report.Checkpoints {
			if c.Kept {
				kept++
			}
		}
		if kept != len(checkpoints) || kept == 0 && s.Config.Database == "" {
			t.Errorf("%d of %d anchored checkpoints of %s were checked", kept, len(checkpoints), rootID)
		}
	}
}

func liveRoots(t testing.TB, s database) (roots []string) {
	t.Helper()
	q := org.OrgQuery{RootsOnly: true, Limit: 1000}
	for {
		var page org.OrgPage
		if err := s.Read(context.Background(), func(tx Tx) (err error) {
			page, err = tx.Orgs(q)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Orgs {
			roots = append(roots, o.ID)
		}
		if page.Next == nil {
			return roots
		}
		q.After = page.Next
	}
}
