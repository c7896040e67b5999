package audit

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	tdproof "github.com/transparency-dev/formats/proof"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/problem"
)

var testSeed = bytes.Repeat([]byte{7}, SeedSize)

func testKey(t testing.TB, logID string, epoch, version int64) *Key {
	t.Helper()
	k, err := DeriveKey(testSeed, logID, epoch, version)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, h *Head, keys ...note.Signer) []byte {
	t.Helper()
	signed, err := SignCheckpoint(h, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// forest is a log of made-up leaf hashes, with its tiles as a store keeps them.
type forest struct {
	head   *Head
	levels [8][]Hash
	stored tlogHashes
}

func grow(t interface{ Fatal(...any) }, n int, check bool) *forest {
	f := &forest{head: NewHead("root", testLogID)}
	for i := range n {
		var leaf Hash
		binary.BigEndian.PutUint64(leaf[:], uint64(i))
		f.levels[0] = append(f.levels[0], leaf)
		for level, h := range f.head.Extend(leaf) {
			f.levels[level+1] = append(f.levels[level+1], h)
		}
		if check {
			f.stored.append(t, leaf)
		}
	}
	return f
}

func (f *forest) source(level int, from, to int64) ([]Hash, error) {
	if from/TileWidth != (to-1)/TileWidth {
		return nil, fmt.Errorf("hashes %d to %d are not of one tile", from, to-1)
	}
	if to > int64(len(f.levels[level])) {
		return nil, fmt.Errorf("hash %d of level %d is not there", to-1, level)
	}
	return f.levels[level][from:to], nil
}

func bytesOf(hashes []Hash) [][]byte {
	var out [][]byte
	for _, h := range hashes {
		out = append(out, bytes.Clone(h[:]))
	}
	return out
}

// TestProofs checks proofs made from tiles against transparency-dev/merkle.
func TestProofs(t *testing.T) {
	const most = 70_000
	f := grow(t, most, false)
	heads := map[int64]Hash{}
	h := NewHead("root", testLogID)
	rootAt := func(size int64) Hash {
		if size < h.Size {
			h = NewHead("root", testLogID)
		}
		for h.Size < size {
			h.Extend(f.levels[0][h.Size])
			heads[h.Size] = h.Root
		}
		if size == 0 {
			return EmptyRoot
		}
		return heads[size]
	}
	rootAt(most)
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.OneOf(rapid.Int64Range(1, most), rapid.SampledFrom([]int64{1, 2, 255, 256, 257, 65535, 65536, 65537, most})).Draw(t, "size")
		seq := rapid.Int64Range(0, size-1).Draw(t, "seq")
		root := heads[size]
		p, err := ProveEntry(size, seq, HashSource(f.source))
		if err != nil {
			t.Fatal(err)
		}
		leaf := f.levels[0][seq]
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, uint64(seq), uint64(size), leaf[:], bytesOf(p), root[:]); err != nil {
			t.Fatal(err)
		}
		from := rapid.Int64Range(0, size).Draw(t, "from")
		cp, err := ProveConsistency(from, size, HashSource(f.source))
		if err != nil {
			t.Fatal(err)
		}
		old := EmptyRoot
		if from > 0 {
			old = heads[from]
		}
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, uint64(from), uint64(size), bytesOf(cp), old[:], root[:]); err != nil {
			t.Fatal(err)
		}
		a, b := Checkpoint{"o", from, old}, Checkpoint{"o", size, root}
		if err := VerifyConsistency(a, b, cp); err != nil {
			t.Fatal(err)
		}
		bad := slices.Clone(cp)
		switch kind := rapid.IntRange(0, 3).Draw(t, "damage"); {
		case kind == 0:
			bad = append(bad, Hash{})
		case kind == 1 && len(bad) > 0:
			bad = bad[:len(bad)-1]
		case kind == 2 && len(bad) > 1:
			bad[0], bad[1] = bad[1], bad[0]
		default:
			b.Root[0] ^= 1
			if from == 0 {
				return // nothing is claimed about an empty beginning
			}
		}
		if VerifyConsistency(a, b, bad) == nil {
			t.Fatal("a damaged consistency proof is accepted")
		}
	})
}

