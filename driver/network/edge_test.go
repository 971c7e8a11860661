package network

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// sink is a wire that keeps what the box would get.
type sink struct {
	mu   sync.Mutex
	got  [][]byte
	over chan struct{}
}

func newSink() *sink { return &sink{over: make(chan struct{})} }

func (s *sink) read([]byte) ([]byte, error) { <-s.over; return nil, errAborted }
func (s *sink) close()                      { close(s.over) }
func (s *sink) send(_ [sys.VnetHeader]byte, parts [][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = append(s.got, bytes.Join(parts, nil))
	return nil
}

func (s *sink) take() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.got
	s.got = nil
	return g
}

// sealed is a network whose policy lets nothing out, on a wire that leads nowhere.
func sealed(t testing.TB, rules ...string) (*Network, *sink, func() []core.Operation) {
	p, err := core.BuiltinPolicy("")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Set("net.out", "block"); err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		if err := p.Network.AddRule(r, false); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var ops []core.Operation
	s := newSink()
	n, err := start(Options{Tun: -1, Diag: -1, Policy: func() *core.Policy { return p }, Log: func(op *core.Operation) {
		mu.Lock()
		ops = append(ops, *op)
		mu.Unlock()
	}}, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n, s, func() []core.Operation {
		mu.Lock()
		defer mu.Unlock()
		o := ops
		ops = nil
		return o
	}
}

func tcpSYN(dst netip.AddrPort, port uint16) []byte {
	src := Box4
	if dst.Addr().Is6() {
		src = Box6
	}
	b := ipHeader(nil, src, dst.Addr(), protoTCP, sizeTCP)
	at := len(b)
	b = append(b, make([]byte, sizeTCP)...)
	binary.BigEndian.PutUint16(b[at:], port)
	binary.BigEndian.PutUint16(b[at+2:], dst.Port())
	binary.BigEndian.PutUint32(b[at+4:], 7)
	b[at+12], b[at+13] = sizeTCP/4<<4, flagSYN
	return b
}

// What is refused gets the answer of a firewall that says so, quoting the packet, and is on
// record once, however often it is sent.
func TestRefusedPacketsAreAnswered(t *testing.T) {
	for _, c := range []struct {
		name        string
		packet      []byte
		kind, code  byte
		errno       string
		surface     core.Surface
		target      string
		silent      bool
		answerProto uint8
	}{
		{"TCP to the Internet", tcpSYN(netip.MustParseAddrPort("203.0.113.9:80"), 4000), 3, 13, "EHOSTUNREACH", core.NetOut, "203.0.113.9:80", false, protoICMP},
		{"TCP over IPv6", tcpSYN(netip.MustParseAddrPort("[2001:db8:beef::1]:80"), 4000), 1, 1, "EACCES", core.NetOut, "[2001:db8:beef::1]:80", false, protoICMP6},
		{"TCP to the metadata service", tcpSYN(netip.MustParseAddrPort("169.254.169.254:80"), 4000), 3, 13, "EHOSTUNREACH", core.NetOut, "169.254.169.254:80", false, protoICMP},
		{"TCP to loopback", tcpSYN(netip.MustParseAddrPort("127.0.0.1:80"), 4000), 3, 13, "EHOSTUNREACH", core.IPCLoopback, "127.0.0.1:80", false, protoICMP},
		{"UDP", udpPacket(netip.AddrPortFrom(Box4, 4000), netip.MustParseAddrPort("203.0.113.9:123"), []byte("x")), 3, 13, "EHOSTUNREACH", core.NetOut, "203.0.113.9:123", false, protoICMP},
		{"multicast", udpPacket(netip.AddrPortFrom(Box4, 4000), netip.MustParseAddrPort("224.0.0.251:5353"), []byte("x")), 0, 0, "EHOSTUNREACH", core.NetOut, "224.0.0.251:5353", true, 0},
		{"echo", func() []byte {
			b := echoReply(Box4, netip.MustParseAddr("203.0.113.9"), 9, 1, []byte("data"))
			b[sizeIPv4] = 8
			return b
		}(), 3, 13, "EHOSTUNREACH", core.NetOut, "203.0.113.9", false, protoICMP},
		{"DNS over TLS", tcpSYN(netip.MustParseAddrPort("203.0.113.9:853"), 4000), 3, 13, "EHOSTUNREACH", core.NetDNS, "203.0.113.9:853", false, protoICMP},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, s, ops := sealed(t)
			for range 3 {
				n.receive([sys.VnetHeader]byte{}, bytes.Clone(c.packet))
				n.settled()
			}
			got := s.take()
			if c.silent != (len(got) == 0) {
				t.Fatalf("%d packets came back", len(got))
			}
			for _, b := range got {
				head := sizeIPv4
				proto := b[9]
				if b[0]>>4 == 6 {
					head, proto = sizeIPv6, b[6]
				}
				if proto != c.answerProto || b[head] != c.kind || b[head+1] != c.code {
					t.Errorf("answered by protocol %d, type %d, code %d", proto, b[head], b[head+1])
				}
				if quoted := b[head+sizeEcho:]; !bytes.Equal(quoted, c.packet) {
					t.Errorf("it quotes %x, not %x", quoted, c.packet)
				}
			}
			o := ops()
			if len(o) != 1 || o[0].Verdict != core.Blocked || o[0].Errno != c.errno || o[0].Surface != c.surface || o[0].Target != c.target {
				t.Errorf("on record: %+v", o)
			}
		})
	}
}

