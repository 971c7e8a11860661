package network

import (
	"encoding/binary"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"github.com/sandglass/sandglass/driver/sys"
)

const (
	protoICMP, protoTCP, protoUDP, protoICMP6 = 1, 6, 17, 58

	sizeIPv4, sizeIPv6 = 20, 40
	sizeTCP, sizeUDP   = 20, 8
	sizeEcho           = 8

	flagFIN, flagSYN, flagRST, flagACK = 1, 2, 4, 16
)

// packet is an IP packet of the box, checked: every length in it is true.
type packet struct {
	whole    []byte // from the IP header on
	v6       bool
	proto    uint8
	src, dst netip.AddrPort // of ICMP echo requests src has the identifier
	segment  []byte         // from the transport's header on
	df       bool           // it must not be sent in fragments
}

// parsePacket reads a packet. Everything in it may be a lie. What is not whole, is a
// fragment, has an extension header or is of another protocol than the three is none: the
// box's own kernel sends such only for itself (router solicitations, multicast groups).
func parsePacket(b []byte) (p packet, ok bool) {
	if len(b) < 1 {
		return p, false
	}
	var src, dst netip.Addr
	switch b[0] >> 4 {
	case 4:
		if len(b) < sizeIPv4 {
			return p, false
		}
		head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if head < sizeIPv4 || total < head || total > len(b) {
			return p, false
		}
		frag := binary.BigEndian.Uint16(b[6:])
		if frag&0x3fff != 0 { // more to come, or an offset
			return p, false
		}
		p.df, p.proto = frag&0x4000 != 0, b[9]
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		p.whole, p.segment = b[:total], b[head:total]
	case 6:
		if len(b) < sizeIPv6 {
			return p, false
		}
		size := int(binary.BigEndian.Uint16(b[4:]))
		if size == 0 || sizeIPv6+size > len(b) {
			return p, false
		}
		p.v6, p.df, p.proto = true, true, b[6]
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		if src.Is4In6() || dst.Is4In6() {
			return p, false // never on a wire (RFC 4942, 2.2)
		}
		p.whole, p.segment = b[:sizeIPv6+size], b[sizeIPv6:sizeIPv6+size]
	default:
		return p, false
	}
	s := p.segment
	var sport, dport uint16
	switch {
	case p.proto == protoTCP:
		if len(s) < sizeTCP || int(s[12]>>4)*4 < sizeTCP || int(s[12]>>4)*4 > len(s) {
			return p, false
		}
		sport, dport = binary.BigEndian.Uint16(s), binary.BigEndian.Uint16(s[2:])
	case p.proto == protoUDP:
		if len(s) < sizeUDP {
			return p, false
		}
		size := int(binary.BigEndian.Uint16(s[4:]))
		if size < sizeUDP || size > len(s) {
			return p, false
		}
		p.segment = s[:size]
		sport, dport = binary.BigEndian.Uint16(s), binary.BigEndian.Uint16(s[2:])
	case p.proto == protoICMP && !p.v6 || p.proto == protoICMP6 && p.v6:
		if len(s) < sizeEcho || s[0] != echoRequest(p.v6) || s[1] != 0 {
			return p, false
		}
		sport = binary.BigEndian.Uint16(s[4:])
	default:
		return p, false
	}
	p.src, p.dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return p, true
}

func (p *packet) key() flowKey { return flowKey{p.proto, p.src, p.dst} }

func echoRequest(v6 bool) byte {
	if v6 {
		return 128
	}
	return 8
}

// read takes the box's packets until the device is closed.
func (n *Network) read() {
	buf := make([]byte, 1+sys.VnetHeader+MTU)
	for {
		w := *n.wire.Load()
		b, err := w.read(buf)
		if err != nil {
			l, guest := w.(*lane)
			if !guest || n.ctx.Err() != nil {
				return
			}
			l.c.Close()
			if err := n.rejoin(l); err != nil {
				l.close()
				if n.ctx.Err() == nil && err != errAborted {
					n.trouble(err)
				}
				return
			}
			l.close()
			continue
		}
		if len(b) > sys.VnetHeader {
			n.receive([sys.VnetHeader]byte(b), b[sys.VnetHeader:])
		}
	}
}

