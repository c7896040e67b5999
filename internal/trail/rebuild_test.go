package trail

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/org"
	"github.com/orgd/orgd/internal/problem"
	"github.com/orgd/orgd/internal/settings"
	"github.com/orgd/orgd/internal/tree"
)

// trail is the audit log of a root, as far as the past needs it. It counts what
// is read of it.
type trail struct {
	Store
	View
	head    *audit.Head
	records []audit.Record
	reads   int
	bytes   int
}

func newTrail() *trail { return &trail{head: audit.NewHead("r", strings.Repeat("0", 32))} }

// add appends an entry of the organization o below r, a second after the last.
func (s *trail) add(t fataler, action string, changes ...audit.Change) {
	n := len(s.records)
	r, err := s.head.Append(&audit.Draft{ID: fmt.Sprintf("aud_%d", n), Timestamp: moment(n), OrgID: "o", Path: "r/o/", Action: action,
		Actor: audit.Actor{Type: "operator", ID: "operator"}, Target: audit.Target{Type: "organization", ID: "o"}, Changes: changes}, rand.Reader)
	if err != nil {
		t.Fatalf("%s: %v", action, err)
	}
	s.records = append(s.records, r)
}

type fataler interface {
	Fatalf(format string, args ...any)
}

func moment(n int) time.Time {
	return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(n) * time.Second)
}

func (s *trail) ReadHeavy(_ context.Context, fn func(View) error) error {
	s.reads++
	return fn(s)
}

func (s *trail) AuditPositionAt(_ string, at time.Time) (int64, error) {
	n := 0
	for n < len(s.records) && !s.records[n].Timestamp.After(at) {
		n++
	}
	return int64(n), nil
}

func (s *trail) AuditEntries(q org.AuditQuery) (org.AuditPage, error) {
	page := org.AuditPage{Next: -1}
	size := 0
	for i := q.Before - 1; i >= 0; i-- {
		r := s.records[i]
		if r.OrgID != q.OrgID || !strings.HasPrefix(r.Action, q.Noun+".") {
			continue
		}
		if len(page.Records) == q.Limit || size >= q.MaxBytes {
			page.Next = page.Records[len(page.Records)-1].Seq
			break
		}
		if len(r.Values) > q.SmallValues {
			r.Values = nil
		}
		size += len(r.Leaf) + len(r.Values)
		page.Records = append(page.Records, r)
	}
	s.bytes += size
	return page, nil
}

func (s *trail) AuditValues(_ string, positions []int64, maxBytes int) (values [][]byte, err error) {
	size := 0
	for _, at := range positions {
		if size >= maxBytes {
			break
		}
		values = append(values, slices.Clone(s.records[at].Values))
		size += len(s.records[at].Values)
	}
	s.bytes += size
	return values, nil
}

// at returns the organization as it was at a moment.
func (s *trail) at(ctx context.Context, at time.Time) (*org.Organization, error) {
	p := &past{ctx: ctx, store: s, rootID: "r", at: at, states: map[string]*org.Organization{}, pages: map[string]org.AuditPage{}}
	if err := p.run(func(v View) (err error) {
		p.before, err = v.AuditPositionAt("r", at)
		return err
	}); err != nil {
		return nil, err
	}
	return p.own("o")
}

// settingsGenerator makes settings, some of them so large that their values are
// read apart from their entry, or so many that an entry has them as one value.
func settingsGenerator(t *rapid.T) jsontext.Value {
	var object func(depth int) map[string]any
	object = func(depth int) map[string]any {
		m := map[string]any{}
		for _, name := range rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "", "x/y"}), 0, 3).Draw(t, "names") {
			switch kind := rapid.IntRange(0, 4).Draw(t, "kind"); {
			case kind <= 1 && depth < 3:
				m[name] = object(depth + 1)
			case kind == 2:
				m[name] = strings.Repeat("long ", smallValues/4)
			case kind == 3:
				m[name] = nil
			default:
				m[name] = rapid.SampledFrom([]string{"one", "two", "three"}).Draw(t, "text")
			}
		}
		return m
	}
	m := object(0)
	if rapid.IntRange(0, 9).Draw(t, "many") == 0 {
		for n := range 1000 {
			m[fmt.Sprintf("many-%d", n)] = rapid.SampledFrom([]string{"one", "two"}).Draw(t, "one of many")
		}
	}
	b, err := json.Marshal(m, json.Deterministic(true))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What the newest entries that count make of an organization is what all entries
