package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// cosigner signs as C2SP tlog-cosignature says a witness does.
type cosigner struct {
	name    string
	private ed25519.PrivateKey
	at      uint64
}

func (c *cosigner) encoded() []byte {
	return append([]byte{4}, c.private.Public().(ed25519.PublicKey)...)
}

func (c *cosigner) Name() string { return c.name }

func (c *cosigner) KeyHash() uint32 {
	sum := sha256.Sum256(append([]byte(c.name+"\n"), c.encoded()...))
	return binary.BigEndian.Uint32(sum[:4])
}

func (c *cosigner) Sign(msg []byte) ([]byte, error) {
	text := "cosignature/v1\ntime " + strconv.FormatUint(c.at, 10) + "\n" + string(msg)
	return append(binary.BigEndian.AppendUint64(nil, c.at), ed25519.Sign(c.private, []byte(text))...), nil
}

func (c *cosigner) vkey() string {
	return fmt.Sprintf("%s+%08x+%s", c.name, c.KeyHash(), base64.StdEncoding.EncodeToString(c.encoded()))
}

func TestCosignatures(t *testing.T) {
	h := NewHead("root", testLogID)
	appendAll(t, h, samples(3)...)
	key := testKey(t, testLogID, 0, 1)
	signed := sign(t, h, key)

	signer := &cosigner{"witness.example/w1", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32)), 1_790_000_000}
	cosigVkey := signer.vkey()
	witness, err := NewWitnessVerifier(cosigVkey)
	if err != nil {
		t.Fatal(err)
	}
	answer := func(text []byte) []byte {
		n, err := note.Open(text, note.VerifierList(testKey(t, testLogID, 0, 1).publicVerifier(t)))
		if err != nil {
			t.Fatal(err)
		}
		out, err := note.Sign(&note.Note{Text: n.Text}, signer)
		if err != nil {
			t.Fatal(err)
		}
		return out[bytes.Index(out, []byte("\n\n"))+2:]
	}
	cosigned, err := AddCosignatures(signed, answer(signed), witness)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(cosigned, signed) || bytes.Count(cosigned, []byte("\n— ")) != 2 {
		t.Fatalf("cosigned checkpoint %q", cosigned)
	}
	again, err := AddCosignatures(cosigned, cosigned[len(signed):], witness)
	if err != nil || !bytes.Equal(again, cosigned) {
		t.Errorf("the same cosignature again: %q, %v", again, err)
	}
	if c, err := OpenCheckpoint(cosigned, key.Verifier()); err != nil || c.Size != 3 {
		t.Errorf("opened %+v, %v", c, err)
	}

	p, _, _ := testProof(t, 3, 1)
	p.Checkpoint, err = AddCosignatures(p.Checkpoint, answer(p.Checkpoint), witness)
	if err != nil {
		t.Fatal(err)
	}
	report, err := VerifyProof(p.Text(), Expect{Keys: []string{key.Verifier()}, Witnesses: []string{cosigVkey}})
	if err != nil || !report.OK() || len(report.Checkpoints) != 1 || strings.Join(report.Checkpoints[0].Witnesses, " ") != "witness.example/w1" {
		t.Errorf("report %+v, %v", report, err)
	}

	appendAll(t, h, sample(3))
	other := sign(t, h, key)
	if out, err := AddCosignatures(other, answer(signed), witness); err == nil {
		t.Errorf("a cosignature of another checkpoint is accepted: %q", out)
	}
	// A witness alone does not make a checkpoint.
	alone, err := note.Sign(&note.Note{Text: h.Checkpoint().text()}, signer)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := openCheckpoint(alone, []note.Verifier{key.publicVerifier(t)}, []note.Verifier{witness}); err == nil {
		t.Error("a checkpoint that only a witness signed is accepted")
	}
	for _, bad := range []string{"", key.Verifier(), cosigVkey[:len(cosigVkey)-1], "x" + cosigVkey, strings.ToUpper(cosigVkey)} {
		if _, err := NewWitnessVerifier(bad); err == nil {
			t.Errorf("the witness key %q is accepted", bad)
		}
	}
}

