package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"

	"github.com/sandglass/sandglass/driver/sys"
)

// echo takes an echo request of the box's. Nothing here answers for another: what comes
// back is what the host has answered.
func (n *Network) echo(p *packet, known *flow) {
	if a := p.dst.Addr(); a == Resolver4 || a == Resolver6 { // ourselves
		n.capturePacket(true, p.whole, nil)
		n.write(nil, echoReply(a, p.src.Addr(), p.src.Port(), binary.BigEndian.Uint16(p.segment[6:]), p.segment[sizeEcho:]))
		return
	}
	if v, ok := n.peers.Load(p.key()); ok {
		d := v.(*datagrams)
		n.capturePacket(true, p.whole, d.flow)
		d.send(p, p.segment[sizeEcho:])
		return
	}
	if known != nil {
		return
	}
	if d := n.begin("icmp", p); d != nil {
		d.send(p, p.segment[sizeEcho:])
	}
}

// echoSocket is the socket of a flow of echo requests.
type echoSocket struct {
	f   *os.File
	raw bool
	id  uint16 // of a raw one
}

func (d *datagrams) openEcho() error {
	v6 := d.Addr.Addr().Is6()
	fd, raw, err := sys.PingSocket(v6)
	if err != nil {
		return fmt.Errorf("socket for echo requests: %w", err)
	}
	var addr []byte // struct sockaddr_in or sockaddr_in6
	a := d.Addr.Addr()
	if v6 {
		addr = append(binary.NativeEndian.AppendUint16(nil, syscall.AF_INET6), make([]byte, 6)...)
		addr = append(append(addr, a.AsSlice()...), 0, 0, 0, 0)
	} else {
		addr = append(binary.NativeEndian.AppendUint16(nil, syscall.AF_INET), 0, 0)
		addr = append(append(addr, a.AsSlice()...), make([]byte, 8)...)
	}
	if e := sys.Connect(fd, addr); e != 0 {
		sys.CloseFD(fd)
		return e
	}
	s := &echoSocket{f: os.NewFile(uintptr(fd), "echo"), raw: raw, id: uint16(d.id) ^ uint16(os.Getpid())}
	d.echo = s
	if d.raw, err = s.f.SyscallConn(); err != nil {
		s.f.Close()
		return err
	}
	box, id := d.key.local.Addr(), d.key.local.Port()
	d.back = func(m []byte) {
		d.n.write(d.flow, echoReply(a, box, id, binary.BigEndian.Uint16(m), m[2:]))
	}
	context.AfterFunc(d.ctx, func() { s.f.Close() })
	d.n.wg.Go(func() { d.listen(d.raw, s.f.SetReadDeadline, func(m []byte) ([]byte, bool) { return s.reply(m, a) }) })
	return nil
}

// reply takes a message apart: sequence number and data of a reply to one of ours.
func (s *echoSocket) reply(m []byte, from netip.Addr) ([]byte, bool) {
	want := byte(0)
	if from.Is6() {
		want = 129
	} else if s.raw { // with its IP header (raw(7))
		if len(m) < sizeIPv4 || int(m[0]&15)*4 > len(m) {
			return nil, false
		}
		m = m[int(m[0]&15)*4:]
	}
	if len(m) < sizeEcho || m[0] != want || s.raw && binary.BigEndian.Uint16(m[4:]) != s.id {
		return nil, false
	}
	return m[6:], true
}

// sendEcho passes an echo request on.
func (d *datagrams) sendEcho(p *packet) error {
	m := make([]byte, len(p.segment))
	copy(m, p.segment)
	binary.BigEndian.PutUint16(m[4:], d.echo.id) // the kernel's own, where it is not raw
	m[2], m[3] = 0, 0
	if !p.v6 {
		binary.BigEndian.PutUint16(m[2:], ^checksum.Checksum(m, 0))
	}
	var werr error
	err := d.raw.Control(func(fd uintptr) { _, werr = syscall.Write(int(fd), m) })
	if err != nil {
		return net.ErrClosed
	}
	return werr
}