// TestTiles checks tiles against tlog's.
func TestTiles(t *testing.T) {
	const size = 66_000
	f := grow(t, size, false)
	stored := HashSource(f.source)
	seen := 0
	for _, tile := range tlog.NewTiles(TileHeight, 0, size) {
		want, err := tlog.ReadTileData(tile, stored)
		if err != nil {
			t.Fatal(err)
		}
		mine := Tile{Level: tile.L, N: tile.N, Width: tile.W}
		got, err := stored.Read(mine)
		if err != nil || !bytes.Equal(got, want) || !mine.In(size) {
			t.Fatalf("%+v: %v", mine, err)
		}
		if want := strings.Replace(tile.Path(), "tile/8/", "tile/", 1); mine.Path() != want {
			t.Errorf("path %s, want %s", mine.Path(), want)
		}
		if mine.Width++; mine.In(size) && mine.Width <= TileWidth {
			t.Errorf("%+v is said to be in the tree", mine)
		}
		seen++
	}
	if seen != 258+2+1 {
		t.Errorf("%d tiles", seen)
	}
}

// TestHashSource checks every stored hash against tlog's own computation.
func TestHashSource(t *testing.T) {
	f := grow(t, 700, true)
	for i := range f.stored {
		got, err := HashSource(f.source).ReadHashes([]int64{int64(i)})
		if err != nil || got[0] != f.stored[i] {
			t.Fatalf("hash %d: %v", i, err)
		}
	}
	if _, err := HashSource(f.source).ReadHashes([]int64{int64(len(f.stored)) + 50}); err == nil {
		t.Error("a hash beyond the tree was read")
	}
}

func TestTilePath(t *testing.T) {
	for path, want := range map[string]Tile{
		"tile/0/000":                     {0, 0, 256, false},
		"tile/1/x001/x234/067":           {1, 1234067, 256, false},
		"tile/entries/x001/x234/067.p/1": {0, 1234067, 1, true},
		"tile/63/999.p/255":              {63, 999, 255, false},
	} {
		got, err := ParseTilePath(path)
		if err != nil || got != want || got.Path() != path {
			t.Errorf("%s: %+v, %v", path, got, err)
		}
	}
	for _, path := range []string{"", "tile", "tile/0", "tile/0/", "tile/0/0", "tile/0/0000", "tile/00/000", "tile/64/000", "tile/-1/000",
		"tile/0/x000/001", "tile/0/001/002", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000.p/", "tile/data/000",
		"tile/0/000/", "/tile/0/000", "tile/0/x999/x999/x999/x999/x999/x999/999", "tile/0/+01"} {
		if got, err := ParseTilePath(path); err == nil {
			t.Errorf("%q parsed as %+v", path, got)
		}
	}
}

func FuzzParseTilePath(f *testing.F) {
	f.Add("tile/entries/x001/x234/067.p/1")
	f.Fuzz(func(t *testing.T, path string) {
		if tile, err := ParseTilePath(path); err == nil && tile.Path() != path {
			t.Errorf("%q parsed as %q", path, tile.Path())
		}
	})
}

// parseBundle returns the leaves of a bundle of entries. They share memory
// with it.
func parseBundle(b []byte) ([][]byte, error) {
	var leaves [][]byte
	for len(b) > 0 {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) || len(leaves) == TileWidth {
			return nil, errors.New("audit: not a bundle of entries")
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		leaves = append(leaves, slices.Clip(b[2:n]))
		b = b[n:]
	}
	return leaves, nil
}

func FuzzBundle(f *testing.F) {
	f.Add(AppendBundle(AppendBundle(nil, []byte("a")), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		leaves, err := parseBundle(b)
		if err != nil {
			return
		}
		var again []byte
		for _, leaf := range leaves {
			again = AppendBundle(again, leaf)
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%q parsed as %q", b, leaves)
		}
	})
}