func (k *Key) publicVerifier(t testing.TB) note.Verifier {
	t.Helper()
	v, err := note.NewVerifier(k.Verifier())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func FuzzWitnessVerifier(f *testing.F) {
	f.Add("witness.example/w1+00000000+BAAA")
	f.Fuzz(func(t *testing.T, vkey string) {
		if w, err := NewWitnessVerifier(vkey); err == nil && !strings.HasPrefix(vkey, w.Name()+"+") {
			t.Errorf("%q has the name %q", vkey, w.Name())
		}
	})
}

func FuzzParseVerifierKey(f *testing.F) {
	f.Add(testKey(f, testLogID, 3, 1).Verifier())
	f.Fuzz(func(t *testing.T, vkey string) {
		if logID, epoch, key, err := parseVerifierKey(vkey); err == nil && verifierKey(Origin(logID, epoch), key[:]) != vkey {
			t.Errorf("%q is not the one form", vkey)
		}
	})
}

// collider is a key that claims the name and the key hash of another. 32 bits
// of hash are found by trying.
type collider struct {
	cosigner
	as note.Verifier
}

func (c *collider) Name() string    { return c.as.Name() }
func (c *collider) KeyHash() uint32 { return c.as.KeyHash() }

// What a key is follows from the list that it stands in and from its signature.
// A witness may have the name of the log, or that of another witness; none of
// that makes a signature of one key one of another.
func TestKeysAreToldApart(t *testing.T) {
	tr := newTrail(t, samples(4)...)
	origin := Origin(testLogID, 0)
	text := tr.head.Checkpoint().text()
	seed := func(b byte) ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)) }
	const at = 1_790_000_000
	named := &cosigner{origin, seed(1), at}
	first, second := &cosigner{"witness.example", seed(2), at}, &cosigner{"witness.example", seed(3), at}
	own := &cosigner{"own.example", tr.key().private, at}
	colliding := &collider{cosigner{"", seed(4), at}, tr.key().publicVerifier(t)}
	signedBy := func(signers ...note.Signer) []byte {
		t.Helper()
		signed, err := note.Sign(&note.Note{Text: text}, signers...)
		if err != nil {
			t.Fatal(err)
		}
		return tr.export(0, signed)
	}
	key := tr.key()
	expect := func(witnesses ...*cosigner) Expect {
		e := firstKey(t)
		for _, w := range witnesses {
			e.Witnesses = append(e.Witnesses, w.vkey())
		}
		return e
	}
	apart := func(c *cosigner) string { return fmt.Sprintf("%s+%08x", c.name, c.KeyHash()) }
	for _, tt := range []struct {
		name      string
		signers   []note.Signer
		witnesses []*cosigner
		want      []string // nil if it must not verify
	}{
		{"the log and a witness of its name", []note.Signer{key, named}, []*cosigner{named}, []string{apart(named)}},
		{"only a witness of the log's name", []note.Signer{named}, []*cosigner{named}, nil},
		{"only witnesses, one of the log's name", []note.Signer{first, named}, []*cosigner{first, named}, nil},
		{"only a witness with the log's name and key hash", []note.Signer{colliding}, []*cosigner{first}, nil},
		{"only a cosignature with the log's own key", []note.Signer{own}, nil, nil},
		{"two witnesses of one name, of which the first signed", []note.Signer{key, first}, []*cosigner{first, second}, []string{apart(first)}},
		{"two witnesses of one name, of which the second signed", []note.Signer{key, second}, []*cosigner{first, second}, []string{apart(second)}},
		{"two witnesses of one name, of which both signed", []note.Signer{key, first, second}, []*cosigner{second, first}, []string{apart(second), apart(first)}},
		{"one witness, given twice", []note.Signer{key, first}, []*cosigner{first, first}, []string{"witness.example"}},
		{"a witness of another key with the name of one that was given", []note.Signer{key, second}, []*cosigner{first}, []string{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			export := signedBy(tt.signers...)
			if tt.want == nil {
				mustFail(t, export, expect(tt.witnesses...), CheckSignature)
				return
			}
			r := mustHold(t, export, expect(tt.witnesses...))
			if got := r.Checkpoints[0].Witnesses; strings.Join(got, " ") != strings.Join(tt.want, " ") {
				t.Errorf("cosigned by %q, want %q", got, tt.want)
			}
		})
	}
	t.Run("a signature of the log's type is not a cosignature", func(t *testing.T) {
		// The same key, and a line that says that it is the witness's.
		sig := ed25519.Sign(first.private, []byte(text))
		line := append(binary.BigEndian.AppendUint32(nil, first.KeyHash()), sig...)
		signed := append(tr.sign(), "— witness.example "+base64.StdEncoding.EncodeToString(line)+"\n"...)
		mustFail(t, tr.export(0, signed), expect(first), CheckSignature)
		w, err := NewWitnessVerifier(first.vkey())
		if err != nil {
			t.Fatal(err)
		}
		if out, err := AddCosignatures(tr.sign(), signed[len(tr.sign()):], w); err == nil {
			t.Errorf("it is added: %q", out)
		}
	})
	t.Run("a key of the log, listed as a witness", func(t *testing.T) {
		if _, err := Verify(bytes.NewReader(tr.whole()), expect(own)); err == nil {
			t.Error("it is taken for a witness")
		}
		tr := newTrail(t, samples(4)...)
		tr.rotate(0)
		next := &cosigner{"own.example", tr.key().private, at}
		signed, err := note.Sign(&note.Note{Text: tr.head.Checkpoint().text()}, tr.key(), next)
		if err != nil {
			t.Fatal(err)
		}
		r := mustHold(t, tr.export(0, signed), expect(next))
		if len(r.Checkpoints[0].Witnesses) != 0 {
			t.Errorf("the key that the log was rotated to counts as the witness %q", r.Checkpoints[0].Witnesses)
		}
	})
}

