package web

import (
	"encoding/base64"
	"reflect"
	"testing"

	"github.com/orgd/orgd/internal/problem"
)

// Answers that earlier versions have kept are given again.
func TestAnswersOfEarlierVersionsOpen(t *testing.T) {
	const token, idempotencyKey = "orgd_test_token", "create-1"
	sealed, err := base64.StdEncoding.DecodeString("yllvNHd3Z34t54E855uUGPYqFm9caAJbeqfg+xQ8qh1OdzdyZqE9CiLxlOEWaw0mLAGN4TZRUxskLu9p340xKaL4OQu6" +
		"Fn8G3EwZ9d/IqFavRQLSjpZCcYyBtGagN1rbPDmnLRG60FxfPC9VRxPHva2c89QBjnp7/GAhVm6FSdg77WCH")
	if err != nil {
		t.Fatal(err)
	}
	want := &Response{Status: 201, ContentType: "application/json", Header: []string{"ETag", `"1"`}, Body: []byte(`{"id":"acme"}`)}
	if got, err := openAnswer(token, idempotencyKey, sealed); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("opened: %+v, %v", got, err)
	}
	if _, err := openAnswer("orgd_other_token", idempotencyKey, sealed); !problem.Is(err, problem.IdempotencyKeyReused) {
		t.Errorf("with another secret: %v", err)
	}
	if _, err := openAnswer(token, "create-2", sealed); !problem.Is(err, problem.IdempotencyKeyReused) {
		t.Errorf("for another key: %v", err)
	}
	if _, err := openAnswer(token, idempotencyKey, sealed[:11]); !problem.Is(err, problem.Internal) {
		t.Errorf("a part of it: %v", err)
	}
	again, err := sealAnswer(token, idempotencyKey, want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := openAnswer(token, idempotencyKey, again); err != nil || !reflect.DeepEqual(got, want) || len(again) != len(sealed) {
		t.Errorf("sealed again: %+v, %v, in %d bytes instead of %d", got, err, len(again), len(sealed))
	}
}
