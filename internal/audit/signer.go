package audit

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"

	"github.com/orgd/orgd/internal/problem"
)

// SeedSize is the size of the secret from which the keys of all logs are
// derived, in bytes.
const SeedSize = 32

// Key signs the checkpoints of one epoch of a log. It is a note.Signer whose
// name is the origin (C2SP signed-note, Ed25519). It is safe for concurrent
// use.
type Key struct {
	origin   string
	private  ed25519.PrivateKey
	verifier string
	hash     uint32
}

// DeriveKey derives the key of a log from the server's signing seed with
// HKDF-SHA256 (RFC 5869). Versions start at 1; a rotation takes the next one, and
// so does an epoch for which the key was lost.
// The epochs of a log share the same key pair under different names.
func DeriveKey(seed []byte, logID string, epoch, version int64) (*Key, error) {
	if len(seed) != SeedSize {
		return nil, fmt.Errorf("audit: a signing seed has %d bytes, this one has %d", SeedSize, len(seed))
	}
	info := fmt.Sprintf("orgd audit signing key v1/%s/%d", logID, version)
	b, err := hkdf.Key(sha256.New, seed, nil, info, ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	private := ed25519.NewKeyFromSeed(b)
	origin := Origin(logID, epoch)
	vkey := verifierKey(origin, private.Public().(ed25519.PublicKey))
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, err
	}
	return &Key{origin: origin, private: private, verifier: vkey, hash: v.KeyHash()}, nil
}

// Name returns the origin of the log's epoch.
func (k *Key) Name() string { return k.origin }

// KeyHash returns the key's id in signature lines.
func (k *Key) KeyHash() uint32 { return k.hash }

// Sign signs the text of a note.
func (k *Key) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(k.private, msg), nil }

// Verifier returns the public key in the form in which it is handed out:
// "<origin>+<key id>+<base64>", the verifier key of C2SP signed-note.
func (k *Key) Verifier() string { return k.verifier }

func verifierKey(name string, public ed25519.PublicKey) string {
	vkey, err := note.NewEd25519VerifierKey(name, public)
	if err != nil {
		panic("audit: " + err.Error())
	}
	return vkey
}

// publicKey is an Ed25519 public key, comparable.
type publicKey [ed25519.PublicKeySize]byte

// verifier returns the verifier of the key under a name.
func (k publicKey) verifier(name string) note.Verifier {
	v, err := note.NewVerifier(verifierKey(name, k[:]))
	if err != nil {
		panic("audit: " + err.Error())
	}
	return v
}

// parseVerifierKey parses what Key.Verifier returns, and nothing else.
func parseVerifierKey(vkey string) (logID string, epoch int64, key publicKey, err error) {
	bad := problem.New(problem.InvalidRequest, "%q is not the verifier key of an orgd audit log.", clip(vkey)).
		WithFix("A verifier key is what GET /orgs/{root}/audit_log/key returns: origin+id+base64.")
	// Base64 has plus signs of its own.
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return "", 0, key, bad
	}
	b, err := strictBase64.DecodeString(parts[2])
	if err != nil || len(b) != 1+ed25519.PublicKeySize {
		return "", 0, key, bad
	}
	copy(key[:], b[1:])
	logID, epoch, err = ParseOrigin(parts[0])
	if err != nil || verifierKey(parts[0], key[:]) != vkey {
		return "", 0, key, bad
	}
	return logID, epoch, key, nil
}

// NewWitnessVerifier returns the verifier for a witness's timestamped Ed25519
// cosignatures (C2SP tlog-cosignature, signature type 4) from its verifier key.
func NewWitnessVerifier(vkey string) (note.Verifier, error) {
	bad := problem.New(problem.InvalidRequest, "%q is not the verifier key of a witness.", clip(vkey)).
		WithFix("A witness's key is name+id+base64, of the type Ed25519 cosignature/v1.")
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, bad
	}
	b, err := strictBase64.DecodeString(parts[2])
	if err != nil || len(b) != 1+ed25519.PublicKeySize || b[0] != algCosignature ||
		parts[0] == "" || !utf8.ValidString(parts[0]) || strings.ContainsFunc(parts[0], unicode.IsSpace) {
		return nil, bad
	}
	sum := sha256.Sum256(append([]byte(parts[0]+"\n"), b...))
	w := &witness{name: parts[0], hash: binary.BigEndian.Uint32(sum[:]), public: b[1:]}
	if fmt.Sprintf("%08x", w.hash) != parts[1] {
		return nil, bad
	}
	return w, nil
}

// algCosignature is the type of a key that makes timestamped Ed25519
// cosignatures, as its first byte says. Keys of logs have the type 1: what the two
// sign differs, so that no signature of one holds for the other.
const algCosignature = 4

// sameWitness reports whether two witnesses are one: name, type and key are
// equal.
func sameWitness(a, b note.Verifier) bool {
	x, y := a.(*witness), b.(*witness)
	return x.name == y.name && x.public.Equal(y.public)
}

type witness struct {
	name   string
	hash   uint32
	public ed25519.PublicKey
}

func (w *witness) Name() string    { return w.name }
func (w *witness) KeyHash() uint32 { return w.hash }

// Verify checks a cosignature: 8 bytes of POSIX time in big endian and the
// signature over that time and the note's text.
func (w *witness) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(sig)
	if at > 1<<63-1 {
		return false
	}
	return ed25519.Verify(w.public, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", at, msg), sig[8:])
}
