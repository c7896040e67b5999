package org

import (
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/orgd/orgd/internal/ident"
	"github.com/orgd/orgd/internal/problem"
)

// Limits of an organization's members. Lengths are in characters (Unicode
// code points).
const (
	MaxDescriptionLen = 4096
	MaxExternalIDLen  = 255
	MaxTagLen         = 64
	MaxTags           = 50
)

// CheckID checks an organization's id. pointer names the member in the error,
// here and in the other checks.
func CheckID(pointer, id string) *problem.Error {
	if !ident.Valid(id) {
		return problem.Body(pointer, ident.Rule)
	}
	return nil
}

// CheckType returns an organization's type as it is.
func CheckType(pointer, typ string) (string, *problem.Error) {
	switch Type(typ) {
	case TypeOrganization, TypeGroup, TypeUser:
		return typ, nil
	}
	return "", problem.Body(pointer, "must be organization, group or user")
}

// CheckDescription returns description as it is. It may be empty and may have
// several lines.
func CheckDescription(pointer, description string) (string, *problem.Error) {
	if !utf8.ValidString(description) {
		return "", problem.Body(pointer, "must be valid UTF-8")
	}
	if n := utf8.RuneCountInString(description); n > MaxDescriptionLen {
		return "", problem.Body(pointer, "must be at most %d characters; it has %d", MaxDescriptionLen, n)
	}
	for _, r := range strings.ReplaceAll(description, "\r\n", "\n") {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return "", problem.Body(pointer, "must not contain control characters except line ends and tabs; it contains %U", r)
		}
	}
	return description, nil
}

// CheckExternalID returns id as it is. Empty means that there is none.
func CheckExternalID(pointer, id string) (string, *problem.Error) {
	if !utf8.ValidString(id) {
		return "", problem.Body(pointer, "must be valid UTF-8")
	}
	if n := utf8.RuneCountInString(id); n > MaxExternalIDLen {
		return "", problem.Body(pointer, "must be at most %d characters; it has %d", MaxExternalIDLen, n)
	}
	for _, r := range id {
		if !unicode.IsPrint(r) {
			return "", problem.Body(pointer, "must be printable characters; it contains %U", r)
		}
	}
	return id, nil
}

const tagRule = "must be 1 to 64 characters from A-Z a-z 0-9 . _ : - and start with a letter or a digit"

// CheckTag checks a tag that is a parameter of the request.
func CheckTag(tag string) *problem.Error {
	if !validTag(tag) {
		return problem.Param("tag", tagRule)
	}
	return nil
}

func validTag(tag string) bool {
	if len(tag) == 0 || len(tag) > MaxTagLen || strings.IndexByte("._:-", tag[0]) >= 0 {
		return false
	}
	for i := 0; i < len(tag); i++ {
		switch c := tag[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == ':', c == '-':
		default:
			return false
		}
	}
	return true
}

// CheckTags returns tags sorted and without repeats; it leaves tags alone.
func CheckTags(pointer string, tags []string) ([]string, *problem.Error) {
	for i, tag := range tags {
		if !validTag(tag) {
			return nil, problem.Body(pointer+"/"+strconv.Itoa(i), tagRule)
		}
	}
	sorted := slices.Clone(tags)
	slices.Sort(sorted)
	sorted = slices.Compact(sorted)
	if len(sorted) > MaxTags {
		return nil, problem.Body(pointer, "must be at most %d tags; there are %d", MaxTags, len(sorted))
	}
	return sorted, nil
}

// MaxFoldLen is how many characters of a name FoldName keeps.
const MaxFoldLen = 128

// FoldName returns the form of a name, or of a prefix of one, that
// case-insensitive search compares. It works character by character (Unicode
// simple case folding), so that a prefix of a name always folds to a prefix of
// the folded name; beyond MaxFoldLen characters names are not told apart.
func FoldName(name string) string {
	var b strings.Builder
	b.Grow(min(len(name), MaxFoldLen*utf8.UTFMax))
	n := 0
	for _, r := range name {
		if n == MaxFoldLen {
			break
		}
		b.WriteRune(fold(r))
		n++
	}
	return b.String()
}

// fold returns one character for all that differ from r only by case.
func fold(r rune) rune {
	if r < utf8.RuneSelf {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}
	least := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		least = min(least, f)
	}
	return unicode.ToLower(least)
}
