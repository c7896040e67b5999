package api

import "testing"

// Cursors that earlier versions have handed out lead on.
func TestCursorsOfEarlierVersionsOpen(t *testing.T) {
	a, err := New(Config{Secret: []byte("the secret of the cursors of a test")})
	if err != nil {
		t.Fatal(err)
	}
	const cursor, scope, position = "nUq0RII71XALIuD9GdLefI3SUmIEO2AeuK3SkbdBgKRFXUCQMUIVBTNMUGaRSjQQgg", "/orgs/acme/descendants\x00depth=2\x00", `["acme/prod/","prod"]`
	if text, ok := a.open(cursor, scope); !ok || string(text) != position {
		t.Errorf("opened: %q, %t", text, ok)
	}
	if text, ok := a.open(cursor, "/orgs/acme/descendants\x00depth=3\x00"); ok || text != nil {
		t.Errorf("opened for another query: %q", text)
	}
	if again := a.seal([]byte(position), scope); len(again) != len(cursor) {
		t.Errorf("sealed again it is %s", again)
	}
}
