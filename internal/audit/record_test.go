package audit

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"
)

const testLogID = "00112233445566778899aabbccddeeff"

// seeded is a source of salts for tests that want the same ones again.
func seeded(seed uint64) *mathrand.ChaCha8 {
	var b [32]byte
	binary.BigEndian.PutUint64(b[:], seed)
	return mathrand.NewChaCha8(b)
}

func sample(i int) *Draft {
	d := &Draft{
		ID: fmt.Sprintf("aud_%06d", i), Timestamp: time.Date(2026, 11, 24, 19, 12, 0, i*1000, time.UTC),
		OrgID: "team", Path: "root/group/team/", Action: "organization.updated",
		Actor: Actor{Type: "api_key", ID: "key_1", Name: "Jane <jane@example.com>"}, Target: Target{"organization", "team"},
		Changes: []Change{{Pointer: "/name", Old: jsontext.Value(`"Old name"`), New: jsontext.Value(`"New “name”"`)},
			{Pointer: "/customizations/a~1b", New: jsontext.Value(`{"b":1.50,"a":[true,null,"x"]}`)}},
		RequestID: "req_1", IP: "192.0.2.7", UserAgent: "curl/8",
	}
	switch i % 4 {
	case 1:
		d.Changes, d.RequestID = nil, ""
	case 2:
		d.IP, d.UserAgent, d.Actor.Name = "", "", ""
	case 3:
		d.OrgID, d.Path, d.Changes = "root", "root/", []Change{{Pointer: "", Old: jsontext.Value("{}")}}
	}
	return d
}

func appendAll(t testing.TB, h *Head, drafts ...*Draft) []Record {
	t.Helper()
	var rs []Record
	for _, d := range drafts {
		r, err := h.Append(d, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		rs = append(rs, r)
	}
	return rs
}

func samples(n int) []*Draft {
	ds := make([]*Draft, n)
	for i := range ds {
		ds[i] = sample(i)
	}
	return ds
}

func TestLeafForm(t *testing.T) {
	h := NewHead("root", testLogID)
	h.Epoch = 2
	r, err := h.Append(sample(0), seeded(1))
	if err != nil {
		t.Fatal(err)
	}
	masked := string(r.Leaf)
	for _, s := range strings.Split(masked, `"`) {
		if len(s) == commitmentSize && strings.HasSuffix(s, "=") {
			masked = strings.Replace(masked, s, "C", 1)
		}
	}
	want := `{"action":"organization.updated","actor":{"id":"key_1","name":"C","type":"api_key"},` +
		`"changes":[{"new":"C","old":"C","pointer":"/name"},{"new":"C","pointer":"/customizations/a~1b"}],` +
		`"epoch":2,"id":"aud_000000","ip":"C","log":"00112233445566778899aabbccddeeff","org_id":"team",` +
		`"path":["root","group","team"],"request_id":"req_1","seq":0,"target":{"id":"team","type":"organization"},` +
		`"timestamp":"2026-11-24T19:12:00.000000Z","user_agent":"C","v":1}`
	if masked != want {
		t.Errorf("leaf\n%s\nwant\n%s", masked, want)
	}
}

// TestCommitment computes a commitment as the format says, by other means.
func TestCommitment(t *testing.T) {
	h := NewHead("root", testLogID)
	h.Epoch, h.Size = 3, 258
	r, err := h.Append(sample(0), seeded(1))
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]struct {
		Salt  []byte         `json:"salt"`
		Value jsontext.Value `json:"value"`
	}
	if err := json.Unmarshal(r.Values, &values); err != nil {
		t.Fatal(err)
	}
	if got := values["changes/1/new"].Value; string(got) != `{"b":1.50,"a":[true,null,"x"]}` {
		t.Errorf("changes/1/new is %s", got)
	}
	if len(values) != 6 {
		t.Errorf("%d values, want 6", len(values))
	}
	for slot, v := range values {
		var all []byte
		for _, field := range [][]byte{[]byte("orgd audit commitment v1"), []byte("root"), []byte(testLogID),
			{0, 0, 0, 0, 0, 0, 0, 3}, {0, 0, 0, 0, 0, 0, 1, 2}, []byte(slot), v.Salt, v.Value} {
			all = append(all, 0, 0, 0, 0, 0, 0, 0, byte(len(field)))
			all = append(all, field...)
		}
		if len(v.Salt) != 32 {
			t.Errorf("the salt of %s has %d bytes", slot, len(v.Salt))
		}
		sum := sha256.Sum256(all)
		if !bytes.Contains(r.Leaf, []byte(`"`+base64.StdEncoding.EncodeToString(sum[:])+`"`)) {
			t.Errorf("the leaf does not commit to %s", slot)
		}
	}
}

