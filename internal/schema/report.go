package schema

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/orgd/orgd/internal/problem"
)

// token is a reference token of a JSON Pointer.
type token struct {
	name  string
	index int // if name is not meant
	named bool
}

func tokenOf(v *value, i int) token {
	if v.kind == '{' {
		return named(v.names[i])
	}
	return token{index: i}
}

func named(name string) token { return token{name: name, named: true} }

// report collects errors.
type report struct {
	prefix string
	fields []problem.Field
	bytes  int
}

var escapeToken = strings.NewReplacer("~", "~0", "/", "~1")

// add adds an error, once, and reports whether these are enough.
func (r *report) add(path []token, detail string) bool {
	var b strings.Builder
	b.WriteString(r.prefix)
	for _, t := range path {
		b.WriteByte('/')
		if t.named {
			escapeToken.WriteString(&b, t.name)
		} else {
			b.WriteString(strconv.Itoa(t.index))
		}
	}
	f := problem.Field{Pointer: b.String(), Detail: shorten(detail, maxDetail)}
	if slices.Contains(r.fields, f) {
		return false
	}
	r.fields = append(r.fields, f)
	r.bytes += len(f.Pointer) + len(f.Detail)
	return len(r.fields) >= MaxFields || r.bytes > maxFieldBytes
}

func (r *report) sorted() []problem.Field {
	slices.SortFunc(r.fields, func(a, b problem.Field) int {
		return cmp.Or(strings.Compare(a.Pointer, b.Pointer), strings.Compare(a.Detail, b.Detail))
	})
	return r.fields
}
