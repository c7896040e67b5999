package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

// MaxLeaf is the length of the longest leaf, in bytes: entry bundles (C2SP
// tlog-tiles) have 16 bits for it.
const MaxLeaf = 1<<16 - 1

// MaxValues is the length of the longest values of an entry, in bytes. It
// bounds the memory that a verifier needs.
const MaxValues = 8 << 20

// MaxSize is the largest size of a log: numbers in canonical JSON are exact
// up to here (RFC 8785, appendix D).
const MaxSize = 1<<53 - 1

// Hash is a SHA-256 hash.
type Hash [32]byte

// String returns the hash in lower-case hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// ParseHash parses what String returns, and nothing else.
func ParseHash(s string) (Hash, error) {
	var h Hash
	if len(s) != 2*len(h) {
		return Hash{}, errors.New("a hash has 64 hexadecimal digits")
	}
	if _, err := hex.Decode(h[:], []byte(s)); err != nil || h.String() != s {
		return Hash{}, errors.New("a hash has 64 hexadecimal digits, in lower case")
	}
	return h, nil
}

// EmptyRoot is the root hash of a log without entries (RFC 6962, section 2.1).
var EmptyRoot = Hash(sha256.Sum256(nil))

// Head is the state of one root's log: all that an append needs.
type Head struct {
	RootID string
	LogID  string // random, names the log in its checkpoints
	Epoch  int64  // counts the trees of the log, from 0 on
	Size   int64
	Root   Hash   // RFC 6962 hash of the tree of Size leaves
	Range  []Hash // compact range: roots of the perfect subtrees of [0, Size), left to right
	// Ordinal is the store's own number of the tree, among all that the
	// root's id ever had. Nothing else looks at it.
	Ordinal int64
}

// Record is an entry as it is stored. Leaf is what the log commits to; Values
// holds the erasable values and their salts.
type Record struct {
	RootID    string
	Epoch     int64
	Seq       int64
	ID        string
	Timestamp time.Time
	OrgID     string
	Path      string
	Action    string
	ActorID   string
	Leaf      []byte // canonical JSON (RFC 8785)
	LeafHash  Hash   // SHA-256(0x00 || Leaf), RFC 6962
	Values    []byte // JSON; the only part that erasure changes
	// Tiles is set by Append when this entry completes tiles: the root hash of
	// the tile of each level, from 0 up, that ends with it. The root of the
	// tile N of level L is the hash N of level L+1. It is nil for 255 of 256
	// entries.
	Tiles []Hash
}

// NewHead returns the head of a log without entries, in epoch 0.
func NewHead(rootID, logID string) *Head {
	return &Head{RootID: rootID, LogID: logID, Root: EmptyRoot}
}

// NewLogID returns a random log id of 32 hexadecimal digits. It panics if rand
// fails.
func NewLogID(rand io.Reader) string {
	var b [16]byte
	if _, err := io.ReadFull(rand, b[:]); err != nil {
		panic("audit: no randomness for a log id: " + err.Error())
	}
	return hex.EncodeToString(b[:])
}

// Append gives the entry its place at the end of the log and moves the head
// past it. The salts of its erasable values come from rand, which must be
// cryptographically secure. If Append fails, the head is unchanged; it fails
// when rand does, or when d cannot be in this log: a text that is not UTF-8, a
// changed value that is not JSON, a path that does not lead from the root to
// OrgID.
//
// The slices of the record and of the head are not shared with earlier ones,
// so that a copy of a head stays valid while the original moves on.
func (h *Head) Append(d *Draft, rand io.Reader) (Record, error) {
	r, err := h.record(d, rand)
	if err != nil {
		return Record{}, fmt.Errorf("audit: entry %q cannot be appended: %w", d.ID, err)
	}
	r.Tiles = h.Extend(r.LeafHash)
	return r, nil
}

func (h *Head) record(d *Draft, rand io.Reader) (Record, error) {
	if h.Size >= MaxSize {
		return Record{}, errors.New("the log is full")
	}
	at := d.Timestamp.UTC().Truncate(time.Microsecond)
	if y := at.Year(); y < 0 || y > 9999 {
		return Record{}, errors.New("its time is out of range")
	}
	leaf, values, err := encode(h, d, at, rand)
	if err != nil {
		return Record{}, err
	}
	// The byte before the leaf is the prefix that makes its hash a leaf's.
	return Record{RootID: h.RootID, Epoch: h.Epoch, Seq: h.Size, ID: d.ID, Timestamp: at, OrgID: d.OrgID,
		Path: d.Path, Action: d.Action, ActorID: d.Actor.ID,
		Leaf: leaf[1:], LeafHash: sha256.Sum256(leaf), Values: values}, nil
}

// Extend moves the head past a leaf of which only the hash is at hand. It
// returns the root hashes of the complete tiles that end with that leaf, see
// Record.Tiles.
func (h *Head) Extend(leaf Hash) (tiles []Hash) {
	r := compactRange{size: h.Size, hashes: append(make([]Hash, 0, len(h.Range)+1), h.Range...)}
	tiles = r.add(leaf)
	h.Size, h.Range, h.Root = r.size, r.hashes, r.root()
	return tiles
}

// compactRange holds the roots of the perfect subtrees of a growing tree, left
// to right.
type compactRange struct {
	size   int64
	hashes []Hash
}

// add adds a leaf in place and returns the roots of the complete tiles that
// end with it, from level 0 up.
func (r *compactRange) add(leaf Hash) (tiles []Hash) {
	node := tlog.Hash(leaf)
	n := len(r.hashes)
	for height := 1; r.size>>(height-1)&1 == 1; height++ {
		n--
		node = tlog.NodeHash(tlog.Hash(r.hashes[n]), node)
		if height%TileHeight == 0 {
			tiles = append(tiles, Hash(node))
		}
	}
	r.hashes = append(r.hashes[:n], Hash(node))
	r.size++
	return tiles
}

// root returns the root hash of the tree.
func (r *compactRange) root() Hash {
	if len(r.hashes) == 0 {
		return EmptyRoot
	}
	node := tlog.Hash(r.hashes[len(r.hashes)-1])
	for i := len(r.hashes) - 2; i >= 0; i-- {
		node = tlog.NodeHash(tlog.Hash(r.hashes[i]), node)
	}
	return Hash(node)
}

// Outline decodes the record without its values: of its changes there are the
// pointers. folded says that there are more than a leaf has room for, and then
// there are none.
func (r *Record) Outline() (e *Entry, folded bool, err error) {
	var l leaf
	if err := l.parse(r.Leaf); err != nil {
		return nil, false, fmt.Errorf("audit: leaf %d of epoch %d: %w", r.Seq, r.Epoch, err)
	}
	return l.entry(), l.folded != nil, nil
}

// Entry decodes the record. It checks that leaf and values have the form that
// Append gives them, not that they belong together: Verify does that.
func (r *Record) Entry() (*Entry, error) {
	var l leaf
	if err := l.parse(r.Leaf); err != nil {
		return nil, fmt.Errorf("audit: leaf %d of epoch %d: %w", r.Seq, r.Epoch, err)
	}
	e := l.entry()
	e.LeafHash = r.LeafHash.String()
	if err := l.open(r.Values, func(slot slot, commitment []byte, v *opened) error {
		if v == nil {
			e.Erased = append(e.Erased, slot.String())
			return nil
		}
		return e.set(slot, bytes.Clone(v.text))
	}); err != nil {
		return nil, fmt.Errorf("audit: values of leaf %d of epoch %d: %w", r.Seq, r.Epoch, err)
	}
	return e, nil
}
