package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// TileHeight is the number of tree levels that a tile spans (C2SP tlog-tiles).
const TileHeight = 8

// TileWidth is the number of hashes in a complete tile.
const TileWidth = 1 << TileHeight

// Tile names a tile of hashes, or a bundle of entries, of C2SP tlog-tiles:
// the hashes N*256 to N*256+Width-1 of a level. The hashes of level 0 are the
// leaf hashes; each hash of level L+1 is the root of a complete tile of level L.
type Tile struct {
	Level   int // 0 for entries
	N       int64
	Width   int // 1 to 256; less than 256 for a partial tile
	Entries bool
}

// Range returns the indexes of the tile's hashes within its level: from is
// the first, to comes after the last.
func (t Tile) Range() (from, to int64) { return t.N * TileWidth, t.N*TileWidth + int64(t.Width) }

// In reports whether a tree of the given size has this tile: all hashes of it.
func (t Tile) In(size int64) bool {
	_, to := t.Range()
	return to <= size>>(TileHeight*t.Level)
}

// Path returns the tile's path below the log's prefix, such as
// "tile/0/x001/234.p/5" or "tile/entries/000".
func (t Tile) Path() string {
	level := "entries"
	if !t.Entries {
		level = fmt.Sprint(t.Level)
	}
	n := fmt.Sprintf("%03d", t.N%1000)
	for rest := t.N / 1000; rest > 0; rest /= 1000 {
		n = fmt.Sprintf("x%03d/%s", rest%1000, n)
	}
	path := "tile/" + level + "/" + n
	if t.Width < TileWidth {
		path += fmt.Sprintf(".p/%d", t.Width)
	}
	return path
}

// ParseTilePath parses what Path returns, and nothing else.
func ParseTilePath(path string) (Tile, error) {
	bad := errors.New("audit: not the path of a tile")
	t := Tile{Width: TileWidth}
	rest, ok := strings.CutPrefix(path, "tile/")
	if !ok || len(path) > 64 {
		return Tile{}, bad
	}
	level, rest, _ := strings.Cut(rest, "/")
	if level == "entries" {
		t.Entries = true
	} else if l, ok := parseDecimal(level); ok && l < 64 {
		t.Level = int(l)
	} else {
		return Tile{}, bad
	}
	rest, width, partial := strings.Cut(rest, ".p/")
	if partial {
		w, ok := parseDecimal(width)
		if !ok || w >= TileWidth {
			return Tile{}, bad
		}
		t.Width = int(w)
	}
	for element := range strings.SplitSeq(rest, "/") {
		digits := strings.TrimPrefix(element, "x")
		if len(digits) != 3 || strings.Trim(digits, "0123456789") != "" || t.N > MaxSize/TileWidth/1000 {
			return Tile{}, bad
		}
		t.N = t.N*1000 + int64(digits[0]-'0')*100 + int64(digits[1]-'0')*10 + int64(digits[2]-'0')
	}
	if t.Width == 0 || t.N > MaxSize/TileWidth || t.Path() != path {
		return Tile{}, bad
	}
	return t, nil
}

// HashSource reads the hashes from ≤ index < to of a tile level, which never
// cross the border of a tile. Level 0 are the leaf hashes; those of higher
// levels are the roots of complete tiles (Record.Tiles).
type HashSource func(level int, from, to int64) ([]Hash, error)

// Read returns the tile as it is served: its hashes one after the other.
func (s HashSource) Read(t Tile) ([]byte, error) {
	from, to := t.Range()
	hashes, err := s.read(t.Level, from, to)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 0, len(hashes)*len(Hash{}))
	for _, h := range hashes {
		b = append(b, h[:]...)
	}
	return b, nil
}

func (s HashSource) read(level int, from, to int64) ([]Hash, error) {
	hashes, err := s(level, from, to)
	if err == nil && int64(len(hashes)) != to-from {
		err = fmt.Errorf("audit: %d of the hashes %d to %d of level %d are missing", to-from-int64(len(hashes)), from, to-1, level)
	}
	return hashes, err
}

// ReadHashes returns the hashes with the given indexes in the numbering of
// tlog.StoredHashIndex; it makes s a tlog.HashReader. It reads each tile that
// it needs once.
func (s HashSource) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	type tile struct {
		level int
		n     int64
	}
	type span struct{ from, to int64 }
	type place struct {
		tile
		span
	}
	places := make([]place, len(indexes))
	spans := map[tile]span{}
	for i, index := range indexes {
		height, n := tlog.SplitStoredHashIndex(index)
		within := height % TileHeight
		p := place{tile{height / TileHeight, n << within / TileWidth}, span{n << within, (n + 1) << within}}
		places[i] = p
		if sp, ok := spans[p.tile]; ok {
			p.from, p.to = min(sp.from, p.from), max(sp.to, p.to)
		}
		spans[p.tile] = p.span
	}
	read := map[tile][]Hash{}
	out := make([]tlog.Hash, len(indexes))
	for i, p := range places {
		sp := spans[p.tile]
		hashes, ok := read[p.tile]
		if !ok {
			var err error
			if hashes, err = s.read(p.level, sp.from, sp.to); err != nil {
				return nil, err
			}
			read[p.tile] = hashes
		}
		var r compactRange
		for _, h := range hashes[p.from-sp.from : p.to-sp.from] {
			r.add(h)
		}
		out[i] = tlog.Hash(r.root())
	}
	return out, nil
}

// AppendBundle appends a leaf to a bundle of entries: its length in 16 bits,
// big endian, and the leaf. A leaf is never longer than MaxLeaf.
func AppendBundle(b, leaf []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(leaf))), leaf...)
}
