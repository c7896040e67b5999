package api

import (
	"strings"

	"github.com/orgd/orgd/internal/problem"
)

// decodings is how often a path is decoded that somebody may take for another:
// a proxy decodes it, and what stands behind it may do so again.
const decodings = 2

// elsewhere reports whether a path may name another place for somebody who
// cleans or decodes it: whether it has, as it is or decoded, a segment "." or
// "..", path parameters behind it or not, a backslash, which some read as a
// slash, a control character, or an overlong form of UTF-8, which some decode.
// Of a path like that two programs need not think the same, and a decision
// about one place would be taken for one about the other. With strict it also
// reports an empty segment, which some leave out.
func elsewhere(path string, strict bool) bool {
	for i := 0; ; i++ {
		if strict && strings.Contains(path, "//") || dotted(path) || garbled(path) {
			return true
		}
		decoded := decode(path)
		if i == decodings || decoded == path {
			return false
		}
		path = decoded
	}
}

// dotted reports whether a segment of the path is "." or "..".
func dotted(path string) bool {
	if strings.IndexByte(path, '.') < 0 {
		return false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if len(segment) == 0 || segment[0] != '.' {
			continue
		}
		if name, _, _ := strings.Cut(segment, ";"); name == "." || name == ".." {
			return true
		}
	}
	return false
}

// garbled reports whether the path holds what no clean path does.
func garbled(path string) bool {
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '\\' || c < ' ' || c == 0x7f {
			return true
		}
		if c < 0xc0 || i+1 == len(path) {
			continue
		}
		next := path[i+1]
		if (c == 0xc0 || c == 0xc1) && next>>6 == 2 || c == 0xe0 && next>>5 == 4 || c == 0xf0 && next>>4 == 8 {
			return true
		}
	}
	return false
}

// decode decodes what is percent-encoded, and leaves what is not as it is.
func decode(path string) string {
	if strings.IndexByte(path, '%') < 0 {
		return path
	}
	b := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		if path[i] == '%' && i+2 < len(path) {
			high, low := unhex(path[i+1]), unhex(path[i+2])
			if high < 16 && low < 16 {
				b = append(b, high<<4|low)
				i += 2
				continue
			}
		}
		b = append(b, path[i])
	}
	return string(b)
}

// unhex returns the value of a hexadecimal digit, 16 if it is none.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10
	}
	return 16
}

// unclear is the error about a path that means one place to one program and
// another to the next.
func unclear(whose string) error {
	return problem.New(problem.InvalidRequest, "The path of the %s can be taken for another one when it is cleaned or decoded.", whose).
		WithFix("Let the proxy refuse paths with . or .. segments, backslashes and control characters, encoded or not, before it asks.")
}
