package network

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sandglass/sandglass/core"
)

// message is a DNS message (RFC 1035 4.1) that was read to its end: every name in it ends,
// every record is as long as it says. Names are looked at where they lie: the messages that
// come by are handed on as they are, records of types unknown included.
type message struct {
	raw     []byte // without what came after its last record
	id      uint16
	flags   uint16
	counts  [4]int // questions, answers, authorities, additional records
	asked   []asked
	records []record
}

// asked is an entry of the question section.
type asked struct {
	name  int // where it begins
	end   int // of the entry
	typ   uint16
	class uint16
}

type record struct {
	section  int // 1: answers, 2: authorities, 3: additional
	name     int // where it begins
	typ      uint16
	class    uint16
	ttl      uint32
	from, to int // of its data
}

// Bits of a message's flags.
const (
	flagResponse  = 1 << 15
	flagTruncated = 1 << 9
	flagRecurse   = 1 << 8 // recursion desired
	flagCanRecur  = 1 << 7 // recursion available
	maskOpcode    = 15 << 11
	maskRcode     = 15
	ednsDNSSEC    = 1 << 15 // DO, in an OPT record's TTL (RFC 6891 6.1.4)
)

const (
	headerSize = 12
	maxName    = 255 // bytes of a name as it is sent, RFC 1035 2.3.4
	maxMessage = 1<<16 - 1
)

const (
	typeA     = 1
	typeNS    = 2
	typeCNAME = 5
	typeSOA   = 6
	typeNULL  = 10
	typePTR   = 12
	typeMX    = 15
	typeTXT   = 16
	typeAAAA  = 28
	typeSRV   = 33
	typeDNAME = 39
	typeOPT   = 41
	typeSVCB  = 64
	typeHTTPS = 65
	classIN   = 1
)

var typeNames = map[uint16]string{typeA: "A", typeNS: "NS", typeCNAME: "CNAME", typeSOA: "SOA", typeNULL: "NULL", typePTR: "PTR", 13: "HINFO",
	typeMX: "MX", typeTXT: "TXT", 17: "RP", 24: "SIG", 25: "KEY", typeAAAA: "AAAA", 29: "LOC", typeSRV: "SRV", 35: "NAPTR", 37: "CERT",
	typeDNAME: "DNAME", typeOPT: "OPT", 43: "DS", 44: "SSHFP", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 51: "NSEC3PARAM",
	52: "TLSA", 53: "SMIMEA", 59: "CDS", 60: "CDNSKEY", 61: "OPENPGPKEY", 62: "CSYNC", 63: "ZONEMD", typeSVCB: "SVCB", typeHTTPS: "HTTPS",
	99: "SPF", 249: "TKEY", 250: "TSIG", 251: "IXFR", 252: "AXFR", 253: "MAILB", 254: "MAILA", 255: "ANY", 256: "URI", 257: "CAA"}

// typeText is the name of a record's type, TYPE123 of one without (RFC 3597).
func typeText(t uint16) string {
	if n, ok := typeNames[t]; ok {
		return n
	}
	return "TYPE" + strconv.Itoa(int(t))
}

// Codes of an answer; those above 15 take an OPT record.
const (
	rcodeOK       = 0
	rcodeFormat   = 1
	rcodeServer   = 2
	rcodeNoName   = 3
	rcodeNotImpl  = 4
	rcodeRefused  = 5
	rcodeBadVers  = 16
	rcodeDropping = -1 // no answer
)

var rcodeNames = []string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH", "NOTZONE",
	rcodeBadVers: "BADVERS"}

func rcodeText(c int) string {
	switch {
	case c == rcodeDropping:
		return "dropped"
	case c < len(rcodeNames) && rcodeNames[c] != "":
		return rcodeNames[c]
	}
	return "RCODE" + strconv.Itoa(c)
}

var errMalformed = errors.New("malformed")

