package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sandglass/sandglass/core"
)

// upstream is a real server on loopback, over UDP and TCP at the same port.
type upstream struct {
	addr netip.AddrPort
	mu   sync.Mutex
	got  [][]byte // the questions
}

// serve starts a server whose answers to a question over UDP are udp's datagrams, and over
// TCP whatever tcp writes.
func serve(t testing.TB, udp func(q []byte) [][]byte, tcp func(c net.Conn, q []byte)) *upstream {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: pc.LocalAddr().(*net.UDPAddr).AddrPort()}
	ln, err := net.Listen("tcp", u.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	keep := func(q []byte) []byte {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.got = append(u.got, bytes.Clone(q))
		return q
	}
	var all sync.WaitGroup
	t.Cleanup(func() { pc.Close(); ln.Close(); all.Wait() })
	all.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, a := range udp(keep(buf[:n])) {
				pc.WriteTo(a, from)
			}
		}
	})
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			q := make([]byte, 64<<10)
			if _, err := io.ReadFull(c, q[:2]); err == nil {
				n := binary.BigEndian.Uint16(q)
				if _, err := io.ReadFull(c, q[:n]); err == nil && tcp != nil {
					tcp(c, keep(q[:n]))
				}
			}
			c.Close()
		}
	})
	return u
}

// asked is what the server was asked until now.
func (u *upstream) asked() [][]byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.got)
}

// say answers a question, as another program would write it.
func say(t testing.TB, q []byte, rcode dnsmessage.RCode, records ...dnsmessage.Resource) []byte {
	t.Helper()
	var asked dnsmessage.Message
	if err := asked.Unpack(q); err != nil {
		t.Errorf("the server was asked garbage: %v", err)
		return nil
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: asked.ID, Response: true, RecursionDesired: true, RecursionAvailable: true, RCode: rcode},
		Questions: asked.Questions, Answers: records}
	if len(asked.Additionals) == 1 {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(4096, 0, false); err != nil {
			t.Error(err)
		}
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: 10, Data: []byte("a cookie")}}}}}
	}
	b, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return b
}

func rr(name string, ttl uint32, body dnsmessage.ResourceBody) dnsmessage.Resource {
	return dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}, Body: body}
}

func a4(name, addr string) dnsmessage.Resource {
	return rr(name, 300, &dnsmessage.AResource{A: netip.MustParseAddr(addr).As4()})
}

func alias(name, to string) dnsmessage.Resource {
	return rr(name, 300, &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to)})
}

// asks is what a program in the box sends.
func asks(t testing.TB, name string, typ dnsmessage.Type, edns int) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET}}}
	if edns > 0 {
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(edns, 0, true); err != nil {
			t.Fatal(err)
		}
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{Options: []dnsmessage.Option{{Code: 65001, Data: []byte("a secret")}}}}}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// logged is a resolver that asks those servers, and what it logs.
type logged struct {
	*resolver
	t   testing.TB
	mu  sync.Mutex
	ops []*core.Operation
}

var (
	ours = netip.MustParseAddrPort("192.0.2.1:53")
	curl = Owner{PID: 12, Proc: "12", Exe: "/usr/bin/curl"}
)

func ask(t testing.TB, servers ...*upstream) *logged {
	t.Helper()
	p, err := core.BuiltinPolicy("")
	if err != nil {
		t.Fatal(err)
	}
	l := &logged{t: t}
	l.resolver = newResolver(resolverConfig{Names: newNames(), Policy: func() *core.Policy { return p },
		Upstream: func() (as []netip.AddrPort) {
			for _, s := range servers {
				as = append(as, s.addr)
			}
			return as
		},
		Log: func(op *core.Operation) { l.mu.Lock(); l.ops = append(l.ops, op); l.mu.Unlock() }})
	return l
}

// do asks and returns the answer, as another program reads it, and the operation.
func (l *logged) do(query []byte, stream bool) (m dnsmessage.Message, op *core.Operation) {
	l.t.Helper()
	had := len(l.ops)
	b := l.answer(context.Background(), query, stream, curl, ours)
	if len(l.ops) != had+1 {
		l.t.Fatalf("%d operations for a question", len(l.ops)-had)
	}
	op = l.ops[had]
	if op.Surface != core.NetDNS || op.Action != core.ActResolve || op.PID != 12 || op.Proc != "12" || op.Exe != "/usr/bin/curl" || op.Errno != "" || op.Leak ||
		op.Detail["asked"] != ours.String() || op.Detail["ms"] == "" || (op.Outcome == core.Refused) != (op.Verdict == core.Blocked) {
		l.t.Errorf("the operation %+v", op)
	}
	if b == nil {
		return m, op
	}
	var same dnsmessage.Message
	if err := m.Unpack(b); err != nil && same.Unpack(query) != nil { // dnsmessage knows no dot in a label
		var p dnsmessage.Parser
		if m.Header, err = p.Start(b); err != nil {
			l.t.Fatal(err)
		}
	} else if err != nil {
		l.t.Fatalf("the box gets what cannot be read: %v\n%x", err, b)
	}
	if m.ID != binary.BigEndian.Uint16(query) || !m.Response || m.RecursionDesired != (query[2]&1 != 0) {
		l.t.Errorf("the box gets an answer to another question: %+v", m.Header)
	}
	return m, op
}

