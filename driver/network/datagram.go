package network

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sandglass/sandglass/core"
	"github.com/sandglass/sandglass/driver/sys"
)

// datagrams are what goes between two addresses without a connection: UDP, or echo requests
// and their replies. Outside it is a connected socket, so that only the one that was written
// to can answer, and so that the kernel says what routers and the other side said.
type datagrams struct {
	*flow
	conn *net.UDPConn // of UDP
	echo *echoSocket  // of echo requests
	raw  syscall.RawConn
	back func(data []byte) // gives the box what has come

	lastUsed atomic.Int64 // Unix nanoseconds
	answered atomic.Bool

	mu     sync.Mutex
	quoted []byte // the last packet of the box, for ICMP to quote
	held   [][]byte
	asked  bool // a person is being asked
}

const (
	maxDatagrams  = 4096 // flows of them at a time
	maxHeld       = 16   // packets of one that waits for a person
	idleUnheard   = 30 * time.Second
	idleAnswered  = 180 * time.Second
	maxQuotedSize = 1280
)

// datagram takes a UDP packet of the box's.
func (n *Network) datagram(p *packet, known *flow) {
	data := p.segment[sizeUDP:]
	if p.dst.Port() == 53 {
		n.question(p, data)
		return
	}
	if v, ok := n.peers.Load(p.key()); ok {
		d := v.(*datagrams)
		n.capturePacket(true, p.whole, d.flow)
		d.send(p, data)
		return
	}
	if known != nil {
		return // it has just ended
	}
	n.mu.RLock()
	in := n.inbound[p.dst]
	n.mu.RUnlock()
	if in != nil && in.key.local == p.src {
		n.capturePacket(true, p.whole, in.flow)
		in.lastUsed.Store(time.Now().UnixNano())
		if lim := n.up; lim != nil && !lim.AllowN(time.Now(), min(len(data), lim.Burst())) || in.ctx.Err() != nil {
			return
		}
		in.pktsOut.Add(1)
		in.sent.Add(uint64(len(data)))
		n.carry(len(data), nil)
		in.back(data)
		return
	}
	d := n.begin("udp", p)
	if d != nil {
		d.send(p, data)
	}
}

// begin makes a flow of datagrams, or nil when there is to be none: then the box has been
// told.
func (n *Network) begin(proto string, p *packet) *datagrams {
	owner := n.owners.of(proto, p.src, p.dst)
	v := n.describe(proto, p.dst, owner)
	dec := n.decide(&v)
	act := core.ActSend
	if proto == "icmp" {
		act = core.ActConnect
	}
	if dec.Stance == core.Block {
		n.capturePacket(true, p.whole, nil)
		n.refuse(&v, p.key(), act, owner, dec.Rule, v.refusal())
		why := prohibited
		if v.refusal() == syscall.ECONNREFUSED {
			why = noPort
		}
		n.write(nil, icmpError(p, why, 0))
		return nil
	}
	if n.count.Add(1) > maxDatagrams {
		n.count.Add(-1)
		n.evict()
		return nil // lost, as on any network that has too much
	}
	f := n.admit(p.key(), v, owner)
	if f == nil {
		n.count.Add(-1)
		return nil
	}
	// What has changed since then has found the flow, or is found here.
	if again := n.decide(&v); again.Stance == core.Block {
		n.count.Add(-1)
		f.finish("policy", "")
		n.refuse(&v, p.key(), act, owner, again.Rule, v.refusal())
		n.write(nil, icmpError(p, prohibited, 0))
		return nil
	}
	n.capturePacket(true, p.whole, f)
	d := &datagrams{flow: f}
	d.lastUsed.Store(time.Now().UnixNano())
	d.quoted = bytes.Clone(p.whole[:min(len(p.whole), maxQuotedSize)])
	n.peers.Store(f.key, d)
	context.AfterFunc(f.ctx, func() {
		n.peers.Delete(f.key)
		n.count.Add(-1)
	})
	if dec.Stance == core.Ask {
		d.asked = true
		n.wg.Go(func() {
			dec := n.ask(f, dec)
			d.mu.Lock()
			defer d.mu.Unlock()
			d.asked = false
			if dec.Stance != core.Allow {
				n.refuse(&v, p.key(), act, owner, dec.Rule, v.refusal())
				f.finish("policy", "")
				n.write(nil, icmpError(d.packet(), prohibited, 0))
				return
			}
			if d.open(act, dec.Rule) {
				for _, whole := range d.held {
					if hp, ok := parsePacket(whole); ok {
						d.pass(&hp, hp.segment[sizeUDP:])
					}
				}
				d.held = nil
			}
		})
		return d
	}
	if !d.open(act, dec.Rule) {
		return nil
	}
	return d
}

func (d *datagrams) packet() *packet {
	p, _ := parsePacket(d.quoted)
	p.whole = d.quoted
	return &p
}

// open makes the socket outside and begins to listen to it.
func (d *datagrams) open(act core.Action, rule string) bool {
	d.begin(act, rule, nil)
	var err error
	if d.Proto == "icmp" {
		err = d.openEcho()
	} else {
		err = d.openUDP()
	}
	if err != nil {
		d.unreachable(err)
		return false
	}
	return true
}

func (d *datagrams) openUDP() error {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(d.Addr))
	if err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		c.Close()
		return err
	}
	d.conn, d.raw = c, raw
	box, far := d.key.local, d.key.remote
	d.back = func(data []byte) { d.n.write(d.flow, udpPacket(far, box, data)) }
	context.AfterFunc(d.ctx, func() { c.Close() })
	d.n.wg.Go(func() { d.listen(d.raw, c.SetReadDeadline, nil) })
	return nil
}

