package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/ident"
)

// A leaf is
//
//	{"action":"organization.updated","actor":{"id":"key_1","name":C,"type":"api_key"},
//	 "changes":[{"new":C,"old":C,"pointer":"/name"}],"epoch":0,"id":"aud_1","ip":C,
//	 "log":"<log id>","org_id":"child","path":["root","child"],"request_id":"req_1","seq":7,
//	 "target":{"id":"child","type":"organization"},"timestamp":"2026-11-24T19:12:00.000000Z",
//	 "user_agent":C,"v":1}
//
// without whitespace, where each C is a commitment in base64. Members in which
// nothing is to be said are left out: actor name, new, old, ip, request_id,
// user_agent. If the leaf would be longer than MaxLeaf, "changes" is one
// commitment to the whole array.
//
// The values are
//
//	{"actor/name":{"salt":"<base64>","value":"Jane"},"changes/0/new":{"salt":…,"value":…},…}
//
// in the order in which their commitments stand in the leaf, less those that
// have been erased.

const (
	commitmentTag  = "orgd audit commitment v1"
	saltSize       = 32
	commitmentSize = 44 // base64 of 32 bytes
	timeFormat     = "2006-01-02T15:04:05.000000Z"
)

// slot names a place for an erasable value within an entry.
type slot struct {
	kind  slotKind
	index int // of the change
}

type slotKind uint8

const (
	slotActorName slotKind = iota
	slotChanges            // all changes of an entry that has too many of them
	slotNew
	slotOld
	slotIP
	slotUserAgent
)

// appendTo appends the slot's name, as it stands in commitments and values.
func (s slot) appendTo(b []byte) []byte {
	switch s.kind {
	case slotActorName:
		return append(b, "actor/name"...)
	case slotChanges:
		return append(b, "changes"...)
	case slotIP:
		return append(b, "ip"...)
	case slotUserAgent:
		return append(b, "user_agent"...)
	}
	b = append(b, "changes/"...)
	b = strconv.AppendInt(b, int64(s.index), 10)
	if s.kind == slotNew {
		return append(b, "/new"...)
	}
	return append(b, "/old"...)
}

func (s slot) String() string { return string(s.appendTo(nil)) }

// parseSlot parses what String returns, and nothing else.
func parseSlot(name string) (slot, bool) {
	switch name {
	case "actor/name":
		return slot{kind: slotActorName}, true
	case "changes":
		return slot{kind: slotChanges}, true
	case "ip":
		return slot{kind: slotIP}, true
	case "user_agent":
		return slot{kind: slotUserAgent}, true
	}
	rest, ok := strings.CutPrefix(name, "changes/")
	number, which, cut := strings.Cut(rest, "/")
	index, decimal := parseDecimal(number)
	if !ok || !cut || !decimal || index >= MaxLeaf {
		return slot{}, false
	}
	switch which {
	case "new":
		return slot{slotNew, int(index)}, true
	case "old":
		return slot{slotOld, int(index)}, true
	}
	return slot{}, false
}

// committer computes commitments: SHA-256 over these fields, each preceded by
// its length as 8 bytes in big endian: the tag, the root's id, the log id, the
// epoch and the seq (8 bytes each, big endian), the slot's name, the salt and
// the value's JSON text.
type committer struct {
	buf    []byte
	prefix int // how much of buf is the same for all slots of an entry
}

func appendField(b, field []byte) []byte {
	return append(binary.BigEndian.AppendUint64(b, uint64(len(field))), field...)
}

func appendFieldString(b []byte, field string) []byte {
	return append(binary.BigEndian.AppendUint64(b, uint64(len(field))), field...)
}

// reset prepares for the slots of one entry.
func (c *committer) reset(rootID, logID string, epoch, seq int64) {
	b := appendFieldString(c.buf[:0], commitmentTag)
	b = appendFieldString(b, rootID)
	b = appendFieldString(b, logID)
	b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, 8), uint64(epoch))
	b = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, 8), uint64(seq))
	c.buf, c.prefix = b, len(b)
}