func wrongID(b []byte) []byte {
	b = bytes.Clone(b)
	b[0] ^= 0x80
	return b
}

func TestAnswersFromOutside(t *testing.T) {
	right := func(q []byte) []byte {
		return say(t, q, dnsmessage.RCodeSuccess, alias("www.example.org.", "cdn.example.net."), alias("CDN.example.net.", "edge.example.com."),
			a4("edge.example.com.", "203.0.113.5"), a4("edge.example.com.", "203.0.113.6"), a4("bank.example.", "203.0.113.66"))
	}
	tcpRight := func(c net.Conn, q []byte) { c.Write(framed(right(q))) }
	rightText := "CNAME cdn.example.net, CNAME edge.example.com, A 203.0.113.5, A 203.0.113.6, A 203.0.113.66"
	for _, c := range []struct {
		name  string
		udp   func(q []byte) [][]byte
		tcp   func(c net.Conn, q []byte)
		hasty bool // the server is not waited for long
		rcode string
		why   string
	}{
		{name: "a right answer", udp: func(q []byte) [][]byte { return [][]byte{right(q)} }, rcode: "NOERROR"},
		{name: "a wrong id, an answer cut short, another's question, no answer; then the right one", udp: func(q []byte) [][]byte {
			other := say(t, asks(t, "www.example.com.", dnsmessage.TypeA, 0), 0, a4("www.example.com.", "203.0.113.66"))
			copy(other, q[:2])
			aaaa := right(q)
			aaaa[headerSize+len("www.example.org.")+2] = typeAAAA
			return [][]byte{wrongID(right(q)), right(q)[:20], other, aaaa, q, {}, right(q)}
		}, rcode: "NOERROR"},
		{name: "wrong ids only", udp: func(q []byte) (as [][]byte) {
			for range maxStrays + 5 {
				as = append(as, wrongID(right(q)))
			}
			return as
		}, rcode: "SERVFAIL", why: errStrays.Error()},
		{name: "garbage after the question", udp: func(q []byte) [][]byte {
			b := right(q)
			return [][]byte{append(b[:headerSize+21:headerSize+21], bytes.Repeat([]byte{0xEE}, 400)...)}
		}, rcode: "malformed", why: "malformed"},
		{name: "a name that leads to itself", udp: func(q []byte) [][]byte {
			b := right(q)
			b[headerSize+21], b[headerSize+22] = 0xC0, headerSize+21
			return [][]byte{b}
		}, rcode: "malformed", why: "malformed"},
		{name: "more answers announced than there are", udp: func(q []byte) [][]byte { b := right(q); b[6] = 0xFF; return [][]byte{b} }, rcode: "malformed", why: "malformed"},
		{name: "one that is cut, then over TCP", udp: func(q []byte) [][]byte { b := say(t, q, 0); b[2] |= 2; return [][]byte{b} }, tcp: tcpRight, rcode: "NOERROR"},
		{name: "one that is cut over TCP too", udp: func(q []byte) [][]byte { b := say(t, q, 0); b[2] |= 2; return [][]byte{b} },
			tcp: func(c net.Conn, q []byte) { b := say(t, q, 0); b[2] |= 2; c.Write(framed(b)) }, rcode: "SERVFAIL", why: errCut.Error()},
		{name: "one that is cut, then closed in the middle", udp: func(q []byte) [][]byte { b := say(t, q, 0); b[2] |= 2; return [][]byte{b} },
			tcp: func(c net.Conn, q []byte) { c.Write(framed(right(q))[:60]) }, rcode: "SERVFAIL", why: "unexpected EOF"},
		{name: "one that is cut, then another's over TCP", udp: func(q []byte) [][]byte { b := say(t, q, 0); b[2] |= 2; return [][]byte{b} },
			tcp: func(c net.Conn, q []byte) { c.Write(framed(wrongID(right(q)))) }, rcode: "SERVFAIL", why: errStrays.Error()},
		{name: "never", udp: func(q []byte) [][]byte { return nil }, hasty: true, rcode: "SERVFAIL", why: "i/o timeout"},
		{name: "never over TCP", udp: func(q []byte) [][]byte { b := say(t, q, 0); b[2] |= 2; return [][]byte{b} },
			tcp: func(c net.Conn, q []byte) { io.Copy(io.Discard, c) }, hasty: true, rcode: "SERVFAIL", why: "i/o timeout"},
		{name: "no such name", udp: func(q []byte) [][]byte { return [][]byte{say(t, q, dnsmessage.RCodeNameError)} }, rcode: "NXDOMAIN"},
		{name: "one that cannot", udp: func(q []byte) [][]byte { return [][]byte{say(t, q, dnsmessage.RCodeServerFailure)} }, rcode: "SERVFAIL"},
		{name: "one that knows no EDNS", udp: func(q []byte) [][]byte {
			if q[11] != 0 {
				return [][]byte{say(t, q, dnsmessage.RCodeFormatError)}
			}
			return [][]byte{right(q)}
		}, rcode: "NOERROR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := ask(t, serve(t, c.udp, c.tcp))
			if c.hasty {
				l.each = 30 * time.Millisecond
			}
			m, op := l.do(asks(t, "WWW.example.ORG.", dnsmessage.TypeA, 0), false)
			if op.Target != "www.example.org" || op.Detail["rcode"] != c.rcode || op.Detail["type"] != "A" || op.Verdict != core.Allowed ||
				!strings.HasSuffix(op.Detail["why"], c.why) || c.why == "" && op.Detail["why"] != "" {
				t.Errorf("the operation %+v", op)
			}
			if len(m.Questions) != 1 || m.Questions[0].Name.String() != "WWW.example.ORG." {
				t.Errorf("the question comes back as %+v", m.Questions)
			}
			bound := l.Names.of(time.Now(), netip.MustParseAddr("203.0.113.6"))
			if c.rcode != "NOERROR" {
				if c.rcode != "NXDOMAIN" && m.RCode != dnsmessage.RCodeServerFailure || len(m.Answers) != 0 || bound != nil {
					t.Errorf("the box gets %+v and knows %q", m, bound)
				}
				return
			}
			if m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 5 || len(m.Additionals) != 0 || op.Detail["answers"] != rightText || op.Detail["server"] == "" {
				t.Errorf("the box gets %+v, the log says %q", m, op.Detail)
			}
			if want := []string{"www.example.org", "cdn.example.net", "edge.example.com"}; !slices.Equal(bound, want) {
				t.Errorf("the address is bound to %q, want %q", bound, want)
			}
			if other := l.Names.of(time.Now(), netip.MustParseAddr("203.0.113.66")); other != nil {
				t.Errorf("a record that the question does not lead to is bound to %q", other)
			}
		})
	}
}

