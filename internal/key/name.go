package key

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/orgd/orgd/internal/problem"
)

// MaxNameLen is the greatest number of characters of a name.
const MaxNameLen = 256

// CheckName returns a name, of a key or of an organization, without the white
// space around it: 1 to 256 characters of any script, without any that would
// let one line of a log look like two, or one name like another.
//
// Characters that show nothing are taken where a script or an emoji needs them,
// and nowhere else: joiners in Arabic and Indic words, a variation selector
// after the character that it varies, a direction mark in a name that has
// letters of both directions.
func CheckName(pointer, name string) (string, *problem.Error) {
	if !utf8.ValidString(name) {
		return "", problem.Body(pointer, "must be valid UTF-8")
	}
	name = strings.TrimSpace(name)
	switch n := utf8.RuneCountInString(name); {
	case n == 0:
		return "", problem.Body(pointer, "is missing: it takes 1 to %d characters", MaxNameLen)
	case n > MaxNameLen:
		return "", problem.Body(pointer, "must be at most %d characters, without the space around it; it has %d", MaxNameLen, n)
	case !strings.ContainsFunc(name, visible):
		return "", problem.Body(pointer, "must have a character that can be seen")
	case Holds(name):
		return "", problem.Body(pointer, "must not hold an API key or the password of a URL")
	}
	runes := []rune(name)
	for i := 0; i < len(runes); i++ {
		r := runes[i]
		if r == blackFlag {
			i += regionTags(runes[i+1:])
			continue
		}
		if what := hidden(runes, i); what != "" {
			return "", problem.Body(pointer, "must not contain %s; it contains %U at character %d", what, r, i+1)
		}
	}
	return name, nil
}

// visible reports whether a text of r alone shows something.
func visible(r rune) bool {
	return unicode.In(r, unicode.L, unicode.N, unicode.P, unicode.S) && !ignorable(r) && !blank(r)
}

