package network

import (
	"fmt"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const nic = 1

// Buffers of the stack's TCP. What a flow has in them grows with how fast it is; a slow or
// idle one holds next to nothing.
const (
	tcpBufferMin     = 4 << 10
	tcpBufferDefault = 1 << 20
	tcpBufferMax     = 8 << 20
	timeWait         = time.Second // both ends of the link are this machine: nothing arrives late
	linger           = 60 * time.Second
)

// newStack makes the stack that ends the box's TCP. Other protocols never get to it.
func (n *Network) newStack() error {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol},
	})
	n.stack, n.link = s, &link{n: n}
	fail := func(what string, err tcpip.Error) error { return fmt.Errorf("TCP/IP stack: %s: %s", what, err) }
	if err := s.CreateNIC(nic, n.link); err != nil {
		return fail("interface", err)
	}
	for _, a := range []tcpip.ProtocolAddress{
		{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(Resolver4.As4()).WithPrefix()},
		{Protocol: ipv6.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom16(Resolver6.As16()).WithPrefix()},
	} {
		if err := s.AddProtocolAddress(nic, a, stack.AddressProperties{}); err != nil {
			return fail("address", err)
		}
	}
	// It takes what is for anybody, and answers as whoever that is.
	if err := s.SetPromiscuousMode(nic, true); err != nil {
		return fail("promiscuous mode", err)
	}
	if err := s.SetSpoofing(nic, true); err != nil {
		return fail("spoofing", err)
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	wait, lingers := tcpip.TCPTimeWaitTimeoutOption(timeWait), tcpip.TCPLingerTimeoutOption(linger)
	recovery := tcpip.TCPRecovery(0) // the link loses next to nothing, and RACK costs for each segment
	for _, opt := range []tcpip.SettableTransportProtocolOption{&sack, &moderate, &wait, &lingers, &recovery,
		&tcpip.TCPReceiveBufferSizeRangeOption{Min: tcpBufferMin, Default: tcpBufferDefault, Max: tcpBufferMax},
		&tcpip.TCPSendBufferSizeRangeOption{Min: tcpBufferMin, Default: tcpBufferDefault, Max: tcpBufferMax}} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, opt); err != nil {
			return fail("option", err)
		}
	}
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, tcpBufferDefault, maxOpenings, n.forward).HandlePacket)
	return nil
}

// link is the stack's side of the tun device.
type link struct {
	n    *Network
	disp atomic.Pointer[stack.NetworkDispatcher]
}

var _ stack.LinkEndpoint = (*link)(nil)

// inject gives the stack a packet of the box, which it copies.
func (l *link) inject(v6 bool, b []byte) {
	d := l.disp.Load()
	if d == nil {
		return
	}
	proto := ipv4.ProtocolNumber
	if v6 {
		proto = ipv6.ProtocolNumber
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	(*d).DeliverNetworkPacket(proto, pkt)
	pkt.DecRef()
}

// WritePackets hands the stack's packets to the box.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	for i, pkt := range pkts.AsSlice() {
		if err := l.n.writeSegment(pkt); err != nil {
			return i, err
		}
	}
	return pkts.Len(), nil
}

func (l *link) MTU() uint32                      { return MTU }
func (l *link) SetMTU(uint32)                    {}
func (l *link) MaxHeaderLength() uint16          { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress   { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress) {}
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload | stack.CapabilityTXChecksumOffload
}
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.disp.Store(nil)
		return
	}
	l.disp.Store(&d)
}
func (l *link) IsAttached() bool                        { return l.disp.Load() != nil }
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}