func framed(b []byte) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...) }

// TestAnAnswerOf64KiB: it comes over TCP, goes to the box as it is over TCP and cut over UDP,
// and what it binds and what is said of it is bounded.
func TestAnAnswerOf64KiB(t *testing.T) {
	build := func(q []byte) []byte {
		plain := bytes.Clone(q[:len(q)-11])
		plain[11] = 0
		b := say(t, plain, 0)
		n := 0
		for len(b)+2+10+2 <= maxMessage { // www.example.org is www.example.org's alias; every tenth is an address
			b = append(b, 0xC0, headerSize, 0, typeCNAME, 0, classIN, 0, 0, 0, 9, 0, 2, 0xC0, headerSize)
			if n++; n%10 == 0 && len(b)+16 <= maxMessage {
				b = append(b, 0xC0, headerSize, 0, typeA, 0, classIN, 0, 0, 0, 9, 0, 4, 20, 0, byte(n>>8), byte(n))
				n++
			}
		}
		binary.BigEndian.PutUint16(b[6:], uint16(n))
		return b
	}
	s := serve(t, func(q []byte) [][]byte { b := say(t, q, 0); b[2] |= 2; return [][]byte{b} }, func(c net.Conn, q []byte) { c.Write(framed(build(q))) })
	l := ask(t, s)
	m, op := l.do(asks(t, "www.example.org.", dnsmessage.TypeA, 4096), false)
	if !m.Truncated || len(m.Answers) != 0 || op.Detail["rcode"] != "NOERROR" || len(op.Detail["answers"]) > maxAnswersText {
		t.Errorf("over UDP the box gets %+v, the log says %q", m.Header, op.Detail)
	}
	m, _ = l.do(asks(t, "www.example.org.", dnsmessage.TypeA, 0), true)
	if m.Truncated || len(m.Answers) < 4000 {
		t.Errorf("over TCP the box gets %d records", len(m.Answers))
	}
	if got := l.Names.of(time.Now(), netip.MustParseAddr("20.0.0.10")); len(got) == 0 || len(got) > maxChain {
		t.Errorf("an address behind a ring of aliases is %q", got)
	}
}

// TestNothingElseLeavesWithAQuestion: what the box writes around the name stays here.
func TestNothingElseLeavesWithAQuestion(t *testing.T) {
	s := serve(t, func(q []byte) [][]byte { return [][]byte{say(t, q, 0, a4("www.example.org.", "203.0.113.5"))} }, nil)
	l := ask(t, s)
	ids := map[uint16]bool{}
	for range 20 {
		m, _ := l.do(asks(t, "wWw.eXample.Org.", dnsmessage.TypeA, 1400), false)
		if len(m.Additionals) != 1 || len(m.Additionals[0].Body.(*dnsmessage.OPTResource).Options) != 0 || !m.Additionals[0].Header.DNSSECAllowed() {
			t.Errorf("the box gets the additional records %+v", m.Additionals)
		}
	}
	want, _ := hex.DecodeString("0100000100000000000103777777076578616d706c65036f726700000100010000290" + "4d0000080000000")
	for _, q := range s.asked() {
		ids[binary.BigEndian.Uint16(q)] = true
		if !bytes.Equal(q[2:], want) {
			t.Errorf("what leaves is\n%x, not\n%x", q[2:], want)
		}
	}
	if len(s.asked()) != 20 || len(ids) < 15 {
		t.Errorf("%d questions leave with %d ids", len(s.asked()), len(ids))
	}
}

