package access

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"

	"github.com/orgd/orgd/internal/usage"
)

// A record in a spool is
//
//	uint32  the length of the payload in the low 24 bits, a check of it above
//	uint32  CRC32C of the first word and the payload
//	payload: a version, what is present, and the fields
//
// in little endian. The check on the length tells a record that was cut short
// from one whose length was damaged: only the former may be cut off.
const (
	recordHeader  = 8
	maxPayload    = 4 << 20
	recordVersion = 1
	// headerVersion is the version of a record that only names its segment: the
	// first one of every segment but those that older releases wrote.
	headerVersion = 2

	hasEvent = 1 << 0
	hasUse   = 1 << 1
)

var (
	// errShort says that the bytes end before the record does.
	errShort = errors.New("the record is cut short")
	// errDamaged says that these bytes are not a record as it was written.
	errDamaged = errors.New("the record is damaged")
	// errVersion says that a record is intact but of another version.
	errVersion = errors.New("the record was written by a newer version of orgd")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func lengthCheck(n uint32) uint32 {
	return n | (n^n>>8^n>>16^0xA5)&0xFF<<24
}

// appendRecord appends rec, with its header, to b. Times are cut to
// microseconds.
func appendRecord(b []byte, rec *Record) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, recordVersion, 0)
	if e := rec.Event; e != nil {
		b[start+recordHeader+1] |= hasEvent
		b = binary.AppendVarint(b, e.Timestamp.UnixMicro())
		for _, s := range [...]string{e.ID, e.RootID, e.OrgID, e.User, e.Action, e.Status,
			e.IP, e.UserAgent, e.Method, e.Path, e.RequestID, e.APIKeyID} {
			b = appendString(b, s)
		}
	}
	if u := rec.Use; u != nil {
		b[start+recordHeader+1] |= hasUse
		old := byte(0)
		if u.Old {
			old = 1
		}
		b = append(b, old)
		b = binary.AppendVarint(b, u.At.UnixMicro())
		b = appendString(b, u.KeyID)
		b = appendString(b, u.IP)
	}
	b = binary.AppendUvarint(b, uint64(len(rec.Usage)))
	for i := range rec.Usage {
		u := &rec.Usage[i]
		b = appendString(b, u.RootID)
		b = appendString(b, u.Path)
		b = binary.AppendVarint(b, u.At.UnixMicro())
		b = appendString(b, u.Meter)
		b = binary.AppendVarint(b, int64(u.Quantity))
	}
	seal(b[start:])
	return b
}

// seal fills in the header of the record b. A payload of more than maxPayload
// bytes does not get one that can be read.
func seal(b []byte) {
	binary.LittleEndian.PutUint32(b, lengthCheck(uint32(len(b)-recordHeader)))
	sum := crc32.Update(0, castagnoli, b[:4])
	sum = crc32.Update(sum, castagnoli, b[recordHeader:])
	binary.LittleEndian.PutUint32(b[4:], sum)
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// nextRecord returns the payload of the record at the start of b and the size
// of the whole record. errShort: b ends before the record does; size is then
// what b needs to have at least.
func nextRecord(b []byte) (payload []byte, size int, err error) {
	if len(b) < 4 {
		return nil, recordHeader, errShort
	}
	word := binary.LittleEndian.Uint32(b)
	n := word & 0xFFFFFF
	if n < 2 || n > maxPayload || lengthCheck(n) != word {
		return nil, 0, errDamaged
	}
	size = recordHeader + int(n)
	if len(b) < size {
		return nil, size, errShort
	}
	payload = b[recordHeader:size]
	sum := crc32.Update(0, castagnoli, b[:4])
	if crc32.Update(sum, castagnoli, payload) != binary.LittleEndian.Uint32(b[4:]) {
		return nil, 0, errDamaged
	}
	if payload[0] != recordVersion && payload[0] != headerVersion {
		return nil, size, errVersion
	}
	return payload, size, nil
}

// appendHeader appends the header of a segment to b: the id of its spool and its
// number, so that neither another spool's file nor one with another name is
// taken for it.
func appendHeader(b []byte, spoolID string, number int64) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, headerVersion)
	b = binary.AppendVarint(b, number)
	b = appendString(b, spoolID)
	seal(b[start:])
	return b
}

// isHeader reports whether a payload is the header of a segment.
func isHeader(payload []byte) bool { return payload[0] == headerVersion }

// parseHeader reads the header at the start of a segment. ok is false if there
// is none that can be read.
func parseHeader(b []byte) (spoolID string, number int64, ok bool) {
	payload, _, err := nextRecord(b)
	if err != nil || !isHeader(payload) {
		return "", 0, false
	}
	d := decoder{s: string(payload[1:]), ok: true}
	number, spoolID = d.varint(), d.string()
	return spoolID, number, d.ok && d.s == ""
}

// decodePayload adds what a payload holds to b, nothing if it is a header.
func decodePayload(payload []byte, b *Batch) error {
	if isHeader(payload) {
		return nil
	}
	d := decoder{s: string(payload), ok: true}
	d.s = d.s[1:] // nextRecord has looked at the version
	present := d.byte()
	if present&^(hasEvent|hasUse) != 0 {
		return errDamaged
	}
	var e Event
	if present&hasEvent != 0 {
		e.Timestamp = d.time()
		for _, f := range [...]*string{&e.ID, &e.RootID, &e.OrgID, &e.User, &e.Action, &e.Status,
			&e.IP, &e.UserAgent, &e.Method, &e.Path, &e.RequestID, &e.APIKeyID} {
			*f = d.string()
		}
	}
	var use KeyUse
	if present&hasUse != 0 {
		old := d.byte()
		if old > 1 {
			return errDamaged
		}
		use = KeyUse{Old: old == 1, At: d.time(), KeyID: d.string(), IP: d.string()}
	}
	before := len(b.Usage)
	for n := d.uvarint(); n > 0 && d.ok; n-- {
		b.Usage = append(b.Usage, Usage{RootID: d.string(), Path: d.string(),
			At: d.time(), Meter: d.string(), Quantity: usage.Decimal(d.varint())})
	}
	if !d.ok || d.s != "" {
		b.Usage = b.Usage[:before]
		return errDamaged
	}
	if present&hasEvent != 0 {
		b.Events = append(b.Events, e)
	}
	if present&hasUse != 0 {
		b.Uses = append(b.Uses, use)
	}
	return nil
}

// decoder reads fields off the front of s. After a field that is not there,
// ok is false and every further field is zero.
type decoder struct {
	s  string
	ok bool
}

func (d *decoder) fail() {
	d.s, d.ok = "", false
}

func (d *decoder) byte() byte {
	if d.s == "" {
		d.fail()
		return 0
	}
	c := d.s[0]
	d.s = d.s[1:]
	return c
}

func (d *decoder) uvarint() uint64 {
	var v uint64
	for shift := 0; shift < 64 && d.ok; shift += 7 {
		c := d.byte()
		if shift == 63 && c > 1 {
			break
		}
		v |= uint64(c&0x7F) << shift
		if c < 0x80 {
			return v
		}
	}
	d.fail()
	return 0
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

func (d *decoder) time() time.Time { return time.UnixMicro(d.varint()).UTC() }

func (d *decoder) string() string {
	n := d.uvarint()
	if n > uint64(len(d.s)) {
		d.fail()
		return ""
	}
	s := d.s[:n]
	d.s = d.s[n:]
	return s
}