// make of it, in their order: whatever was changed, erased, purged or made again.
func TestRebuildIsTheFold(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := newTrail()
		own, exists := jsontext.Value("{}"), false
		text := func(label string) jsontext.Value {
			return audit.Value(rapid.SampledFrom([]string{"Ann", "Bob", "Cid"}).Draw(rt, label))
		}
		for range rapid.IntRange(1, 25).Draw(rt, "entries") {
			if !exists {
				own, exists = settingsGenerator(rt), true
				changes := []audit.Change{{Pointer: "/name", New: text("name")}, {Pointer: "/type", New: audit.Value("group")}}
				s.add(rt, "organization.created", append(changes, org.SettingsDiff(jsontext.Value("{}"), own)...)...)
				continue
			}
			switch rapid.IntRange(0, 7).Draw(rt, "action") {
			case 0:
				s.add(rt, "organization.updated", audit.Change{Pointer: "/name", Old: text("old"), New: text("name")},
					audit.Change{Pointer: "/tags", New: audit.Value([]string{"t"})})
			case 1:
				s.add(rt, "organization.updated", audit.Change{Pointer: "/description", New: text("description")},
					audit.Change{Pointer: "/tags", Old: audit.Value([]string{"t"})})
			case 2, 3, 4:
				next := settingsGenerator(rt)
				changes := org.AuditChanges(settings.Diff("/customizations", own, next))
				if len(changes) > 2000 {
					changes = org.SettingsDiff(own, next)
				}
				if own = next; len(changes) > 0 {
					s.add(rt, "organization.customized", changes...)
				}
			case 5:
				s.add(rt, "organization.customized", audit.Change{Pointer: "/locked", New: audit.Value([]string{"/a"})})
			case 6:
				s.add(rt, "api_key.created", audit.Change{Pointer: "/name", New: text("name")})
			case 7:
				s.add(rt, "organization.deleted", audit.Change{Pointer: "/deletion_id", New: audit.Value("del")})
				if rapid.Bool().Draw(rt, "restored") {
					s.add(rt, "organization.restored", audit.Change{Pointer: "/deletion_id", Old: audit.Value("del")})
				} else {
					s.add(rt, "organization.purged", audit.Change{Pointer: "/deletion_id", Old: audit.Value("del")})
					exists = false
				}
			}
		}
		// An erasure takes every value with a text, as a request for it does.
		subject := rapid.SampledFrom([]string{"", "Ann", "one", "two", "long", "group"}).Draw(rt, "subject")
		for i := range s.records {
			slots, err := s.records[i].Holding(func(text string) bool { return subject != "" && strings.Contains(text, subject) })
			if err != nil {
				rt.Fatal(err)
			}
			if err := s.records[i].Erase(slots); err != nil {
				rt.Fatal(err)
			}
		}
		fold := tree.NewFold()
		for n := range s.records {
			e, err := s.records[n].Entry()
			if err != nil {
				rt.Fatal(err)
			}
			if strings.HasPrefix(e.Action, "organization.") {
				if _, _, err := fold.Add(org.Marked(e)); err != nil {
					rt.Fatal(err)
				}
			}
			got, err := s.at(t.Context(), moment(n))
			if err != nil {
				rt.Fatal(err)
			}
			want := fold.Orgs["o"]
			if got == nil || want == nil {
				if got != nil || want != nil {
					rt.Fatalf("after entry %d: %v, want %v", n, got, want)
				}
				continue
			}
			if got.Name != want.Name || got.Type != want.Type || got.Description != want.Description || !slices.Equal(got.Tags, want.Tags) ||
				got.ParentID != want.ParentID || !slices.Equal(got.Settings.Locked, want.Settings.Locked) ||
				(got.DeletedAt == nil) != (want.DeletedAt == nil) {
				rt.Fatalf("after entry %d: %+v\nwant %+v", n, got, want)
			}
			if !got.CreatedAt.Equal(want.CreatedAt) || !got.UpdatedAt.Equal(want.UpdatedAt) || !got.Settings.UpdatedAt.Equal(want.Settings.UpdatedAt) {
				rt.Fatalf("after entry %d: times %v %v %v, want %v %v %v", n, got.CreatedAt, got.UpdatedAt, got.Settings.UpdatedAt,
					want.CreatedAt, want.UpdatedAt, want.Settings.UpdatedAt)
			}
			if len(settings.Diff("", got.Settings.Values, want.Settings.Values)) > 0 {
				rt.Fatalf("after entry %d: settings %s\nwant %s", n, got.Settings.Values, want.Settings.Values)
			}
		}
	})
}

