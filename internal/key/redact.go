package key

import (
	"bytes"
	"regexp"
	"strings"
)

// tokenLike also matches tokens that were mistyped or cut off.
var tokenLike = regexp.MustCompile(tokenPrefix + `[0-9A-Za-z._-]*_[0-9A-Za-z]{16,}`)

// Redact returns s without what must not be kept of it: everything that looks
// like a token is replaced by orgd_… and the token's last four characters, and
// what stands before the host in a URL (user:password@) by one ellipsis.
//
// Neither gets past it in percent-encoding, of whatever characters and however
// often it is applied. The rest of s stays as it is.
func Redact(s string) string {
	encoded := strings.IndexByte(s, '%') >= 0
	if !encoded && strings.IndexByte(s, '@') < 0 && !strings.Contains(s, tokenPrefix) {
		return s
	}
	t := text{s: s}
	if encoded {
		if t.decode(); bytes.IndexByte(t.plain, '@') < 0 && !bytes.Contains(t.plain, []byte(tokenPrefix)) {
			return s
		}
	}
	return t.redact()
}

// Holds reports whether there is something in s that Redact replaces.
func Holds(s string) bool { return Redact(s) != s }

// text is a string without its percent-encoding.
type text struct {
	s     string
	plain []byte // nil if there is no encoding in s
	// What of s each byte of plain stands for, and how many encodings it was in.
	from, to []int32
	depth    []uint8
}

// decode undoes all percent-encoding, also of what was encoded several times,
// in one pass: each byte that it appends may complete an escape of what is
// there.
func (t *text) decode() {
	n := len(t.s)
	t.plain, t.from, t.to, t.depth = make([]byte, 0, n), make([]int32, 0, n), make([]int32, 0, n), make([]uint8, 0, n)
	for i := range n {
		t.plain, t.from, t.to, t.depth = append(t.plain, t.s[i]), append(t.from, int32(i)), append(t.to, int32(i+1)), append(t.depth, 0)
		for end := len(t.plain); end >= 3 && t.plain[end-3] == '%'; end -= 2 {
			hi, ok1 := unhex(t.plain[end-2])
			lo, ok2 := unhex(t.plain[end-1])
			if !ok1 || !ok2 {
				break
			}
			t.plain[end-3], t.to[end-3] = hi<<4|lo, t.to[end-1]
			t.depth[end-3] = min(max(t.depth[end-3], t.depth[end-2], t.depth[end-1]), 254) + 1
			t.plain, t.from, t.to, t.depth = t.plain[:end-2], t.from[:end-2], t.to[:end-2], t.depth[:end-2]
		}
	}
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

func (t *text) redact() string {
	plain := t.s
	if t.plain != nil {
		plain = string(t.plain)
	}
	var b strings.Builder
	done := 0 // of s
	replace := func(from, to int, with string) {
		if t.plain != nil {
			from, to = int(t.from[from]), int(t.to[to-1])
		}
		if from < done { // a token within what was replaced
			return
		}
		b.WriteString(t.s[done:from])
		b.WriteString(with)
		done = to
	}
	var tokens [][]int
	if strings.Contains(plain, tokenPrefix) {
		tokens = tokenLike.FindAllStringIndex(plain, -1)
	}
	for at := 0; ; {
		from, to := t.userInfo(plain, at)
		for len(tokens) > 0 && (from < 0 || tokens[0][0] < from) {
			token := plain[tokens[0][0]:tokens[0][1]]
			replace(tokens[0][0], tokens[0][1], tokenPrefix+"…"+token[len(token)-hintLen:])
			tokens = tokens[1:]
		}
		if from < 0 {
			break
		}
		replace(from, to, "…")
		at = to
	}
	if done == 0 {
		return t.s
	}
	b.WriteString(t.s[done:])
	return b.String()
}

// userInfo returns where the next user information of a URL is, from at on;
// negative if there is none. The URL may lack its scheme, if there is a colon
// in what stands before the host, and one of its slashes, as some proxies leave
// it.
func (t *text) userInfo(plain string, at int) (from, to int) {
	for at < len(plain) {
		i := strings.IndexByte(plain[at:], '/')
		if i < 0 {
			break
		}
		i += at
		from = i
		for from < len(plain) && plain[from] == '/' {
			from++
		}
		depth := t.depthOf(i)
		// What was encoded once more than the slashes is data, not a delimiter.
		end, last, colon := from, -1, false
		for ; end < len(plain); end++ {
			c := plain[end]
			if t.depthOf(end) <= depth && (c == '/' || c == '?' || c == '#') || c <= ' ' || c == '"' || c == '<' || c == '>' {
				break
			}
			switch c {
			case '@':
				last = end
			case ':':
				colon = colon || last < 0
			}
		}
		scheme := i > 0 && plain[i-1] == ':'
		if last > from && (scheme && from-i > 1 || (scheme || from-i > 1) && colon) {
			return from, last
		}
		at = from
	}
	return -1, -1
}

func (t *text) depthOf(i int) uint8 {
	if t.plain == nil {
		return 0
	}
	return t.depth[i]
}

// SecretInID is what is wrong with an id that holds a secret. It cannot be
// redacted, as other texts are: two things would be one.
const SecretInID = "holds an API key, or the password of a URL; give the event an id that is no secret"