func TestOtherServersAreAskedWhenOneFails(t *testing.T) {
	fails := serve(t, func(q []byte) [][]byte { return [][]byte{say(t, q, dnsmessage.RCodeServerFailure)} }, nil)
	refuses := serve(t, func(q []byte) [][]byte { return [][]byte{say(t, q, dnsmessage.RCodeRefused)} }, nil)
	knows := serve(t, func(q []byte) [][]byte { return [][]byte{say(t, q, 0, a4("www.example.org.", "203.0.113.5"))} }, nil)
	gone := serve(t, nil, nil)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.addr = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	pc.Close() // refused, by ICMP
	l := ask(t, gone, fails, refuses, knows)
	if m, op := l.do(asks(t, "www.example.org.", dnsmessage.TypeA, 0), false); len(m.Answers) != 1 || op.Detail["server"] != knows.addr.String() {
		t.Errorf("the box gets %+v, the log says %q", m, op.Detail)
	}
	if m, op := ask(t, fails, refuses).do(asks(t, "www.example.org.", dnsmessage.TypeA, 0), false); m.RCode != dnsmessage.RCodeServerFailure ||
		op.Detail["server"] != fails.addr.String() || len(fails.asked()) != 2 {
		t.Errorf("of two that fail the box gets %+v, the log says %q", m, op.Detail)
	}
	if m, op := ask(t).do(asks(t, "www.example.org.", dnsmessage.TypeA, 0), false); m.RCode != dnsmessage.RCodeServerFailure || op.Detail["why"] != errNoServers.Error() {
		t.Errorf("of none the box gets %+v, the log says %q", m, op.Detail)
	}
}

func TestQuestionsThatAreNone(t *testing.T) {
	l := ask(t, serve(t, func(q []byte) [][]byte { t.Errorf("%x was asked outside", q); return nil }, nil))
	change := func(f func(b []byte) []byte) []byte { return f(asks(t, "www.example.org.", dnsmessage.TypeA, 1232)) }
	typ := func(n uint16) []byte { return asks(t, "www.example.org.", dnsmessage.Type(n), 0) }
	wire := func(labels ...string) []byte {
		b := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
		for _, l := range labels {
			b = append(append(b, byte(len(l))), l...)
		}
		return append(b, 0, 0, 1, 0, 1)
	}
	for _, c := range []struct {
		name   string
		query  []byte
		rcode  string
		target string
	}{
		{"nothing", nil, "dropped", ""},
		{"half a header", make([]byte, 11), "dropped", ""},
		{"an answer", change(func(b []byte) []byte { b[2] |= 0x80; return b }), "dropped", ""},
		{"an update", change(func(b []byte) []byte { b[2] |= 5 << 3; return b }), "NOTIMP", ""},
		{"no question", change(func(b []byte) []byte { b[5] = 0; return b }), "FORMERR", ""},
		{"two questions", change(func(b []byte) []byte {
			b = b[:headerSize+21]
			b[5], b[11] = 2, 0
			return append(b, b[headerSize:]...)
		}), "FORMERR", ""},
		{"cut short", change(func(b []byte) []byte { return b[:20] }), "FORMERR", ""},
		{"65535 answers", change(func(b []byte) []byte { b[6], b[7] = 255, 255; return b }), "FORMERR", ""},
		{"an answer in the question", change(func(b []byte) []byte {
			b[7], b[11] = 1, 0
			return append(b[:headerSize+21], 0xC0, headerSize, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4)
		}), "FORMERR", "www.example.org"},
		{"a name that leads to itself", append([]byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, 0xC0, headerSize, 0, 1, 0, 1), "FORMERR", ""},
		{"a name that leads into the header", append([]byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, 1, 'a', 0xC0, 6, 0, 1, 0, 1), "FORMERR", ""},
		{"two OPT records", change(func(b []byte) []byte { b[11] = 2; return append(b, b[headerSize+21:]...) }), "FORMERR", "www.example.org"},
		{"EDNS of the next version", change(func(b []byte) []byte { b[headerSize+21+6] = 1; return b }), "BADVERS", "www.example.org"},
		{"class CHAOS", change(func(b []byte) []byte { b[headerSize+20] = 3; return b }), "REFUSED", "www.example.org"},
		{"ANY", typ(255), "REFUSED", "www.example.org"},
		{"AXFR", typ(252), "REFUSED", "www.example.org"},
		{"IXFR", typ(251), "REFUSED", "www.example.org"},
		{"OPT", typ(41), "REFUSED", "www.example.org"},
		{"a dot in a label", wire("a.b", "example"), "REFUSED", `a\046b.example`},
		{"bytes of no name", wire("\x00\xff \"", "Example"), "REFUSED", `\000\255\032\034.example`},
		{"a name of 255 bytes", wire(strings.Repeat("\xff", 63), strings.Repeat("a", 63), strings.Repeat("a", 63), strings.Repeat("a", 61)), "REFUSED",
			strings.Repeat(`\255`, 63) + strings.Repeat("."+strings.Repeat("a", 63), 2) + "." + strings.Repeat("a", 61)},
		{"a name of 256 bytes", wire(strings.Repeat("a", 63), strings.Repeat("a", 63), strings.Repeat("a", 63), strings.Repeat("a", 62)), "FORMERR", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, op := l.do(append(c.query, make([]byte, max(0, 2-len(c.query)))...), false)
			if op.Verdict != core.Blocked || op.Detail["rcode"] != c.rcode || op.Target != c.target || op.Detail["why"] == "" {
				t.Errorf("the operation %+v", op)
			}
			rcode := map[string]dnsmessage.RCode{"NOTIMP": 4, "FORMERR": 1, "REFUSED": 5, "BADVERS": 0}[c.rcode]
			if c.rcode != "dropped" && (!m.Response || m.RCode != rcode || len(m.Answers) != 0) {
				t.Errorf("the box gets %+v", m)
			}
			if c.rcode == "BADVERS" && (len(m.Additionals) != 1 || m.Additionals[0].Header.ExtendedRCode(m.RCode) != 16) {
				t.Errorf("the box gets %+v", m)
			}
		})
	}
}

