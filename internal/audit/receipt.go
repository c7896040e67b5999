package audit

import (
	"strconv"
	"strings"

	"github.com/orgd/orgd/internal/problem"
)

const originPrefix = "orgd.audit/"

// Origin returns the name of one epoch of a log in its checkpoints, receipts
// and keys: "orgd.audit/<log id>/<epoch>". It is the origin line of C2SP
// tlog-checkpoint.
func Origin(logID string, epoch int64) string {
	return originPrefix + logID + "/" + strconv.FormatInt(epoch, 10)
}

// ParseOrigin parses what Origin returns, and nothing else.
func ParseOrigin(origin string) (logID string, epoch int64, err error) {
	rest, ok := strings.CutPrefix(origin, originPrefix)
	logID, number, cut := strings.Cut(rest, "/")
	if ok && cut && validLogID(logID) {
		if epoch, ok = parseDecimal(number); ok {
			return logID, epoch, nil
		}
	}
	return "", 0, problem.New(problem.InvalidRequest, "%q is not the origin of an orgd audit log.", clip(origin)).
		WithFix("An origin looks like %s.", Origin(strings.Repeat("0", 32), 0))
}

func validLogID(s string) bool {
	if len(s) != 32 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// parseDecimal parses a decimal number up to MaxSize, without sign or leading
// zeros.
func parseDecimal(s string) (int64, bool) {
	if s == "" || len(s) > 16 || s[0] == '0' && len(s) > 1 {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, n <= MaxSize
}

// clip cuts a text from outside so that it can stand in an error.
func clip(s string) string {
	if len(s) > 120 {
		return strings.ToValidUTF8(s[:120], "") + "…"
	}
	return s
}

// Receipt says where in which log an entry is. Whoever keeps it can later
// prove that the entry was altered or removed.
type Receipt struct {
	Origin   string
	Seq      int64
	LeafHash Hash
}

// String returns "origin seq leaf-hash", the form of the header
// Orgd-Audit-Receipt.
func (r Receipt) String() string {
	return r.Origin + " " + strconv.FormatInt(r.Seq, 10) + " " + r.LeafHash.String()
}

// ParseReceipt parses what String returns, and nothing else.
func ParseReceipt(s string) (Receipt, error) {
	fields := strings.Split(s, " ")
	if len(fields) == 3 {
		_, _, err := ParseOrigin(fields[0])
		seq, ok := parseDecimal(fields[1])
		hash, err2 := ParseHash(fields[2])
		if err == nil && ok && err2 == nil {
			return Receipt{Origin: fields[0], Seq: seq, LeafHash: hash}, nil
		}
	}
	return Receipt{}, problem.New(problem.InvalidRequest, "%q is not a receipt.", clip(s)).
		WithFix("A receipt is what the header Orgd-Audit-Receipt holds: origin, seq and leaf hash.")
}
