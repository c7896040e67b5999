// Package weblog reads the access logs of web servers, for orgd access import.
package weblog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Line is a line of a web server's access log in the Common or the Combined
// Log Format, as Apache (mod_log_config) and nginx (log_format combined) write
// them. What the log gives as "-" is empty or zero. Every string but Raw is
// valid UTF-8 without NUL.
//
// Escapes (\" \\ \b \n \r \t \v \xHH) in Path, Referer, UserAgent and the
// other parts of quoted fields are resolved, unless the field would then hold
// something else than printable text; such a field is left as it was written.
type Line struct {
	Line      int    // 1-based, within the log; 0 from Parse
	IP        string // the client: an address, or a name if the server looks names up
	Ident     string
	User      string
	Time      time.Time // in UTC
	Method    string    // empty if the request line was not one of HTTP
	Path      string    // with the query; all of a request line that was not one of HTTP
	Protocol  string    // empty for HTTP/0.9
	Status    int
	Bytes     int64
	Referer   string // empty in the Common Log Format, as is UserAgent
	UserAgent string
	Raw       string // the line as it was, without its line ending
}

// Error says that a line of a log cannot be read.
type Error struct {
	Line   int // 1-based
	Reason string
}

func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Reason) }

const (
	timeLayout = "02/Jan/2006:15:04:05 -0700"
	maxLine    = 1 << 20
	errTooLong = "is longer than 1 MiB"
)

// Lines reads a log line by line, in memory that does not grow with its
// length. A line that cannot be read yields a *Error, and the next line
// follows; an error of r yields that error and is the last. Empty lines are
// skipped.
func Lines(r io.Reader) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		b := bufio.NewReaderSize(r, maxLine)
		for n := 1; ; n++ {
			raw, err := b.ReadSlice('\n')
			tooLong := false
			for errors.Is(err, bufio.ErrBufferFull) {
				tooLong = true
				raw, err = b.ReadSlice('\n')
			}
			if err != nil && !errors.Is(err, io.EOF) {
				yield(Line{}, err)
				return
			}
			text := strings.TrimRight(string(raw), "\r\n")
			switch {
			case tooLong:
				if !yield(Line{}, &Error{n, errTooLong}) {
					return
				}
			case text != "":
				line, err := Parse(text)
				line.Line = n
				if err != nil {
					line, err = Line{}, &Error{n, err.Error()}
				}
				if !yield(line, err) {
					return
				}
			}
			if err != nil {
				return
			}
		}
	}
}

// Parse parses one line, without its line ending. The error says what
// is wrong with it. Fields after those of the Combined Log Format are ignored.
// If the line ends within the referer or the user agent, as servers leave it
// that cut long lines, what is there of them is taken.
func Parse(line string) (Line, error) {
	l := Line{Raw: line}
	rest := strings.ReplaceAll(strings.ToValidUTF8(line, "\uFFFD"), "\x00", "\uFFFD")
	var ok bool
	if l.IP, rest, ok = strings.Cut(rest, " "); !ok || l.IP == "" || l.IP == "-" {
		return Line{}, errors.New("does not start with the client's address")
	}
	if l.Ident, rest, ok = strings.Cut(rest, " "); !ok || l.Ident == "" {
		return Line{}, errors.New("has no identity after the client's address")
	}
	// Names of users may hold spaces.
	if l.User, rest, ok = strings.Cut(rest, " ["); !ok || l.User == "" {
		return Line{}, errors.New("has no user and [time] after the identity")
	}
	at, rest, ok := strings.Cut(rest, "] ")
	if !ok {
		return Line{}, errors.New("has no ] and request after the time")
	}
	var err error
	if l.Time, err = time.Parse(timeLayout, at); err != nil || l.Time.UTC().Year() < 1 {
		return Line{}, fmt.Errorf("has the time %.40q, which is not like 17/May/2015:10:05:03 +0000", at)
	}
	l.Time = l.Time.UTC()
	request, rest, closed := cutQuoted(rest)
	if !closed {
		return Line{}, errors.New(`has no "request" after the time`)
	}
	l.Method, l.Path, l.Protocol = splitRequest(request)
	status, rest, _ := strings.Cut(strings.TrimPrefix(rest, " "), " ")
	if l.Status, ok = parseStatus(status); !ok {
		return Line{}, fmt.Errorf("has the status %.20q, which is not a number of three digits", status)
	}
	size, rest, more := strings.Cut(rest, " ")
	if size != "-" {
		n, err := strconv.ParseUint(size, 10, 63)
		if err != nil {
			return Line{}, fmt.Errorf("has the size %.30q, which is not a number of bytes", size)
		}
		l.Bytes = int64(n)
	}
	if more {
		if rest == "" || rest[0] != '"' {
			return Line{}, errors.New(`has no "referer" after the size`)
		}
		l.Referer, rest, closed = cutQuoted(rest)
		if closed {
			if rest = strings.TrimPrefix(rest, " "); rest == "" || rest[0] != '"' {
				return Line{}, errors.New(`has no "user agent" after the referer`)
			}
			l.UserAgent, _, _ = cutQuoted(rest)
		}
	}
	for _, s := range []*string{&l.Ident, &l.User, &l.Referer, &l.UserAgent} {
		if *s == "-" {
			*s = ""
		}
	}
	for _, s := range []*string{&l.User, &l.Path, &l.Referer, &l.UserAgent} {
		*s = unescape(*s)
	}
	return l, nil
}

// cutQuoted returns what is between the quotes at the start of s, with its
// escapes, and what follows them. If there is no closing quote, closed is false
// and text is all there is.
func cutQuoted(s string) (text, rest string, closed bool) {
	if s == "" || s[0] != '"' {
		return "", s, false
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return s[1:i], s[i+1:], true
		}
	}
	return s[1:], "", false
}

// splitRequest takes a request line apart. The target may hold spaces: bad
// clients send them. A request line that is not of HTTP is a target alone.
func splitRequest(s string) (method, target, protocol string) {
	if s == "-" {
		return "", "", ""
	}
	method, target, ok := strings.Cut(s, " ")
	if !ok || !isToken(method) || target == "" {
		return "", s, ""
	}
	if i := strings.LastIndexByte(target, ' '); i >= 0 && strings.HasPrefix(target[i+1:], "HTTP/") {
		target, protocol = target[:i], target[i+1:]
	}
	return method, target, protocol
}

// isToken reports whether s is a token of RFC 9110, section 5.6.2.
func isToken(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}

func parseStatus(s string) (int, bool) {
	if s == "-" {
		return 0, true
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err == nil && len(s) == 3
}

func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b = append(b, s[i])
			continue
		}
		i++
		switch s[i] {
		case '"', '\\':
			b = append(b, s[i])
		case 'b', 'n', 'r', 't', 'v':
			return s // a control character
		case 'x':
			if i+2 < len(s) {
				if c, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
					b = append(b, byte(c))
					i += 2
					continue
				}
			}
			b = append(b, '\\', 'x')
		default:
			b = append(b, '\\', s[i])
		}
	}
	text := string(b)
	if !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return s
	}
	return text
}