// parseMessage reads b whole. Anything that is not as RFC 1035 has it is an error; bytes
// behind the last record are left out. Cost: at most 128 labels for each name, of which
// there are no more than b has room for.
func parseMessage(b []byte) (m message, err error) {
	if len(b) < headerSize || len(b) > maxMessage {
		return m, errMalformed
	}
	be := binary.BigEndian
	m.id, m.flags = be.Uint16(b), be.Uint16(b[2:])
	for i := range m.counts {
		m.counts[i] = int(be.Uint16(b[4+2*i:]))
	}
	off := headerSize
	for range m.counts[0] {
		end, ok := skipName(b, off)
		if !ok || end+4 > len(b) {
			return m, errMalformed
		}
		m.asked = append(m.asked, asked{name: off, end: end + 4, typ: be.Uint16(b[end:]), class: be.Uint16(b[end+2:])})
		off = end + 4
	}
	for section := 1; section < len(m.counts); section++ {
		for range m.counts[section] {
			end, ok := skipName(b, off)
			if !ok || end+10 > len(b) {
				return m, errMalformed
			}
			r := record{section: section, name: off, typ: be.Uint16(b[end:]), class: be.Uint16(b[end+2:]), ttl: be.Uint32(b[end+4:]), from: end + 10}
			r.to = r.from + int(be.Uint16(b[end+8:]))
			if r.to > len(b) || !r.holds(b) {
				return m, errMalformed
			}
			m.records = append(m.records, r)
			off = r.to
		}
	}
	m.raw = b[:off]
	return m, nil
}

// holds says whether a record's data is what its type says. Of types that came after
// RFC 3597 no name is compressed, and nothing in them leads a reader elsewhere.
func (r *record) holds(b []byte) bool {
	exactly := func(fixed, names, rest int) bool {
		off, ok := r.from+fixed, true
		for range names {
			if off, ok = skipName(b[:r.to], off); !ok {
				return false
			}
		}
		return off+rest == r.to
	}
	switch r.typ {
	case typeA:
		return r.class != classIN || r.to-r.from == 4
	case typeAAAA:
		return r.class != classIN || r.to-r.from == 16
	case typeNS, typeCNAME, typePTR, typeDNAME:
		return exactly(0, 1, 0)
	case typeMX:
		return exactly(2, 1, 0)
	case typeSRV:
		return exactly(6, 1, 0)
	case typeSOA:
		return exactly(0, 2, 20)
	case typeTXT:
		off := r.from
		for off < r.to {
			off += 1 + int(b[off])
		}
		return off == r.to && r.to > r.from
	case typeOPT:
		off := r.from
		for off+4 <= r.to {
			off += 4 + int(binary.BigEndian.Uint16(b[off+2:]))
		}
		return off == r.to && b[r.name] == 0
	}
	return true
}

// skipName returns where the name at off ends, and whether it is one: labels of at most 63
// bytes, 255 in all. A pointer leads to what begins and ends before its own labels began
// (RFC 1035 4.1.4: a prior occurrence), so that every name ends, and within what was read.
func skipName(b []byte, off int) (end int, ok bool) {
	end = -1
	for begin, limit, size := off, len(b), 0; ; {
		if off >= limit {
			return 0, false
		}
		switch c := int(b[off]); c & 0xC0 {
		case 0x00:
			off++
			if size += 1 + c; size > maxName || off+c > limit {
				return 0, false
			}
			if off += c; c == 0 {
				if end < 0 {
					end = off
				}
				return end, true
			}
		case 0xC0:
			if off+1 >= limit {
				return 0, false
			}
			to := c&0x3F<<8 | int(b[off+1])
			if end < 0 {
				end = off + 2
			}
			if to < headerSize || to >= begin { // the header's bytes are no name, and change on the way
				return 0, false
			}
			off, begin, limit = to, to, begin
		default: // 0x40 and 0x80: given up, RFC 6891 5
			return 0, false
		}
	}
}

// nameText returns the name at off, which skipName has seen, in small letters and without
// its final dot. Bytes that a host name does not have are written as master files have
// them (RFC 1035 5.1): \DDD. The root is ".".
func nameText(b []byte, off int) string {
	out := make([]byte, 0, 64)
	for {
		c := int(b[off])
		if c&0xC0 == 0xC0 {
			off = c&0x3F<<8 | int(b[off+1])
			continue
		}
		if c == 0 {
			break
		}
		if len(out) > 0 {
			out = append(out, '.')
		}
		for _, x := range b[off+1 : off+1+c] {
			switch {
			case x >= 'A' && x <= 'Z':
				out = append(out, x+'a'-'A')
			case x <= ' ', x >= 0x7F, x == '.', x == '\\', x == '"':
				out = append(out, '\\', '0'+x/100, '0'+x/10%10, '0'+x%10)
			default:
				out = append(out, x)
			}
		}
		off += 1 + c
	}
	if len(out) == 0 {
		return "."
	}
	return string(out)
}