// A witness gives a checkpoint one cosignature, however many it answers with:
// verifiers read no more than a hundred signatures.
func TestCosignaturesDoNotPileUp(t *testing.T) {
	tr := newTrail(t, samples(3)...)
	key := tr.key().publicVerifier(t)
	w := &cosigner{"witness.example", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32)), 1}
	other := &cosigner{"witness.example", ed25519.NewKeyFromSeed(bytes.Repeat([]byte{8}, 32)), 1}
	v, err := NewWitnessVerifier(w.vkey())
	if err != nil {
		t.Fatal(err)
	}
	lines := func(c *cosigner, n int) (out []byte) {
		for range n {
			c.at++
			signed, err := note.Sign(&note.Note{Text: tr.head.Checkpoint().text()}, c)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, signed[bytes.Index(signed, []byte("\n\n"))+2:]...)
		}
		return out
	}
	signed := tr.sign()
	for _, answer := range [][]byte{lines(w, 300), lines(w, 1), append(lines(other, 200), lines(w, 2)...), append([]byte("garbage\n— \n"), lines(w, 1)...)} {
		if signed, err = AddCosignatures(signed, answer, v); err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(signed, []byte("\n— ")); n != 2 {
			t.Fatalf("the checkpoint has %d signatures", n)
		}
		if n, err := note.Open(signed, note.VerifierList(key, v)); err != nil || len(n.Sigs) != 2 {
			t.Fatalf("others read %+v, %v", n, err)
		}
	}
	if out, err := AddCosignatures(signed, lines(other, 1), v); err == nil {
		t.Errorf("a cosignature of another witness of that name is taken: %q", out)
	}
}