func (c *committer) commit(slot slot, salt, text []byte) Hash {
	b := c.buf[:c.prefix]
	at := len(b)
	b = slot.appendTo(append(b, 0, 0, 0, 0, 0, 0, 0, 0))
	binary.BigEndian.PutUint64(b[at:], uint64(len(b)-at-8))
	b = appendField(b, salt)
	b = appendField(b, text)
	c.buf = b
	return sha256.Sum256(b)
}

// encoder builds a leaf and its values. The first error stays.
type encoder struct {
	committer
	leaf   []byte // with the 0x00 prefix of its hash
	values []byte
	salts  []byte // unused salts
	err    error
}

// encode returns the leaf, preceded by a zero byte, and the values of d as the
// entry at the end of h.
func encode(h *Head, d *Draft, at time.Time, rand io.Reader) (leaf, values []byte, err error) {
	slots, size := 3, 0
	for i := range d.Changes {
		if len(d.Changes[i].New) > 0 {
			slots++
		}
		if len(d.Changes[i].Old) > 0 {
			slots++
		}
		size += len(d.Changes[i].New) + len(d.Changes[i].Old)
	}
	e := encoder{
		committer: committer{buf: make([]byte, 0, 256)},
		leaf:      make([]byte, 1, 512+100*slots),
		values:    make([]byte, 1, size+128*slots),
		salts:     make([]byte, saltSize*slots),
	}
	if _, err := io.ReadFull(rand, e.salts); err != nil {
		return nil, nil, fmt.Errorf("no randomness for its salts: %w", err)
	}
	salts := e.salts
	e.entry(h, d, at, false)
	if e.err == nil && len(e.leaf) > MaxLeaf+1 {
		e.leaf, e.values, e.salts = e.leaf[:1], e.values[:1], salts
		e.entry(h, d, at, true)
	}
	if e.err == nil && len(e.leaf) > MaxLeaf+1 {
		e.err = fmt.Errorf("its leaf would be longer than %d bytes", MaxLeaf)
	}
	if e.err == nil && len(e.values) > MaxValues {
		e.err = fmt.Errorf("its values would be longer than %d bytes", MaxValues)
	}
	return e.leaf, e.values, e.err
}

// entry appends the whole entry; folded says that the changes are one slot.
func (e *encoder) entry(h *Head, d *Draft, at time.Time, folded bool) {
	e.reset(h.RootID, h.LogID, h.Epoch, h.Size)
	e.values[0] = '{'
	e.raw(`{"action":`).string(d.Action)
	e.raw(`,"actor":{"id":`).string(d.Actor.ID)
	e.text(`,"name":`, slot{kind: slotActorName}, d.Actor.Name)
	e.raw(`,"type":`).string(d.Actor.Type)
	if folded {
		changes, err := json.Marshal(d.Changes)
		if err != nil {
			e.fail(err)
			return
		}
		e.value(`},"changes":`, slot{kind: slotChanges}, changes)
	} else {
		e.raw(`},"changes":[`)
		for i := range d.Changes {
			if i > 0 {
				e.raw(",")
			}
			e.change(i, &d.Changes[i])
		}
		e.raw("]")
	}
	e.raw(`,"epoch":`).int(h.Epoch)
	e.raw(`,"id":`).string(d.ID)
	e.text(`,"ip":`, slot{kind: slotIP}, d.IP)
	e.raw(`,"log":`).string(h.LogID)
	e.raw(`,"org_id":`).string(d.OrgID)
	e.raw(`,"path":[`).path(h.RootID, d.OrgID, d.Path)
	e.raw("]")
	if d.RequestID != "" {
		e.raw(`,"request_id":`).string(d.RequestID)
	}
	e.raw(`,"seq":`).int(h.Size)
	e.raw(`,"target":{"id":`).string(d.Target.ID)
	e.raw(`,"type":`).string(d.Target.Type)
	e.raw(`},"timestamp":"`)
	e.leaf = at.AppendFormat(e.leaf, timeFormat)
	e.raw(`"`)
	e.text(`,"user_agent":`, slot{kind: slotUserAgent}, d.UserAgent)
	e.raw(`,"v":1}`)
	e.values = append(e.values, '}')
}

