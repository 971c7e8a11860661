package layers

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"sort"
	"time"

	"github.com/sandglass/sandglass/core"
)

// A record of the history says what was at a path of the box's upper layer before an
// operation. On disk it is
//
//	length  4 bytes, of what follows the checksum
//	check   4 bytes, CRC-32C of it
//	payload varints, and strings with their length before them
//
// A record is written with one write(2), to a file of its session's own, before the
// operation is let go on. So one that a crash has cut off is of an operation that never was.
type record struct {
	kind    recordKind
	time    time.Time
	session core.SessionID
	path    string // absolute
	was     entry
	// of a rename: the other side
	path2 string
	was2  entry
	why   string // of a gap
}

type recordKind byte

const (
	recTouch  recordKind = 1 // path is about to change, or come to be
	recParent recordKind = 2 // path, a directory, is about to be copied up because something in it changes
	recRename recordKind = 3 // path is about to become path2, or they change places
	recGap    recordKind = 4 // what was done before this is not known: why
)

// entry is what an upper layer has at a path.
type entry struct {
	kind entryKind
	// of everything but absent and whiteout; of absent it is the real file that shows
	// through, nil when there is none
	state  *core.FileState
	opaque bool              // a directory that hides the real one
	xattrs map[string][]byte // without the overlay's own
	hash   objectID          // of a file: its content, when kept
	kept   bool
	why    string // it was not kept
	// meta: a file whose content the operation leaves alone
	meta bool
}

type entryKind byte

const (
	absent   entryKind = 0
	present  entryKind = 1
	whiteout entryKind = 2
)

const (
	maxRecord  = 256 << 10
	maxStrings = 64 << 10 // of one string
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

// appendRecord appends r as it is on disk.
func appendRecord(b []byte, r *record) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, byte(r.kind))
	b = binary.AppendVarint(b, r.time.UnixNano())
	b = appendString(b, string(r.session))
	b = appendString(b, r.path)
	switch r.kind {
	case recGap:
		b = appendString(b, r.why)
	case recRename:
		b = appendString(appendEntry(b, &r.was), r.path2)
		b = appendEntry(b, &r.was2)
	default:
		b = appendEntry(b, &r.was)
	}
	payload := b[start+8:]
	binary.LittleEndian.PutUint32(b[start:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(payload, crcTable))
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

const (
	flagState = 1 << iota
	flagOpaque
	flagKept
	flagMeta
	flagXattrs
)

var fileTypes = []core.FileType{core.TypeFile, core.TypeDir, core.TypeSymlink, core.TypeFIFO, core.TypeSocket, core.TypeDevice}

func appendEntry(b []byte, e *entry) []byte {
	flags := byte(0)
	for _, f := range []struct {
		set bool
		bit byte
	}{{e.state != nil, flagState}, {e.opaque, flagOpaque}, {e.kept, flagKept}, {e.meta, flagMeta}, {len(e.xattrs) > 0, flagXattrs}} {
		if f.set {
			flags |= f.bit
		}
	}
	b = append(b, byte(e.kind), flags)
	if s := e.state; s != nil {
		t := 0
		for i, x := range fileTypes {
			if x == s.Type {
				t = i
			}
		}
		b = append(b, byte(t))
		for _, v := range []uint64{uint64(s.Mode), uint64(s.UID), uint64(s.GID), uint64(s.Size), s.Inode, s.Dev, s.Links} {
			b = binary.AppendUvarint(b, v)
		}
		b = binary.AppendVarint(b, nanos(s.MTime))
		b = binary.AppendVarint(b, nanos(s.CTime))
		b = appendString(b, s.Link)
	}
	if e.kept {
		b = append(b, e.hash[:]...)
	}
	if len(e.xattrs) > 0 {
		names := make([]string, 0, len(e.xattrs))
		for n := range e.xattrs {
			names = append(names, n)
		}
		sort.Strings(names)
		b = binary.AppendUvarint(b, uint64(len(names)))
		for _, n := range names {
			b = appendString(appendString(b, n), string(e.xattrs[n]))
		}
	}
	return appendString(b, e.why)
}

// nanos is a time as the record has it: outside of the years 1678 to 2262 none.
func nanos(t time.Time) int64 {
	if y := t.Year(); y < 1678 || y > 2261 {
		return 0
	}
	return t.UnixNano()
}

var errRecord = errors.New("a damaged record")

// decoder takes a payload apart. It never reads past the end: bad is set instead.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.bad = true
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) || n > maxStrings {
		d.bad = true
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string { return string(d.bytes(d.uint())) }

func (d *decoder) entry() (e entry) {
	e.kind = entryKind(d.byte())
	flags := d.byte()
	e.opaque, e.kept, e.meta = flags&flagOpaque != 0, flags&flagKept != 0, flags&flagMeta != 0
	if flags&flagState != 0 {
		t := int(d.byte())
		if t >= len(fileTypes) {
			d.bad = true
			return e
		}
		s := &core.FileState{Type: fileTypes[t]}
		s.Mode, s.UID, s.GID = uint32(d.uint())&0o7777, int(int32(d.uint())), int(int32(d.uint()))
		s.Size, s.Inode, s.Dev, s.Links = int64(d.uint()), d.uint(), d.uint(), d.uint()
		s.MTime, s.CTime, s.Link = time.Unix(0, d.int()), time.Unix(0, d.int()), d.string()
		e.state = s
	}
	if e.kept {
		copy(e.hash[:], d.bytes(uint64(len(e.hash))))
	}
	if flags&flagXattrs != 0 {
		e.xattrs = map[string][]byte{}
		for n := d.uint(); n > 0 && !d.bad; n-- {
			name := d.string()
			e.xattrs[name] = append([]byte(nil), d.bytes(d.uint())...)
		}
	}
	e.why = d.string()
	if e.kind > whiteout || e.kind == present && e.state == nil {
		d.bad = true
	}
	return e
}

func decodeRecord(payload []byte) (*record, error) {
	d := decoder{b: payload}
	r := &record{kind: recordKind(d.byte())}
	r.time = time.Unix(0, d.int())
	r.session = core.SessionID(d.string())
	r.path = d.string()
	switch r.kind {
	case recTouch, recParent:
		r.was = d.entry()
	case recRename:
		r.was = d.entry()
		r.path2 = d.string()
		r.was2 = d.entry()
	case recGap:
		r.why = d.string()
	default:
		d.bad = true
	}
	if d.bad || len(d.b) > 0 {
		return nil, errRecord
	}
	return r, nil
}

// readRecords calls f with each record of r until the end, where one that was cut off is
// none, or until one that is damaged: then whole is false. The error is f's, or of reading.
func readRecords(r io.Reader, f func(*record) error) (whole bool, err error) {
	var head [8]byte
	var buf []byte
	for {
		if _, err := io.ReadFull(r, head[:]); err == io.EOF || err == io.ErrUnexpectedEOF {
			return true, nil
		} else if err != nil {
			return false, err
		}
		n := binary.LittleEndian.Uint32(head[:])
		if n > maxRecord {
			return false, nil
		}
		if cap(buf) < int(n) {
			buf = make([]byte, n)
		}
		if _, err := io.ReadFull(r, buf[:n]); err == io.EOF || err == io.ErrUnexpectedEOF {
			return true, nil
		} else if err != nil {
			return false, err
		}
		if crc32.Checksum(buf[:n], crcTable) != binary.LittleEndian.Uint32(head[4:]) {
			return false, nil
		}
		rec, err := decodeRecord(buf[:n])
		if err != nil {
			return false, nil
		}
		if err := f(rec); err != nil {
			return true, err
		}
	}
}
