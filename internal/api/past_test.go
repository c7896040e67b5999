package api_test

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/orgd/orgd/internal/audit"
	"github.com/orgd/orgd/internal/server"
	"github.com/orgd/orgd/internal/settings"
	"github.com/orgd/orgd/internal/testkit"
)

// entriesOf returns the audit entries of a root, oldest first.
func entriesOf(t testing.TB, s *testkit.Server, rootID string) []*audit.Entry {
	t.Helper()
	var all []*audit.Entry
	for path := "/orgs/" + rootID + "/children_audit?limit=1000"; path != ""; {
		a := s.Must(200, "GET", path, s.OperatorKey, "")
		var page []*audit.Entry
		if err := json.Unmarshal(a.Body, &page); err != nil {
			t.Fatal(err)
		}
		all = append(all, page...)
		path = testkit.NextPage(a)
	}
	slices.Reverse(all)
	return all
}

// A tree lives for a while: what as_of says of any moment is what folding the
// audit trail up to it gives.
func TestAsOf(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s := testkit.Start(t, engine)
			op := s.OperatorKey
			rnd := rand.New(rand.NewPCG(3, 4))
			s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"R"}`)
			ids := []string{"r"}
			pick := func() string { return ids[rnd.IntN(len(ids))] }
			for n := range 150 {
				id := pick()
				switch rnd.IntN(8) {
				case 0, 1, 2:
					child := fmt.Sprintf("o%d", n)
					if a := s.Do("POST", "/orgs/"+id+"/children", op, `{"id":"`+child+`","name":"Org","customizations":{"n":`+fmt.Sprint(n)+`}}`); a.Status == 201 {
						ids = append(ids, child)
					}
				case 3:
					s.Do("PATCH", "/orgs/"+id, op, fmt.Sprintf(`{"name":"Name %d","tags":["t%d"],"customizations":{"a":{"b":%d},"n":null}}`, n, n, n))
				case 4:
					s.Do("PUT", "/orgs/"+id+"/customizations", op, fmt.Sprintf(`{"customizations":{"x":%d},"locked":["/n"]}`, n))
				case 5, 6:
					s.Do("POST", "/orgs/"+id+"/move", op, `{"parent_id":"`+pick()+`"}`)
				case 7:
					if id != "r" {
						s.Do("DELETE", "/orgs/"+id+"?cascade=true", op, "")
						if rnd.IntN(2) == 0 {
							s.Do("POST", "/orgs/"+id+"/restore", op, "")
						}
					}
				}
			}
			entries := entriesOf(t, s, "r")
			var moments []time.Time
			for i, e := range entries {
				if i > 0 && e.Timestamp.Before(entries[i-1].Timestamp) {
					t.Errorf("entry %d is of %v, the one before it of %v", i, e.Timestamp, entries[i-1].Timestamp)
				}
				if e.Timestamp.Nanosecond()%3 == 0 || i == len(entries)-1 {
					moments = append(moments, e.Timestamp, e.Timestamp.Add(-time.Microsecond))
				}
			}
			for _, at := range moments {
				fold := testkit.NewFold()
				for _, e := range entries {
					if !e.Timestamp.After(at) {
						if err := fold.Add(e); err != nil {
							t.Fatal(err)
						}
					}
				}
				asOf := "as_of=" + url.QueryEscape(at.Format(time.RFC3339Nano))
				if fold.Orgs["r"] == nil {
					s.Must(404, "GET", "/orgs/r?"+asOf, op, "")
					continue
				}
				var want, got []string
				for _, o := range fold.Orgs {
					if o.DeletedAt == nil && o.ID != "r" {
						want = append(want, describe(o.Path, o.Name, fmt.Sprint(o.Tags), o.UpdatedAt, o.Settings.Values))
					}
				}
				for path := "/orgs/r/descendants?limit=7&" + asOf; path != ""; {
					a := s.Must(200, "GET", path, op, "")
					var page []orgAnswer
					if err := json.Unmarshal(a.Body, &page); err != nil {
						t.Fatal(err)
					}
					for _, o := range page {
						got = append(got, o.describe())
					}
					path = testkit.NextPage(a)
				}
				sort.Strings(want)
				sort.Strings(got)
				if !slices.Equal(got, want) {
					t.Fatalf("at %v the tree was\n%s\nby the audit trail\n%s", at, strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
				// What lives now can be asked about by itself.
				id := pick()
				if s.Do("GET", "/orgs/"+id, op, "").Status != 200 {
					continue
				}
				o := fold.Orgs[id]
				if o == nil || o.DeletedAt != nil {
					s.Must(404, "GET", "/orgs/"+id+"?"+asOf, op, "")
					continue
				}
				var one orgAnswer
				a := s.Must(200, "GET", "/orgs/"+id+"?"+asOf, op, "")
				if err := json.Unmarshal(a.Body, &one); err != nil {
					t.Fatal(err)
				}
				if want := describe(o.Path, o.Name, fmt.Sprint(o.Tags), o.UpdatedAt, o.Settings.Values); one.describe() != want {
					t.Errorf("at %v %s was %s, by the audit trail %s", at, id, one.describe(), want)
				}
				var layers []settings.Layer
				for _, above := range o.PathIDs() {
					l := fold.Orgs[above]
					layers = append(layers, settings.Layer{OrgID: l.ID, Values: l.Settings.Values, Locked: l.Settings.Locked})
				}
				a = s.Must(200, "GET", "/orgs/"+id+"/customizations?"+asOf, op, "")
				if got, want := canonical(t, a.JSON("effective")), canonical(t, settings.Effective(layers)); got != want {
					t.Errorf("at %v the settings of %s were %s, by the audit trail %s", at, id, got, want)
				}
			}
		})
	}
}

type orgAnswer struct {
	Path           []string  `json:"path"`
	Name           string    `json:"name"`
	Tags           []string  `json:"tags"`
	UpdatedAt      time.Time `json:"updated_at"`
	Customizations any       `json:"customizations"`
}

func (o *orgAnswer) describe() string {
	return describe(strings.Join(o.Path, "/")+"/", o.Name, fmt.Sprint(o.Tags), o.UpdatedAt, o.Customizations)
}

func describe(path, name, tags string, updatedAt time.Time, settings any) string {
	b, err := json.Marshal(settings, json.Deterministic(true))
	if err != nil {
		panic(err)
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		panic(err)
	}
	b, _ = json.Marshal(v, json.Deterministic(true))
	return fmt.Sprint(path, " ", name, " ", tags, " ", updatedAt.UTC(), " ", string(b))
}

func canonical(t testing.TB, v any) string {
	t.Helper()
	return describe("", "", "", time.Time{}, v)
}

// Who may look into the past, and what they see there.
func TestAsOfVisibility(t *testing.T) {
	s := testkit.Start(t, "sqlite", func(c *server.Config) {})
	op := s.OperatorKey
	now := func() string {
		time.Sleep(2 * time.Millisecond)
		defer time.Sleep(2 * time.Millisecond)
		return "as_of=" + url.QueryEscape(time.Now().UTC().Format(time.RFC3339Nano))
	}
	s.Must(201, "POST", "/orgs", op, `{"id":"r","name":"R"}`)
	s.Must(201, "POST", "/orgs", op, `{"id":"foreign","name":"F"}`)
	for _, c := range [][2]string{{"r", "a"}, {"r", "b"}, {"a", "m"}, {"m", "k"}} {
		s.Must(201, "POST", "/orgs/"+c[0]+"/children", op, `{"id":"`+c[1]+`","name":"First"}`)
	}
	beforeMove := now()
	s.Must(200, "POST", "/orgs/m/move", op, `{"parent_id":"b"}`)
	s.Must(200, "PATCH", "/orgs/m", op, `{"name":"Second","description":"of jane.roe@example.com"}`)
	afterMove := now()
	s.Must(200, "PATCH", "/orgs/m", op, `{"description":""}`)
	s.Must(200, "DELETE", "/orgs/k", op, "")
	afterDelete := now()

	const history = `"permissions":["orgs:read","audit:read","customizations:read"]`
	inR, _ := s.NewKey("r", history)
	inA, _ := s.NewKey("a", history)
	inB, _ := s.NewKey("b", history)
	inM, _ := s.NewKey("m", history)
	selfM, _ := s.NewKey("m", history+`,"reach":"self"`)
	weak, _ := s.NewKey("b", `"permissions":["orgs:read","customizations:read"]`)

	for _, test := range []struct {
		key, path string
		status    int
	}{
		{inB, "/orgs/m?" + afterMove, 200},
		{inB, "/orgs/m?" + beforeMove, 404}, // it was elsewhere
		{inA, "/orgs/m?" + beforeMove, 404}, // it is elsewhere
		{inM, "/orgs/m?" + beforeMove, 404}, // b makes this key, and a was above m then
		{inM, "/orgs/k?" + beforeMove, 404},
		{selfM, "/orgs/m?" + beforeMove, 404},
		{selfM, "/orgs/m/descendants?" + beforeMove, 404},
		{selfM, "/orgs/m?" + afterMove, 200},
		{inB, "/orgs/m/customizations?" + beforeMove, 404},
		{inM, "/orgs/m/customizations?" + beforeMove + "&explain=true", 404},
		{inM, "/orgs/m/customizations?" + afterMove + "&explain=true", 200},
		{op, "/orgs/m/customizations?" + beforeMove + "&explain=true", 200},
		{inR, "/orgs/m/customizations?" + beforeMove + "&explain=true", 200}, // it is above both
		{inR, "/orgs/m?" + beforeMove, 200},
		{inB, "/orgs/m/descendants?" + beforeMove, 404},
		{inB, "/orgs/k?" + afterMove, 404}, // it is deleted
		{inB, "/orgs/foreign?" + afterMove, 404},
		{inB, "/orgs/absent?" + afterMove, 404},
		{weak, "/orgs/m?" + afterMove, 403},
		{weak, "/orgs/m/descendants?" + afterMove, 403},
		{weak, "/orgs/m/customizations?" + afterMove, 403},
		{inB, "/orgs/m?as_of=2999-01-01T00:00:00Z", 400},
		{inB, "/orgs/m?as_of=yesterday", 400},
		{inB, "/orgs/m?as_of=", 400},
		{inB, "/orgs/m/descendants?as_of=", 400},
		{inB, "/orgs/m?as_of=2020-01-01T00:00:00Z", 404},
	} {
		s.Must(test.status, "GET", test.path, test.key, "")
	}
	// "Elsewhere" and "not yet" look the same.
	one, two := s.Do("GET", "/orgs/m?"+beforeMove, inB, "", "X-Request-Id", "req_1"), s.Do("GET", "/orgs/m?as_of=2020-01-01T00:00:00Z", inB, "", "X-Request-Id", "req_1")
	if string(one.Body) != string(two.Body) {
		t.Errorf("%s\n%s", one.Body, two.Body)
	}
	list := func(key, path string) (names []string) {
		t.Helper()
		for _, o := range s.Must(200, "GET", path, key, "").JSON().([]any) {
			names = append(names, strings.Trim(fmt.Sprint(o.(map[string]any)["path"]), "[]")+"="+fmt.Sprint(o.(map[string]any)["name"]))
		}
		return names
	}
	for _, test := range []struct{ key, path, want string }{
		{inA, "/orgs/a/descendants?" + beforeMove, "[r a m=First r a m k=First]"}, // both are gone from there
		{inA, "/orgs/a/descendants?" + afterMove, "[]"},
		{inB, "/orgs/b/descendants?" + beforeMove, "[]"},
		{inB, "/orgs/b/descendants?" + afterMove, "[r b m=Second r b m k=First]"},
		{inB, "/orgs/b/descendants?depth=1&" + afterMove, "[r b m=Second]"},
		{inB, "/orgs/b/descendants?" + afterDelete, "[r b m=Second]"},
		{selfM, "/orgs/m/descendants?" + afterMove, "[]"},
	} {
		if got := fmt.Sprint(list(test.key, test.path)); got != test.want {
			t.Errorf("%s: %s, want %s", test.path, got, test.want)
		}
	}
	// A cursor belongs to its moment.
	a := s.Must(200, "GET", "/orgs/a/descendants?limit=1&"+beforeMove, inA, "")
	s.Must(400, "GET", strings.Replace(testkit.NextPage(a), "as_of=20", "as_of=19", 1), inA, "")

	// What has been erased is named, not made up.
	s.Must(200, "POST", "/orgs/r/audit_erasures", op, `{"subject":"jane.roe@example.com","basis":"Request 1"}`)
	gone := s.Must(410, "GET", "/orgs/m?"+afterMove, inB, "")
	if gone.String("code") != "values_erased" || !strings.Contains(string(gone.Body), `"/description"`) || strings.Contains(string(gone.Body), "jane") {
		t.Errorf("410: %s", gone.Body)
	}
	listed := s.Must(200, "GET", "/orgs/b/descendants?depth=1&"+afterMove, inB, "")
	if !strings.Contains(string(listed.Body), `"description":""`) || !strings.Contains(string(listed.Body), `"erased":["/description"]`) {
		t.Errorf("listed: %s", listed.Body)
	}
	s.Must(200, "GET", "/orgs/m?"+afterDelete, inB, "")
	s.Must(200, "GET", "/orgs/m/customizations?"+afterMove, inB, "")
}

// Whoever gets an organization by a move does not read, through a key that it
// makes there, what those above it set before: a key sees of the past what lay
// where it reaches.
func TestAsOfAfterMove(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, clock := reusable(t, engine)
			op := s.OperatorKey
			later := func() time.Time {
				clock.set(clock.now().Add(time.Minute))
				defer clock.set(clock.now().Add(time.Minute))
				return clock.now()
			}
			moved := func(parent string) time.Time {
				t.Helper()
				s.Must(200, "POST", "/orgs/shop/move", op, `{"parent_id":"`+parent+`"}`)
				return later()
			}
			s.Must(200, "PATCH", "/orgs/eu", op, `{"customizations":{"secret":"of eu"}}`)
			s.Must(200, "PATCH", "/orgs/us", op, `{"customizations":{"own":"of us"}}`)
			atEU := later()
			atUS := moved("us")
			backAtEU := moved("eu")
			nowAtUS := moved("us")

			// The new parent makes keys of all kinds on what it got.
			us, _ := s.NewKey("us", `"permissions":["admin"]`)
			key := func(orgID, members string) string {
				return s.Must(201, "POST", "/orgs/"+orgID+"/api_keys", us, `{"name":"k"`+members+`}`).String("secret")
			}
			shop, self, till := key("shop", ""), key("shop", `,"reach":"self"`), key("till", "")
			acme, _ := s.NewKey("acme", `"permissions":["admin"]`)
			for _, test := range []struct {
				key, org string
				at       time.Time
				status   int
			}{
				{shop, "shop", atEU, 404}, {self, "shop", atEU, 404}, {till, "till", atEU, 404}, {shop, "till", atEU, 404}, {us, "shop", atEU, 404},
				{shop, "shop", backAtEU, 404}, {till, "till", backAtEU, 404}, {us, "till", backAtEU, 404},
				{shop, "shop", atUS, 200}, {self, "shop", atUS, 200}, {till, "till", atUS, 200}, {us, "till", atUS, 200}, {shop, "till", nowAtUS, 200},
				{acme, "shop", atEU, 200}, {acme, "till", backAtEU, 200}, {op, "till", atEU, 200},
			} {
				for _, view := range []string{"?", "/descendants?", "/customizations?", "/customizations?explain=true&"} {
					a := s.Must(test.status, "GET", "/orgs/"+test.org+view+asOf(test.at), test.key, "")
					if strings.Contains(string(a.Body), "of eu") && test.key != acme && test.key != op {
						t.Errorf("%s of %s at %v: %s", view, test.org, test.at, a.Body)
					}
				}
			}
			a := s.Must(200, "GET", "/orgs/till/customizations?explain=true&"+asOf(backAtEU), acme, "")
			if !strings.Contains(string(a.Body), "of eu") {
				t.Errorf("who reaches both: %s", a.Body)
			}
		})
	}
}

// The past of an organization is that of the organizations that were above it
// then. Who has the id of one of them now, in the same place, was not there.
func TestAsOfBelowReusedID(t *testing.T) {
	for _, engine := range testkit.Engines {
		t.Run(engine, func(t *testing.T) {
			s, clock := reusable(t, engine)
			op := s.OperatorKey
			s.Must(200, "PATCH", "/orgs/shop", op, `{"name":"Former shop","customizations":{"secret":"of the former"}}`)
			clock.set(clock.now().Add(time.Minute))
			then := clock.now()
			clock.set(clock.now().Add(time.Minute))
			s.Must(200, "POST", "/orgs/till/move", op, `{"parent_id":"lab"}`)
			s.Must(200, "DELETE", "/orgs/shop", op, "")
			pass(t, s, clock)
			s.Must(201, "POST", "/orgs/eu/children", op, `{"id":"shop","name":"Next","customizations":{"next":1}}`)
			s.Must(200, "POST", "/orgs/till/move", op, `{"parent_id":"shop"}`)
			clock.set(clock.now().Add(time.Minute))

			next, _ := s.NewKey("shop", `"permissions":["admin"]`)
			till, _ := s.NewKey("till", `"permissions":["admin"]`)
			eu, _ := s.NewKey("eu", `"permissions":["admin"]`)
			for _, view := range []string{"?", "/descendants?", "/customizations?", "/customizations?explain=true&"} {
				s.Must(404, "GET", "/orgs/till"+view+asOf(then), next, "")
				s.Must(404, "GET", "/orgs/till"+view+asOf(then), till, "")
				s.Must(404, "GET", "/orgs/shop"+view+asOf(then), eu, "")
				s.Must(200, "GET", "/orgs/till"+view+asOf(clock.now()), next, "")
			}
			a := s.Must(200, "GET", "/orgs/till/customizations?explain=true&"+asOf(then), eu, "")
			if !strings.Contains(string(a.Body), "of the former") || strings.Contains(string(a.Body), "next") {
				t.Errorf("the settings that were in effect: %s", a.Body)
			}
			// What was purged does not show, nor who has its id now.
			a = s.Must(200, "GET", "/orgs/eu/descendants?"+asOf(then), eu, "")
			if text := string(a.Body); strings.Contains(text, `"id":"shop"`) || strings.Contains(text, "Next") || !strings.Contains(text, `"id":"lab"`) {
				t.Errorf("descendants then: %s", text)
			}
		})
	}
}
