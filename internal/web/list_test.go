package web

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

func TestDecodeList(t *testing.T) {
	for _, test := range []struct {
		body string
		most int
		want string // the elements, or the error
		n    int
	}{
		{` [] `, 2, "[]", 0},
		{"[1, {\"a\":[2]} ,\"x\"]\n", 3, `[1 {"a":[2]} "x"]`, 3},
		{`[1,2,3,4]`, 2, "[1 2]", 4},
		{`[1,2,3`, 2, "not valid JSON", 0},
		{`[1,2,{"a":1,"a":2}]`, 2, "not valid JSON", 0},
		{`[1,2,"` + "\xff" + `"]`, 2, "not valid JSON", 0},
		{`[1,,2]`, 2, "not valid JSON", 0},
		{`[1] [2]`, 2, "after the array", 0},
		{`[1]]`, 2, "after the array", 0},
		{`{}`, 2, "wrong type", 0},
		{`1`, 2, "wrong type", 0},
		{``, 2, "not valid JSON", 0},
		{`x`, 2, "not valid JSON", 0},
		{strings.Repeat("[", 65) + strings.Repeat("]", 65), 2, "nested deeper", 0},
	} {
		list, n, err := DecodeList([]byte(test.body), test.most)
		texts := make([]string, len(list))
		for i := range list {
			texts[i] = string(list[i])
		}
		got := fmt.Sprint(texts)
		if err != nil {
			got = err.Error()
		}
		if n != test.n || got != test.want && (err == nil || !strings.Contains(got, test.want)) {
			t.Errorf("%q, %d: %s, %d; want %s, %d", test.body, test.most, got, n, test.want, test.n)
		}
	}
}

// A body of many small elements must not take many times its size.
func TestDecodeListMemory(t *testing.T) {
	const n = 1_000_000
	body := append([]byte("[1"), bytes.Repeat([]byte(",1"), n-1)...)
	body = append(body, ']')
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	list, count, err := DecodeList(body, 100)
	runtime.ReadMemStats(&after)
	if err != nil || len(list) != 100 || count != n {
		t.Fatal(len(list), count, err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > uint64(len(body)) {
		t.Errorf("a body of %d bytes took %d bytes more", len(body), took)
	}
}