// send passes on what the box sends.
func (d *datagrams) send(p *packet, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asked {
		if len(d.held) < maxHeld {
			d.held = append(d.held, bytes.Clone(p.whole))
		}
		return
	}
	d.pass(p, data)
}

// pass is send, with d.mu held.
func (d *datagrams) pass(p *packet, data []byte) {
	d.pktsOut.Add(1)
	d.quoted = append(d.quoted[:0], p.whole[:min(len(p.whole), maxQuotedSize)]...)
	d.lastUsed.Store(time.Now().UnixNano())
	if lim := d.n.up; lim != nil && !lim.AllowN(time.Now(), min(len(data), lim.Burst())) {
		return // over the rate: lost, as on a slow link
	}
	var err error
	if d.Proto == "icmp" {
		err = d.sendEcho(p)
	} else {
		err = d.write(p, data, p.df)
		if errors.Is(err, syscall.EMSGSIZE) {
			// In the box all fits the link, so that its kernel forbids fragments of what any program
			// sends (IP_PMTUDISC_WANT, ip(7)): it would make them itself, did it know the real link.
			err = d.write(p, data, false)
		}
	}
	switch {
	case err == nil:
		d.sent.Add(uint64(len(data)))
		d.n.carry(len(data), nil)
	case errors.Is(err, syscall.EMSGSIZE):
		mtu := 1280
		d.raw.Control(func(fd uintptr) {
			if m, ok := sys.PathMTU(int(fd), p.v6); ok {
				mtu = m
			}
		})
		if mtu < len(p.whole) {
			d.n.write(d.flow, icmpError(p, tooBig, mtu))
		}
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOBUFS), errors.Is(err, net.ErrClosed):
	default:
		d.said(err)
	}
}

// write sends a datagram, whole or not at all when one says so.
func (d *datagrams) write(p *packet, data []byte, one bool) error {
	d.raw.Control(func(fd uintptr) { sys.ForbidFragments(int(fd), p.v6, one) })
	_, err := d.conn.Write(data)
	return err
}

// said gives the box what the network says of its packets. The flow goes on.
func (d *datagrams) said(err error) {
	why, ok := whyUnreachable(err)
	if !ok {
		return
	}
	if answer := icmpError(d.packet(), why, 0); answer != nil {
		d.n.write(d.flow, answer)
	}
}

func whyUnreachable(err error) (unreachable, bool) {
	e, ok := errnoOf(err)
	if !ok {
		return 0, false
	}
	switch e {
	case syscall.ECONNREFUSED:
		return noPort, true
	case syscall.ENETUNREACH:
		return noNetwork, true
	case syscall.EHOSTUNREACH, syscall.EHOSTDOWN:
		return noHost, true
	case syscall.EACCES, syscall.EPERM:
		return prohibited, true
	}
	return noHost, false
}

// unreachable ends a flow that could not even begin. d.mu is held, or nobody has d yet.
func (d *datagrams) unreachable(err error) {
	why, _ := whyUnreachable(err)
	d.finish("unreachable", errnoName(err))
	if answer := icmpError(d.packet(), why, 0); answer != nil {
		d.n.write(nil, answer)
	}
}

// listen gives the box what comes, until nothing has for long enough. accept, when not
// nil, takes a message apart and says whether it is one.
func (d *datagrams) listen(raw syscall.RawConn, deadline func(time.Time) error, accept func([]byte) ([]byte, bool)) {
	for {
		idle := idleUnheard
		if d.answered.Load() {
			idle = idleAnswered
		}
		until := time.Unix(0, d.lastUsed.Load()).Add(idle)
		if time.Now().After(until) {
			d.finish("timeout", "")
			return
		}
		if deadline(until) != nil {
			d.finish("timeout", "")
			return
		}
		b, k, err := readSome(raw)
		if err == io.EOF {
			err = nil // a datagram of nothing
		}
		if b == nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			}
			d.finish("timeout", "")
			return
		}
		if err == nil {
			d.came((*b)[:k], accept)
		}
		chunks.Put(b)
		if err != nil {
			d.mu.Lock()
			d.said(err)
			d.mu.Unlock()
		}
		if d.ctx.Err() != nil {
			return
		}
	}
}

func (d *datagrams) came(data []byte, accept func([]byte) ([]byte, bool)) {
	if accept != nil {
		var ok bool
		if data, ok = accept(data); !ok {
			return
		}
	}
	d.answered.Store(true)
	d.lastUsed.Store(time.Now().UnixNano())
	if lim := d.n.down; lim != nil && !lim.AllowN(time.Now(), min(len(data), lim.Burst())) {
		return
	}
	d.pktsIn.Add(1)
	d.received.Add(uint64(len(data)))
	d.n.carry(len(data), nil)
	d.back(data)
}

// evict ends the flow of datagrams that was used longest ago.
func (n *Network) evict() {
	var oldest *datagrams
	n.peers.Range(func(_, v any) bool {
		if d := v.(*datagrams); oldest == nil || d.lastUsed.Load() < oldest.lastUsed.Load() {
			oldest = d
		}
		return true
	})
	if oldest != nil {
		oldest.finish("timeout", "")
	}
}

// question has the resolver answer a datagram.
func (n *Network) question(p *packet, data []byte) {
	n.capturePacket(true, p.whole, nil)
	select {
	case n.questions <- struct{}{}:
	default:
		return // it will be asked again
	}
	owner := n.owners.of("udp", p.src, p.dst)
	box, server, query := p.src, p.dst, bytes.Clone(data)
	n.wg.Go(func() {
		defer func() { <-n.questions }()
		asked := netip.AddrPortFrom(server.Addr().Unmap(), server.Port())
		if a := n.resolver.answer(n.ctx, query, false, owner, asked); a != nil {
			n.write(nil, udpPacket(server, box, a))
		}
	})
}