func (e *encoder) change(i int, c *Change) {
	e.raw("{")
	if len(c.New) > 0 {
		e.value(`"new":`, slot{slotNew, i}, c.New)
		e.raw(",")
	}
	if len(c.Old) > 0 {
		e.value(`"old":`, slot{slotOld, i}, c.Old)
		e.raw(",")
	}
	e.raw(`"pointer":`).string(c.Pointer)
	e.raw("}")
}

func (e *encoder) fail(err error) {
	if e.err == nil {
		e.err = err
	}
}

func (e *encoder) raw(s string) *encoder {
	e.leaf = append(e.leaf, s...)
	return e
}

func (e *encoder) string(s string) {
	var err error
	if e.leaf, err = jsontext.AppendQuote(e.leaf, s); err != nil {
		e.fail(errors.New("it has a text that is not UTF-8"))
	}
}

func (e *encoder) int(n int64) {
	if n < 0 || n > MaxSize {
		e.fail(errors.New("it has a number out of range"))
	}
	e.leaf = strconv.AppendInt(e.leaf, n, 10)
}

func (e *encoder) path(rootID, orgID, path string) {
	last := ""
	for n := 0; path != ""; n++ {
		id, rest, ok := strings.Cut(path, "/")
		if !ok || !ident.Valid(id) || n == 0 && id != rootID {
			last = ""
			break
		}
		if n > 0 {
			e.leaf = append(e.leaf, ',')
		}
		e.leaf = append(append(append(e.leaf, '"'), id...), '"')
		last, path = id, rest
	}
	if last == "" || last != orgID {
		e.fail(errors.New("its path does not lead from the root to its organization"))
	}
}

// text adds a member with a commitment to a string, unless it is empty.
func (e *encoder) text(member string, slot slot, s string) {
	if s == "" {
		return
	}
	start := e.open(slot)
	var err error
	if e.values, err = jsontext.AppendQuote(e.values, s); err != nil {
		e.fail(errors.New("it has a text that is not UTF-8"))
	}
	e.close(member, slot, start)
}

// value adds a member with a commitment to a JSON value in its minimal form:
// no whitespace, shortest strings, numbers and the order of members as given.
func (e *encoder) value(member string, slot slot, v jsontext.Value) {
	start := e.open(slot)
	var err error
	if e.values, err = jsontext.AppendFormat(e.values, v); err != nil {
		e.fail(fmt.Errorf("its value %s is not JSON: %w", slot, err))
	}
	e.close(member, slot, start)
}

func (e *encoder) open(slot slot) (start int) {
	if len(e.values) > 1 {
		e.values = append(e.values, ',')
	}
	e.values = slot.appendTo(append(e.values, '"'))
	e.values = append(e.values, `":{"salt":"`...)
	e.values = base64.StdEncoding.AppendEncode(e.values, e.salts[:saltSize])
	e.values = append(e.values, `","value":`...)
	return len(e.values)
}

func (e *encoder) close(member string, slot slot, start int) {
	sum := e.commit(slot, e.salts[:saltSize], e.values[start:])
	e.salts = e.salts[saltSize:]
	e.values = append(e.values, '}')
	e.raw(member).raw(`"`)
	e.leaf = base64.StdEncoding.AppendEncode(e.leaf, sum[:])
	e.raw(`"`)
}

// leaf is a parsed leaf. Commitments are in base64, nil where absent. It
// shares memory with what it was parsed from.
type leaf struct {
	action                          []byte
	actorID, actorName, actorType   []byte
	changes                         []leafChange
	folded                          []byte // the commitment to all changes
	epoch                           int64
	id, ip, log, orgID              []byte
	path                            [][]byte
	requestID                       []byte
	seq                             int64
	targetID, targetType, at, agent []byte
}