func TestNamesAreJudged(t *testing.T) {
	s := serve(t, func(q []byte) [][]byte { return [][]byte{say(t, q, 0)} }, nil)
	l := ask(t, s)
	p := l.Policy()
	for _, r := range []string{"block *.tracker.example", "allow good.example:443"} {
		if err := p.Network.AddRule(r, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		outbound core.Stance
		name     string
		verdict  core.Verdict
		rule     string
	}{
		{core.Allow, "x.tracker.example.", core.Blocked, "block *.tracker.example"},
		{core.Allow, "tracker.example.", core.Allowed, "net.dns"},
		{core.Ask, "other.example.", core.Allowed, "net.dns"},
		{core.Block, "other.example.", core.Blocked, "net.dns"},
		{core.Block, "GOOD.example.", core.Allowed, "allow good.example:443"},
		{core.Block, ".", core.Blocked, "net.dns"},
		{core.Allow, ".", core.Allowed, "net.dns"},
	} {
		p.Network.Outbound = c.outbound
		had := len(s.asked())
		m, op := l.do(asks(t, c.name, dnsmessage.TypeNS, 0), false)
		if op.Verdict != c.verdict || !strings.HasSuffix(op.Rule, c.rule) || (len(s.asked()) > had) != (c.verdict == core.Allowed) ||
			(m.RCode == dnsmessage.RCodeNameError) != (c.verdict == core.Blocked) || c.verdict == core.Blocked && op.Detail["rcode"] != "NXDOMAIN" {
			t.Errorf("%s where the stance is %s: %+v, the box gets %+v", c.name, c.outbound, op, m.Header)
		}
	}
	p.Network.Outbound = core.Allow
	past := netip.MustParseAddrPort("9.9.9.9:53")
	if b := l.answer(t.Context(), asks(t, "a.example.", dnsmessage.TypeA, 0), false, curl, past); b == nil {
		t.Error("a question for another server is not answered")
	}
	if op := l.ops[len(l.ops)-1]; op.Verdict != core.Redirected || op.Rule != "own resolver" || op.Detail["asked"] != "9.9.9.9:53" || op.Leak {
		t.Errorf("the operation %+v", op)
	}
	for range maxQuestions {
		l.places <- struct{}{}
	}
	if m, op := l.do(asks(t, "a.example.", dnsmessage.TypeA, 0), false); m.RCode != dnsmessage.RCodeServerFailure || op.Detail["why"] != "too many" {
		t.Errorf("one question too many: %+v", op)
	}
}

func TestNamesThatAreAnsweredHere(t *testing.T) {
	l := ask(t, serve(t, func(q []byte) [][]byte { t.Errorf("%x was asked outside", q); return nil }, nil))
	for _, c := range []struct {
		name    string
		typ     dnsmessage.Type
		rcode   string
		answers string
	}{
		{"localhost.", dnsmessage.TypeA, "NOERROR", "A 127.0.0.1"},
		{"My.LocalHost.", dnsmessage.TypeAAAA, "NOERROR", "AAAA ::1"},
		{"localhost.", dnsmessage.TypeTXT, "NOERROR", ""},
		{"host.sandglass.", dnsmessage.TypeA, "NXDOMAIN", ""},
		{"_dns.resolver.arpa.", 64, "NXDOMAIN", ""},
		{"use-application-dns.net.", dnsmessage.TypeA, "NXDOMAIN", ""},
		{"1.2.0.192.in-addr.arpa.", dnsmessage.TypePTR, "NXDOMAIN", ""},
		{"2.2.0.192.in-addr.arpa.", dnsmessage.TypePTR, "NXDOMAIN", ""},
		{"7.1.168.192.in-addr.arpa.", dnsmessage.TypePTR, "NXDOMAIN", ""},
		{"254.169.254.169.in-addr.arpa.", dnsmessage.TypePTR, "NXDOMAIN", ""},
		{ptr("2001:db8:5361::1"), dnsmessage.TypePTR, "NXDOMAIN", ""},
		{ptr("fe80::1"), dnsmessage.TypePTR, "NXDOMAIN", ""},
	} {
		m, op := l.do(asks(t, c.name, c.typ, 0), false)
		if op.Verdict != core.Allowed || op.Detail["rcode"] != c.rcode || op.Detail["answers"] != c.answers || op.Detail["server"] != "sandglass" ||
			len(m.Answers) != strings.Count(c.answers, " ") || (m.RCode == dnsmessage.RCodeNameError) != (c.rcode == "NXDOMAIN") {
			t.Errorf("%s: %+v, the box gets %+v", c.name, op, m)
		}
	}
	for name, want := range map[string]string{"5.113.0.203.in-addr.arpa": "203.0.113.5", strings.TrimSuffix(ptr("2001:db8::5"), "."): "2001:db8::5",
		"113.0.203.in-addr.arpa": "", "x.113.0.203.in-addr.arpa": "", "5.113.0.203.example": "", "1.5.113.0.203.in-addr.arpa": "", "5.ip6.arpa": ""} {
		if a, ok := reversed(name); ok != (want != "") || ok && a.String() != want {
			t.Errorf("%s is of %s, want %q", name, a, want)
		}
	}
}

// ptr is the name that stands for an IPv6 address.
func ptr(addr string) string {
	a := netip.MustParseAddr(addr).As16()
	digits := strings.Split(hex.EncodeToString(a[:]), "")
	slices.Reverse(digits)
	return strings.Join(digits, ".") + ".ip6.arpa."
}

func TestBehindAProxyNoQuestionLeaves(t *testing.T) {
	l := ask(t, serve(t, func(q []byte) [][]byte { t.Errorf("%x was asked outside", q); return nil }, nil))
	l.Fake = true
	if err := l.Policy().Network.AddRule("block bad.example", false); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		typ     dnsmessage.Type
		rcode   string
		answers string
	}{
		{"WWW.example.org.", dnsmessage.TypeA, "NOERROR", "A 198.18.0.1"},
		{"www.example.org.", dnsmessage.TypeAAAA, "NOERROR", "AAAA fd53:616e:6473:1::1"},
		{"other.example.", dnsmessage.TypeA, "NOERROR", "A 198.18.0.2"},
		{"www.example.org.", dnsmessage.TypeTXT, "NOERROR", ""},
		{"1.0.18.198.in-addr.arpa.", dnsmessage.TypePTR, "NXDOMAIN", ""},
		{"bad.example.", dnsmessage.TypeA, "NXDOMAIN", ""},
		{"localhost.", dnsmessage.TypeA, "NOERROR", "A 127.0.0.1"},
		// A proxy would take them for addresses, of its own machine and network.
		{"127.0.0.1.", dnsmessage.TypeA, "NXDOMAIN", ""},
		{"169.254.169.254.", dnsmessage.TypeAAAA, "NXDOMAIN", ""},
		{"127.1.", dnsmessage.TypeA, "NXDOMAIN", ""},
		{"0x7f000001.", dnsmessage.TypeA, "NXDOMAIN", ""},
	} {
		m, op := l.do(asks(t, c.name, c.typ, 0), false)
		if op.Detail["rcode"] != c.rcode || op.Detail["answers"] != c.answers || len(m.Answers) != strings.Count(c.answers, " ") {
			t.Errorf("%s: %+v, the box gets %+v", c.name, op, m)
		}
		for _, a := range m.Answers {
			if a.Header.TTL != fakeTTL || a.Header.Name.String() != c.name {
				t.Errorf("the box gets %+v", a)
			}
		}
	}
	if got := l.Names.of(time.Now(), netip.MustParseAddr("198.18.0.1")); !slices.Equal(got, []string{"www.example.org"}) {
		t.Errorf("the address stands for %q", got)
	}
}