// ignorable reports whether r shows nothing by itself, by Unicode's property
// Default_Ignorable_Code_Point (Unicode Standard, section 5.21), or as a format
// character that asks for something that a line of text does not have.
func ignorable(r rune) bool {
	if unicode.Is(unicode.Cf, r) {
		return !unicode.Is(unicode.Prepended_Concatenation_Mark, r) // these are drawn around digits
	}
	return unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

const brailleBlank = '\u2800'

// blank reports whether r is counted as a letter or a symbol and is drawn as
// nothing: blank patterns, and the place of an object that a text cannot hold.
func blank(r rune) bool {
	switch r {
	case brailleBlank, '\ufffc', '\U00013441', '\U00013442', '\U0001d159':
		return true
	}
	return false
}

// hidden says what is wrong with the character at i of a name, as far as it
// cannot be seen; nothing if it may stand there.
func hidden(name []rune, i int) string {
	r := name[i]
	switch {
	case unicode.IsControl(r), r == '\u2028', r == '\u2029':
		return "control characters"
	case unicode.Is(unicode.Bidi_Control, r):
		// Isolates, embeddings and overrides reorder what follows. Plain marks are
		// of use where letters of both directions meet.
		if unicode.In(r, directionMarks) && containsRightToLeft(name) {
			return ""
		}
		return "characters that change the direction of text"
	case '\U000e0000' <= r && r <= '\U000e007f':
		return "tag characters, other than those of a regional flag"
	case r == brailleBlank:
		if besides(name, i, func(r rune) bool { return unicode.Is(unicode.Braille, r) }) {
			return ""
		}
		return "blank characters"
	case blank(r):
		return "blank characters"
	case !ignorable(r):
		return ""
	case i > 0 && allowedAfter(name, i):
		return ""
	}
	return "characters that cannot be seen"
}

// directionMarks are those that change nothing but the place of a neighbour
// without a direction of its own (Unicode Standard Annex 9, section 2.6).
var directionMarks = &unicode.RangeTable{R16: []unicode.Range16{{Lo: 0x061c, Hi: 0x061c, Stride: 1}, {Lo: 0x200e, Hi: 0x200f, Stride: 1}}}

// containsRightToLeft reports whether a name has a letter of a script that is
// written from right to left, by the blocks in which such scripts are.
func containsRightToLeft(name []rune) bool {
	for _, r := range name {
		if unicode.IsLetter(r) && ('\u0590' <= r && r <= '\u08ff' || '\ufb1d' <= r && r <= '\ufdff' || '\ufe70' <= r && r <= '\ufefc' ||
			'\U00010800' <= r && r <= '\U00010fff' || '\U0001e800' <= r && r <= '\U0001efff') {
			return true
		}
	}
	return false
}

// unjoined are the scripts whose letters no joiner changes: there it would only
// make two names look alike.
var unjoined = []*unicode.RangeTable{unicode.Latin, unicode.Greek, unicode.Cyrillic, unicode.Armenian, unicode.Georgian, unicode.Cherokee,
	unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana, unicode.Bopomofo}

// allowedAfter reports whether the invisible character at i, which is not the
// first, does something to what is before it.
func allowedAfter(name []rune, i int) bool {
	before := name[i-1]
	switch r := name[i]; {
	case r == '\u200c' || r == '\u200d':
		if ignorable(before) && !unicode.Is(unicode.Variation_Selector, before) {
			return false
		}
		base := baseOf(name[:i])
		if r == '\u200d' && unicode.IsSymbol(base) { // an emoji of several
			return i+1 < len(name) && unicode.IsSymbol(name[i+1])
		}
		return unicode.IsLetter(base) && !unicode.In(base, unjoined...)
	case '\U000e0100' <= r && r <= '\U000e01ef':
		return unicode.Is(unicode.Han, before)
	case '\u180b' <= r && r <= '\u180d' || r == '\u180f':
		return unicode.Is(unicode.Mongolian, before) && !ignorable(before)
	case '\ufe00' <= r && r <= '\ufe0f':
		if before <= unicode.MaxASCII { // a key cap
			return i+1 < len(name) && name[i+1] == '\u20e3'
		}
		return visible(before) && (unicode.IsSymbol(before) || unicode.In(before, unicode.Common, unicode.Han, unicode.Myanmar, unicode.Phags_Pa))
	case r == '\u034f': // keeps marks in their order
		return unicode.IsMark(before) && !ignorable(before) && i+1 < len(name) && unicode.IsMark(name[i+1])
	case r == '\u180e':
		return unicode.Is(unicode.Mongolian, before) && !ignorable(before)
	case r == '\u200b': // where words end that have no space between them
		return unicode.In(baseOf(name[:i]), unicode.Thai, unicode.Lao, unicode.Khmer, unicode.Myanmar, unicode.Tibetan) && !ignorable(before)
	}
	return false
}

// baseOf returns the last character that is neither a mark nor a modifier of
// the one before; zero if there is none.
func baseOf(name []rune) rune {
	for i := len(name) - 1; i >= 0; i-- {
		if r := name[i]; !unicode.IsMark(r) && !('\U0001f3fb' <= r && r <= '\U0001f3ff') {
			return r
		}
	}
	return 0
}

// besides reports whether another visible character of the name satisfies is.
func besides(name []rune, i int, is func(rune) bool) bool {
	for j, r := range name {
		if j != i && visible(r) && is(r) {
			return true
		}
	}
	return false
}

const blackFlag = '\U0001f3f4'

// regionTags returns how many runes of what follows a black flag make it that of
// a region, in one of the sequences that Unicode recommends for interchange
// (UTS 51): England, Scotland and Wales. Any others may spell anything.
func regionTags(after []rune) int {
	for _, region := range []string{"gbeng", "gbsct", "gbwls"} {
		if len(after) <= len(region) || after[len(region)] != '\U000e007f' {
			continue
		}
		same := true
		for i, c := range region {
			same = same && after[i] == '\U000e0000'+c
		}
		if same {
			return len(region) + 1
		}
	}
	return 0
}
