package audit

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/orgd/orgd/internal/problem"
)

// Keyring holds the seeds from which a server derives the keys of its logs.
// It is safe for concurrent use.
type Keyring struct {
	seeds [][]byte
	ids   []string
}

// NewSeed returns a random seed as text: 64 hexadecimal digits. It panics if
// rand fails.
func NewSeed(rand io.Reader) string {
	var b [SeedSize]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		panic("audit: no randomness for a seed: " + err.Error())
	}
	return hex.EncodeToString(b[:])
}

// ParseKeyring reads seeds as NewSeed returns them, separated by white space
// or commas, the oldest first. Errors do not show what was read.
func ParseKeyring(text string) (*Keyring, error) {
	k := &Keyring{}
	for _, field := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\r' || r == '\t' }) {
		seed, err := hex.DecodeString(field)
		if err != nil || len(seed) != SeedSize {
			return nil, fmt.Errorf("seed %d of the audit key is not %d hexadecimal digits", len(k.seeds)+1, 2*SeedSize)
		}
		id, err := hkdf.Key(sha256.New, seed, nil, "orgd audit seed id v1", 8)
		if err != nil {
			return nil, err
		}
		k.seeds, k.ids = append(k.seeds, seed), append(k.ids, hex.EncodeToString(id))
	}
	if len(k.seeds) == 0 {
		return nil, fmt.Errorf("the audit key is empty")
	}
	return k, nil
}

// Newest returns the id of the newest seed. It reveals nothing of the seed.
func (k *Keyring) Newest() string { return k.ids[len(k.ids)-1] }

// Has reports whether the ring has the seed with the given id.
func (k *Keyring) Has(seedID string) bool { return slices.Contains(k.ids, seedID) }

// Key derives a key (DeriveKey) from the seed with the given id. The error is
// a problem.Error if the ring does not have that seed.
func (k *Keyring) Key(seedID, logID string, epoch, version int64) (*Key, error) {
	i := slices.Index(k.ids, seedID)
	if i < 0 {
		return nil, problem.New(problem.Unavailable, "The audit log is signed with a key of the seed %s, which this server does not have.", seedID).
			WithFix("Give all servers of one database the same audit key: the file audit.key, or ORGD_AUDIT_KEY. If that seed is lost for good, open a new epoch: orgd audit new-epoch --reason …")
	}
	return DeriveKey(k.seeds[i], logID, epoch, version)
}