// The past costs what was there, and not what had been there before.
func TestRebuildReadsWhatCounts(t *testing.T) {
	large := func(n int) jsontext.Value { return audit.Value(strings.Repeat(fmt.Sprint(n%10), 60_000)) }
	t.Run("replaced", func(t *testing.T) {
		for name, pointer := range map[string]string{"a member": "/customizations/a", "all": "/customizations", "a name": "/name"} {
			s := newTrail()
			s.add(t, "organization.created", audit.Change{Pointer: "/name", New: audit.Value("o")})
			wrap := func(n int) jsontext.Value {
				if pointer == "/customizations" {
					return slices.Concat([]byte(`{"a":`), large(n), []byte(`}`))
				}
				return large(n)
			}
			const changes = 1000
			for n := range changes {
				s.add(t, "organization.updated", audit.Change{Pointer: pointer, Old: wrap(n - 1 + 10), New: wrap(n)})
			}
			o, err := s.at(t.Context(), moment(changes))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(audit.Value(o), []byte(strings.Repeat("9", 60_000))) {
				t.Errorf("%s is not as it was set last", name)
			}
			if s.bytes > 1<<20 || s.reads > 10 {
				t.Errorf("%s: %d bytes in %d reads", name, s.bytes, s.reads)
			}
		}
	})
	// Each entry has something that counts beside what does not.
	s := newTrail()
	s.add(t, "organization.created", audit.Change{Pointer: "/name", New: audit.Value("o")})
	for n := range 600 {
		s.add(t, "organization.customized", audit.Change{Pointer: "/customizations/large", Old: large(n + 9), New: large(n)},
			audit.Change{Pointer: fmt.Sprintf("/customizations/own-%d", n), New: audit.Value(n)})
	}
	t.Run("bounded", func(t *testing.T) {
		if _, err := s.at(t.Context(), moment(600)); !problem.Is(err, problem.Conflict) {
			t.Errorf("error %v", err)
		}
		if s.bytes > maxHistoryBytes+2*historyBytes {
			t.Errorf("%d bytes were read", s.bytes)
		}
		if _, err := s.at(t.Context(), moment(100)); err != nil {
			t.Errorf("when there were few: %v", err)
		}
	})
	t.Run("ended", func(t *testing.T) {
		gone, cancel := context.WithCancel(t.Context())
		revoked := errors.New("the key was revoked")
		asked := 0
		for name, ctx := range map[string]context.Context{
			"the client is gone": org.WithRecheck(gone, func(context.Context) error { cancel(); return nil }),
			"the key is revoked": org.WithRecheck(t.Context(), func(context.Context) error {
				if asked++; asked > 2 {
					return revoked
				}
				return nil
			}),
		} {
			s.reads = 0
			if _, err := s.at(ctx, moment(600)); !errors.Is(err, context.Canceled) && !errors.Is(err, revoked) {
				t.Errorf("%s: error %v", name, err)
			}
			if s.reads > 2 {
				t.Errorf("%s: %d reads", name, s.reads)
			}
		}
	})
}