func TestAnAnswerIsAsLongAsTheBoxTakesIt(t *testing.T) {
	records := func(n int) (rs []dnsmessage.Resource) {
		for i := range n {
			rs = append(rs, rr("www.example.org.", 300, &dnsmessage.AResource{A: [4]byte{20, 0, 0, byte(i)}}))
		}
		return rs
	}
	s := serve(t, func(q []byte) [][]byte { return [][]byte{say(t, q, 0, records(70)...)} }, nil) // of 1170 bytes
	for _, c := range []struct {
		edns   int
		stream bool
		cut    bool
	}{{0, false, true}, {0, true, false}, {100, false, true}, {1000, false, true}, {1232, false, false}, {65535, false, false}} {
		m, op := ask(t, s).do(asks(t, "www.example.org.", dnsmessage.TypeA, c.edns), c.stream)
		want := 70
		if c.cut {
			want = 0
		}
		if m.Truncated != c.cut || len(m.Answers) != want || (len(m.Additionals) == 1) != (c.edns > 0) || len(op.Detail["answers"]) > maxAnswersText {
			t.Errorf("EDNS of %d, stream %v: cut %v, %d records, %d additional", c.edns, c.stream, m.Truncated, len(m.Answers), len(m.Additionals))
		}
	}
}

func TestHintsBindToo(t *testing.T) {
	hints := append([]byte{0, 1, 0}, // priority 1, the name itself
		0, 1, 0, 3, 2, 'h', '2', 0, 4, 0, 8, 203, 0, 113, 5, 203, 0, 113, 6, 0, 6, 0, 16, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5)
	s := serve(t, func(q []byte) [][]byte {
		return [][]byte{say(t, q, 0, alias("www.example.org.", "edge.example.com."), rr("edge.example.com.", 60, &dnsmessage.UnknownResource{Type: typeHTTPS, Data: hints}))}
	}, nil)
	l := ask(t, s)
	_, op := l.do(asks(t, "www.example.org.", typeHTTPS, 0), false)
	for _, a := range []string{"203.0.113.5", "203.0.113.6", "2001:db8::5"} {
		if got := l.Names.of(time.Now(), netip.MustParseAddr(a)); !slices.Equal(got, []string{"www.example.org", "edge.example.com"}) {
			t.Errorf("%s is %q", a, got)
		}
	}
	if op.Detail["type"] != "HTTPS" || !strings.HasSuffix(op.Detail["answers"], "HTTPS (42 bytes)") {
		t.Errorf("the operation %+v", op)
	}
}

