package settings

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/orgd/orgd/internal/problem"
)

// Limits of one organization's own settings.
const (
	MaxSize       = 64 << 10 // bytes of compact JSON
	MaxDepth      = 32       // nested objects and arrays, the outermost included
	MaxLocks      = 100
	maxPointerLen = 1024 // bytes of a locked JSON Pointer
)

// CheckValues returns v as compact JSON in which every string has its
// shortest form. It must be a JSON object (RFC 7493) within the limits of
// customizations, with numbers that a double can hold.
func CheckValues(pointer string, v jsontext.Value) (jsontext.Value, *problem.Error) {
	v = v.Clone()
	if err := v.Format(); err != nil {
		var syntax *jsontext.SyntacticError
		if errors.As(err, &syntax) {
			return nil, problem.Body(pointer+string(syntax.JSONPointer), "is not valid JSON: %v", cmp.Or(syntax.Err, err))
		}
		return nil, problem.Body(pointer, "is not valid JSON: %v", err)
	}
	if v.Kind() != '{' {
		return nil, problem.Body(pointer, "must be a JSON object")
	}
	if len(v) > MaxSize {
		return nil, problem.Body(pointer, "must be at most %d bytes of JSON without space; it has %d", MaxSize, len(v))
	}
	if at, err := checkTokens(v, MaxDepth); err != nil {
		return nil, problem.Body(pointer+at, "%v", err)
	}
	return v, nil
}

// checkTokens checks what a valid JSON text may not contain here, and returns
// the JSON Pointer of what is wrong.
func checkTokens(v jsontext.Value, maxDepth int) (at string, err error) {
	dec := jsontext.NewDecoder(bytes.NewReader(v))
	for {
		tok, err := dec.ReadToken()
		if err == io.EOF {
			return "", nil
		} else if err != nil {
			return "", err
		}
		if dec.StackDepth() > maxDepth {
			return string(dec.StackPointer()), fmt.Errorf("is nested too deeply: at most %d levels are allowed", maxDepth)
		}
		switch tok.Kind() {
		case '0':
			if err := checkNumber(tok.String()); err != nil {
				return string(dec.StackPointer()), err
			}
		case '"':
			if kind, n := dec.StackIndex(dec.StackDepth()); kind == '{' && n%2 == 1 && strings.ContainsFunc(tok.String(), unicode.IsControl) {
				return string(dec.StackPointer().Parent()), errors.New("has a member whose name contains control characters")
			}
		}
	}
}

// checkNumber refuses what no double can hold. Arithmetic on an exponent of a
// billion would also take memory without bound.
func checkNumber(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return errors.New("is too large a number")
	}
	if mantissa, _, _ := strings.Cut(strings.ToLower(s), "e"); f == 0 && strings.ContainsAny(mantissa, "123456789") {
		return errors.New("is too small a number")
	}
	return nil
}

// CheckLocks returns JSON Pointers (RFC 6901) sorted and without repeats. The
// pointer to the whole document cannot be locked.
func CheckLocks(pointer string, locks []string) ([]string, *problem.Error) {
	for i, lock := range locks {
		at := pointer + "/" + strconv.Itoa(i)
		switch {
		case lock == "":
			return nil, problem.Body(at, "must not be the empty JSON Pointer: name a setting")
		case len(lock) > maxPointerLen:
			return nil, problem.Body(at, "must be at most %d bytes; it has %d", maxPointerLen, len(lock))
		case !utf8.ValidString(lock) || strings.ContainsFunc(lock, unicode.IsControl):
			return nil, problem.Body(at, "must be valid UTF-8 without control characters")
		case !jsontext.Pointer(lock).IsValid():
			return nil, problem.Body(at, "must be a JSON Pointer (RFC 6901), such as /branding/logo_url")
		}
	}
	sorted := slices.Clone(locks)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	if len(sorted) > MaxLocks {
		return nil, problem.Body(pointer, "must be at most %d JSON Pointers; there are %d", MaxLocks, len(sorted))
	}
	return sorted, nil
}

// Check checks new own settings against the locks above them and the text of the
// root's schema, nil for none. above are the organizations above, root first;
// before are the own settings as they were. It returns the settings that will be
// in effect. The error is SettingLocked, SchemaViolation, also if the schema cannot
// be used, or one of Schema.Check. A check that takes long waits for the turn of
// the root.
func Check(ctx context.Context, above []Layer, own Layer, before jsontext.Value, text []byte) (jsontext.Value, error) {
	if p := CheckLocked(above, before, own.Values); p != nil {
		return nil, p
	}
	chain := append(slices.Clone(above), own)
	effective := Effective(chain)
	if text == nil {
		return effective, nil
	}
	schema, p := CompileSchema(text)
	if p != nil {
		return nil, problem.New(problem.SchemaViolation, "The settings cannot be checked, since the schema of the root organization cannot be used: %s", p.Detail).
			WithFix("Put a schema that can be used, or delete it.")
	}
	if err := schema.Check(ctx, chain[0].OrgID, effective); err != nil {
		return nil, err
	}
	return effective, nil
}