type leafChange struct{ new, old, pointer []byte }

var errLeaf = errors.New("it is not a leaf in canonical form")

// parse parses a leaf and accepts exactly what encode makes: two different
// texts never mean the same leaf.
func (l *leaf) parse(b []byte) error {
	if len(b) > MaxLeaf {
		return errLeaf
	}
	*l = leaf{changes: l.changes[:0], path: l.path[:0]}
	p := scanner{b: b}
	p.lit(`{"action":`)
	l.action = p.string()
	p.lit(`,"actor":{"id":`)
	l.actorID = p.string()
	if p.opt(`,"name":`) {
		l.actorName = p.commitment()
	}
	p.lit(`,"type":`)
	l.actorType = p.string()
	p.lit(`},"changes":`)
	if p.opt(`[`) {
		for !p.opt(`]`) && !p.failed {
			if len(l.changes) > 0 {
				p.lit(",")
			}
			l.changes = append(l.changes, p.change())
		}
	} else {
		l.folded = p.commitment()
	}
	p.lit(`,"epoch":`)
	l.epoch = p.int()
	p.lit(`,"id":`)
	l.id = p.string()
	if p.opt(`,"ip":`) {
		l.ip = p.commitment()
	}
	p.lit(`,"log":`)
	l.log = p.string()
	p.lit(`,"org_id":`)
	l.orgID = p.string()
	p.lit(`,"path":[`)
	for !p.opt(`]`) && !p.failed {
		if len(l.path) > 0 {
			p.lit(",")
		}
		l.path = append(l.path, p.string())
	}
	if p.opt(`,"request_id":`) {
		if l.requestID = p.string(); len(l.requestID) == 0 {
			p.failed = true
		}
	}
	p.lit(`,"seq":`)
	l.seq = p.int()
	p.lit(`,"target":{"id":`)
	l.targetID = p.string()
	p.lit(`,"type":`)
	l.targetType = p.string()
	p.lit(`},"timestamp":`)
	l.at = p.string()
	if p.opt(`,"user_agent":`) {
		l.agent = p.commitment()
	}
	p.lit(`,"v":1}`)
	if p.failed || len(p.b) > 0 || !validTime(l.at) || !l.validPath() {
		return errLeaf
	}
	return nil
}

func (l *leaf) validPath() bool {
	if len(l.path) == 0 || !bytes.Equal(l.path[len(l.path)-1], l.orgID) {
		return false
	}
	for _, id := range l.path {
		if !ident.Valid(string(id)) {
			return false
		}
	}
	return true
}

// validTime reports whether b is a moment in timeFormat.
func validTime(b []byte) bool {
	if len(b) != len(timeFormat) {
		return false
	}
	for i := range len(timeFormat) {
		digit := '0' <= timeFormat[i] && timeFormat[i] <= '9'
		if digit != ('0' <= b[i] && b[i] <= '9') || !digit && b[i] != timeFormat[i] {
			return false
		}
	}
	two := func(i int) int { return int(b[i]-'0')*10 + int(b[i+1]-'0') }
	year, month, day := two(0)*100+two(2), two(5), two(8)
	return month >= 1 && month <= 12 && day >= 1 && two(11) < 24 && two(14) < 60 && two(17) < 60 &&
		(day <= 28 || day <= time.Date(year, time.Month(month)+1, 0, 0, 0, 0, 0, time.UTC).Day())
}

