package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/sandglass/sandglass/core"
)

// publish listens outside for the box. Who connects is a flow like any other, whose other
// side began it.
func (n *Network) publish(p core.Publish) error {
	if p.Proto == "udp" {
		return n.publishUDP(p)
	}
	l, err := net.Listen("tcp", p.Listen.String())
	if err != nil {
		return core.Hint(fmt.Errorf("publish %s: %w", p, err), "another program listens there, or the address is not this machine's")
	}
	context.AfterFunc(n.ctx, func() { l.Close() })
	n.published(p, l.Addr().String())
	n.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				if n.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
					return
				}
				if !rest(n.ctx, 50*time.Millisecond) { // no descriptor is free, say
					return
				}
				continue
			}
			if n.full.Load() { // as much as the limit lets it carry
				abort(c)
				continue
			}
			select {
			case n.openings <- struct{}{}:
				n.wg.Go(func() { n.accepted(p, c.(*net.TCPConn)) })
			default:
				abort(c)
			}
		}
	})
	return nil
}

// published logs that a port of this machine is open, and where.
func (n *Network) published(p core.Publish, at string) {
	n.log(&core.Operation{Surface: core.NetIn, Action: core.ActListen, Target: at, Verdict: core.Allowed, Outcome: core.Performed,
		Rule: "publish " + p.String(), Leak: true, Detail: core.Detail{"proto": p.Proto, "port": strconv.Itoa(int(p.Port))}})
}

// accepted connects one that has come in with the box's server.
func (n *Network) accepted(p core.Publish, c *net.TCPConn) {
	opening := true
	opened := func() {
		if opening {
			opening = false
			<-n.openings
		}
	}
	defer opened()
	from := addrPortOf(c.RemoteAddr())
	wq := &waiter.Queue{}
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, ipv4.ProtocolNumber, wq)
	if terr != nil {
		abort(c)
		return
	}
	in := &inner{ep: ep, wq: wq}
	if terr := ep.Bind(tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(Resolver4.As4())}); terr != nil {
		ep.Abort()
		abort(c)
		return
	}
	local, _ := ep.GetLocalAddress()
	box := netip.AddrPortFrom(Box4, p.Port)
	key := flowKey{protoTCP, box, netip.AddrPortFrom(Resolver4, local.Port)}
	f := n.admit(key, described{Flow: core.Flow{Proto: "tcp", Addr: from, Place: n.placeOf(from.Addr()), Heard: true}, surface: core.NetIn}, n.owners.of("tcp", box, key.remote))
	if f == nil {
		ep.Abort()
		abort(c)
		return
	}
	f.begin(core.ActAccept, "publish "+p.String(), core.Detail{"port": strconv.Itoa(int(p.Port))})
	ctx, cancel := context.WithTimeout(f.ctx, helloPatience)
	defer cancel()
	started := false
	var err error
	werr := in.wait(ctx, waiter.WritableEvents, func() bool {
		if !started {
			started = true
			if terr := ep.Connect(tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFrom4(Box4.As4()), Port: p.Port}); terr != nil {
				if _, ok := terr.(*tcpip.ErrConnectStarted); !ok {
					err = readError(terr)
					return true
				}
			}
			return false
		}
		err = readError(ep.LastError())
		return true
	})
	if err == nil {
		err = werr
	}
	if err != nil {
		ep.Abort()
		abort(c)
		f.finish("refused", errnoName(err))
		return
	}
	opened()
	ep.SocketOptions().SetDelayOption(false)
	f.watchRoundTrip(c)
	f.inbound(in, c)
}

// inbound carries a flow that came in: what comes from outside goes to the box.
func (f *flow) inbound(in *inner, c net.Conn) {
	defer in.ep.Close()
	defer c.Close()
	f.carryBoth(in, c, nil)
}

func addrPortOf(a net.Addr) netip.AddrPort {
	ap, _ := netip.ParseAddrPort(a.String())
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// publishUDP passes datagrams on. Each peer outside gets a port of the supervisor's own side
// for as long as it talks.
func (n *Network) publishUDP(p core.Publish) error {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(p.Listen))
	if err != nil {
		return core.Hint(fmt.Errorf("publish %s: %w", p, err), "another program listens there, or the address is not this machine's")
	}
	context.AfterFunc(n.ctx, func() { c.Close() })
	n.published(p, c.LocalAddr().String())
	n.wg.Go(func() {
		buf := make([]byte, chunk)
		peers := map[netip.AddrPort]*datagrams{}
		for {
			k, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				if n.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
					return
				}
				continue // what an earlier answer has come back with
			}
			if n.full.Load() {
				continue
			}
			d := peers[from]
			if d == nil || d.ctx.Err() != nil {
				if d = n.peer(p, c, from); d == nil {
					continue
				}
				for a, old := range peers { // bounded by those that live, which are bounded
					if old.ctx.Err() != nil {
						delete(peers, a)
					}
				}
				peers[from] = d
			}
			d.lastUsed.Store(time.Now().UnixNano())
			if lim := n.down; lim != nil && !lim.AllowN(time.Now(), min(k, lim.Burst())) {
				continue
			}
			d.pktsIn.Add(1)
			d.received.Add(uint64(k))
			n.carry(k, nil)
			n.write(d.flow, udpPacket(d.key.remote, d.key.local, buf[:k]))
		}
	})
	return nil
}

const firstPeerPort, lastPeerPort = 32768, 60999

// peer makes the flow of one that sends to a published port.
func (n *Network) peer(p core.Publish, c *net.UDPConn, from netip.AddrPort) *datagrams {
	box := netip.AddrPortFrom(Box4, p.Port)
	addr := netip.AddrPortFrom(from.Addr().Unmap().WithZone(""), from.Port())
	f := &flow{n: n, described: described{Flow: core.Flow{Proto: "udp", Addr: addr, Place: n.placeOf(addr.Addr()), Heard: true}, surface: core.NetIn}, start: time.Now()}
	f.ctx, f.cancel = context.WithCancel(n.ctx)
	d := &datagrams{flow: f}
	d.back = func(data []byte) { c.WriteToUDPAddrPort(data, from) }
	d.lastUsed.Store(time.Now().UnixNano())
	n.mu.Lock()
	if !n.closed && len(n.inbound) < maxDatagrams {
		for port := firstPeerPort; port <= lastPeerPort; port++ {
			a := netip.AddrPortFrom(Resolver4, uint16(port))
			if n.inbound[a] == nil {
				f.key = flowKey{protoUDP, box, a}
				f.id = n.next.Add(1)
				n.inbound[a] = d
				break
			}
		}
	}
	n.mu.Unlock()
	if f.id == 0 {
		f.cancel()
		return nil
	}
	context.AfterFunc(f.ctx, func() {
		n.mu.Lock()
		delete(n.inbound, f.key.remote)
		n.mu.Unlock()
	})
	f.begin(core.ActAccept, "publish "+p.String(), core.Detail{"port": strconv.Itoa(int(p.Port))})
	n.wg.Go(func() {
		for {
			left := time.Until(time.Unix(0, d.lastUsed.Load()).Add(idleAnswered))
			if left <= 0 {
				f.finish("timeout", "")
				return
			}
			if !rest(f.ctx, left) {
				return
			}
		}
	})
	return d
}
