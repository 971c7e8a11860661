package testworld

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Types of records (RFC 1035, RFC 3596).
const (
	typeA, typeCNAME, typePTR, typeTXT, typeAAAA, typeOPT = 1, 5, 12, 16, 28, 41
)

var typeNames = map[uint16]string{typeA: "A", typeCNAME: "CNAME", typePTR: "PTR", typeTXT: "TXT", typeAAAA: "AAAA", 2: "NS", 6: "SOA", 15: "MX", 33: "SRV", 64: "SVCB", 65: "HTTPS", 255: "ANY"}

type record struct {
	typ  uint16
	data []byte // of a CNAME the name, encoded
}

func a(addrs ...string) (rs []record) {
	for _, s := range addrs {
		ip := netip.MustParseAddr(s)
		r := record{typeA, ip.AsSlice()}
		if ip.Is6() {
			r.typ = typeAAAA
		}
		rs = append(rs, r)
	}
	return rs
}

func cname(to string) []record { return []record{{typeCNAME, encodeName(to)}} }

// zone is all names that there are. Names below hostile.test are answered by [hostile].
var zone = map[string][]record{
	"www.example.test":      a("203.0.113.10", "2001:db8:beef::10"),
	"v4.example.test":       a("203.0.113.10"),
	"v6.example.test":       a("2001:db8:beef::10"),
	"tls12.example.test":    a("203.0.113.12", "2001:db8:beef::12"),
	"alias.example.test":    cname("hop.example.test"),
	"hop.example.test":      cname("hop2.other.test"),
	"hop2.other.test":       cname("www.example.test"),
	"*.debian.test":         a("203.0.113.11"),
	"registry.example.test": a("203.0.113.13"),
	"git.example.test":      a("203.0.113.14"),
	"allowed.example.test":  a("203.0.113.15"),
	"blocked.example.test":  a("203.0.113.15"),
	"echo.example.test":     a("203.0.113.20"),
	"ssh.example.test":      a("203.0.113.21"),
	"quic.example.test":     a("203.0.113.10", "2001:db8:beef::10"),
	"dns.google":            a("8.8.8.8"),
	"far.example.test":      a("203.0.113.100", "2001:db8:beef:96::100"),
	"far4.example.test":     a("203.0.113.100"),
	"refused.example.test":  a("203.0.113.10"),
	"silent.example.test":   a("203.0.113.200"),
	"unreach.example.test":  a("203.0.113.201"),
	"rebind-lan.test":       a("192.168.77.1"),
	"rebind-host.test":      a("127.0.0.1", "::1"),
	"rebind-meta.test":      a("169.254.169.254"),
	"rebind-mixed.test":     a("192.168.77.1", "203.0.113.10"),
	"loop-cname.test":       cname("loop-cname2.test"),
	"loop-cname2.test":      cname("loop-cname.test"),
	"text.example.test":     {{typeTXT, append([]byte{11}, "hello world"...)}},
	"big.example.test":      bigAnswer(),
	"*.tunnel.test":         {{typeTXT, append([]byte{4}, "data"...)}, {typeA, []byte{203, 0, 113, 16}}},
}

// bigAnswer does not fit a datagram.
func bigAnswer() (rs []record) {
	for i := range 200 {
		rs = append(rs, record{typeA, []byte{203, 0, 113, byte(i)}})
	}
	return rs
}

func encodeName(name string) (b []byte) {
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label != "" {
			b = append(append(b, byte(len(label))), label...)
		}
	}
	return append(b, 0)
}

func decodeName(b []byte) string {
	var labels []string
	for len(b) > 0 && b[0] != 0 && int(b[0]) < len(b) {
		labels = append(labels, string(b[1:1+b[0]]))
		b = b[1+b[0]:]
	}
	return strings.ToLower(strings.Join(labels, "."))
}

// question is what is asked.
type question struct {
	id    uint16
	flags uint16
	raw   []byte // name, type and class as they were sent
	name  string
	typ   uint16
	size  int // of the largest datagram that the asker takes
}

func parseQuestion(b []byte) (q question, ok bool) {
	if len(b) < 12 || b[2]&0x80 != 0 || binary.BigEndian.Uint16(b[4:]) != 1 {
		return q, false
	}
	q.id, q.flags = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	end := 12
	for end < len(b) && b[end] != 0 {
		if b[end]&0xc0 != 0 {
			return q, false
		}
		end += 1 + int(b[end])
	}
	if end += 5; end > len(b) {
		return q, false
	}
	q.raw = b[12:end]
	q.name, q.typ, q.size = decodeName(q.raw), binary.BigEndian.Uint16(b[end-4:]), 512
	if rest := b[end:]; len(rest) >= 5 && rest[0] == 0 && binary.BigEndian.Uint16(rest[1:]) == typeOPT {
		q.size = max(512, int(binary.BigEndian.Uint16(rest[3:])))
	}
	return q, true
}