func drawDraft(t *rapid.T) *Draft {
	text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "\x00\x1f\u007f", `"\/`, "\u2028\ufeff😀", "plain"}))
	id := rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}`)
	value := rapid.Custom(func(t *rapid.T) jsontext.Value {
		if rapid.Bool().Draw(t, "absent") {
			return nil
		}
		v, err := json.Marshal(rapid.OneOf(rapid.Map(text, func(s string) any { return s }),
			rapid.Map(rapid.Int(), func(n int) any { return n }),
			rapid.Map(rapid.MapOf(text, rapid.SliceOf(text)), func(m map[string][]string) any { return m }),
			rapid.Just[any](nil), rapid.Just[any](true)).Draw(t, "value"), json.Deterministic(true))
		if err != nil {
			t.Fatal(err)
		}
		return v
	})
	path := append([]string{"root"}, rapid.SliceOfN(id, 0, 5).Draw(t, "path")...)
	return &Draft{
		ID: id.Draw(t, "id"), Timestamp: time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, "time")).UTC(),
		OrgID: path[len(path)-1], Path: strings.Join(path, "/") + "/", Action: text.Draw(t, "action"),
		Actor:  Actor{Type: text.Draw(t, "actor type"), ID: text.Draw(t, "actor id"), Name: text.Draw(t, "actor name")},
		Target: Target{text.Draw(t, "target type"), text.Draw(t, "target id")},
		Changes: rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Change {
			return Change{text.Draw(t, "pointer"), value.Draw(t, "old"), value.Draw(t, "new")}
		}), 0, 5).Draw(t, "changes"),
		RequestID: text.Draw(t, "request id"), IP: text.Draw(t, "ip"), UserAgent: text.Draw(t, "user agent"),
	}
}

// TestAppend checks that whatever is appended comes back as it was, that its
// leaf is canonical, and that the head is what two other implementations of
// RFC 6962 make of the same leaves.
func TestAppend(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := NewHead("root", testLogID)
		rf := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
		second := rf.NewEmptyRange(0)
		var stored tlogHashes
		for range rapid.IntRange(1, 20).Draw(t, "entries") {
			d := drawDraft(t)
			before := *h
			r, err := h.Append(d, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			canonical := jsontext.Value(bytes.Clone(r.Leaf))
			if err := canonical.Canonicalize(); err != nil || !bytes.Equal(canonical, r.Leaf) {
				t.Fatalf("leaf\n%s\ncanonical\n%s\n%v", r.Leaf, canonical, err)
			}
			e, err := r.Entry()
			if err != nil {
				t.Fatal(err)
			}
			want := &Entry{ID: d.ID, Timestamp: d.Timestamp, OrgID: d.OrgID, Path: strings.Split(strings.TrimSuffix(d.Path, "/"), "/"),
				Action: d.Action, Actor: d.Actor, Target: d.Target, Changes: d.Changes, RequestID: d.RequestID,
				IP: d.IP, UserAgent: d.UserAgent, Seq: before.Size, LeafHash: r.LeafHash.String()}
			if diff := cmp.Diff(want, e, cmpopts.EquateEmpty()); diff != "" {
				t.Fatal(diff)
			}
			if !bytes.Equal(r.LeafHash[:], rfc6962.DefaultHasher.HashLeaf(r.Leaf)) || r.Seq != before.Size {
				t.Fatalf("record %+v", r)
			}
			stored.append(t, r.LeafHash)
			if err := second.Append(r.LeafHash[:], nil); err != nil {
				t.Fatal(err)
			}
			root, err := second.GetRootHash(nil)
			if err != nil || !bytes.Equal(root, h.Root[:]) {
				t.Fatalf("root %s at size %d, transparency-dev/merkle has %x", h.Root, h.Size, root)
			}
			treeHash, err := tlog.TreeHash(h.Size, stored.reader())
			if err != nil || Hash(treeHash) != h.Root {
				t.Fatalf("root %s at size %d, tlog has %s", h.Root, h.Size, treeHash)
			}
			if !slices.EqualFunc(h.Range, second.Hashes(), func(a Hash, b []byte) bool { return bytes.Equal(a[:], b) }) {
				t.Fatalf("compact range at size %d differs", h.Size)
			}
		}
	})
}

// tlogHashes is tlog's own hash storage.
type tlogHashes []tlog.Hash

func (s *tlogHashes) reader() tlog.HashReader {
	return tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, x := range indexes {
			if x < 0 || x >= int64(len(*s)) {
				return nil, fmt.Errorf("no hash %d", x)
			}
			out[i] = (*s)[x]
		}
		return out, nil
	})
}

func (s *tlogHashes) append(t interface{ Fatal(...any) }, leaf Hash) {
	n := int64(0)
	for tlog.StoredHashCount(n) < int64(len(*s)) {
		n++
	}
	hashes, err := tlog.StoredHashesForRecordHash(n, tlog.Hash(leaf), s.reader())
	if err != nil {
		t.Fatal(err)
	}
	*s = append(*s, hashes...)
}

func TestAppendRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Draft)
		want   string
	}{
		{"a path of another root", func(d *Draft) { d.Path = "other/team/" }, "its path"},
		{"a path to another organization", func(d *Draft) { d.Path = "root/group/" }, "its path"},
		{"a path that does not end", func(d *Draft) { d.Path = "root/team" }, "its path"},
		{"an empty path", func(d *Draft) { d.Path, d.OrgID = "", "" }, "its path"},
		{"a path that is no list of ids", func(d *Draft) { d.Path, d.OrgID = "root/\"/", "\"" }, "its path"},
		{"a text that is not UTF-8", func(d *Draft) { d.Action = "\xff" }, "UTF-8"},
		{"an erasable text that is not UTF-8", func(d *Draft) { d.UserAgent = "\xff" }, "UTF-8"},
		{"a value that is not JSON", func(d *Draft) { d.Changes[0].New = jsontext.Value("{") }, "changes/0/new is not JSON"},
		{"a value with repeated members", func(d *Draft) { d.Changes[0].New = jsontext.Value(`{"a":1,"a":2}`) }, "changes/0/new is not JSON"},
		{"a year with five digits", func(d *Draft) { d.Timestamp = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "time"},
		{"an id longer than a leaf", func(d *Draft) { d.Target.ID = strings.Repeat("x", MaxLeaf) }, "longer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := NewHead("root", testLogID)
			appendAll(t, h, samples(3)...)
			before := *h
			d := sample(0)
			tt.change(d)
			if _, err := h.Append(d, rand.Reader); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one about %q", err, tt.want)
			}
			if diff := cmp.Diff(before, *h); diff != "" {
				t.Errorf("the head has changed: %s", diff)
			}
		})
	}
	t.Run("no randomness", func(t *testing.T) {
		cause := errors.New("no entropy")
		if _, err := NewHead("root", testLogID).Append(sample(0), iotest.ErrReader(cause)); !errors.Is(err, cause) {
			t.Errorf("error %v", err)
		}
	})
}

// TestAppendFoldsManyChanges checks that an entry with more changes than fit
// into a leaf commits to all of them at once.
func TestAppendFoldsManyChanges(t *testing.T) {
	d := sample(0)
	d.Changes = nil
	for i := range 2000 {
		d.Changes = append(d.Changes, Change{Pointer: fmt.Sprintf("/customizations/setting-%d", i), New: jsontext.Value("1")})
	}
	h := NewHead("root", testLogID)
	r := appendAll(t, h, d)[0]
	if len(r.Leaf) > 1000 {
		t.Errorf("the leaf has %d bytes", len(r.Leaf))
	}
	e, err := r.Entry()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d.Changes, e.Changes); diff != "" {
		t.Error(diff)
	}
}

// TestHeadCopy checks that a copy of a head is not changed by what is appended
// to the original, and that both go on independently.
func TestHeadCopy(t *testing.T) {
	h := NewHead("root", testLogID)
	for i := range 40 {
		cp := *h
		want := slices.Clone(cp.Range)
		appendAll(t, h, sample(i))
		if !slices.Equal(cp.Range, want) {
			t.Fatalf("the copy at size %d has changed", cp.Size)
		}
		cp.Extend(Hash{1})
		if r := (compactRange{h.Size, h.Range}); r.root() != h.Root {
			t.Fatalf("the original at size %d has changed", h.Size)
		}
	}
}

func TestEntryErased(t *testing.T) {
	h := NewHead("root", testLogID)
	r := appendAll(t, h, sample(0))[0]
	var values map[string]jsontext.Value
	if err := json.Unmarshal(r.Values, &values); err != nil {
		t.Fatal(err)
	}
	r.Values = jsontext.Value(`{"actor/name":` + string(values["actor/name"]) + `,"changes/1/new":` + string(values["changes/1/new"]) + `}`)
	e, err := r.Entry()
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"changes/0/new", "changes/0/old", "ip", "user_agent"}; !slices.Equal(e.Erased, want) {
		t.Errorf("erased %q, want %q", e.Erased, want)
	}
	if e.IP != "" || e.Changes[0].New != nil || e.Actor.Name == "" || e.Changes[1].New == nil {
		t.Errorf("entry %+v", e)
	}
}

func TestEntryJSON(t *testing.T) {
	h := NewHead("root", testLogID)
	rs := appendAll(t, h, samples(2)...)
	for i, want := range []string{
		`{"id":"aud_000000","timestamp":"2026-11-24T19:12:00Z","org_id":"team","path":["root","group","team"],` +
			`"action":"organization.updated","actor":{"type":"api_key","id":"key_1","name":"Jane <jane@example.com>"},` +
			`"target":{"type":"organization","id":"team"},"changes":[{"pointer":"/name","old":"Old name","new":"New “name”"},` +
			`{"pointer":"/customizations/a~1b","new":{"b":1.50,"a":[true,null,"x"]}}],"request_id":"req_1","ip":"192.0.2.7",` +
			`"user_agent":"curl/8","seq":0,"leaf_hash":"` + rs[0].LeafHash.String() + `"}`,
		`{"id":"aud_000001","timestamp":"2026-11-24T19:12:00.000001Z","org_id":"team","path":["root","group","team"],` +
			`"action":"organization.updated","actor":{"type":"api_key","id":"key_1","name":"Jane <jane@example.com>"},` +
			`"target":{"type":"organization","id":"team"},"changes":[],"ip":"192.0.2.7",` +
			`"user_agent":"curl/8","seq":1,"leaf_hash":"` + rs[1].LeafHash.String() + `"}`,
	} {
		e, err := rs[i].Entry()
		if err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(e)
		if err != nil || string(got) != want {
			t.Errorf("entry\n%s\nwant\n%s\n%v", got, want, err)
		}
	}
}

func TestEntryRefuses(t *testing.T) {
	h := NewHead("root", testLogID)
	r := appendAll(t, h, sample(0))[0]
	for _, tt := range []struct{ name, old, new string }{
		{"whitespace", `"path":[`, `"path": [`},
		{"an escape that is not needed", `"team"`, `"te\u0061m"`},
		{"a member out of place", `"epoch":0,"id":"aud_000000"`, `"id":"aud_000000","epoch":0`},
		{"another version", `"v":1`, `"v":2`},
		{"a leading zero", `"seq":0`, `"seq":00`},
		{"a day that does not exist", `2026-11-24`, `2026-11-31`},
		{"a path to somewhere else", `"path":["root","group","team"]`, `"path":["root","group"]`},
		{"no path", `"path":["root","group","team"]`, `"path":[]`},
		{"trailing data", `"v":1}`, `"v":1}{}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := r
			bad.Leaf = bytes.Replace(r.Leaf, []byte(tt.old), []byte(tt.new), 1)
			if bytes.Equal(bad.Leaf, r.Leaf) {
				t.Fatal("nothing was replaced")
			}
			if e, err := bad.Entry(); err == nil {
				t.Errorf("accepted as %+v", e)
			}
		})
	}
	for _, values := range []string{"", "{", "{}}", `{"email":{"salt":"","value":1}}`, `[]`, `{"ip":{"salt":"x","value":"y"}}`,
		strings.Replace(string(r.Values), `{"actor/name"`, `{ "actor/name"`, 1)} {
		bad := r
		bad.Values = []byte(values)
		if e, err := bad.Entry(); err == nil {
			t.Errorf("values %q accepted as %+v", values, e)
		}
	}
}

