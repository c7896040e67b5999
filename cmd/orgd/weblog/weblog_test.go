package weblog

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"
)

func TestParse(t *testing.T) {
	at := time.Date(2000, 10, 10, 20, 55, 36, 0, time.UTC)
	for _, c := range []struct {
		line string
		want Line
	}{
		{`127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326`,
			Line{IP: "127.0.0.1", User: "frank", Time: at, Method: "GET", Path: "/apache_pb.gif", Protocol: "HTTP/1.0", Status: 200, Bytes: 2326}},
		{`2001:db8::7 id - [10/Oct/2000:20:55:36 +0000] "POST /a?b=c HTTP/2.0" 304 - "-" "-"`,
			Line{IP: "2001:db8::7", Ident: "id", Time: at, Method: "POST", Path: "/a?b=c", Protocol: "HTTP/2.0", Status: 304}},
		{`host.example - Jane Doe [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 1 "http://a/" "say \"hi\" \\o/"`,
			Line{IP: "host.example", User: "Jane Doe", Time: at, Method: "GET", Path: "/", Protocol: "HTTP/1.1", Status: 200, Bytes: 1,
				Referer: "http://a/", UserAgent: `say "hi" \o/`}},
		// nginx writes quotes and everything outside ASCII as \xHH.
		{`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET /\xC3\xA9\x22 HTTP/1.1" 200 1 "-" "\xD0\x96"`,
			Line{IP: "1.2.3.4", Time: at, Method: "GET", Path: `/é"`, Protocol: "HTTP/1.1", Status: 200, Bytes: 1, UserAgent: "Ж"}},
		// Not text: left as it is.
		{`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "\x16\x03\x01" 400 0 "\xe4\xe5" "a\x00\x0ab\n"`,
			Line{IP: "1.2.3.4", Time: at, Path: `\x16\x03\x01`, Status: 400, Referer: `\xe4\xe5`, UserAgent: `a\x00\x0ab\n`}},
		{"1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] \"GET /\xff\x00 HTTP/1.1\" 200 1",
			Line{IP: "1.2.3.4", Time: at, Method: "GET", Path: "/\uFFFD\uFFFD", Protocol: "HTTP/1.1", Status: 200, Bytes: 1}},
		// No request was sent.
		{`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "-" 408 - "-" "-"`, Line{IP: "1.2.3.4", Time: at, Status: 408}},
		{`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "" - 0`, Line{IP: "1.2.3.4", Time: at}},
		// HTTP/0.9, and a target with spaces.
		{`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET /" 200 5`, Line{IP: "1.2.3.4", Time: at, Method: "GET", Path: "/", Status: 200, Bytes: 5}},
		{`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET /a b c HTTP/1.1" 404 5`,
			Line{IP: "1.2.3.4", Time: at, Method: "GET", Path: "/a b c", Protocol: "HTTP/1.1", Status: 404, Bytes: 5}},
		// Further fields, and a line that was cut.
		{`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 5 "r" "u" "10.0.0.1" 0.003`,
			Line{IP: "1.2.3.4", Time: at, Method: "GET", Path: "/", Protocol: "HTTP/1.1", Status: 200, Bytes: 5, Referer: "r", UserAgent: "u"}},
		{`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 5 "r" "Mozilla/5.0 (comp`,
			Line{IP: "1.2.3.4", Time: at, Method: "GET", Path: "/", Protocol: "HTTP/1.1", Status: 200, Bytes: 5, Referer: "r", UserAgent: "Mozilla/5.0 (comp"}},
		{`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 5 "http://a\`,
			Line{IP: "1.2.3.4", Time: at, Method: "GET", Path: "/", Protocol: "HTTP/1.1", Status: 200, Bytes: 5, Referer: `http://a\`}},
		{`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET /\xzz\q\x1 HTTP/1.1" 200 5`,
			Line{IP: "1.2.3.4", Time: at, Method: "GET", Path: `/\xzz\q\x1`, Protocol: "HTTP/1.1", Status: 200, Bytes: 5}},
	} {
		c.want.Raw = c.line
		if got, err := Parse(c.line); err != nil || got != c.want {
			t.Errorf("%s\n got %+v, %v\nwant %+v", c.line, got, err, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for line, reason := range map[string]string{
		``:            "address",
		`1.2.3.4`:     "address",
		` - - [x]`:    "address",
		`- - - [x]`:   "address",
		`1.2.3.4 -`:   "identity",
		`1.2.3.4 - -`: "user",
		`1.2.3.4 - - 10/Oct/2000:20:55:36 +0000 "GET / HTTP/1.1" 200 5`:                     "user",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000`:                                           "]",
		`1.2.3.4 - - [10/Oct/2000:20:55:36] "GET / HTTP/1.1" 200 5`:                         "time",
		`1.2.3.4 - - [32/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 5`:                   "time",
		`1.2.3.4 - - [2000-10-10T20:55:36Z] "GET / HTTP/1.1" 200 5`:                         "time",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] GET / HTTP/1.1 200 5`:                     "request",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1 200 5`:                    "request",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1"`:                         "status",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" OK 5`:                    "status",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 20 5`:                    "status",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" +20 5`:                   "status",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200`:                     "size",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 -5`:                  "size",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 1e3`:                 "size",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 9223372036854775808`: "size",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 5 -`:                 "referer",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 5 "r"`:               "user agent",
		`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 5 "a"b"`:             "user agent",
	} {
		if l, err := Parse(line); err == nil || !strings.Contains(err.Error(), reason) || l != (Line{}) {
			t.Errorf("%s\n gave %+v, %v; want an error about the %s", line, l, err, reason)
		}
	}
}

func TestLines(t *testing.T) {
	good := `1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "GET / HTTP/1.1" 200 5`
	long := good + ` "` + strings.Repeat("r", 3*maxLine)
	log := good + "\n\nnonsense\r\n" + good + "\r\n" + long + "\n" + good
	var lines []int
	bad := map[int]bool{}
	for l, err := range Lines(iotest.HalfReader(strings.NewReader(log))) {
		var e *Error
		if errors.As(err, &e) {
			bad[e.Line] = true
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if l.Raw != good {
			t.Errorf("line %d is %q", l.Line, l.Raw)
		}
		lines = append(lines, l.Line)
	}
	if len(lines) != 3 || lines[0] != 1 || lines[1] != 4 || lines[2] != 6 || !maps.Equal(bad, map[int]bool{3: true, 5: true}) {
		t.Fatalf("read the lines %v, refused %v", lines, bad)
	}
}

func TestLinesEndWithAnErrorOfTheReader(t *testing.T) {
	failed := errors.New("the disk is gone")
	n := 0
	for _, err := range Lines(io.MultiReader(strings.NewReader("x\n"), iotest.ErrReader(failed))) {
		if n++; n == 2 && err != failed {
			t.Fatal(err)
		}
	}
	if n != 2 {
		t.Fatalf("%d lines", n)
	}
}

// The counts of a real log are those that a program finds that looks at the
// fields between spaces, as awk does.
func TestRealLogs(t *testing.T) {
	for _, name := range []string{"testdata/combined.log", "testdata/apache_access.log"} {
		t.Run(name, func(t *testing.T) {
			log, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			type counts map[string]int
			var statuses, addresses, days, methods = [2]counts{{}, {}}, [2]counts{{}, {}}, [2]counts{{}, {}}, [2]counts{{}, {}}
			var size [2]int64
			for line := range strings.Lines(string(log)) {
				f := strings.Fields(line)
				statuses[0][f[8]]++
				addresses[0][f[0]]++
				days[0][f[3][1:12]]++
				methods[0][f[5][1:]]++
				n, _ := strconv.ParseInt(f[9], 10, 64)
				size[0] += n
			}
			raw := new(bytes.Buffer)
			for l, err := range Lines(bytes.NewReader(log)) {
				if err != nil {
					t.Fatal(err)
				}
				statuses[1][strconv.Itoa(l.Status)]++
				addresses[1][l.IP]++
				days[1][l.Time.Format("02/Jan/2006")]++
				methods[1][l.Method]++
				size[1] += l.Bytes
				raw.WriteString(l.Raw + "\n")
			}
			for what, c := range map[string][2]counts{"status": statuses, "address": addresses, "day": days, "method": methods} {
				if !maps.Equal(c[0], c[1]) {
					t.Errorf("by %s: %v, want %v", what, c[1], c[0])
				}
			}
			if size[0] != size[1] {
				t.Errorf("%d bytes, want %d", size[1], size[0])
			}
			if !bytes.Equal(raw.Bytes(), log) {
				t.Error("the raw lines are not those of the log")
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`127.0.0.1 - frank [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326`)
	f.Add(`::1 - - [10/Oct/2000:20:55:36 +0000] "GET /\xC3\xA9\x22 HTTP/1.1" 200 1 "-" "\"\\\xD0\x96`)
	f.Add(`1.2.3.4 - - [10/Oct/2000:20:55:36 +0000] "\x16\x03" - - "\`)
	f.Fuzz(func(t *testing.T, line string) {
		l, err := Parse(line)
		if err != nil {
			return
		}
		for _, s := range []string{l.IP, l.Ident, l.User, l.Method, l.Path, l.Protocol, l.Referer, l.UserAgent} {
			if !utf8.ValidString(s) || strings.Contains(s, "\x00") {
				t.Fatalf("%q is not text", s)
			}
		}
		if l.IP == "" || l.Bytes < 0 || l.Status < 0 || l.Status > 999 || l.Time.Location() != time.UTC {
			t.Fatalf("%+v", l)
		}
		if l.Raw != line {
			t.Fatalf("raw is %q", l.Raw)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	const line = `83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET /images/search.png HTTP/1.1" 200 203023 "http://example.com/" "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_9_1)"`
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		if _, err := Parse(line); err != nil {
			b.Fatal(err)
		}
	}
}
