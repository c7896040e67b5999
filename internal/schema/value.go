package schema

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/go-json-experiment/json/jsontext"
)

// maxDepth is how many objects and arrays of a JSON text may be in each other.
const maxDepth = 64

// value is a JSON value.
type value struct {
	kind jsontext.Kind // one of n t f " 0 { [
	// id is the same for equal values of one reading, and of the schema that
	// they are read for; see ids. It is 0 if nobody is to compare values.
	id    int32
	text  string   // what a string says, how a number is written
	names []string // of an object, sorted
	elems []*value // the members of an object in the order of names, or the items of an array
}

// read parses one JSON text.
func read(text jsontext.Value) (*value, error) {
	dec := jsontext.NewDecoder(bytes.NewReader(text))
	v, err := readValue(dec)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	if _, err := dec.ReadToken(); err == nil {
		return nil, errors.New("there is data after the JSON value")
	} else if err != io.EOF {
		return nil, err
	}
	return v, nil
}

func readValue(dec *jsontext.Decoder) (*value, error) {
	tok, err := dec.ReadToken()
	if err != nil {
		return nil, err
	}
	v := &value{kind: tok.Kind()}
	switch v.kind {
	case '"', '0':
		v.text = tok.String()
	case '[', '{':
		if dec.StackDepth() > maxDepth {
			return nil, fmt.Errorf("it is nested more than %d levels deep", maxDepth)
		}
		end := jsontext.Kind(']')
		if v.kind == '{' {
			end = '}'
		}
		for dec.PeekKind() != end {
			if v.kind == '{' {
				name, err := dec.ReadToken()
				if err != nil {
					return nil, err
				}
				v.names = append(v.names, name.String())
			}
			e, err := readValue(dec)
			if err != nil {
				return nil, err
			}
			v.elems = append(v.elems, e)
		}
		if _, err := dec.ReadToken(); err != nil {
			return nil, err
		}
		v.sort()
	}
	return v, nil
}

// sort brings the members of an object into the order of their names.
func (v *value) sort() {
	if slices.IsSorted(v.names) {
		return
	}
	order := make([]int, len(v.names))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return bytes.Compare([]byte(v.names[a]), []byte(v.names[b])) })
	names, elems := make([]string, len(order)), make([]*value, len(order))
	for i, from := range order {
		names[i], elems[i] = v.names[from], v.elems[from]
	}
	v.names, v.elems = names, elems
}

// index returns the place of a member, -1 if there is none.
func (v *value) index(name string) int {
	if i, ok := slices.BinarySearch(v.names, name); ok {
		return i
	}
	return -1
}

// get returns a member, nil if there is none.
func (v *value) get(name string) *value {
	if i := v.index(name); i >= 0 {
		return v.elems[i]
	}
	return nil
}

// ids gives equal values equal numbers, so that comparing two of them, however
// large they are, is comparing two numbers. A value's number follows from its
// text or from the numbers of its parts, so all of them together cost what
// reading them costs. Numbers are equal if they are the same number, however
// they are written.
type ids struct {
	below *ids // those of the schema, which stay as they are
	of    map[string]int32
	buf   []byte
	size  int // bytes of the keys
}

func newIDs(below *ids) *ids { return &ids{below: below, of: map[string]int32{}} }

func (x *ids) count() int32 {
	if x == nil {
		return 0
	}
	return x.below.count() + int32(len(x.of))
}

// put numbers v and everything in it.
func (x *ids) put(v *value) {
	for _, e := range v.elems {
		x.put(e)
	}
	key := append(x.buf[:0], byte(v.kind))
	switch v.kind {
	case '"':
		key = append(key, v.text...)
	case '0':
		key = parseDecimal(v.text).append(key)
	case '[', '{':
		for i, e := range v.elems {
			if v.kind == '{' {
				key = binary.AppendUvarint(key, uint64(len(v.names[i])))
				key = append(key, v.names[i]...)
			}
			key = binary.AppendUvarint(key, uint64(e.id))
		}
	}
	v.id, x.buf = x.number(key), key
}

func (x *ids) number(key []byte) int32 {
	for l := x; l != nil; l = l.below {
		if id, ok := l.of[string(key)]; ok {
			return id
		}
	}
	id := x.count() + 1
	x.of[string(key)] = id
	x.size += len(key)
	return id
}