func TestDeriveKey(t *testing.T) {
	a := testKey(t, testLogID, 0, 1)
	if b := testKey(t, testLogID, 0, 1); a.Verifier() != b.Verifier() {
		t.Error("the same key is derived differently")
	}
	otherSeed, err := DeriveKey(bytes.Repeat([]byte{8}, SeedSize), testLogID, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[ed25519PublicKey]bool{}
	for _, k := range []*Key{a, otherSeed, testKey(t, testLogID, 0, 2), testKey(t, strings.Repeat("0", 32), 0, 1)} {
		seen[ed25519PublicKey(k.private.Public().(ed25519.PublicKey))] = true
	}
	if len(seen) != 4 {
		t.Errorf("%d different keys of 4", len(seen))
	}
	next := testKey(t, testLogID, 1, 1)
	if !next.private.Equal(a.private) || next.Verifier() == a.Verifier() {
		t.Error("an epoch is to have the same key pair under another name")
	}
	if _, err := DeriveKey(testSeed[1:], testLogID, 0, 1); err == nil {
		t.Error("a short seed is accepted")
	}
	if !strings.HasPrefix(a.Verifier(), "orgd.audit/"+testLogID+"/0+") {
		t.Errorf("verifier key %s", a.Verifier())
	}
}

type ed25519PublicKey [32]byte

func TestCheckpoint(t *testing.T) {
	h := NewHead("root", testLogID)
	appendAll(t, h, samples(5)...)
	a, b, other := testKey(t, testLogID, 0, 1), testKey(t, testLogID, 0, 2), testKey(t, strings.Repeat("0", 32), 0, 1)
	signed := sign(t, h, a, b)
	for _, keys := range [][]string{{a.Verifier()}, {b.Verifier()}, {other.Verifier(), a.Verifier()}} {
		c, err := OpenCheckpoint(signed, keys...)
		if err != nil || c != h.Checkpoint() {
			t.Errorf("opened %+v, %v", c, err)
		}
	}
	if _, err := SignCheckpoint(h, other); err == nil {
		t.Error("the key of another log signs")
	}
	if _, err := SignCheckpoint(h); err == nil {
		t.Error("a checkpoint without signature")
	}
	text := h.Checkpoint().text()
	for name, bad := range map[string]string{
		"nothing":                     "",
		"no signature":                text + "\n",
		"an extension line":           resign(t, text+"more\n", a),
		"a size with a zero":          resign(t, strings.Replace(text, "\n5\n", "\n05\n", 1), a),
		"another origin":              resign(t, strings.Replace(text, "/0\n", "/1\n", 1), a),
		"no origin":                   resign(t, "example.com/log\n5\n"+strings.Split(text, "\n")[2]+"\n", a),
		"another size":                strings.Replace(string(signed), "\n5\n", "\n6\n", 1),
		"another key":                 string(sign(t, h, b)),
		"a bad size 0":                resign(t, strings.Replace(text, "\n5\n", "\n0\n", 1), a),
		"a cut signature":             string(signed[:len(signed)-1]),
		"two signatures, one altered": strings.Replace(string(signed), " ", "  ", 1),
	} {
		if c, err := OpenCheckpoint([]byte(bad), a.Verifier()); err == nil {
			t.Errorf("%s: opened %+v", name, c)
		} else if !problem.Is(err, problem.InvalidRequest) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if _, err := OpenCheckpoint(signed); err == nil {
		t.Error("opened without a key")
	}
}

func resign(t *testing.T, text string, keys ...note.Signer) string {
	t.Helper()
	b, err := note.Sign(&note.Note{Text: text}, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func FuzzParseCheckpoint(f *testing.F) {
	h := NewHead("root", testLogID)
	f.Add(sign(f, h, testKey(f, testLogID, 0, 1)))
	appendAll(f, h, sample(0))
	f.Add(sign(f, h, testKey(f, testLogID, 0, 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseCheckpoint(b); err == nil && !bytes.HasPrefix(b, []byte(c.text()+"\n")) {
			t.Errorf("%q parsed as %+v", b, c)
		}
	})
}

func testProof(t testing.TB, n, seq int) (*Proof, []Record, *Key) {
	t.Helper()
	h := NewHead("root", testLogID)
	records := appendAll(t, h, samples(n)...)
	key := testKey(t, testLogID, 0, 1)
	source := HashSource(func(level int, from, to int64) ([]Hash, error) {
		var out []Hash
		for i := from; i < to; i++ {
			out = append(out, records[i].LeafHash)
		}
		return out, nil
	})
	hashes, err := ProveEntry(h.Size, int64(seq), source)
	if err != nil {
		t.Fatal(err)
	}
	r := records[seq]
	return &Proof{Leaf: r.Leaf, Values: r.Values, Seq: r.Seq, Hashes: hashes, Checkpoint: sign(t, h, key)}, records, key
}

func TestProofText(t *testing.T) {
	p, records, key := testProof(t, 11, 4)
	text := p.Text()
	var other tdproof.TLogProof
	if err := other.Unmarshal(text); err != nil {
		t.Fatal(err)
	}
	if other.Index != 4 || !bytes.Equal(other.Checkpoint, p.Checkpoint) || len(other.Hashes) != len(p.Hashes) ||
		string(other.ExtraData) != `{"leaf":`+string(p.Leaf)+`,"values":`+string(p.Values)+`}` {
		t.Errorf("transparency-dev/formats reads %+v", other)
	}
	receipt := Receipt{Origin: Origin(testLogID, 0), Seq: 4, LeafHash: records[4].LeafHash}
	report, err := VerifyProof(text, Expect{Keys: []string{key.Verifier()}, Receipts: []Receipt{receipt}, Checkpoints: [][]byte{p.Checkpoint}})
	if err != nil || !report.OK() || report.Receipts != 1 || report.Entries != 1 || report.Size != 11 || report.Values != 6 {
		t.Errorf("report %+v, %v", report, err)
	}
	for i, r := range records {
		if i != 4 && bytes.Contains(text, r.Leaf) {
			t.Errorf("the proof reveals entry %d", i)
		}
	}
}

func TestProofAttacks(t *testing.T) {
	good, records, key := testProof(t, 11, 4)
	otherLog := testKey(t, strings.Repeat("0", 32), 0, 1)
	h := NewHead("root", strings.Repeat("0", 32))
	foreign := appendAll(t, h, samples(11)...)
	for _, tt := range []struct {
		name   string
		change func(p *Proof)
		expect Expect
		want   Check
	}{
		{"an altered leaf", func(p *Proof) { p.Leaf = bytes.Replace(p.Leaf, []byte("req_1"), []byte("req_2"), 1) }, Expect{}, CheckTree},
		{"an altered value", func(p *Proof) { p.Values = bytes.Replace(p.Values, []byte("Old name"), []byte("Odd name"), 1) }, Expect{}, CheckCommitment},
		{"another salt", func(p *Proof) { p.Values = bytes.Replace(p.Values, []byte(`"salt":"`), []byte(`"salt":"AAAA`), 1) }, Expect{}, CheckForm},
		{"one hash more", func(p *Proof) { p.Hashes = append(slices.Clone(p.Hashes), Hash{}) }, Expect{}, CheckTree},
		{"more hashes than any proof", func(p *Proof) { p.Hashes = make([]Hash, maxProof+1) }, Expect{}, CheckForm},
		{"one hash less", func(p *Proof) { p.Hashes = p.Hashes[:len(p.Hashes)-1] }, Expect{}, CheckTree},
		{"no hashes", func(p *Proof) { p.Hashes = nil }, Expect{}, CheckTree},
		{"hashes in another order", func(p *Proof) { p.Hashes = slices.Clone(p.Hashes); p.Hashes[0], p.Hashes[1] = p.Hashes[1], p.Hashes[0] }, Expect{}, CheckTree},
		{"another index", func(p *Proof) { p.Seq = 5 }, Expect{}, CheckSequence},
		{"an index beyond the log", func(p *Proof) { p.Seq = 11 }, Expect{}, CheckSequence},
		{"another entry", func(p *Proof) { p.Leaf, p.Values = records[5].Leaf, records[5].Values }, Expect{}, CheckSequence},
		{"an entry of another log", func(p *Proof) { p.Leaf, p.Values = foreign[4].Leaf, foreign[4].Values }, Expect{}, CheckBelonging},
		{"a checkpoint of another log", func(p *Proof) { p.Checkpoint = sign(t, h, otherLog) }, Expect{}, CheckBelonging},
		{"a checkpoint signed by another key", func(p *Proof) {
			g := NewHead("root", testLogID)
			appendAll(t, g, samples(11)...)
			p.Checkpoint = []byte(resign(t, string(good.Checkpoint[:bytes.Index(good.Checkpoint, []byte("\n\n"))+1]), testKey(t, testLogID, 0, 2)))
		}, Expect{}, CheckSignature},
		{"an altered signature", func(p *Proof) {
			p.Checkpoint = bytes.Clone(p.Checkpoint)
			// Another digit of base 64, so that only the signature is wrong.
			if c := &p.Checkpoint[len(p.Checkpoint)-9]; *c == 'A' {
				*c = 'B'
			} else {
				*c = 'A'
			}
		}, Expect{}, CheckSignature},
		{"no checkpoint", func(p *Proof) { p.Checkpoint = nil }, Expect{}, CheckForm},
		{"a receipt of another entry", func(p *Proof) {}, Expect{Receipts: []Receipt{{Origin(testLogID, 0), 4, EmptyRoot}}}, CheckReceipt},
		{"a receipt of another log", func(p *Proof) {}, Expect{Receipts: []Receipt{{Origin(strings.Repeat("0", 32), 0), 4, EmptyRoot}}}, CheckBelonging},
		{"a statement that is elsewhere", func(p *Proof) {}, Expect{Statements: [][]byte{[]byte("{}")}}, CheckStatement},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := *good
			tt.change(&p)
			tt.expect.Keys = []string{key.Verifier()}
			report, err := VerifyProof(p.Text(), tt.expect)
			if err != nil {
				t.Fatal(err)
			}
			if report.OK() || report.Failures[0].Check != tt.want {
				t.Errorf("failures %+v, want %s", report.Failures, tt.want)
			}
		})
	}
}

func FuzzParseProof(f *testing.F) {
	p, _, key := testProof(f, 7, 3)
	f.Add(p.Text())
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := ParseProof(text)
		if err == nil && !bytes.Equal(p.Text(), text) {
			t.Errorf("%q parsed as %+v", text, p)
		}
		if _, err := VerifyProof(text, Expect{Keys: []string{key.Verifier()}}); err != nil {
			t.Error(err)
		}
	})
}

func FuzzParseHashes(f *testing.F) {
	f.Add(FormatHashes([]Hash{{1}, {2}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if hashes, err := ParseHashes(b); err == nil && !bytes.Equal(FormatHashes(hashes), b) {
			t.Errorf("%q parsed as %v", b, hashes)
		}
	})
}

func TestCheckAnchor(t *testing.T) {
	f := grow(t, 300, false)
	anchor := func(size int) Checkpoint { return grow(t, size, false).head.Checkpoint() }
	altered := anchor(200)
	altered.Root[0] ^= 1
	other := anchor(200)
	other.Origin = Origin(testLogID, 1)
	for _, tt := range []struct {
		name string
		at   Checkpoint
		ok   bool
	}{
		{"empty", anchor(0), true}, {"earlier", anchor(200), true}, {"the same", anchor(300), true},
		{"ahead", anchor(301), false}, {"other entries", altered, false}, {"another epoch", other, false},
	} {
		if err := CheckAnchor(f.head, tt.at, f.source); (err == nil) != tt.ok || err != nil && !problem.Is(err, problem.Conflict) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestAddCheckpointBody(t *testing.T) {
	h := NewHead("root", testLogID)
	signed := sign(t, h, testKey(t, testLogID, 0, 1))
	want := "old 2\n" + string(FormatHashes([]Hash{{1}})) + "\n" + string(signed)
	if got := string(FormatAddCheckpoint(2, []Hash{{1}}, signed)); got != want {
		t.Errorf("body %q, want %q", got, want)
	}
}