func TestATunnelIsReported(t *testing.T) {
	l := ask(t, serve(t, func(q []byte) [][]byte { return [][]byte{say(t, q, dnsmessage.RCodeNameError)} }, nil))
	for i := range 60 {
		l.answer(t.Context(), asks(t, fmt.Sprintf("%030x.%030x.exfil.example.", i*7919, i*104729+0xdeadbeef), dnsmessage.TypeA, 0), false, curl, ours)
	}
	var alarms []*core.Operation
	for _, op := range l.ops {
		if op.Action == core.ActTunnel {
			alarms = append(alarms, op)
		}
	}
	if len(alarms) != 1 || len(l.ops) != 61 {
		t.Fatalf("%d alarms in %d operations", len(alarms), len(l.ops))
	}
	if op := alarms[0]; op.Target != "exfil.example" || !op.Leak || op.Verdict != core.Allowed || op.Surface != core.NetDNS || op.PID != 12 ||
		op.Detail["why"] == "" || op.Detail["questions"] == "" || op.Detail["distinct"] == "" || op.Detail["bytes"] == "" {
		t.Errorf("the alarm %+v", op)
	}
}

func TestManyAskAtOnce(t *testing.T) {
	s := serve(t, func(q []byte) [][]byte { return [][]byte{say(t, q, 0, a4("www.example.org.", "203.0.113.5"))} }, nil)
	l := ask(t, s)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 20 {
				if m := l.answer(t.Context(), asks(t, "www.example.org.", dnsmessage.TypeA, 0), false, curl, ours); len(m) != headerSize+21+16 {
					t.Errorf("an answer of %d bytes: %x", len(m), m)
				}
			}
		})
	}
	all.Wait()
	if len(l.ops) != 320 {
		t.Errorf("%d operations", len(l.ops))
	}
}

func TestTheSystemsServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	c, now := resolvConf{path: path}, time.Unix(1e9, 0)
	expect := func(want ...string) {
		t.Helper()
		var got []string
		now = now.Add(2 * time.Second)
		for _, s := range c.upstreams(now) {
			got = append(got, s.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("the servers are %q, want %q", got, want)
		}
	}
	write := func(text string) {
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	expect("127.0.0.1:53")
	write("# nameserver 1.1.1.1\nsearch example.org\nnameserver 127.0.0.53\nnameserver\tfe80::1%eth0 \nnameserver x\nnameserver\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n")
	expect("127.0.0.53:53", "[fe80::1%eth0]:53", "10.0.0.1:53")
	write("nameserver 10.0.0.9\n" + strings.Repeat("#", maxResolvConf))
	if got := c.upstreams(now); len(got) != 3 {
		t.Errorf("it was looked at again at once: %v", got)
	}
	expect("10.0.0.9:53")
	write(strings.Repeat("#", maxResolvConf) + "\nnameserver 10.0.0.9\n")
	expect("127.0.0.1:53")
	if got := systemUpstreams(); len(got) == 0 || got[0].Port() != 53 {
		t.Errorf("this machine's are %v", got)
	}
}

// FuzzQuestion: whatever the box sends harms nothing, and what it gets can be read.
func FuzzQuestion(f *testing.F) {
	f.Add(asks(f, "www.example.org.", dnsmessage.TypeA, 1232))
	f.Add(asks(f, "1.2.0.192.in-addr.arpa.", dnsmessage.TypePTR, 0))
	f.Add([]byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xC0, headerSize, 0, 1, 0, 1})
	l := ask(f)
	fake := ask(f)
	fake.Fake = true
	f.Fuzz(func(t *testing.T, query []byte) {
		for _, l := range []*logged{l, fake} {
			l.ops = nil
			b := l.answer(t.Context(), query, false, curl, ours)
			if len(l.ops) == 0 {
				t.Fatal("a question is not on record")
			}
			if op := l.ops[0]; len(op.Target) > 4*maxName || strings.ContainsRune(op.Target, 0) {
				t.Errorf("the target is %q", op.Target)
			}
			if b == nil {
				if len(query) >= headerSize && query[2]&0x80 == 0 {
					t.Error("a question gets no answer")
				}
				continue
			}
			if m, err := parseMessage(b); err != nil || m.id != binary.BigEndian.Uint16(query) || m.flags&flagResponse == 0 || len(b) > mostUDP {
				t.Errorf("the box gets %x: %v", b, err)
			}
			if q, rcode, _ := parseQuestion(query); rcode == rcodeOK {
				out := q.outside(false)
				if m, err := parseMessage(out); err != nil || len(m.asked) != 1 || nameText(out, m.asked[0].name) != q.name {
					t.Errorf("what leaves is %x: %v", out, err)
				}
			}
		}
	})
}