// receive takes one packet, which is the caller's again afterwards.
func (n *Network) receive(head [sys.VnetHeader]byte, b []byte) {
	p, ok := parsePacket(b)
	n.packets.Add(1)
	if !ok || p.src.Addr() != Box4 && p.src.Addr() != Box6 {
		return
	}
	f := n.find(p.key())
	if n.elsewhere(&p, head, f) {
		return
	}
	switch {
	case p.proto == protoUDP:
		n.datagram(&p, f)
	case p.proto != protoTCP:
		n.echo(&p, f)
	case p.segment[13]&(flagSYN|flagACK|flagRST|flagFIN) == flagSYN:
		n.syn(&p, f)
	default:
		n.capturePacket(true, p.whole, f)
		if f != nil {
			f.pktsOut.Add(1)
			if f.overdue(p.segment[13]) {
				return
			}
		}
		n.link.inject(p.v6, p.whole)
	}
}

// overdue says whether a packet of the box's is a reset that comes when both sides have closed.
// Its kernel sends the FIN again when it is not acknowledged within microseconds (RFC 8985, 7), and
// of the second acknowledgement it knows no connection any more: that is the end of one that
// ended well.
func (f *flow) overdue(flags byte) bool {
	const most = 8 // more are of one that is gone while something is still to come to it
	if flags&flagFIN != 0 {
		f.boxFin.Store(true)
	}
	return flags&flagRST != 0 && f.boxFin.Load() && f.ourFin.Load() && f.resets.Add(1) <= most
}

// write hands a packet to the box, from its IP header on; none for an answer that is not
// given ([icmpError]).
func (n *Network) write(f *flow, b []byte) {
	if len(b) == 0 {
		return
	}
	n.capturePacket(false, b, f)
	(*n.wire.Load()).send([sys.VnetHeader]byte{}, [][]byte{b}) // what the box's kernel does not take is lost, as on any network
}

func (n *Network) capturePacket(out bool, b []byte, f *flow) {
	if n.capture == nil {
		return
	}
	comment := ""
	if f != nil {
		comment = "flow " + f.number()
		if f.owner.Proc != "" {
			comment += ", process " + string(f.owner.Proc) + " " + f.owner.Exe
		}
	}
	n.capture.packet(time.Now(), out, b, comment)
}

// ipHeader appends the IP header of a packet from src to dst that carries size bytes.
func ipHeader(b []byte, src, dst netip.Addr, proto uint8, size int) []byte {
	at := len(b)
	if src.Is4() {
		b = append(b, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, proto, 0, 0)
		binary.BigEndian.PutUint16(b[at+2:], uint16(sizeIPv4+size))
		b = append(b, src.AsSlice()...)
		b = append(b, dst.AsSlice()...)
		binary.BigEndian.PutUint16(b[at+10:], ^checksum.Checksum(b[at:at+sizeIPv4], 0))
		return b
	}
	b = append(b, 0x60, 0, 0, 0, 0, 0, proto, 64)
	binary.BigEndian.PutUint16(b[at+4:], uint16(size))
	b = append(b, src.AsSlice()...)
	return append(b, dst.AsSlice()...)
}

// pseudo is the sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1).
func pseudo(src, dst netip.Addr, proto uint8, size int) uint16 {
	s := checksum.Checksum(src.AsSlice(), 0)
	s = checksum.Checksum(dst.AsSlice(), s)
	return checksum.Combine(checksum.Combine(s, uint16(proto)), uint16(size))
}

// reset answers a SYN as a closed port does (RFC 9293, 3.10.7.1).
func reset(syn *packet) []byte {
	b := ipHeader(make([]byte, 0, sizeIPv6+sizeTCP), syn.dst.Addr(), syn.src.Addr(), protoTCP, sizeTCP)
	at := len(b)
	b = append(b, make([]byte, sizeTCP)...)
	t := b[at:]
	binary.BigEndian.PutUint16(t, syn.dst.Port())
	binary.BigEndian.PutUint16(t[2:], syn.src.Port())
	data := len(syn.segment) - int(syn.segment[12]>>4)*4
	binary.BigEndian.PutUint32(t[8:], binary.BigEndian.Uint32(syn.segment[4:])+1+uint32(data))
	t[12], t[13] = sizeTCP/4<<4, flagRST|flagACK
	binary.BigEndian.PutUint16(t[16:], ^checksum.Checksum(t, pseudo(syn.dst.Addr(), syn.src.Addr(), protoTCP, sizeTCP)))
	return b
}

