package settings

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Values of GVariant, as they lie in a file and as `dconf read` shows them (the GVariant
// Specification; g_variant_print of GLib). Numbers are aligned to their size; a container
// with elements of no fixed size ends with the offsets of their ends, as many bytes each
// as its own size needs.

const (
	maxVariantDepth = 64 // containers in one another; GLib takes 128
	maxVariantType  = 256
)

// vtype is a type, read from its text.
type vtype struct {
	kind  byte    // its first character
	text  string  // as it is written
	sub   []vtype // what it is made of
	align int
	fixed int // bytes; 0: no fixed size
}

// parseType reads the type at the beginning of s.
func parseType(s string, depth int) (t vtype, rest string, ok bool) {
	if s == "" || depth > maxVariantDepth {
		return t, s, false
	}
	whole := s
	t.kind, t.align = s[0], 1
	s = s[1:]
	switch t.kind {
	case 'b', 'y':
		t.fixed = 1
	case 'n', 'q':
		t.align, t.fixed = 2, 2
	case 'i', 'u', 'h':
		t.align, t.fixed = 4, 4
	case 'x', 't', 'd':
		t.align, t.fixed = 8, 8
	case 's', 'o', 'g':
	case 'v':
		t.align = 8
	case 'a', 'm':
		var e vtype
		if e, s, ok = parseType(s, depth+1); !ok {
			return t, s, false
		}
		t.sub, t.align = []vtype{e}, e.align
	case '(', '{':
		end, size, fixed := map[byte]byte{'(': ')', '{': '}'}[t.kind], 0, true
		for s != "" && s[0] != end {
			var e vtype
			if e, s, ok = parseType(s, depth+1); !ok {
				return t, s, false
			}
			t.sub, t.align = append(t.sub, e), max(t.align, e.align)
			fixed = fixed && e.fixed > 0
			size = alignUp(size, e.align) + e.fixed
		}
		if s == "" || t.kind == '{' && (len(t.sub) != 2 || len(t.sub[0].sub) > 0 || t.sub[0].kind == 'v') {
			return t, s, false
		}
		s = s[1:]
		if fixed {
			t.fixed = max(alignUp(size, t.align), 1) // that of nothing is one byte
		}
	default:
		return t, s, false
	}
	t.text = whole[:len(whole)-len(s)]
	return t, s, true
}

func alignUp(n, to int) int { return (n + to - 1) / to * to }

// printer writes a value's text, as long as there is room for it.
type variantPrinter struct {
	b     strings.Builder
	order binary.ByteOrder
	room  *int
}

// unreadable is what is said of a value that is not as it should be.
const unreadable = "(unreadable)"

// variantText is the text of a value that is kept with its type: a variant. The room for
// text is used up; less than none is left where it was not enough.
func variantText(data []byte, order binary.ByteOrder, room *int) string {
	p := variantPrinter{order: order, room: room}
	t, v, ok := openVariant(data)
	if !ok || !p.value(t, v, true, 0) {
		return unreadable
	}
	return p.b.String()
}

// openVariant takes the type from behind a value.
func openVariant(data []byte) (t vtype, v []byte, ok bool) {
	i := bytes.LastIndexByte(data, 0)
	if i < 0 || len(data)-i-1 > maxVariantType {
		return t, nil, false
	}
	t, rest, ok := parseType(string(data[i+1:]), 0)
	return t, data[:i], ok && rest == ""
}

func (p *variantPrinter) put(s string) bool {
	if *p.room -= len(s); *p.room < 0 {
		return false
	}
	p.b.WriteString(s)
	return true
}

// value writes v. typed: where the text alone would not tell the type, it is said. A false
// is of something unreadable, or of no room.
func (p *variantPrinter) value(t vtype, v []byte, typed bool, depth int) bool {
	if depth > maxVariantDepth || t.fixed > 0 && len(v) != t.fixed {
		return false
	}
	says := func(name string) bool { return !typed || p.put(name) }
	switch t.kind {
	case 'b':
		if v[0] > 1 {
			return false
		}
		return p.put(strconv.FormatBool(v[0] == 1))
	case 'y':
		return says("byte ") && p.put(fmt.Sprintf("0x%02x", v[0]))
	case 'n':
		return says("int16 ") && p.put(strconv.Itoa(int(int16(p.order.Uint16(v)))))
	case 'q':
		return says("uint16 ") && p.put(strconv.Itoa(int(p.order.Uint16(v))))
	case 'i':
		return p.put(strconv.Itoa(int(int32(p.order.Uint32(v)))))
	case 'h':
		return says("handle ") && p.put(strconv.Itoa(int(int32(p.order.Uint32(v)))))
	case 'u':
		return says("uint32 ") && p.put(strconv.FormatUint(uint64(p.order.Uint32(v)), 10))
	case 'x':
		return says("int64 ") && p.put(strconv.FormatInt(int64(p.order.Uint64(v)), 10))
	case 't':
		return says("uint64 ") && p.put(strconv.FormatUint(p.order.Uint64(v), 10))
	case 'd':
		return p.put(doubleText(math.Float64frombits(p.order.Uint64(v))))
	case 's', 'o', 'g':
		s, ok := stringOf(v)
		if !ok {
			return false
		}
		switch t.kind {
		case 'o':
			return says("objectpath ") && p.put(quoteVariant(s))
		case 'g':
			return says("signature ") && p.put(quoteVariant(s))
		}
		return p.put(quoteVariant(s))
	case 'v':
		t, inner, ok := openVariant(v)
		return ok && p.put("<") && p.value(t, inner, true, depth+1) && p.put(">")
	case 'm':
		return (!typed || p.put("@"+t.text+" ")) && p.maybe(t, v, depth)
	case 'a':
		return p.array(t, v, typed, depth)
	case '(', '{':
		return p.tuple(t, v, typed, depth)
	}
	return false
}

// maybe writes what is there or "nothing", with a "just" for each level that is there
// above a nothing.
func (p *variantPrinter) maybe(t vtype, v []byte, depth int) bool {
	for there := 0; ; there++ {
		if t.kind != 'm' {
			return p.value(t, v, false, depth+1)
		}
		e := t.sub[0]
		switch {
		case len(v) == 0:
			return p.put(strings.Repeat("just ", there) + "nothing")
		case e.fixed == 0:
			if v[len(v)-1] != 0 { // what keeps it from looking like nothing
				return false
			}
			v = v[:len(v)-1]
		case len(v) != e.fixed:
			return false
		}
		t = e
	}
}

// offsets reads the ends that a container keeps behind its elements.
type offsets struct {
	v    []byte
	size int // of one, in bytes
}

func offsetsOf(v []byte) offsets {
	switch n := uint64(len(v)); {
	case n > math.MaxUint32:
		return offsets{v, 8}
	case n > math.MaxUint16:
		return offsets{v, 4}
	case n > math.MaxUint8:
		return offsets{v, 2}
	default:
		return offsets{v, 1}
	}
}

// at reads the offset that is kept at a place; ok is false when that, or where it leads, is
// outside of the container.
func (o offsets) at(order binary.ByteOrder, place int) (int, bool) {
	if place < 0 || place+o.size > len(o.v) {
		return 0, false
	}
	var n uint64
	switch b := o.v[place:]; o.size {
	case 1:
		n = uint64(b[0])
	case 2:
		n = uint64(order.Uint16(b))
	case 4:
		n = uint64(order.Uint32(b))
	default:
		n = order.Uint64(b)
	}
	return int(n), n <= uint64(len(o.v))
}

func (p *variantPrinter) array(t vtype, v []byte, typed bool, depth int) bool {
	e := t.sub[0]
	if e.kind == 'y' {
		if i := bytes.IndexByte(v, 0); i >= 0 && i == len(v)-1 {
			return p.put(byteString(v[:i]))
		}
	}
	first, last := "[", "]"
	if e.kind == '{' {
		first, last = "{", "}"
	}
	if len(v) == 0 {
		return (!typed || p.put("@"+t.text+" ")) && p.put(first+last)
	}
	each := func(i int, v []byte) bool {
		if i > 0 && !p.put(", ") {
			return false
		}
		if e.kind == '{' {
			return p.members(e, v, ": ", typed && i == 0, depth+1)
		}
		return p.value(e, v, typed && i == 0, depth+1)
	}
	if !p.put(first) {
		return false
	}
	if e.fixed > 0 {
		if len(v)%e.fixed != 0 {
			return false
		}
		for i := range len(v) / e.fixed {
			if !each(i, v[i*e.fixed:][:e.fixed]) {
				return false
			}
		}
		return p.put(last)
	}
	o := offsetsOf(v)
	ends, ok := o.at(p.order, len(v)-o.size) // where the elements end the offsets begin
	if !ok || (len(v)-ends)%o.size != 0 {
		return false
	}
	start := 0
	for i := range (len(v) - ends) / o.size {
		end, ok := o.at(p.order, ends+i*o.size)
		// Only forwards: elements that lie in one another would be without end.
		if start = alignUp(start, e.align); !ok || start > end || end > ends || !each(i, v[start:end]) {
			return false
		}
		start = end
	}
	return p.put(last)
}

func (p *variantPrinter) tuple(t vtype, v []byte, typed bool, depth int) bool {
	first, last := "(", ")"
	if t.kind == '{' {
		first, last = "{", "}"
	} else if len(t.sub) == 1 {
		last = ",)"
	}
	return p.put(first) && p.members(t, v, ", ", typed, depth) && p.put(last)
}

// members writes what a tuple, or an entry of a dictionary, is made of. All but the last of those without a
// fixed size have their ends kept at the end, the first one's last.
func (p *variantPrinter) members(t vtype, v []byte, between string, typed bool, depth int) bool {
	if len(t.sub) == 0 {
		return len(v) == 1 && v[0] == 0
	}
	if t.fixed > 0 && len(v) != t.fixed {
		return false
	}
	o := offsetsOf(v)
	kept, start := 0, 0
	for i, e := range t.sub {
		start = alignUp(start, e.align)
		end, ok := start+e.fixed, true
		switch {
		case e.fixed > 0:
		case i == len(t.sub)-1:
			end = len(v) - kept*o.size
		default:
			kept++
			end, ok = o.at(p.order, len(v)-kept*o.size)
		}
		if !ok || start > end || end > len(v)-kept*o.size {
			return false
		}
		if i > 0 && !p.put(between) || !p.value(e, v[start:end], typed, depth+1) {
			return false
		}
		start = end
	}
	return true
}

// stringOf takes the NUL off a string.
func stringOf(v []byte) (string, bool) {
	if len(v) == 0 || bytes.IndexByte(v, 0) != len(v)-1 || !utf8.Valid(v) {
		return "", false
	}
	return string(v[:len(v)-1]), true
}

// doubleText is a number as printf's %.17g has it, and so that it is seen not to be whole.
func doubleText(d float64) string {
	switch {
	case math.IsNaN(d):
		return "nan"
	case math.IsInf(d, 1):
		return "inf"
	case math.IsInf(d, -1):
		return "-inf"
	}
	s := strconv.FormatFloat(d, 'g', 17, 64)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return s
}

var variantEscapes = map[rune]string{'\a': `\a`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`, '\v': `\v`}

func quoteVariant(s string) string {
	quote := '\''
	if strings.ContainsRune(s, '\'') {
		quote = '"'
	}
	var b strings.Builder
	b.WriteRune(quote)
	for _, r := range s {
		switch esc := variantEscapes[r]; {
		case r == quote || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case unicode.IsPrint(r):
			b.WriteRune(r)
		case esc != "":
			b.WriteString(esc)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	b.WriteRune(quote)
	return b.String()
}

// byteString is bytes that end with a NUL, as g_strescape has them.
func byteString(v []byte) string {
	quote := byte('\'')
	if bytes.IndexByte(v, '\'') >= 0 {
		quote = '"'
	}
	b := []byte{'b', quote}
	for _, c := range v {
		switch esc := variantEscapes[rune(c)]; {
		case c < 0x80 && esc != "" && c != '\a':
			b = append(b, esc...)
		case c == '\\' || c == '"':
			b = append(b, '\\', c)
		case c < ' ' || c >= 0x7f:
			b = fmt.Appendf(b, `\%03o`, c)
		default:
			b = append(b, c)
		}
	}
	return string(append(b, quote))
}
