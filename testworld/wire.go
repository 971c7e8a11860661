package testworld

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// markPort is where marks on the wire go: a datagram that says how far one has heard.
const markPort = 9

// firstPackets lets through of an interface's packets those that begin a flow: of TCP the
// SYN alone, and all else whole. Without it, bulk would crowd out what counts. Classic BPF
// on a packet that begins with its IP header.
var firstPackets = []syscall.SockFilter{
	{Code: 0x30, K: 0},                // 0: A = first byte
	{Code: 0x74, K: 4},                // 1: A >>= 4
	{Code: 0x15, Jt: 0, Jf: 6, K: 4},  // 2: IPv4? else 9
	{Code: 0x30, K: 9},                // 3: A = protocol
	{Code: 0x15, Jt: 0, Jf: 10, K: 6}, // 4: TCP? else take it
	{Code: 0xb1, K: 0},                // 5: X = header's length
	{Code: 0x50, K: 13},               // 6: A = flags
	{Code: 0x54, K: 0x12},             // 7: A &= SYN|ACK
	{Code: 0x15, Jt: 6, Jf: 7, K: 2},  // 8: SYN alone?
	{Code: 0x15, Jt: 0, Jf: 6, K: 6},  // 9: IPv6? else leave it
	{Code: 0x30, K: 6},                // 10: A = next header
	{Code: 0x15, Jt: 0, Jf: 3, K: 6},  // 11: TCP? else take it
	{Code: 0x30, K: 40 + 13},          // 12: A = flags
	{Code: 0x54, K: 0x12},             // 13: A &= SYN|ACK
	{Code: 0x15, Jt: 0, Jf: 1, K: 2},  // 14: SYN alone?
	{Code: 0x06, K: 512},              // 15: take it
	{Code: 0x06, K: 0},                // 16: leave it
}

// watchWire keeps a record of every flow that comes in by an interface.
func (s *internetState) watchWire(name string) error {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	const all = syscall.ETH_P_ALL<<8 | syscall.ETH_P_ALL>>8 // network byte order
	fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	//lint:ignore SA1019 golang.org/x/net is another package's door, and this one is not going away
	if err := syscall.AttachLsf(fd, firstPackets); err != nil {
		return fmt.Errorf("filter of the packet socket: %w", err)
	}
	const rcvbufForce, rcvbuf = 33, 8 << 20 // SO_RCVBUFFORCE, socket(7)
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, rcvbufForce, rcvbuf); err != nil {
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, rcvbuf)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}); err != nil {
		return fmt.Errorf("bind the packet socket: %w", err)
	}
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := syscall.Recvfrom(fd, buf, 0)
			if err == syscall.EINTR {
				continue
			}
			if err != nil {
				return
			}
			if ll, ok := from.(*syscall.SockaddrLinklayer); ok && ll.Pkttype == syscall.PACKET_OUTGOING {
				continue
			}
			if h, ok := readPacket(buf[:n]); ok {
				s.journal.add(h)
			}
		}
	}()
	return nil
}

// readPacket says what a packet is, unless it is the link's own business: neighbours,
// routers and multicast groups.
func readPacket(b []byte) (h Heard, ok bool) {
	h.Server = "wire"
	var proto byte
	var src, dst netip.Addr
	var rest []byte
	switch {
	case len(b) >= 20 && b[0]>>4 == 4 && len(b) >= int(b[0]&15)*4:
		proto, rest = b[9], b[int(b[0]&15)*4:]
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	case len(b) >= 40 && b[0]>>4 == 6:
		proto, rest = b[6], b[40:]
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	default:
		return h, false
	}
	var sport, dport uint16
	ports := func() {
		if len(rest) >= 8 {
			sport, dport = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
		}
	}
	switch proto {
	case syscall.IPPROTO_TCP:
		h.Proto = "tcp"
		ports()
		if len(rest) > 20 && int(rest[12]>>4)*4 <= len(rest) { // fast open
			h.What = string(rest[int(rest[12]>>4)*4:])
		}
	case syscall.IPPROTO_UDP:
		h.Proto = "udp"
		ports()
		if len(rest) > 8 {
			h.What = string(rest[8:])
		}
	case syscall.IPPROTO_ICMP, syscall.IPPROTO_ICMPV6:
		if len(rest) < 8 || proto == syscall.IPPROTO_ICMPV6 && rest[0] >= 130 {
			return h, false
		}
		h.Proto, h.What = "icmp", string(rest[8:])
	case 0: // hop-by-hop options: of multicast listeners
		return h, false
	case syscall.IPPROTO_IGMP:
		return h, false
	default:
		h.Proto, h.What = fmt.Sprint("ip ", proto), string(rest)
	}
	h.From, h.To = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return h, true
}