// rcode is the message's code, with the upper bits of its OPT record.
func (m *message) rcode() int {
	c := int(m.flags & maskRcode)
	if opt := m.opt(); opt != nil {
		c |= int(opt.ttl>>24) << 4
	}
	return c
}

// opt returns the message's first OPT record (RFC 6891), nil when there is none.
func (m *message) opt() *record {
	for i := range m.records {
		if r := &m.records[i]; r.typ == typeOPT && r.section == 3 {
			return r
		}
	}
	return nil
}

// addr is the address that an A or AAAA record gives.
func (m *message) addr(r *record) (netip.Addr, bool) {
	if r.class != classIN || r.typ != typeA && r.typ != typeAAAA {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(m.raw[r.from:r.to])
}

// addrs are the addresses that a record gives its owner: of an A or AAAA record, and those
// that an HTTPS or SVCB record hints at (RFC 9460 7.3), which programs connect to as well.
func (m *message) addrs(r *record) (as []netip.Addr) {
	if a, ok := m.addr(r); ok {
		return []netip.Addr{a}
	}
	if r.class != classIN || r.typ != typeHTTPS && r.typ != typeSVCB || r.from+2 > r.to {
		return nil
	}
	off, ok := skipName(m.raw[:r.to], r.from+2) // the priority comes first
	for be := binary.BigEndian; ok && off+4 <= r.to; {
		key, from := be.Uint16(m.raw[off:]), off+4
		off = from + int(be.Uint16(m.raw[off+2:]))
		size := map[uint16]int{4: 4, 6: 16}[key] // ipv4hint, ipv6hint
		for ; size > 0 && from+size <= min(off, r.to); from += size {
			a, _ := netip.AddrFromSlice(m.raw[from : from+size])
			as = append(as, a)
		}
	}
	return as
}

// maxChain bounds how many names an answer leads by.
const maxChain = 16

// chain is what the answers lead by, from the canonical name that was asked for over its
// CNAMEs: canonical names only.
func (m *message) chain(name string) []string {
	next := map[string]string{}
	for i := range m.records {
		if r := &m.records[i]; r.section == 1 && r.typ == typeCNAME && r.class == classIN {
			if owner := nameText(m.raw, r.name); next[owner] == "" {
				next[owner] = nameText(m.raw, r.from)
			}
		}
	}
	chain := []string{name}
	for len(chain) < maxChain {
		to, ok := core.CanonicalName(next[chain[len(chain)-1]])
		if !ok {
			break
		}
		chain = append(chain, to)
	}
	return chain
}

// maxAnswersText bounds what the log says of an answer.
const maxAnswersText = 1024

// answersText says what an answer holds, for people: "CNAME x.example, A 203.0.113.5".
func (m *message) answersText() string {
	var b strings.Builder
	for i := range m.records {
		r := &m.records[i]
		if r.section != 1 {
			break
		}
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		b.WriteString(typeText(r.typ) + " " + m.dataText(r))
		if b.Len() > maxAnswersText {
			break
		}
	}
	return core.Shorten(b.String(), maxAnswersText)
}

func (m *message) dataText(r *record) string {
	data := m.raw[r.from:r.to]
	if a, ok := m.addr(r); ok {
		return a.String()
	}
	switch r.typ {
	case typeNS, typeCNAME, typePTR, typeDNAME, typeSOA:
		return nameText(m.raw, r.from)
	case typeMX:
		return strconv.Itoa(int(binary.BigEndian.Uint16(data))) + " " + nameText(m.raw, r.from+2)
	case typeSRV:
		return nameText(m.raw, r.from+6) + ":" + strconv.Itoa(int(binary.BigEndian.Uint16(data[4:])))
	case typeTXT:
		var text []byte
		for len(data) > 0 && len(text) < maxAnswersText {
			text = append(text, data[1:1+int(data[0])]...)
			data = data[1+int(data[0]):]
		}
		return strconv.QuoteToASCII(string(text))
	}
	return "(" + strconv.Itoa(len(data)) + " bytes)"
}