func TestNewLogID(t *testing.T) {
	a, b := NewLogID(rand.Reader), NewLogID(rand.Reader)
	if a == b || !validLogID(a) || !validLogID(b) {
		t.Errorf("log ids %q and %q", a, b)
	}
	if logID, epoch, err := ParseOrigin(Origin(a, 3)); err != nil || logID != a || epoch != 3 {
		t.Errorf("origin parsed as %q, %d, %v", logID, epoch, err)
	}
}

func TestReceipt(t *testing.T) {
	r := Receipt{Origin: Origin(testLogID, 0), Seq: 12, LeafHash: EmptyRoot}
	const want = "orgd.audit/00112233445566778899aabbccddeeff/0 12 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	if r.String() != want {
		t.Errorf("receipt %q, want %q", r, want)
	}
	if got, err := ParseReceipt(want); err != nil || got != r {
		t.Errorf("parsed %+v, %v", got, err)
	}
	for _, bad := range []string{"", want + " ", " " + want, want + "\n", want[:len(want)-1], strings.ToUpper(want),
		strings.Replace(want, " 12 ", " 012 ", 1), strings.Replace(want, " 12 ", " -12 ", 1), strings.Replace(want, " 12 ", "  12 ", 1),
		strings.Replace(want, "/0 ", " ", 1), strings.Replace(want, " 12 ", " 9007199254740992 ", 1)} {
		if got, err := ParseReceipt(bad); err == nil {
			t.Errorf("%q parsed as %+v", bad, got)
		}
	}
}

