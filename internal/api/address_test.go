package api_test

import (
	"fmt"
	"testing"
)

// The address that decides is the client's as the proxy writes it. One that
// cannot be read is nobody's: a key that is bound to addresses is refused, the
// proxy's own among them, and logs and keys hold no address.
func TestAddressesDecide(t *testing.T) {
	on(t, func(t *testing.T, engine string) {
		s := startTree(t, engine, trusting)
		bound, boundID := s.NewKey("leaf", `"permissions":["app:x","orgs:read","tags:write"],"allowed_cidrs":["203.0.113.0/24","2001:db8::/32"]`)
		local, _ := s.NewKey("leaf", `"permissions":["app:x","orgs:read"],"allowed_cidrs":["127.0.0.0/8"]`)
		everywhere, _ := s.NewKey("leaf", `"permissions":["app:x","orgs:read"],"allowed_cidrs":["0.0.0.0/0","::/0"]`)
		free, freeID := s.NewKey("leaf", `"permissions":["app:x","orgs:read","tags:write","audit:read"]`)

		readable := map[string]string{
			"203.0.113.9:51034": "203.0.113.9", "[2001:db8::1]:443": "2001:db8::1", `"[2001:db8::1]"`: "2001:db8::1",
			"::ffff:203.0.113.9": "203.0.113.9", "198.51.100.7, 203.0.113.9:80": "203.0.113.9", "unknown, 203.0.113.9, 127.0.0.1": "203.0.113.9",
		}
		for forwarded, ip := range readable {
			for _, path := range []string{"/orgs/leaf", "/forward_auth?permission=app:x"} {
				s.Must(200, "GET", path, bound, "", "X-Forwarded-For", forwarded)
				s.Must(403, "GET", path, local, "", "X-Forwarded-For", forwarded)
				s.Must(200, "GET", path, everywhere, "", "X-Forwarded-For", forwarded)
				s.Must(200, "GET", path, free, "", "X-Forwarded-For", forwarded)
				event := s.Must(200, "GET", "/orgs/leaf/access_log?limit=1&api_key_id="+freeID, s.OperatorKey, "").JSON().([]any)[0].(map[string]any)
				if event["ip"] != ip {
					t.Errorf("%s, %s: the event is from %v, want %s", path, forwarded, event["ip"], ip)
				}
			}
		}
		used := s.Must(200, "GET", "/orgs/leaf/api_keys/"+boundID, s.OperatorKey, "").JSON("last_used_ip")
		if used != "203.0.113.9" && used != "2001:db8::1" {
			t.Errorf("the key was last used from %v", used)
		}

		for _, forwarded := range []string{"unknown", "", "_hidden", "127.0.0.9", "203.0.113.9, unknown", "203.0.113.9,", "127.0.0.1, x, 127.0.0.1", "0.0.0.0", "203.0.113.9:port"} {
			for _, path := range []string{"/orgs/leaf", "/forward_auth?permission=app:x"} {
				for name, key := range map[string]string{"its own network": bound, "the proxy's network": local, "every address": everywhere} {
					if a := s.Do("GET", path, key, "", "X-Forwarded-For", forwarded); a.Status != 403 || a.String("code") != "permission_denied" {
						t.Errorf("%s with a key for %s from %q: %d %s", path, name, forwarded, a.Status, a.Body)
					}
				}
				s.Must(200, "GET", path, free, "", "X-Forwarded-For", forwarded)
				event := s.Must(200, "GET", "/orgs/leaf/access_log?limit=1&api_key_id="+freeID, s.OperatorKey, "").JSON().([]any)[0].(map[string]any)
				if event["ip"] != nil || event["status"] != "SUCCESS" {
					t.Errorf("%s from %q: the event is %v", path, forwarded, event)
				}
			}
		}
		if ip := s.Must(200, "GET", "/orgs/leaf/api_keys/"+freeID, s.OperatorKey, "").JSON("last_used_ip"); ip != nil {
			t.Errorf("the key was last used from %v", ip)
		}

		// A change from nowhere is one, and its entry has no address.
		s.Must(200, "PUT", "/orgs/leaf/tags/vip", free, "", "X-Forwarded-For", "unknown")
		entry := s.Must(200, "GET", "/orgs/leaf/children_audit?limit=1", free, "").JSON().([]any)[0].(map[string]any)
		if entry["action"] != "organization.updated" || entry["ip"] != nil {
			t.Errorf("the entry is %v", entry)
		}

		// What a product says of the address of its client is read the same way.
		for ip, want := range map[string]any{"203.0.113.9:51034": true, "[2001:db8::1]:443": true, `\"[2001:db8::1]\"`: true, "2001:db8::1%eth0": true, "198.51.100.7:1": false} {
			if got := s.Must(200, "POST", "/verify", s.OperatorKey, fmt.Sprintf(`{"key":%q,"ip":"%s"}`, bound, ip)).JSON("valid"); got != want {
				t.Errorf("from %s the key is valid: %v, want %v", ip, got, want)
			}
		}
		for _, ip := range []string{"unknown", "_hidden", "203.0.113.9:", "0.0.0.0"} {
			s.Must(400, "POST", "/verify", s.OperatorKey, fmt.Sprintf(`{"key":%q,"ip":%q}`, free, ip))
		}
		for _, key := range []string{bound, local, everywhere} {
			if got := s.Must(200, "POST", "/verify", s.OperatorKey, fmt.Sprintf(`{"key":%q}`, key)).String("code"); got != "permission_denied" {
				t.Errorf("without an address: %q", got)
			}
		}
	})
}
