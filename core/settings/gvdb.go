package settings

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// A database of dconf is in the format GVDB (gvdb-format.h in its sources), little-endian
// throughout but for the values, whose order the signature tells:
//
//	header  "GVariant" (or "raVGtnai": values are big-endian), version, options, table
//	table   number of bloom words (27 bits) and shift, number of buckets,
//	        the words, the buckets, then the items
//	item    hash, parent item, key {start, 16-bit size}, type, pointer {start, end}
//
// An item's whole key is that of its parent with its own behind it. The buckets are for
// who looks a key up; whoever reads all has the items.

const (
	gvdbLittle = "GVariant"
	gvdbBig    = "raVGtnai"

	gvdbHeader   = 24 // bytes
	gvdbItem     = 24
	gvdbMaxKey   = 4096
	gvdbMaxDepth = 256 // parents of an item
	gvdbMaxTable = 8   // tables in one another
	gvdbNoParent = 0xffffffff
)

func isGVDB(data []byte) bool {
	return bytes.HasPrefix(data, []byte(gvdbLittle)) || bytes.HasPrefix(data, []byte(gvdbBig))
}

// gvdb is a file that is being read.
type gvdb struct {
	data   []byte
	values binary.ByteOrder
	room   int // bytes of text that may still be made: items can share what they point to
	out    Database
}

func decodeGVDB(data []byte) (Database, bool) {
	if len(data) < gvdbHeader || binary.LittleEndian.Uint32(data[8:]) != 0 {
		return nil, false
	}
	f := gvdb{data: data, values: binary.LittleEndian, room: 1<<20 + 8*len(data)}
	if bytes.HasPrefix(data, []byte(gvdbBig)) {
		f.values = binary.BigEndian
	}
	ok := f.table(data[16:], "", 0)
	return f.out, ok
}

// at returns the bytes that a pointer means.
func (f *gvdb) at(pointer []byte) ([]byte, bool) {
	start, end := binary.LittleEndian.Uint32(pointer), binary.LittleEndian.Uint32(pointer[4:])
	if start > end || uint64(end) > uint64(len(f.data)) {
		return nil, false
	}
	return f.data[start:end], true
}

// table reads a table; prefix is the key of the one that it is in.
func (f *gvdb) table(pointer []byte, prefix string, depth int) bool {
	t, ok := f.at(pointer)
	if !ok || depth > gvdbMaxTable {
		return false
	}
	if len(t) == 0 {
		return true // of a database without a key
	}
	if len(t) < 8 {
		return false
	}
	words, buckets := uint64(binary.LittleEndian.Uint32(t)&(1<<27-1)), uint64(binary.LittleEndian.Uint32(t[4:]))
	if 8+4*(words+buckets) > uint64(len(t)) {
		return false
	}
	items := t[8+4*(words+buckets):]
	for i := range len(items) / gvdbItem {
		item := items[i*gvdbItem:][:gvdbItem]
		if kind := item[14]; kind != 'v' && kind != 'H' {
			// A list of the keys below, which are items themselves; or, of a database without
			// keys, the root, where dconf leaves what the memory held.
			continue
		}
		key, ok := f.key(items, uint32(i))
		if f.room -= len(key); !ok || f.room < 0 {
			return false
		}
		key = prefix + key
		switch item[14] {
		case 'v':
			if strings.HasSuffix(key, "/") {
				continue // the root again
			}
			text := unreadable
			if v, ok := f.at(item[16:]); ok {
				f.room -= len(v)
				text = variantText(v, f.values, &f.room)
			}
			if f.room < 0 {
				return false
			}
			f.out = append(f.out, gvdbEntry(key, text))
		case 'H':
			if !f.table(item[16:], strings.TrimSuffix(key, "/")+"/", depth+1) {
				return false
			}
		}
	}
	return true
}

// key puts an item's whole key together.
func (f *gvdb) key(items []byte, i uint32) (string, bool) {
	var parts []string
	size := 0
	for range gvdbMaxDepth {
		if i == gvdbNoParent {
			var b strings.Builder
			for n := len(parts); n > 0; n-- {
				b.WriteString(parts[n-1])
			}
			return b.String(), true
		}
		if uint64(i) >= uint64(len(items)/gvdbItem) {
			return "", false
		}
		item := items[uint64(i)*gvdbItem:][:gvdbItem]
		start, n := binary.LittleEndian.Uint32(item[8:]), binary.LittleEndian.Uint16(item[12:])
		if size += int(n); uint64(start)+uint64(n) > uint64(len(f.data)) || size > gvdbMaxKey {
			return "", false
		}
		parts = append(parts, string(f.data[start:][:n]))
		i = binary.LittleEndian.Uint32(item[4:])
	}
	return "", false // parents in a circle
}

// gvdbEntry splits a key: "/org/gnome/x/name".
func gvdbEntry(key, value string) Entry {
	dir, name := split(key)
	return Entry{Group: strings.TrimPrefix(dir, "/"), Name: name, Value: value}
}