// settled waits until no connection is being opened.
func (n *Network) settled() {
	for range maxOpenings {
		n.openings <- struct{}{}
	}
	for range maxOpenings {
		<-n.openings
	}
}

func TestPacketsThatAreNone(t *testing.T) {
	good := udpPacket(netip.AddrPortFrom(Box4, 4000), netip.MustParseAddrPort("203.0.113.9:123"), []byte("data"))
	if _, ok := parsePacket(good); !ok {
		t.Fatal("a good packet is none")
	}
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for name, b := range map[string][]byte{
		"nothing": {}, "cut": good[:25], "short header": change(0, 0x44), "header beyond the end": change(0, 0x4f),
		"total length beyond the end": change(2, 0xff), "first fragment": change(6, 0x20), "later fragment": change(7, 1),
		"another protocol": change(9, 132), "UDP length beyond the end": change(24, 0xff), "UDP length of less than its header": change(25, 3), "version 5": change(0, 0x55),
	} {
		if p, ok := parsePacket(b); ok {
			t.Errorf("%s: taken for %+v", name, p)
		}
	}
}

// Whatever the box sends, nothing breaks and nothing gets out: the policy lets nothing.
func FuzzReceive(f *testing.F) {
	f.Add(tcpSYN(netip.MustParseAddrPort("203.0.113.9:80"), 4000))
	f.Add(tcpSYN(netip.MustParseAddrPort("[2001:db8:beef::1]:53"), 4000))
	f.Add(udpPacket(netip.AddrPortFrom(Box4, 4000), netip.MustParseAddrPort("203.0.113.9:123"), []byte("x")))
	f.Add(udpPacket(netip.AddrPortFrom(Box6, 4000), netip.MustParseAddrPort("[2001:db8:beef::1]:53"), []byte("xxxxxxxxxxxxxxxx")))
	f.Add(echoReply(Box4, Resolver4, 9, 1, []byte("data")))
	ack := tcpSYN(netip.MustParseAddrPort("203.0.113.9:80"), 4000)
	ack[sizeIPv4+13] = flagACK
	f.Add(ack)
	n, s, ops := sealed(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := parsePacket(b)
		if ok && (len(p.whole) > len(b) || len(p.segment) > len(p.whole) || !p.src.Addr().IsValid() || !p.dst.Addr().IsValid()) {
			t.Errorf("%x: %+v", b, p)
		}
		n.receive([sys.VnetHeader]byte{}, bytes.Clone(b))
		for _, got := range s.take() {
			if len(got) < sizeIPv4 || len(got) > MTU {
				t.Errorf("%x came back", got)
			}
		}
		for _, op := range ops() {
			if op.Verdict == core.Allowed && op.Surface != core.NetDNS {
				t.Errorf("%x: %+v", b, op)
			}
		}
	})
}

// Nobody answers for a group: a refused SYN to one gets nothing, and is on record.
func TestRefusedToAGroup(t *testing.T) {
	n, s, ops := sealed(t)
	n.receive([sys.VnetHeader]byte{}, tcpSYN(netip.MustParseAddrPort("224.0.0.1:80"), 4000))
	n.settled()
	if got, o := s.take(), ops(); len(got) != 0 || len(o) != 1 || o[0].Verdict != core.Blocked {
		t.Errorf("%x came back; on record: %+v", got, o)
	}
}