// unreachable is why a packet does not get there, as ICMP says it (RFC 792, RFC 1812 5.2.7.1,
// RFC 4443 3.1).
type unreachable uint8

const (
	noNetwork unreachable = iota
	noHost
	noPort
	prohibited
	tooBig
)

var (
	codes4 = [...]byte{noNetwork: 0, noHost: 1, noPort: 3, prohibited: 13, tooBig: 4}
	codes6 = [...]byte{noNetwork: 0, noHost: 3, noPort: 4, prohibited: 1}
)

// icmpError is what a router or the host itself says of p. mtu is of tooBig.
func icmpError(p *packet, why unreachable, mtu int) []byte {
	from := p.dst.Addr()
	most := 576 - sizeIPv4 - sizeEcho // RFC 1812, 4.3.2.3
	proto := uint8(protoICMP)
	if p.v6 {
		most, proto = 1280-sizeIPv6-sizeEcho, protoICMP6 // RFC 4443, 2.4 (c)
	}
	if from.IsMulticast() || !p.v6 && from == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return nil // nobody answers for many (RFC 1122, 3.2.2)
	}
	quoted := p.whole[:min(len(p.whole), most)]
	size := sizeEcho + len(quoted)
	b := ipHeader(make([]byte, 0, sizeIPv6+size), from, p.src.Addr(), proto, size)
	at := len(b)
	b = append(append(b, make([]byte, sizeEcho)...), quoted...)
	t := b[at:]
	switch {
	case p.v6 && why == tooBig:
		t[0] = 2
		binary.BigEndian.PutUint32(t[4:], uint32(mtu))
	case p.v6:
		t[0], t[1] = 1, codes6[why]
	default:
		t[0], t[1] = 3, codes4[why]
		if why == tooBig {
			binary.BigEndian.PutUint16(t[6:], uint16(mtu))
		}
	}
	sum := uint16(0)
	if p.v6 {
		sum = pseudo(from, p.src.Addr(), protoICMP6, size)
	}
	binary.BigEndian.PutUint16(t[2:], ^checksum.Checksum(t, sum))
	return b
}

// udpPacket is a datagram to the box.
func udpPacket(src, dst netip.AddrPort, data []byte) []byte {
	size := sizeUDP + len(data)
	b := ipHeader(make([]byte, 0, sizeIPv6+size), src.Addr(), dst.Addr(), protoUDP, size)
	at := len(b)
	b = append(append(b, make([]byte, sizeUDP)...), data...)
	t := b[at:]
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	binary.BigEndian.PutUint16(t[4:], uint16(size))
	sum := ^checksum.Checksum(t, pseudo(src.Addr(), dst.Addr(), protoUDP, size))
	if sum == 0 {
		sum = 0xffff // 0 is for none
	}
	binary.BigEndian.PutUint16(t[6:], sum)
	return b
}

// echoReply is what comes back of an echo request.
func echoReply(src, dst netip.Addr, id uint16, seq uint16, data []byte) []byte {
	size := sizeEcho + len(data)
	proto, kind := uint8(protoICMP), byte(0)
	if src.Is6() {
		proto, kind = protoICMP6, 129
	}
	b := ipHeader(make([]byte, 0, sizeIPv6+size), src, dst, proto, size)
	at := len(b)
	b = append(append(b, make([]byte, sizeEcho)...), data...)
	t := b[at:]
	t[0] = kind
	binary.BigEndian.PutUint16(t[4:], id)
	binary.BigEndian.PutUint16(t[6:], seq)
	sum := uint16(0)
	if src.Is6() {
		sum = pseudo(src, dst, protoICMP6, size)
	}
	binary.BigEndian.PutUint16(t[2:], ^checksum.Checksum(t, sum))
	return b
}