// lookup follows aliases.
func lookup(name string, typ uint16) (out []record, owners []string, exists bool) {
	for range 8 {
		rs, ok := zone[name]
		if !ok {
			_, parent, _ := strings.Cut(name, ".")
			rs, ok = zone["*."+parent]
		}
		if !ok {
			return out, owners, len(out) > 0
		}
		alias := ""
		for _, r := range rs {
			if r.typ == typ || r.typ == typeCNAME {
				out, owners = append(out, r), append(owners, name)
			}
			if r.typ == typeCNAME && typ != typeCNAME {
				alias = decodeName(r.data)
			}
		}
		if alias == "" {
			return out, owners, true
		}
		name = alias
	}
	return out, owners, true
}

// answer encodes the answer to q.
func (q *question) answer(datagram bool) []byte {
	rs, owners, exists := lookup(q.name, q.typ)
	flags := uint16(0x8080) | q.flags&0x0100 // QR, RA and the question's RD
	if !exists {
		flags |= 3 // NXDOMAIN
	}
	head := func(flags uint16, n int) []byte {
		b := binary.BigEndian.AppendUint16(nil, q.id)
		b = binary.BigEndian.AppendUint16(b, flags)
		b = append(b, 0, 1, byte(n>>8), byte(n), 0, 0, 0, 0)
		return append(b, q.raw...)
	}
	b := head(flags, len(rs))
	for i, r := range rs {
		if owners[i] == q.name {
			b = append(b, 0xc0, 12) // the question's name
		} else {
			b = append(b, encodeName(owners[i])...)
		}
		b = binary.BigEndian.AppendUint16(b, r.typ)
		b = append(b, 0, 1, 0, 0, 0, 60) // IN, a minute
		b = binary.BigEndian.AppendUint16(b, uint16(len(r.data)))
		b = append(b, r.data...)
	}
	if datagram && len(b) > q.size {
		return head(flags|0x0200, 0) // TC: ask by TCP
	}
	return b
}

// hostile answers the names below hostile.test.
func (q *question) hostile(kind string, datagram bool) []byte {
	good := *q
	good.name = "v4.example.test"
	record := func(n int, rr ...byte) []byte {
		b := binary.BigEndian.AppendUint16(nil, q.id)
		b = append(b, 0x80, 0x80, 0, 1, byte(n>>8), byte(n), 0, 0, 0, 0)
		return append(append(b, q.raw...), rr...)
	}
	switch kind {
	case "never":
		return nil
	case "wrong-id":
		good.id ^= 0x5555
		return good.answer(datagram)
	case "wrong-name": // an answer to a question that nobody asked
		raw := append(encodeName("www.example.test"), q.raw[len(q.raw)-4:]...)
		good.raw = raw
		return good.answer(datagram)
	case "loop": // a name that points to itself
		at := 12 + len(q.raw)
		return record(1, append([]byte{0xc0 | byte(at>>8), byte(at)}, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 66)...)
	case "garbage":
		return append(binary.BigEndian.AppendUint16(nil, q.id), "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xc0\xff\xc0\x02\x00garbage"...)
	case "short":
		return record(1, 0xc0)
	case "lies": // 65535 records, and none
		return record(65535)
	case "huge":
		if datagram {
			b := record(0)
			b[2] |= 2 // TC
			return b
		}
		var rr []byte
		n := 0
		for ; len(rr) < 64_000; n++ {
			rr = append(rr, 63)
			rr = append(rr, strings.Repeat("x", 63)...)
			rr = append(rr, 0, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 203, 0, 113, 66)
		}
		return record(n, rr...)
	}
	return q.answer(datagram)
}

// serveDNS answers at the resolver's address, and at those of well-known ones.
func (s *internetState) serveDNS() error {
	respond := func(from, to netip.AddrPort, b []byte, datagram bool) []byte {
		q, ok := parseQuestion(b)
		if !ok {
			s.journal.add(Heard{Server: "dns", From: from, To: to, What: "garbage"})
			return nil
		}
		name := typeNames[q.typ]
		if name == "" {
			name = fmt.Sprint("TYPE", q.typ)
		}
		s.journal.add(Heard{Server: "dns", From: from, To: to, What: name + " " + q.name})
		if kind, ok := strings.CutSuffix(q.name, ".hostile.test"); ok {
			return q.hostile(kind, datagram)
		}
		return q.answer(datagram)
	}
	for _, addr := range []netip.Addr{Resolver, DoH, netip.MustParseAddr("1.1.1.1"), netip.MustParseAddr("2001:db8:beef::53"), Web, Gateway, LANServer} {
		err := udpServer(netip.AddrPortFrom(addr, 53), func(from, to netip.AddrPort, b []byte) []byte { return respond(from, to, b, true) })
		if err != nil {
			return err
		}
	}
	return tcpServer(53, func(c *net.TCPConn) {
		from, to := ends(c)
		for {
			c.SetDeadline(time.Now().Add(time.Minute))
			var size [2]byte
			if _, err := io.ReadFull(c, size[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			if b = respond(from, to, b, false); b == nil {
				continue
			}
			if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
				return
			}
		}
	})
}