func FuzzParseReceipt(f *testing.F) {
	f.Add(Receipt{Origin: Origin(testLogID, 7), Seq: 1 << 40}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseReceipt(s); err == nil && r.String() != s {
			t.Errorf("%q parsed as %q", s, r)
		}
	})
}

// FuzzLeaf checks that what parses as a leaf is canonical JSON.
func FuzzLeaf(f *testing.F) {
	h := NewHead("root", testLogID)
	for i := range 4 {
		r := appendAll(f, h, sample(i))[0]
		f.Add(r.Leaf, r.Values)
	}
	f.Fuzz(func(t *testing.T, text, values []byte) {
		var l leaf
		if l.parse(text) != nil {
			return
		}
		canonical := jsontext.Value(bytes.Clone(text))
		if err := canonical.Canonicalize(); err != nil || !bytes.Equal(canonical, text) {
			t.Fatalf("%q is not canonical: %v", text, err)
		}
		r := Record{Leaf: text, Values: values}
		if e, err := r.Entry(); err == nil {
			if _, err := json.Marshal(e); err != nil {
				t.Errorf("an entry that is not JSON: %v", err)
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	h := NewHead("root", testLogID)
	d := sample(0)
	d.Changes = d.Changes[:1]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Append(d, rand.Reader); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEntry(b *testing.B) {
	h := NewHead("root", testLogID)
	r := appendAll(b, h, sample(0))[0]
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Entry(); err != nil {
			b.Fatal(err)
		}
	}
}