func (l *leaf) entry() *Entry {
	at, err := time.Parse(timeFormat, string(l.at))
	if err != nil {
		panic("audit: time that parse let through: " + err.Error())
	}
	e := &Entry{ID: string(l.id), Timestamp: at, OrgID: string(l.orgID), Action: string(l.action),
		Actor:  Actor{Type: string(l.actorType), ID: string(l.actorID)},
		Target: Target{Type: string(l.targetType), ID: string(l.targetID)},
		Path:   make([]string, len(l.path)), Changes: make([]Change, len(l.changes)),
		RequestID: string(l.requestID), Epoch: l.epoch, Seq: l.seq}
	for i, id := range l.path {
		e.Path[i] = string(id)
	}
	for i := range l.changes {
		e.Changes[i].Pointer = string(l.changes[i].pointer)
	}
	return e
}

// set puts an opened value into its place. The entry keeps text.
func (e *Entry) set(slot slot, text []byte) error {
	var err error
	switch slot.kind {
	case slotActorName:
		err = json.Unmarshal(text, &e.Actor.Name)
	case slotIP:
		err = json.Unmarshal(text, &e.IP)
	case slotUserAgent:
		err = json.Unmarshal(text, &e.UserAgent)
	case slotChanges:
		err = json.Unmarshal(text, &e.Changes, json.RejectUnknownMembers(true))
	case slotNew:
		e.Changes[slot.index].New = text
	case slotOld:
		e.Changes[slot.index].Old = text
	}
	if err != nil || !jsontext.Value(text).IsValid() {
		return fmt.Errorf("the value %s is not of its form", slot)
	}
	return nil
}

// slots calls fn with each commitment of the leaf, in order.
func (l *leaf) slots(fn func(slot slot, commitment []byte) error) error {
	one := func(kind slotKind, index int, c []byte) error {
		if c == nil {
			return nil
		}
		return fn(slot{kind, index}, c)
	}
	if err := one(slotActorName, 0, l.actorName); err != nil {
		return err
	}
	if err := one(slotChanges, 0, l.folded); err != nil {
		return err
	}
	for i := range l.changes {
		if err := one(slotNew, i, l.changes[i].new); err != nil {
			return err
		}
		if err := one(slotOld, i, l.changes[i].old); err != nil {
			return err
		}
	}
	if err := one(slotIP, 0, l.ip); err != nil {
		return err
	}
	return one(slotUserAgent, 0, l.agent)
}

// opened is a value as it stands in an entry's values, with its salt in
// base64. It shares memory with them.
type opened struct{ salt, text []byte }

var errValues = errors.New("they are not in the form of erasable values, or belong to another leaf")

// open walks the commitments of the leaf in order and finds the value of each
// in values; v is nil for one that is not there. It accepts exactly what
// encode makes, less values that were erased.
func (l *leaf) open(values []byte, fn func(slot slot, commitment []byte, v *opened) error) error {
	p := scanner{b: values}
	p.lit("{")
	first := true
	var name []byte
	var next opened
	have := p.member(&first, &name, &next)
	var buf [32]byte
	err := l.slots(func(slot slot, commitment []byte) error {
		if !have || !bytes.Equal(name, slot.appendTo(buf[:0])) {
			return fn(slot, commitment, nil)
		}
		v := next
		have = p.member(&first, &name, &next)
		return fn(slot, commitment, &v)
	})
	if err != nil {
		return err
	}
	if have || p.failed || len(p.b) > 0 {
		return errValues
	}
	return nil
}

// scanner reads canonical JSON off the front of b. After something that is not
// there, failed is set and everything further fails.
type scanner struct {
	b      []byte
	failed bool
}

func (p *scanner) opt(s string) bool {
	if p.failed || len(p.b) < len(s) || string(p.b[:len(s)]) != s {
		return false
	}
	p.b = p.b[len(s):]
	return true
}

func (p *scanner) lit(s string) {
	if !p.opt(s) {
		p.failed = true
	}
}

// raw reads up to the end of a string whose opening quote is first, and
// returns it with its quotes.
func (p *scanner) raw() (text []byte, escaped bool) {
	if p.failed || len(p.b) < 2 || p.b[0] != '"' {
		p.failed = true
		return nil, false
	}
	for i := 1; i < len(p.b); i++ {
		switch c := p.b[i]; {
		case c == '"':
			text, p.b = p.b[:i+1], p.b[i+1:]
			return text, escaped
		case c == '\\':
			escaped = true
			i++
		case c < ' ':
			p.failed = true
			return nil, false
		}
	}
	p.failed = true
	return nil, false
}

