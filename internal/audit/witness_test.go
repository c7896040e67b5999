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
	if _, _, err := openCheckpoint(alone, []note.Verifier{key.publicVerifier(t)}, []note.Verifier{witness}); err == nil {
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