// FuzzAnswer: whatever comes from outside harms nothing, and what the box gets of it can be
// read.
func FuzzAnswer(f *testing.F) {
	query := asks(f, "www.example.org.", dnsmessage.TypeA, 0)
	q, _, _ := parseQuestion(query)
	f.Add(say(f, query, 0, alias("www.example.org.", "cdn.example.net."), a4("cdn.example.net.", "203.0.113.5")))
	f.Add(say(f, asks(f, "www.example.org.", dnsmessage.TypeA, 1232), 0, rr("www.example.org.", 1, &dnsmessage.MXResource{MX: dnsmessage.MustNewName("x.")}),
		rr("www.example.org.", 1, &dnsmessage.TXTResource{TXT: []string{"a", ""}}),
		rr("www.example.org.", 1, &dnsmessage.SOAResource{NS: dnsmessage.MustNewName("x."), MBox: dnsmessage.MustNewName("y.")}),
		rr("www.example.org.", 1, &dnsmessage.SRVResource{Target: dnsmessage.MustNewName("x.")}),
		rr("www.example.org.", 1, &dnsmessage.UnknownResource{Type: typeHTTPS, Data: []byte{0, 1, 0, 0, 4, 0, 4, 1, 2, 3, 4}})))
	f.Fuzz(func(t *testing.T, b []byte) {
		answers(b, q.outside(true))
		m, err := parseMessage(b)
		if err != nil {
			return
		}
		if len(m.answersText()) > maxAnswersText || m.rcode() < 0 {
			t.Error("too much is said of an answer")
		}
		for i := range m.records {
			nameText(m.raw, m.records[i].name)
			m.addrs(&m.records[i])
		}
		if chain := m.chain(q.name); len(chain) > maxChain {
			t.Errorf("a chain of %d", len(chain))
		}
		if len(m.asked) != 1 || m.asked[0].end != headerSize+len(q.raw) || !answers(b, withID(q.outside(true), m.id)) {
			return // not given to the box
		}
		l := ask(t)
		l.learn(&q, &m)
		out := q.handOn(&m)
		if again, err := parseMessage(out); err != nil || again.id != q.id || nameText(out, headerSize) != q.name {
			t.Errorf("the box gets %x of %x: %v", out, b, err)
		}
	})
}

func withID(b []byte, id uint16) []byte { binary.BigEndian.PutUint16(b, id); return b }

// BenchmarkAnswer is a question and its answer, without the way to the server.
func BenchmarkAnswer(b *testing.B) {
	query := asks(b, "www.example.org.", dnsmessage.TypeA, 1232)
	l := ask(b)
	l.Log = func(*core.Operation) {}
	b.Run("forwarded", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			q, _, _ := parseQuestion(query)
			l.Policy().DecideName(q.name)
			out := q.outside(false)
			raw := append(out[:len(out)-11:len(out)-11], 0xC0, headerSize, 0, typeA, 0, classIN, 0, 0, 1, 0, 0, 4, 203, 0, 113, 5)
			raw[2], raw[7], raw[11] = 0x81, 1, 0
			if !answers(raw, out) {
				b.Fatal("not an answer")
			}
			m, err := parseMessage(raw)
			if err != nil {
				b.Fatal(err)
			}
			l.learn(&q, &m)
			if len(q.handOn(&m)) == 0 || m.answersText() == "" {
				b.Fatal("no answer")
			}
			l.tunnels.saw(time.Now(), q.name, "A")
		}
	})
	b.Run("answered here", func(b *testing.B) {
		query := asks(b, "localhost.", dnsmessage.TypeA, 0)
		b.ReportAllocs()
		for b.Loop() {
			if l.answer(b.Context(), query, false, curl, ours) == nil {
				b.Fatal("no answer")
			}
		}
	})
}