// string reads a string and returns what it means; nil if it failed.
func (p *scanner) string() []byte {
	text, escaped := p.raw()
	if p.failed {
		return nil
	}
	s := text[1 : len(text)-1]
	if escaped {
		var err error
		if s, err = jsontext.AppendUnquote(nil, text); err != nil {
			p.failed = true
			return nil
		}
		if again, err := jsontext.AppendQuote(nil, s); err != nil || !bytes.Equal(again, text) {
			p.failed = true
			return nil
		}
	} else if !utf8.Valid(s) {
		p.failed = true
		return nil
	}
	return s
}

func (p *scanner) int() int64 {
	i := 0
	for i < len(p.b) && '0' <= p.b[i] && p.b[i] <= '9' {
		i++
	}
	n, ok := parseDecimal(string(p.b[:i]))
	if p.failed || !ok {
		p.failed = true
		return 0
	}
	p.b = p.b[i:]
	return n
}

// commitment reads 32 bytes in base64.
func (p *scanner) commitment() []byte {
	if p.failed || len(p.b) < commitmentSize+2 || p.b[0] != '"' || p.b[commitmentSize+1] != '"' ||
		!validBase64(p.b[1:commitmentSize+1]) {
		p.failed = true
		return nil
	}
	c := p.b[1 : commitmentSize+1]
	p.b = p.b[commitmentSize+2:]
	return c
}

// validBase64 reports whether b is the base64 encoding of 32 bytes.
func validBase64(b []byte) bool {
	var out [33]byte
	n, err := strictBase64.Decode(out[:], b)
	return err == nil && n == 32 && bytes.IndexByte(b, '\n') < 0 && bytes.IndexByte(b, '\r') < 0
}

var strictBase64 = base64.StdEncoding.Strict()

func (p *scanner) change() (c leafChange) {
	p.lit("{")
	if p.opt(`"new":`) {
		c.new = p.commitment()
		p.lit(",")
	}
	if p.opt(`"old":`) {
		c.old = p.commitment()
		p.lit(",")
	}
	p.lit(`"pointer":`)
	c.pointer = p.string()
	p.lit("}")
	return c
}

// member reads the next member of values; it returns false at their end.
func (p *scanner) member(first *bool, name *[]byte, v *opened) bool {
	if p.opt("}") || p.failed {
		return false
	}
	if !*first {
		p.lit(",")
	}
	*first = false
	*name = p.string()
	p.lit(`:{"salt":`)
	v.salt = p.commitment()
	p.lit(`,"value":`)
	v.text = p.value()
	p.lit("}")
	return !p.failed
}

// value reads one JSON value and returns its text. It finds where the value
// ends; it does not check that it is valid within.
func (p *scanner) value() []byte {
	start := p.b
	depth := 0
	for !p.failed && len(p.b) > 0 {
		switch p.b[0] {
		case '"':
			p.raw()
		case '{', '[':
			depth++
			p.b = p.b[1:]
			continue
		case '}', ']':
			depth--
			if depth < 0 {
				p.failed = true
				return nil
			}
			p.b = p.b[1:]
		case ',', ':':
			if depth == 0 {
				p.failed = true
				return nil
			}
			p.b = p.b[1:]
			continue
		default:
			i := 0
			for i < len(p.b) && p.b[i] > ' ' && strings.IndexByte(`"{}[],:`, p.b[i]) < 0 {
				i++
			}
			if i == 0 {
				p.failed = true
				return nil
			}
			p.b = p.b[i:]
		}
		if depth == 0 && !p.failed {
			return start[:len(start)-len(p.b)]
		}
	}
	p.failed = true
	return nil
}
