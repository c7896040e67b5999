package access

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/orgd/orgd/internal/usage"
)

func records() *rapid.Generator[Record] {
	text := rapid.OneOf(rapid.String(), rapid.StringN(100, 300, -1), rapid.Just("\xff\x00"))
	at := rapid.Custom(func(t *rapid.T) time.Time {
		return time.UnixMicro(rapid.Int64Range(-62135596800_000_000, 253402300799_999_999).Draw(t, "microseconds")).UTC()
	})
	event := rapid.Custom(func(t *rapid.T) Event {
		var e Event
		for _, s := range []*string{&e.ID, &e.RootID, &e.OrgID, &e.User, &e.Action, &e.Status,
			&e.IP, &e.UserAgent, &e.Method, &e.Path, &e.RequestID, &e.APIKeyID} {
			*s = text.Draw(t, "field")
		}
		e.Timestamp = at.Draw(t, "timestamp")
		return e
	})
	use := rapid.Custom(func(t *rapid.T) KeyUse {
		return KeyUse{KeyID: text.Draw(t, "key"), Old: rapid.Bool().Draw(t, "old"), At: at.Draw(t, "at"), IP: text.Draw(t, "ip")}
	})
	used := rapid.Custom(func(t *rapid.T) Usage {
		return Usage{RootID: text.Draw(t, "root"), Path: text.Draw(t, "path"), At: at.Draw(t, "at"),
			Meter: text.Draw(t, "meter"), Quantity: usage.Decimal(rapid.Int64().Draw(t, "quantity"))}
	})
	return rapid.Custom(func(t *rapid.T) Record {
		return Record{
			Event: rapid.Ptr(event, true).Draw(t, "event"),
			Use:   rapid.Ptr(use, true).Draw(t, "use"),
			Usage: rapid.SliceOfN(used, 0, 4).Draw(t, "usage"),
		}
	})
}

func TestRecordsAreReadAsTheyWereWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(records(), 1, 5).Draw(t, "records")
		var b []byte
		for i := range want {
			b = appendRecord(b, &want[i])
		}
		for _, w := range want {
			payload, n, err := nextRecord(b)
			if err != nil {
				t.Fatal(err)
			}
			var got, expected Batch
			if err := decodePayload(payload, &got); err != nil {
				t.Fatal(err)
			}
			if w.Event != nil {
				expected.Events = []Event{*w.Event}
			}
			if w.Use != nil {
				expected.Uses = []KeyUse{*w.Use}
			}
			expected.Usage = append(expected.Usage, w.Usage...)
			if !reflect.DeepEqual(got, expected) {
				t.Fatalf("read %+v, want %+v", got, expected)
			}
			b = b[n:]
		}
		if len(b) > 0 {
			t.Fatalf("%d bytes are left", len(b))
		}
	})
}

func TestARecordWithAChangedByteIsNotRead(t *testing.T) {
	rec := testRecord(1)
	whole := appendRecord(nil, &rec)
	for at := range whole {
		for bit := range 8 {
			b := bytes.Clone(whole)
			b[at] ^= 1 << bit
			if payload, _, err := nextRecord(b); !errors.Is(err, errDamaged) {
				t.Fatalf("byte %d, bit %d: %q, %v", at, bit, payload, err)
			}
		}
	}
}

// Damage must not be taken for a record that was cut short, which is removed.
func TestARecordThatIsCutShortIsNotDamaged(t *testing.T) {
	rec := testRecord(1)
	whole := appendRecord(nil, &rec)
	for n := range whole {
		if _, want, err := nextRecord(whole[:n]); !errors.Is(err, errShort) || want <= n {
			t.Fatalf("%d of %d bytes: %v, needs %d", n, len(whole), err, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	rec := testRecord(1)
	b := appendRecord(nil, &rec)
	f.Add(b[recordHeader:])
	f.Add([]byte{recordVersion, 0, 0})
	f.Add([]byte{recordVersion, hasUse, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) < 2 || payload[0] != recordVersion {
			return
		}
		var b Batch
		if err := decodePayload(payload, &b); err != nil {
			if len(b.Events)+len(b.Usage)+len(b.Uses) > 0 {
				t.Fatalf("part of a damaged record was read: %+v", b)
			}
			return
		}
		again := Record{Usage: b.Usage}
		if len(b.Events) > 0 {
			again.Event = &b.Events[0]
		}
		if len(b.Uses) > 0 {
			again.Use = &b.Uses[0]
		}
		var c Batch
		if err := decodePayload(appendRecord(nil, &again)[recordHeader:], &c); err != nil || !reflect.DeepEqual(b, c) {
			t.Fatalf("%+v became %+v, %v", b, c, err)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	rec := testRecord(1)
	var buf []byte
	for b.Loop() {
		buf = appendRecord(buf[:0], &rec)
	}
	b.SetBytes(int64(len(buf)))
}

func BenchmarkDecode(b *testing.B) {
	rec := testRecord(1)
	buf := appendRecord(nil, &rec)
	var batch Batch
	for b.Loop() {
		payload, _, err := nextRecord(buf)
		if err != nil {
			b.Fatal(err)
		}
		batch.Events, batch.Usage, batch.Uses = batch.Events[:0], batch.Usage[:0], batch.Uses[:0]
		if err := decodePayload(payload, &batch); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(buf)))
}
